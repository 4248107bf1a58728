"""An open page while a run goes on: what happens arrives, and a stream that was cut tells the rest, each event once."""

import time
from pathlib import Path
from urllib.parse import urlsplit

from coordinator.store import Store

EPOCH_UNIX = 1_700_000_000.0
PATIENCE_SECONDS = 20.0


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
