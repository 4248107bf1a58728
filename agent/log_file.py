"""A program's log file while it grows: its last lines, and those that are new since they were asked for last.

The program may be this one: `follow_own_errors` follows what libraries write here, from Python or not.

A log may hold anything. What is read of it is printable: without colours, without what a progress bar has overwritten,
each line cut where it is longer than a person reads.
"""

import contextlib
import os
import re
import stat
from pathlib import Path

NUM_LAST_LINES = 20
MAX_NEW_BYTES = 8_000
"""So much at most is read at once: of a program that says more, its last words count."""
MAX_LINE_CHARACTERS = 500
LEFT_OUT = "..."
"""Stands in the place of lines that were too many."""

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def last_lines(file: Path) -> str:
    """The end of a log; "" where there is none."""
    with contextlib.suppress(OSError):
        data, start = _read(file, 0)
        return "\n".join(readable_lines(data.partition(b"\n")[2] if start else data)[-NUM_LAST_LINES:])
    return ""


class LogFollower:
    """Gives every line of a log once, also while it is written."""

    def __init__(self, file: Path, *, offset: int = 0) -> None:
        self._file = file
        self._offset = offset

    def new_lines(self, *, is_over: bool = False) -> tuple[str, ...]:
        """Lines since the last time; an unfinished one only when nothing more is to come."""
        data, start = b"", self._offset
        with contextlib.suppress(OSError):  # not there yet, or removed
            data, start = _read(self._file, self._offset)
        if not is_over:
            data = data[: data.rfind(b"\n") + 1]
        skipped, self._offset = start > self._offset, start + len(data)
        if skipped:
            return LEFT_OUT, *readable_lines(data.partition(b"\n")[2])
        return tuple(readable_lines(data))


def follow_own_errors() -> LogFollower | None:
    """Follow this process's standard error from here on; null where it is no file, as in a terminal."""
    with contextlib.suppress(OSError):
        facts = os.fstat(2)
        if stat.S_ISREG(facts.st_mode):
            return LogFollower(Path("/proc/self/fd/2"), offset=facts.st_size)
    return None


def _read(file: Path, offset: int) -> tuple[bytes, int]:
    """The file from an offset to its end, at most `MAX_NEW_BYTES`, and where that begins."""
    with file.open("rb") as log:
        start = log.seek(max(offset, log.seek(0, os.SEEK_END) - MAX_NEW_BYTES))
        return log.read(MAX_NEW_BYTES), start


def readable_lines(data: bytes) -> list[str]:
    """Lines with something in them, as a person would see them."""
    lines = (_readable(line) for line in data.decode(errors="replace").split("\n"))
    return [line for line in lines if line]


def _readable(line: str) -> str:
    shown = _COLOUR.sub("", line).rstrip().rsplit("\r", 1)[-1].expandtabs(4)
    if len(shown) > MAX_LINE_CHARACTERS:  # at a space: half a secret would not be known as one
        shown = f"{shown[:MAX_LINE_CHARACTERS].rpartition(' ')[0]} {LEFT_OUT}"
    # Other control characters: a store and a terminal may not hold them.
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)
