"""Logs: what the attempts of a run said, a text file each, `logs/TRIAL.EPOCH.log` in the run directory.

They are for people: no decision and no figure rests on them. Losing one loses nothing, so they are written without
waiting for the disk, and an error in writing them stops nothing. Bounded: of an attempt its end is kept, and of a run
the newest, so that logs never fill the disk that the store needs.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.log import MAX_BYTES, ending

FOLDER = "logs"
MAX_RUN_BYTES = 64 * 2**20
"""Of all logs of a run; beyond it those that were written to longest ago make room."""
ROOM_SHARE = 0.1
"""So much of it is made free at once: to look at every file takes long."""
EARLIER_LEFT_OUT = "(earlier lines were left out)"
"""First line of a log of which only the end is kept."""


@dataclass(frozen=True, kw_only=True)
class KeptLog:
    """What is kept of an attempt's log."""

    text: str
    is_whole: bool
    """False where earlier lines were left out."""


class Logs:
    """Written by the coordinator's loop alone: added to in memory, and `write` brings a turn's lines to their files."""

    def __init__(self, run_directory: Path, *, max_bytes: int = MAX_RUN_BYTES) -> None:
        self._folder = run_directory / FOLDER
        self._max_bytes = max_bytes
        self._added: dict[Path, str] = {}
        self._num_bytes: int | None = None
        """Of all files; null before the first is written."""

    def add(self, trial_id: str, epoch: int, text: str) -> None:
        """Add lines to the log of an attempt."""
        file = self._folder / _name(trial_id, epoch)
        self._added[file] = ending(self._added.get(file, "") + text)

    def write(self) -> None:
        """Write down what was added; what cannot be written is dropped."""
        added, self._added = self._added, {}
        for file, text in added.items():
            with suppress(OSError):
                self._append(file, text.encode(errors="replace"))
        if self._num_bytes is not None and self._num_bytes > self._max_bytes:
            with suppress(OSError):
                self._make_room()

    def _append(self, file: Path, data: bytes) -> None:
        if self._num_bytes is None:
            self._folder.mkdir(exist_ok=True)
            self._num_bytes = sum(size for _, size, _ in self._files())
        with file.open("ab") as log:
            before = log.tell()
            log.write(data)
        self._num_bytes += len(data)
        if before + len(data) > 2 * MAX_BYTES:
            self._num_bytes += _shorten(file) - before - len(data)

    def _make_room(self) -> None:
        left = sum(size for _, size, _ in self._files())
        for _, size, file in sorted(self._files()):
            if left <= (1 - ROOM_SHARE) * self._max_bytes:
                break
            file.unlink(missing_ok=True)
            left -= size
        self._num_bytes = left

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of the last change, bytes, path) of every log."""
        with os.scandir(self._folder) as entries:
            found = [(entry.stat(), entry.path) for entry in entries if entry.name.endswith(".log")]
        return [(facts.st_mtime, facts.st_size, Path(path)) for facts, path in found]


def read_log(run_directory: Path, trial_id: str, epoch: int) -> KeptLog | None:
    """The log of an attempt, at most its last `MAX_BYTES`; null where none is kept."""
    try:
        text = (run_directory / FOLDER / _name(trial_id, epoch)).read_text(errors="replace")
    except OSError:
        return None
    kept = ending(text.removeprefix(f"{EARLIER_LEFT_OUT}\n"))
    return KeptLog(text=kept, is_whole=kept == text)


def _name(trial_id: str, epoch: int) -> str:
    return f"{trial_id}.{epoch}.log"


def _shorten(file: Path) -> int:
    """Keep the end of a log; its bytes."""
    kept = f"{EARLIER_LEFT_OUT}\n{ending(file.read_text(errors='replace'))}".encode()
    shorter = file.with_suffix(".part")
    shorter.write_bytes(kept)
    shorter.replace(file)
    return len(kept)
