"""A log that grows is read line by line, each once, as a person would see it."""

from pathlib import Path

import pytest

from agent.log_file import LEFT_OUT, MAX_LINE_CHARACTERS, MAX_NEW_BYTES, NUM_LAST_LINES, LogFollower, last_lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


def add(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_every_line_is_given_once(log: Path) -> None:
    follower = LogFollower(log)
    assert follower.new_lines() == ()
    add(log, "one\ntwo\n")
    assert follower.new_lines() == ("one", "two")
    add(log, "three\n")
    assert follower.new_lines() == ("three",)
    assert follower.new_lines() == ()


def test_an_unfinished_line_waits_for_its_end_or_for_that_of_the_program(log: Path) -> None:
    follower = LogFollower(log)
    add(log, "load")
    assert follower.new_lines() == ()
    add(log, "ing\nlast wo")
    assert follower.new_lines() == ("loading",)
    assert follower.new_lines(is_over=True) == ("last wo",)


def test_of_a_program_that_says_too_much_the_last_words_are_given(log: Path) -> None:
    add(log, "".join(f"line {number}\n" for number in range(10_000)))
    lines = LogFollower(log).new_lines()
    assert (lines[0], lines[-1]) == (LEFT_OUT, "line 9999")
    assert sum(map(len, lines)) <= MAX_NEW_BYTES
    assert all(line.startswith("line ") for line in lines[1:])


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("\x1b[32mINFO\x1b[0m ready\n", "INFO ready"),
        ("loading  10 %\rloading 100 %\n", "loading 100 %"),
        ("ends as on Windows\r\n", "ends as on Windows"),
        ("a\tb\n", "a   b"),
        ("bell \x07 and \x00\n", "bell \N{REPLACEMENT CHARACTER} and \N{REPLACEMENT CHARACTER}"),
        (f"{'word ' * MAX_LINE_CHARACTERS}\n", f"{'word ' * (MAX_LINE_CHARACTERS // 5)}{LEFT_OUT}"),
        (f"whole {'x' * MAX_LINE_CHARACTERS}\n", f"whole {LEFT_OUT}"),
    ],
)
def test_a_line_is_as_a_person_would_see_it(log: Path, written: str, seen: str) -> None:
    log.write_bytes(written.encode())
    assert LogFollower(log).new_lines() == (seen,)
    assert last_lines(log) == seen


def test_bytes_that_are_no_text_are_told_as_such(log: Path) -> None:
    log.write_bytes(b"\xff\xfe words\n")
    assert LogFollower(log).new_lines() == ("\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} words",)


def test_the_last_lines_of_a_log(log: Path) -> None:
    add(log, "".join(f"line {number}\n" for number in range(100)))
    assert last_lines(log).splitlines() == [f"line {number}" for number in range(100 - NUM_LAST_LINES, 100)]


def test_of_a_log_that_is_not_there_nothing_is_said(log: Path) -> None:
    assert last_lines(log) == ""
    assert LogFollower(log).new_lines(is_over=True) == ()
