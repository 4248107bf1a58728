"""What attempts said is kept as text, in order, bounded for each attempt and for the run; losing it stops nothing."""

from pathlib import Path

import pytest

from agent.log import MAX_BYTES
from coordinator.logs import FOLDER, Logs, read_logs


def num_bytes(run_directory: Path) -> int:
    return sum(file.stat().st_size for file in (run_directory / FOLDER).iterdir())


def test_lines_of_an_attempt_come_in_order_and_apart_from_those_of_others(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.add("train-1", 1, "one\n")
    logs.add("train-1", 2, "another attempt\n")
    logs.add("train-11", 1, "another trial, train-1.1 is not its name\n")
    logs.add("train-1", 1, "two\n")
    logs.write()
    logs.add("train-1", 1, "three\n")
    logs.write()

    found = read_logs(tmp_path, "train-1")

    assert {epoch: log.text for epoch, log in found.items()} == {1: "one\ntwo\nthree\n", 2: "another attempt\n"}
    assert all(log.is_whole for log in found.values())


def test_a_file_is_text_of_which_each_line_names_its_attempt(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.add("train-1", 1, "one\ntwo\n")
    logs.write()
    (file,) = (tmp_path / FOLDER).iterdir()
    assert file.read_text() == "train-1.1 one\ntrain-1.1 two\n"


def test_a_run_of_which_nothing_was_said_has_no_logs(tmp_path: Path) -> None:
    Logs(tmp_path).write()
    assert read_logs(tmp_path, "train-1") == {}
    assert not (tmp_path / FOLDER).exists()


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    logs, num_lines = Logs(tmp_path), 5000
    for number in range(num_lines):
        logs.add("train-1", 1, f"line {number} of a long log\n")
    logs.write()
    found = read_logs(tmp_path, "train-1")[1]

    lines = found.text.splitlines()
    assert not found.is_whole
    assert lines == [f"line {number} of a long log" for number in range(num_lines - len(lines), num_lines)]
    assert MAX_BYTES - 100 < len(found.text) <= MAX_BYTES


def test_the_oldest_lines_make_room(tmp_path: Path) -> None:
    logs = Logs(tmp_path, max_bytes=4000, file_bytes=1000)
    for number in range(200):
        logs.add(f"train-{number}", 1, "x" * 87 + "\n")  # about 100 bytes with its name
        logs.write()
        assert num_bytes(tmp_path) <= 4000 + 4 * 110  # a file ends with the line that fills it
    kept = [number for number in range(200) if read_logs(tmp_path, f"train-{number}")]

    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) >= 25


def test_a_log_whose_beginning_may_have_made_room_is_not_called_whole(tmp_path: Path) -> None:
    logs = Logs(tmp_path, max_bytes=3000, file_bytes=1000)
    for number in range(200):
        logs.add("train-1", 1, f"line {number} {'x' * 80}\n")
        logs.write()
    assert not read_logs(tmp_path, "train-1")[1].is_whole


def test_the_next_start_goes_on_where_the_last_ended_also_in_the_middle_of_a_line(tmp_path: Path) -> None:
    for number in range(30):
        logs = Logs(tmp_path)  # as after a restart
        logs.add("train-1", number, "a line\n")
        logs.write()
        (file,) = (tmp_path / FOLDER).iterdir()
        with file.open("a") as log:
            log.write("train-2.1 cut of")

    found = read_logs(tmp_path, "train-1")
    assert {epoch: log.text for epoch, log in found.items()} == dict.fromkeys(range(30), "a line\n")


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    logs = Logs(tmp_path)
    for _ in range(2):
        logs.add("train-1", 1, "one\n")
        logs.write()
    assert read_logs(tmp_path, "train-1") == {}


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "\u2028"])
def test_any_text_can_be_kept(tmp_path: Path, odd: str) -> None:
    logs = Logs(tmp_path)
    logs.add("train-1", 1, f"{odd} and words\n")
    logs.write()
    assert read_logs(tmp_path, "train-1")[1].text.endswith(" and words\n")
