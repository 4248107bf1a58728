"""An open page while a run goes on: what happens arrives, and a stream that was cut tells the rest, each event once."""

import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from coordinator.logs import Logs
from coordinator.store import Store

stream = pytest.importorskip("coordinator.dashboard.stream", reason="pip install 'archfleet[dashboard]'")

EPOCH_UNIX = 1_700_000_000.0
PATIENCE_SECONDS = 60.0
IS_AT_END = """() => {
  const text = document.querySelector(".attempt-log");
  return text.scrollTop > 0 && text.scrollHeight - text.scrollTop - text.clientHeight < 4;
}"""


def wait_for_events(visit, num: int) -> list[int]:
    """Numbers of the events that the page was told, once there are so many."""
    until = time.monotonic() + PATIENCE_SECONDS
    while len(seqs := visit.page.evaluate("window.seqs")) < num and time.monotonic() < until:
        visit.page.wait_for_timeout(100)
    return seqs


def test_events_arrive_and_a_cut_stream_goes_on_without_gap_or_repeat(
    visit, serve, tmp_path: Path, study, world, make_driver
):
    run = tmp_path / "quick-20260101-000000"
    with Store.create(run, study, now_unix=EPOCH_UNIX) as store:
        driver = make_driver(store, world)
        driver.plan()
        first, second, third, *_ = driver.queued()
        with serve(run, port=0) as listening:
            opened = visit(listening.url)
            port = urlsplit(listening.url).port
            opened.go("/")
            opened.page.wait_for_selector("#live[data-state=live], #live[data-state=ended]")
            before = store.last_seq()
            driver.run_trial(first)
            assert wait_for_events(opened, 2) == [before + 1, before + 2]
            assert opened.page.locator(f".event-list a[href='/trials/{first}']").count() >= 1
        driver.run_trial(second)  # while nobody serves
        with serve(run, port=port):
            assert wait_for_events(opened, 4) == [before + 1, before + 2, before + 3, before + 4]
            driver.run_trial(third)
            assert wait_for_events(opened, 6) == list(range(before + 1, before + 7))


def test_a_page_too_far_behind_is_fetched_anew(
    visit, serve, tmp_path: Path, study, world, make_driver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "MAX_BEHIND", 3)  # events
    run = tmp_path / "quick-20260101-000000"
    with Store.create(run, study, now_unix=EPOCH_UNIX) as store:
        driver = make_driver(store, world)
        driver.plan()
        first, second, *_ = driver.queued()
        with serve(run, port=0) as listening:
            opened = visit(listening.url)
            port = urlsplit(listening.url).port
            opened.go("/")
            opened.page.wait_for_selector("#live[data-state=live], #live[data-state=ended]")
        driver.run_trial(first)  # more than three events while nobody serves
        driver.run_trial(second)
        before = store.last_seq()
        with serve(run, port=port):
            opened.page.locator(f".event-list a[href='/trials/{second}']").first.wait_for()
            assert opened.page.locator(".progress-count b").inner_text() == "2"
            assert opened.page.evaluate("window.seqs") == []  # told by the page, not by the stream
            third = driver.queued()[0]
            driver.run_trial(third)
            assert wait_for_events(opened, 2) == [before + 1, before + 2]


def test_the_log_of_a_running_trial_is_followed_to_its_end(visit, serve, tmp_path: Path, study, world, make_driver):
    run = tmp_path / "quick-20260101-000000"
    with Store.create(run, study, now_unix=EPOCH_UNIX) as store:
        driver = make_driver(store, world)
        driver.plan()
        first, second, *_ = driver.queued()
        driver.lease(first)
        logs = Logs(run)
        logs.add(first, 1, "".join(f"step {step}\n" for step in range(400)))
        logs.write()
        with serve(run, port=0) as listening:
            opened = visit(listening.url)
            opened.go(f"/trials/{first}")
            text = opened.page.locator(".attempt-log")
            assert "step 399" in text.inner_text()
            opened.page.wait_for_function(IS_AT_END)
            logs.add(first, 1, "the last word\n")
            logs.write()
            driver.run_trial(second)  # an event: the page asks again
            text.filter(has_text="the last word").wait_for()
            opened.page.wait_for_function(IS_AT_END)
