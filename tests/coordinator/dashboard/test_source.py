"""RunSource: an answer is kept while the store tells the same, made anew when it does not, and is of one moment."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.dashboard.source import FIGURES_SHARE, FRESH_SECONDS, RunSource
from coordinator.database import Database
from coordinator.errors import StoreError
from coordinator.figures.catalogue import figure, figures_of
from coordinator.record import read_record
from coordinator.store import FILE_NAME, Store


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_500.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(run_copy: Path, clock: Clock) -> Iterator[RunSource]:
    opened = RunSource(run_copy, wall=clock, is_held=lambda _: False)
    yield opened
    opened.close()


def plain(answer) -> dict:
    assert answer is not None
    return json.loads(answer.body)


def test_the_same_facts_give_the_same_answer_at_once(source: RunSource, clock: Clock) -> None:
    assert source.study() is source.study()
    clock.now += 1000
    assert source.study() is source.study()
    assert source.figure("loss-x") is source.figure("loss-x")


def test_an_etag_stays_while_only_the_clock_goes_on(source: RunSource, clock: Clock) -> None:
    before = source.hardware()
    clock.now += 2 * FRESH_SECONDS
    after = source.hardware()
    assert after is not before
    assert after.etag == before.etag
    assert plain(after)["unix"] != plain(before)["unix"]


def test_a_new_fact_gives_new_answers_everywhere(source: RunSource, clock: Clock, run_copy: Path) -> None:
    def everything() -> list[str]:
        answers = [source.overview(), source.study(), source.hardware(), source.recommendation()]
        return [answer.etag for answer in [*answers, source.trials(after=0, limit=1)]]

    before, seq = everything(), plain(source.overview())["seq"]
    with Store.resume(run_copy) as store:
        store.reject("train-0", epoch=1, agent="agent-0", reason="fenced", now_unix=clock.now)
    clock.now += FRESH_SECONDS
    after = everything()
    assert not set(before) & set(after)
    assert all(etag.startswith(f'"{seq + 1}-') for etag in after)


def test_figures_follow_new_results_without_reading_the_old_again(store: Store, driver, clock: Clock) -> None:
    driver.plan()
    source = RunSource(store.run_directory, wall=clock)
    first, second, *_ = driver.queued()
    driver.run_trial(first)
    assert _num_points(source) == 1
    driver.run_trial(second)
    clock.now += 1000
    assert _num_points(source) == 2
    source.close()


class Worker:
    """A processor on which every look at its clock comes a second later."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


def test_figures_take_a_small_share_of_a_core_while_the_run_goes_on(store: Store, driver, clock: Clock) -> None:
    driver.plan()
    source = RunSource(store.run_directory, wall=clock, work=Worker())
    first, second, third, *_ = driver.queued()
    driver.run_trial(first)
    assert _num_points(source) == 1
    assert plain(source.figure("spend"))["series"]
    pause = 2 / FIGURES_SHARE  # two figures of a second each
    driver.run_trial(second)
    clock.now += pause - 1
    assert _num_points(source) == 1
    clock.now += 1
    assert _num_points(source) == 2
    driver.run_trial(third)
    assert _num_points(source) == 2
    store.set_meta("state", "finished")
    assert _num_points(source) == 3
    source.close()


def test_what_happened_over_time_and_benchmarks_are_drawn_without_reading_trainings(run_copy: Path) -> None:
    database = Database.open_for_writing(run_copy / FILE_NAME)
    database.execute("UPDATE observations SET unix = unix + 1 WHERE kind != 'serving'")
    database.close()
    source = RunSource(run_copy)
    assert plain(source.figure("timeline"))["series"]
    assert plain(source.figure("spend"))["series"]
    for entry in plain(source.figures())["figures"]:
        if entry["page"] == "hardware" or entry["name"] == "held-out":
            assert plain(source.figure(entry["name"]))["series"]
    with pytest.raises(StoreError, match="observations"):
        source.figure("loss-x")
    source.close()


def test_a_trial_is_found_by_what_it_is_and_by_where_it_stands_now(store: Store, driver, clock: Clock) -> None:
    driver.plan()
    source = RunSource(store.run_directory, wall=clock)

    def found(query: str) -> list[str]:
        return [row["trial_id"] for row in plain(source.trials(after=0, limit=2000, query=query))["rows"]]

    first, second, *_ = driver.queued()
    assert found("QUEUED space")
    assert first not in found("succeeded")
    driver.run_trial(first)
    clock.now += FRESH_SECONDS
    assert found("agent-0 succeeded") == [first]
    assert found(f"queued {second}") == [second]
    num_before = len(found("reference")) + len(found("proposed"))
    driver.run_queue()
    driver.plan()
    clock.now += FRESH_SECONDS
    assert len(found("reference")) + len(found("proposed")) > num_before
    source.close()


