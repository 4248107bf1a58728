"""The run on a terminal: rich progress bars, or plain lines where there is no terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.snapshot import Snapshot, View

PLAIN_EVERY_SECONDS = 15.0


class TerminalView:
    """A live block at the bottom of the terminal; notes scroll by above it."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def note(self, sentence: str) -> None:
        """Print a line above the live block."""
        self._live.console.print(Text(f"  {sentence}"), highlight=True)

    def update(self, snapshot: Snapshot) -> None:
        """Redraw the block."""
        self._live.update(render(snapshot))


class PlainView:
    """For pipes and logs: every note a line, and a summary line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_summary = 0.0

    def note(self, sentence: str) -> None:
        """Print a line."""
        self._console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        """Print a summary if the last one is old."""
        if time.monotonic() - self._last_summary >= PLAIN_EVERY_SECONDS:
            self._last_summary = time.monotonic()
            self._console.print(f"  [{headline(snapshot)}]", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def open_view(console: Console) -> Iterator[View]:
    """The view that suits this console."""
    if not console.is_terminal:
        yield PlainView(console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield TerminalView(live)


def headline(snapshot: Snapshot) -> str:
    """Runs done, time spent and left, in one line."""
    failed = f", {snapshot.num_failed} failed" if snapshot.num_failed else ""
    return (
        f"{snapshot.num_done}/{snapshot.num_expected} trials{failed} · {clock(snapshot.elapsed_seconds)} of "
        f"{clock(snapshot.budget_seconds)} min budget · "
        f"about {clock(snapshot.seconds_left)} left · {snapshot.spent_agent_seconds:.0f} agent-seconds spent"
    )


def clock(seconds: float) -> str:
    """Minutes and seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def render(snapshot: Snapshot) -> Group:
    """The live block: overall bar, one bar an agent, the law as it stands."""
    grid = Table.grid(padding=(0, 2))
    share = snapshot.num_done / max(snapshot.num_expected, 1)
    grid.add_row(Text("study", style="bold"), ProgressBar(total=1, completed=share, width=30), Text(headline(snapshot)))
    for trial in sorted(snapshot.running, key=lambda running: running.agent):
        bar = ProgressBar(total=1, completed=trial.done_fraction, width=30)
        grid.add_row(Text(trial.agent, style="cyan"), bar, Text(f"{trial.description} {trial.message}"))
    return Group(grid, Text(snapshot.law or "no law yet: too few losses", style="italic"))
