"""A disk in memory that loses its power, forgets, tears or refuses; the real store runs on it through apsw."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from coordinator.plan import Plan
from coordinator.store import FILE_NAME, LOCK_NAME, Store

SECTOR = 512
POWERSAFE_OVERWRITE = 0x1000
"""A torn write harms no neighbouring bytes: what every SQLite on Unix supposes."""
NUM_TRIALS = 40


class MemoryFile:
    """One file: what is on the plate, and what was written since the last sync."""

    def __init__(self, content: bytes = b"") -> None:
        self.synced = bytearray(content)
        self.content = bytearray(content)
        self.unsynced: list[tuple[int, bytes] | int] = []
        """(offset, data) of a write, or the size a truncation cut to."""

    def write(self, offset: int, data: bytes) -> None:
        self.unsynced.append((offset, data))
        _overwrite(self.content, offset, data)

    def truncate(self, size: int) -> None:
        self.unsynced.append(size)
        del self.content[size:]

    def sync(self) -> None:
        self.synced, self.unsynced = bytearray(self.content), []

    def after_power_loss(self, source: random.Random) -> bytes:
        """Of what was not synced, each sector got to the plate or did not, whatever came after it."""
        survived = bytearray(self.synced)
        kept = source.choice((0.0, 0.5, 0.9))
        for change in self.unsynced:
            if isinstance(change, int):
                if source.random() < kept:
                    del survived[change:]
                continue
            offset, data = change
            for start in range(0, len(data), SECTOR):
                if source.random() < kept:
                    _overwrite(survived, offset + start, data[start : start + SECTOR])
        return bytes(survived)


def _overwrite(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class Disk(apsw.VFS):
    """Files by path. `before_call` is told every call by name and file, and may raise."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "unix")
        self.files: dict[str, MemoryFile] = {}
        self.before_call: Callable[[str, str], None] = lambda _call, _path: None

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return pathname in self.files

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.before_call("delete", filename)
        self.files.pop(filename, None)

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def xOpen(self, name: object, flags: list[int]) -> "OpenFile":  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self.before_call("open", path)
        self.files.setdefault(path, MemoryFile())
        flags[1] = flags[0]
        return OpenFile(self, path)

    def put(self, directory: Path) -> None:
        """Take a run's files over."""
        for path in directory.glob(f"{FILE_NAME}*"):
            self.files[str(path)] = MemoryFile(path.read_bytes())

    def give(self, directory: Path, content: Callable[[MemoryFile], bytes] = lambda file: bytes(file.content)) -> Path:
        """Write the files to a real directory."""
        directory.mkdir(parents=True)
        for path, file in self.files.items():
            (directory / Path(path).name).write_bytes(content(file))
        return directory


class OpenFile:
    """What SQLite does to one open file."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk, self._path = disk, path

    def _file(self, call: str) -> MemoryFile:
        self._disk.before_call(call, self._path)
        return self._disk.files[self._path]

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return bytes(self._file("read").content[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._file("write").write(offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._file("truncate").truncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._file("sync").sync()

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._file("size").content)

    def xClose(self) -> None:  # noqa: N802
        pass

    def xLock(self, level: int) -> None:  # noqa: N802
        pass

    def xUnlock(self, level: int) -> None:  # noqa: N802
        pass

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return POWERSAFE_OVERWRITE


@pytest.fixture
def disk() -> Iterator[Disk]:
    """An empty disk of its own."""
    made = Disk("memory")
    yield made
    made.unregister()


@pytest.fixture
def planned_run(driver, world) -> tuple[Path, list[str], Callable]:
    """A closed run with queued trials, their ids, and a result for any of them."""
    template = world.observe(first_of(driver))
    queued = driver.queued()
    directory = driver.store.run_directory
    copy = directory.with_name("planned")
    driver.store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("*-shm", "*-wal", LOCK_NAME))
    return copy, queued, lambda trial_id: template.model_copy(update={"assignment_id": trial_id})


def first_of(driver):
    """Queue trials that differ in their seed alone; the first one's assignment."""
    from coordinator import planner

    planned = planner.next_plan(driver.state()).trials[0]
    recipe = planned.assignment.recipe
    trials = tuple(
        planned.model_copy(
            update={
                "assignment": planned.assignment.model_copy(update={"recipe": recipe.model_copy(update={"seed": seed})})
            }
        )
        for seed in range(NUM_TRIALS)
    )
    driver.store.add_plan(Plan(stage="many", trials=trials), now_unix=0)
    return trials[0].assignment


@pytest.fixture
def run_trials() -> Callable[..., None]:
    """Lease and end trials one by one, noting each in `acknowledged` once the store has taken it."""

    def run(store: Store, trial_ids: list[str], result: Callable, acknowledged: list[str]) -> None:
        for trial_id in trial_ids:
            epoch = store.trial(trial_id).epoch + 1
            store.lease(trial_id, agent="a", hardware="cpu-generic", epoch=epoch, now_unix=0, expires_unix=60)
            store.record_result(trial_id, epoch, result(trial_id), now_unix=1)
            acknowledged.append(trial_id)

    return run


@pytest.fixture
def promises_kept() -> Callable[[Path, list[str]], bool]:
    """Whether a run opens for writing, is sound to its last row, and holds every acknowledged result once."""

    def kept(directory: Path, acknowledged: list[str]) -> bool:
        from coordinator.errors import StoreError

        try:
            with Store.resume(directory) as store:
                store.verify()
                store.requeue_running(now_unix=2)
                stored = [record.assignment_id for record in store.observations()]
                succeeded = [trial.trial_id for trial in store.trials() if trial.state == "succeeded"]
        except StoreError:
            return False
        return len(set(stored)) == len(stored) and set(acknowledged) <= set(stored) == set(succeeded)

    return kept
