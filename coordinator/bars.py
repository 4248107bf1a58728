"""How far long work is: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

LINE_EVERY_SECONDS = 15.0

Unit = Literal["pieces", "bytes"]


class Told(Protocol):
    """Whoever tells people how far work is."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A part of the work begins; None: nobody knows how much of it there is."""

    def advance(self, amount: int) -> None:
        """So much more is done."""

    def reach(self, done: int, total: int | None = None) -> None:
        """So much is done in all, of a total that may have changed."""

    def now(self, doing: str) -> None:
        """Within the stage, what is done from here on."""

    def note(self, sentence: str) -> None:
        """Something that is worth a line of its own."""


@contextmanager
def told(
    console: Console,
    doing: str | None = None,
    total: int | None = None,
    *,
    unit: Unit = "pieces",
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Told]:
    """Tell on a console how far the work within is.

    Args:
        console: a terminal gets bars that go with the work, anything else a line now and then.
        doing: the first stage, where it begins at once.
        total: of that stage.
        unit: what is counted.
        clock: seconds, by which lines are spaced.
    """
    if console.is_terminal:
        with Progress(*_columns(unit), console=console, transient=True) as bars:
            teller: Told = _Bars(bars, console)
            if doing is not None:
                teller.stage(doing, total)
            yield teller
    else:
        teller = _Lines(console, unit, clock)
        if doing is not None:
            teller.stage(doing, total)
        yield teller


def _columns(unit: Unit) -> tuple[ProgressColumn, ...]:
    counted = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    return (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn())


class _Bars:
    """A bar for each stage."""

    def __init__(self, bars: Progress, console: Console) -> None:
        self._bars, self._console = bars, console
        self._task = bars.add_task("", visible=False)

    def stage(self, name: str, total: int | None = None) -> None:
        self._task = self._bars.add_task(name, total=total)

    def advance(self, amount: int) -> None:
        self._bars.advance(self._task, amount)

    def reach(self, done: int, total: int | None = None) -> None:
        self._bars.update(self._task, completed=done, total=total)  # rich takes a total of None as no change

    def now(self, doing: str) -> None:
        self._bars.update(self._task, description=doing)

    def note(self, sentence: str) -> None:
        _print(self._console, sentence)


class _Lines:
    """A line as a stage of known size begins, where something else is done, and every few seconds."""

    def __init__(self, console: Console, unit: Unit, clock: Callable[[], float]) -> None:
        self._console, self._unit, self._clock = console, unit, clock
        self._name, self._done, self._said_at = "", 0, clock()
        self._total: int | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        self._name, self._total, self._done, self._said_at = name, total, 0, self._clock()
        if total is not None:
            self.note(f"{name}: {total:,} {self._unit}" if self._unit == "bytes" else f"{name}: {total:,}")

    def advance(self, amount: int) -> None:
        self.reach(self._done + amount)

    def reach(self, done: int, total: int | None = None) -> None:
        self._done, self._total = done, self._total if total is None else total
        if self._clock() - self._said_at >= LINE_EVERY_SECONDS:
            self._said_at = self._clock()
            self.note(f"{self._name}: {self._share()}")

    def now(self, doing: str) -> None:
        if doing != self._name:
            self._name, self._said_at = doing, self._clock()
            self.note(doing if self._total is None else f"{doing}: {self._share()}")

    def _share(self) -> str:
        if self._total is None:
            return f"{self._done:,} {self._unit}" if self._unit == "bytes" else f"{self._done:,}"
        return f"{self._done / max(1, self._total):.0%}"

    def note(self, sentence: str) -> None:
        _print(self._console, sentence)


def _print(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
