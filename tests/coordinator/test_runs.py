"""Which run is meant, and which one goes on."""

import time
from pathlib import Path

import pytest

from coordinator.errors import StoreError
from coordinator.runs import find_run, list_runs, new_run_directory, unfinished_run
from coordinator.status import read_status
from coordinator.store import FILE_NAME, Store


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make_run(runs: Path, study):
    def make(name: str, *, state: str = "interrupted", study_name: str = "quick") -> Path:
        spec = study.model_copy(update={"name": study_name})
        with Store.create(runs / name, spec, now_unix=0) as store:
            store.set_meta("state", state)
        time.sleep(0.02)  # file times have the grain of a clock tick
        return runs / name

    return make


def test_no_runs_at_all(runs: Path) -> None:
    assert list_runs(runs) == []
    assert unfinished_run(runs, "quick") is None


def test_runs_are_listed_oldest_first(runs: Path, make_run) -> None:
    made = [make_run("quick-1"), make_run("laptop-2"), make_run("quick-0")]
    assert list_runs(runs) == made


@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_the_last_unfinished_run_goes_on(runs: Path, make_run, state: str) -> None:
    make_run("quick-1", state=state)
    last = make_run("quick-2", state=state)
    assert unfinished_run(runs, "quick") == last


def test_after_a_finished_run_a_new_one_begins(runs: Path, make_run) -> None:
    make_run("quick-1")
    make_run("quick-2", state="finished")
    assert unfinished_run(runs, "quick") is None


def test_runs_of_other_studies_do_not_go_on(runs: Path, make_run) -> None:
    make_run("laptop-1", study_name="laptop")
    make_run("quick-wide-2", study_name="quick-wide")
    assert unfinished_run(runs, "quick") is None


def test_looking_at_an_old_run_does_not_make_it_the_last_one(runs: Path, make_run) -> None:
    old = make_run("quick-1")
    new = make_run("quick-2", state="finished")
    read_status(old)
    (old / "report.html").write_text("written anew")
    assert list_runs(runs) == [old, new]
    assert unfinished_run(runs, "quick") is None


def test_a_run_that_went_on_is_the_last_one(runs: Path, make_run) -> None:
    old, new = make_run("quick-1"), make_run("quick-2")
    Store.resume(old).close()
    assert list_runs(runs) == [new, old]


def test_an_unreadable_last_run_is_told_and_not_passed_over(runs: Path, make_run) -> None:
    (make_run("quick-1") / FILE_NAME).write_bytes(b"x" * 5000)
    with pytest.raises(StoreError, match="cannot be read"):
        unfinished_run(runs, "quick")


def test_two_runs_begun_in_one_second_get_different_names(runs: Path) -> None:
    first = new_run_directory(runs, "quick", now_unix=1_700_000_000)
    first.mkdir(parents=True)
    second = new_run_directory(runs, "quick", now_unix=1_700_000_000)
    assert second != first
    assert second.name.startswith("quick-")


def test_a_run_is_found_by_path_name_and_default(runs: Path, make_run) -> None:
    first, last = make_run("quick-1"), make_run("quick-2")
    assert find_run(str(first), runs) == first
    assert find_run("quick-1", runs) == first
    assert find_run(None, runs) == last


def test_an_unknown_run_lists_the_known_ones(runs: Path, make_run) -> None:
    make_run("quick-1")
    with pytest.raises(StoreError, match=r"no run 'quick-9'.*quick-1"):
        find_run("quick-9", runs)


@pytest.mark.parametrize(
    "typed", ["laptop", "laptop-2026", "Laptop-20260101", "runs/laptop-2026010/", "laptop20260101"]
)
def test_a_misspelt_run_is_suggested(runs: Path, make_run, typed: str) -> None:
    make_run("laptop-20260101")
    make_run("quick-1")
    with pytest.raises(StoreError, match=r"Did you mean 'laptop-20260101'\?$"):
        find_run(typed, runs)


def test_nothing_is_suggested_where_nothing_is_like_it(runs: Path, make_run) -> None:
    make_run("laptop-20260101")
    with pytest.raises(StoreError) as caught:
        find_run("x", runs)
    assert "Did you mean" not in str(caught.value)


def test_of_many_runs_the_newest_are_named(runs: Path, make_run) -> None:
    for number in range(10):
        make_run(f"quick-{number}")
    with pytest.raises(StoreError, match=r"\(quick-9, quick-8, .*quick-2 and 2 older ones\)"):
        find_run("nothing", runs)


def test_without_any_run_the_way_to_start_one_is_told(runs: Path) -> None:
    with pytest.raises(StoreError, match="archfleet run"):
        find_run(None, runs)
