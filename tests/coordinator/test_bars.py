"""How far work is: bars where there is a terminal, now and then a line where there is none."""

import io

import pytest
from rich.console import Console

from coordinator.bars import LINE_EVERY_SECONDS, told


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), width=100)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_gets_a_line_at_the_start_and_then_every_few_seconds(log: Console) -> None:
    clock = Clock()
    with told(log, "simulated studies", 8_000, clock=clock) as progress:
        for done in range(1_000, 8_000, 1_000):
            clock.now += LINE_EVERY_SECONDS / 2
            progress.reach(done)
    assert lines(log) == ["simulated studies: 8,000", *(f"simulated studies: {share}%" for share in (25, 50, 75))]


def test_bytes_are_called_bytes(log: Console) -> None:
    clock = Clock()
    with told(log, unit="bytes", clock=clock) as progress:
        progress.stage("sampling", 2_000)
        clock.now += LINE_EVERY_SECONDS
        progress.advance(500)
        progress.stage("reading")
        clock.now += LINE_EVERY_SECONDS
        progress.advance(1_500)
    assert lines(log) == ["sampling: 2,000 bytes", "sampling: 25%", "reading: 1,500 bytes"]


def test_a_total_may_become_known_on_the_way(log: Console) -> None:
    clock = Clock()
    with told(log, "training", clock=clock) as progress:
        for done, total in ((1, 4), (3, 4)):
            clock.now += LINE_EVERY_SECONDS
            progress.reach(done, total)
    assert lines(log) == ["training: 25%", "training: 75%"]


def test_a_log_gets_a_line_where_something_else_is_done(log: Console) -> None:
    with told(log, "starting", 4) as progress:
        for task in ("piqa", "piqa", "sciq"):
            progress.now(f"scoring {task}")
            progress.advance(1)
    assert lines(log) == ["starting: 4", "scoring piqa: 0%", "scoring sciq: 50%"]


def test_where_nobody_knows_how_much_there_is_only_what_is_done_is_told(log: Console) -> None:
    with told(log, "simulating") as progress:
        progress.now("truth paper")
    assert lines(log) == ["truth paper"]


def test_a_note_is_a_line_as_it_was_written(log: Console) -> None:
    with told(log) as progress:
        progress.note("[corpus] is left out")
    assert lines(log) == ["[corpus] is left out"]


@pytest.mark.parametrize("unit", ["pieces", "bytes"])
def test_a_terminal_gets_bars_that_go_with_the_work(unit) -> None:
    terminal = Console(file=io.StringIO(), width=100, force_terminal=True)
    with told(terminal, "reading", 1_000, unit=unit) as progress:
        progress.reach(250)
        progress.advance(250)
        progress.now("looking")
        progress.note("a note")
    written = "\n".join(lines(terminal))
    assert "reading" in written
    assert "looking" in written
    assert "a note" in written
    assert ("500/1000" in written) is (unit == "pieces")
    assert ("500/1,000 bytes" in written or "0.5/1.0 kB" in written) is (unit == "bytes")
    assert written.endswith("\x1b[2K")  # the bars are gone
