"""What attempts said is kept in files, in order, bounded for each attempt and for the run; losing it stops nothing."""

import os
from pathlib import Path

import pytest

from agent.log import MAX_BYTES
from coordinator.logs import FOLDER, Logs, read_log


def test_lines_of_an_attempt_come_in_order_and_apart_from_those_of_others(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.add("train-1", 1, "one\n")
    logs.add("train-1", 2, "another attempt\n")
    logs.add("train-1", 1, "two\n")
    logs.write()
    logs.add("train-1", 1, "three\n")
    logs.write()

    found = read_log(tmp_path, "train-1", 1)

    assert found is not None
    assert (found.text, found.is_whole) == ("one\ntwo\nthree\n", True)


def test_an_attempt_that_said_nothing_has_no_log(tmp_path: Path) -> None:
    Logs(tmp_path).write()
    assert read_log(tmp_path, "train-1", 1) is None
    assert not (tmp_path / FOLDER).exists()


def test_of_a_long_log_the_end_is_kept(tmp_path: Path) -> None:
    logs, num_lines = Logs(tmp_path), 5000
    for number in range(num_lines):
        logs.add("train-1", 1, f"line {number} of a long log\n")
        logs.write()
    found = read_log(tmp_path, "train-1", 1)

    assert found is not None
    assert not found.is_whole
    lines = found.text.splitlines()
    assert lines == [f"line {number} of a long log" for number in range(num_lines - len(lines), num_lines)]
    assert MAX_BYTES - 100 < len(found.text) <= MAX_BYTES
    assert sum(file.stat().st_size for file in (tmp_path / FOLDER).iterdir()) <= 3 * MAX_BYTES


def test_a_log_longer_than_is_shown_is_not_called_whole_before_it_is_shortened(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    for _ in range(3):
        logs.add("train-1", 1, "x" * (MAX_BYTES // 2) + "\n")
        logs.write()
    found = read_log(tmp_path, "train-1", 1)
    assert found is not None
    assert not found.is_whole


def test_the_logs_written_to_longest_ago_make_room(tmp_path: Path) -> None:
    logs = Logs(tmp_path, max_bytes=1000)
    for number in range(12):
        logs.add(f"train-{number}", 1, "x" * 99 + "\n")
        logs.write()
        os.utime(tmp_path / FOLDER / f"train-{number}.1.log", (number, number))
    kept = [number for number in range(12) if read_log(tmp_path, f"train-{number}", 1)]

    assert kept == list(range(12 - len(kept), 12))
    assert 900 <= 100 * len(kept) <= 1000


def test_logs_of_an_earlier_start_count(tmp_path: Path) -> None:
    for number in range(30):
        logs = Logs(tmp_path, max_bytes=1000)  # as after a restart
        logs.add(f"train-{number}", 1, "x" * 99 + "\n")
        logs.write()
    assert len(list((tmp_path / FOLDER).iterdir())) <= 10


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    logs = Logs(tmp_path)
    logs.add("train-1", 1, "one\n")
    logs.write()
    assert read_log(tmp_path, "train-1", 1) is None


@pytest.mark.parametrize("half", ["\ud800", "\x00"])
def test_any_text_can_be_kept(tmp_path: Path, half: str) -> None:
    logs = Logs(tmp_path)
    logs.add("train-1", 1, f"{half} and words\n")
    logs.write()
    found = read_log(tmp_path, "train-1", 1)
    assert found is not None
    assert found.text.endswith(" and words\n")
