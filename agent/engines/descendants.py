"""The processes that an engine started, wherever they went: found through /proc, killed without hitting another.

A process group holds whoever did not leave it. Who left it (setsid, a daemon) is found twice more:

    by descent      its chain of parents still leads to the engine
    by its mark     an environment variable, unique to the run, that every process inherits at its birth

Out of reach is only who left the group, lost its parent *and* overwrote or cleared its environment, or runs as another
user.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK_VARIABLE = "ARCHFLEET_RUN_MARK"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process by its number and its birth: a number is given again, the pair is not."""

    pid: int
    started_ticks: int
    """Since boot, in clock ticks."""


@dataclass(frozen=True)
class _Row:
    process: Process
    parent: int
    group: int
    state: str


def running_members(group: int) -> list[int]:
    """Process ids in a group that are not zombies."""
    return [row.process.pid for row in _rows() if row.group == group and row.state not in "ZX"]


def family_of(pid: int, mark: str) -> set[Process]:
    """Every living descendant of a process, and every living process that bears the mark or descends from such a one.

    The process itself belongs to it while it lives; this process never does.
    """
    rows = [row for row in _rows() if row.state not in "ZX" and row.process.pid != os.getpid()]
    found = {row.process for row in rows if row.process.pid == pid or _bears(row.process.pid, mark)}
    while True:
        pids = {process.pid for process in found}
        children = {row.process for row in rows if row.parent in pids} - found
        if not children:
            return found
        found |= children


def kill_all(processes: Iterable[Process]) -> None:
    """KILL each, unless its number has been given to another process since."""
    for process in processes:
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(process.pid)
            try:  # the descriptor stays with one process, so what holds now holds when the signal is sent
                row = _row(process.pid)
                if row is not None and row.process == process:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def wait_until_gone(processes: Iterable[Process], timeout_seconds: float) -> set[Process]:
    """Wait until none of them lives; those that still do when the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = {process for process in processes if _lives(process)}
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.02)


def _lives(process: Process) -> bool:
    row = _row(process.pid)
    return row is not None and row.process == process and row.state not in "ZX"


def _bears(pid: int, mark: str) -> bool:
    with contextlib.suppress(OSError):  # another user's, or it ended meanwhile
        return f"{MARK_VARIABLE}={mark}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    return False


def _rows() -> Iterator[_Row]:
    for entry in os.listdir(_PROC):  # noqa: PTH208 - names are enough; this is read in a loop
        if entry.isdecimal():
            row = _row(int(entry))
            if row is not None:
                yield row


def _row(pid: int) -> _Row | None:
    """From /proc/PID/stat, whose second field may hold spaces and brackets; None where it ended meanwhile."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Row(Process(pid, int(fields[19])), parent=int(fields[1]), group=int(fields[2]), state=fields[0])