def _num_points(source: RunSource) -> int:
    """Attempts on the timeline."""
    timeline = plain(source.figure("timeline"))
    return sum(len(series["x"]) for series in timeline["series"])


def test_figures_are_those_of_the_whole_record(source: RunSource, run_copy: Path) -> None:
    listed = [entry["name"] for entry in plain(source.figures())["figures"]]
    drawn = figures_of(read_record(run_copy))
    assert listed == [one.name for one in drawn]
    for one in drawn:
        answer = source.figure(one.name)
        assert answer is not None
        assert answer.body == one.model_dump_json().encode()


def test_figures_of_time_are_those_of_the_whole_record_whatever_happens(store: Store, driver, clock: Clock) -> None:
    driver.plan()
    source = RunSource(store.run_directory, wall=clock)

    def require_the_same() -> None:
        clock.now += 1000
        record = read_record(store.run_directory)
        for name in ("timeline", "spend"):
            assert source.figure(name).body == figure(record, name).model_dump_json().encode()

    first, second, third, fourth, *_ = driver.queued()
    require_the_same()
    driver.fail_trial(first, final=False)
    held = driver.lease(second)
    lease = {"agent": "agent-0", "hardware": "cpu-generic", "epoch": 1, "expires_unix": driver.now + 60}
    store.lease(third, now_unix=driver.now, ahead=True, **lease)
    driver.run_trial(fourth)
    require_the_same()
    store.record_failure(second, held, driver.world.failure(second, "nan-loss"), final=True, now_unix=driver.now + 5)
    require_the_same()
    store.requeue_running(now_unix=driver.now + 9)
    require_the_same()
    driver.run_queue()
    driver.plan()
    driver.lease(driver.queued()[0])
    require_the_same()
    assert "Hollow bars" in plain(source.figure("timeline"))["caption"]
    source.close()


def test_what_has_no_such_name_is_null(source: RunSource) -> None:
    assert source.trial("train-0") is None
    assert source.figure("nothing") is None
    assert source.config("nothing") is None
    assert plain(source.config("baseline"))["hidden_size"] > 0


def test_another_file_in_the_place_of_the_store_is_opened_anew(source: RunSource, run_copy: Path, clock: Clock) -> None:
    before = plain(source.overview())
    copy = run_copy.with_name("copy")
    shutil.copytree(run_copy, copy)
    with Store.resume(copy) as store:
        store.reject("train-0", epoch=1, agent="agent-0", reason="fenced", now_unix=clock.now)
    for leftover in run_copy.glob(f"{FILE_NAME}*"):
        leftover.unlink()
    for file in copy.glob(f"{FILE_NAME}*"):
        shutil.move(file, run_copy / file.name)
    clock.now += FRESH_SECONDS
    assert plain(source.overview())["seq"] == before["seq"] + 1


def test_a_store_that_is_not_there_is_an_error_until_it_is(tmp_path: Path, run_copy: Path, clock: Clock) -> None:
    source = RunSource(tmp_path / "later", wall=clock)
    with pytest.raises(StoreError, match="no run directory"):
        source.overview()
    shutil.copytree(run_copy, tmp_path / "later")
    assert plain(source.overview())["state"] == "finished"
    source.close()


def test_a_damaged_row_is_an_error_that_names_the_store_and_the_rest_can_be_read(run_copy: Path) -> None:
    database = Database.open_for_writing(run_copy / FILE_NAME)
    database.execute("UPDATE attempts SET agent = 'somebody' WHERE seq = (SELECT max(seq) FROM attempts)")
    (trial_id,) = database.rows("SELECT trial_id FROM attempts ORDER BY seq DESC LIMIT 1")[0]
    database.close()
    source = RunSource(run_copy)
    with pytest.raises(StoreError, match="attempts"):
        source.trial(trial_id)
    assert plain(source.study())["study"] == "quick"
    source.close()


def test_many_threads_get_whole_answers_while_the_run_is_written(store: Store, driver, clock: Clock) -> None:
    driver.plan()
    source, wrong, stop = RunSource(store.run_directory, wall=clock), [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            rows = plain(source.trials(after=0, limit=2000))
            ended = sum(row["state"] == "succeeded" for row in rows["rows"])
            if ended != sum(row["loss"] is not None for row in rows["rows"]):
                wrong.append(rows)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for trial_id in driver.queued()[:6]:
        driver.run_trial(trial_id)
        clock.now += FRESH_SECONDS
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    source.close()
