"""Logs: what the attempts of a run said, as text in the run directory; each line names its attempt.

    logs/000001.log      train-08674d3d1363.1 15:44:46  ended: held-out loss 4.3641 ± 0.0289 nats/token

They are for people: no decision and no figure rests on them. Losing some loses nothing, so they are written without
waiting for the disk, and an error in writing them stops nothing. Bounded: the oldest lines make room, so that logs
never fill the disk that the store needs.

A file an attempt would be simpler to find, but to make one takes as long as all else that a short trial costs the
coordinator (measured: 0.3 to 0.7 ms on ext4, and 3 us to add to a file that is there).
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from agent.log import ending

FOLDER = "logs"
MAX_RUN_BYTES = 64 * 2**20
"""Of all logs of a run."""
FILE_BYTES = 4 * 2**20
"""Of one file, after which another is begun; whole files make room."""


@dataclass(frozen=True, kw_only=True)
class KeptLog:
    """What is kept of an attempt's log: whole lines, at most `agent.log.MAX_BYTES`."""

    text: str
    is_whole: bool
    """False where earlier lines are left out, or may have made room for later ones."""


class Logs:
    """Written by the coordinator's loop alone: added to in memory, and `write` brings a turn's lines to the file."""

    def __init__(self, run_directory: Path, *, max_bytes: int = MAX_RUN_BYTES, file_bytes: int = FILE_BYTES) -> None:
        self._folder = run_directory / FOLDER
        self._max_bytes, self._file_bytes = max_bytes, file_bytes
        self._added: list[str] = []
        self._file: Path | None = None
        self._num_bytes = 0
        """Of that file."""

    def add(self, trial_id: str, epoch: int, text: str) -> None:
        """Add lines to the log of an attempt."""
        mark = _mark(trial_id, epoch)
        self._added += [f"{mark}{line}\n" for line in ending(text).split("\n") if line]

    def write(self) -> None:
        """Write down what was added; what cannot be written is dropped."""
        data, self._added = "".join(self._added).encode(errors="replace"), []
        if data:
            with suppress(OSError):
                self._append(data)

    def _append(self, data: bytes) -> None:
        if self._file is None:
            data = self._take_up() + data
        if self._file is None or self._num_bytes >= self._file_bytes:
            self._file, self._num_bytes = self._new_file(), 0
        with self._file.open("ab", buffering=0) as log:
            self._num_bytes += log.write(data)

    def _take_up(self) -> bytes:
        """Go on with the last file of an earlier start; what is to end its last line, which may be unfinished."""
        self._folder.mkdir(exist_ok=True)
        files = _files(self._folder)
        if not files:
            return b""
        self._file, self._num_bytes = files[-1], files[-1].stat().st_size
        return b"\n"

    def _new_file(self) -> Path:
        """The next file; the oldest make room for it."""
        files = _files(self._folder)
        num_kept = max(1, self._max_bytes // self._file_bytes - 1)
        for old in files[:-num_kept]:
            old.unlink(missing_ok=True)
        return self._folder / f"{_number(files[-1]) + 1 if files else 1:06}.log"


def read_logs(run_directory: Path, trial_id: str) -> dict[int, KeptLog]:
    """The logs of a trial's attempts that are kept, by epoch. Looks through every file: 64 MiB take some 30 ms."""
    texts: dict[int, list[str]] = {}
    cut: set[int] = set()
    files = _files(run_directory / FOLDER)
    for file in files:
        for line in _lines_of(file, trial_id):
            epoch, _, said = line.removeprefix(f"{trial_id}.").partition(" ")
            if not epoch.isdecimal():
                continue
            if file == files[0] and _number(file) > 1:
                cut.add(int(epoch))
            texts.setdefault(int(epoch), []).append(f"{said}\n")
    return {epoch: _kept("".join(lines), is_cut=epoch in cut) for epoch, lines in sorted(texts.items())}


def _kept(text: str, *, is_cut: bool) -> KeptLog:
    kept = ending(text)
    return KeptLog(text=kept, is_whole=kept == text and not is_cut)


def _lines_of(file: Path, trial_id: str) -> Iterator[str]:
    """Lines that begin with the name of a trial."""
    mark, place = f"{trial_id}.".encode(), 0
    with (
        suppress(OSError, ValueError),  # it made room meanwhile, or is empty
        file.open("rb") as log,
        mmap(log.fileno(), 0, access=ACCESS_READ) as data,
    ):
        while (place := data.find(mark, place)) >= 0:
            end = data.find(b"\n", place)
            if place == 0 or data[place - 1 : place] == b"\n":
                yield data[place : end if end >= 0 else len(data)].decode(errors="replace")
            place += 1


def _mark(trial_id: str, epoch: int) -> str:
    return f"{trial_id}.{epoch} "


def _files(folder: Path) -> list[Path]:
    """Every file, oldest first."""
    return sorted((path for path in folder.glob("*.log") if path.stem.isdecimal()), key=_number)


def _number(file: Path) -> int:
    return int(file.stem)
