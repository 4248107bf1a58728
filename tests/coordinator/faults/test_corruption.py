"""Promise 6: a changed or a cut file is noticed and named, or the change did not matter; never is it used silently."""

import random
from pathlib import Path

import pytest

from coordinator.errors import StoreError
from coordinator.record import RunRecord, read_record
from coordinator.store import FILE_NAME, Store

NUM_FLIPS = 200
NUM_CUTS = 40


def content(directory: Path) -> list[object]:
    """All that status and report are made from, read to the last field."""
    record: RunRecord = read_record(directory)
    planned = [trial.planned for trial in record.trials]
    return [record.study, record.state, record.trials, planned, record.observations, record.plans, record.agents]


def look(directory: Path, before: list[object]) -> str:
    """What a reader makes of a changed file."""
    try:
        return "same" if content(directory) == before else "used silently"
    except StoreError as error:
        return "named" if str(directory) in str(error) else "noticed without its name"


@pytest.mark.slow
def test_flipped_bytes_of_the_database_are_noticed_or_harmless(run_copy: Path) -> None:
    path, source = run_copy / FILE_NAME, random.Random(6)
    before, sound = content(run_copy), path.read_bytes()
    noticed = 0
    for number in range(NUM_FLIPS):
        # Half anywhere, half among the first bytes of a page, where its structure is.
        offset = source.randrange(len(sound))
        offset = offset - offset % 4096 + source.randrange(16) if number % 2 else offset
        flipped = bytearray(sound)
        flipped[offset] ^= 1 << source.randrange(8)
        path.write_bytes(flipped)
        for leftover in ("-wal", "-shm"):
            path.with_name(path.name + leftover).unlink(missing_ok=True)
        seen = look(run_copy, before)
        assert seen in ("same", "named"), f"offset {offset}: {seen}"
        noticed += seen == "named"
    assert noticed >= NUM_FLIPS // 4


def test_a_cut_database_is_noticed(run_copy: Path) -> None:
    path, source = run_copy / FILE_NAME, random.Random(7)
    before, sound = content(run_copy), path.read_bytes()
    for _ in range(NUM_CUTS):
        path.write_bytes(sound[: source.randrange(len(sound))])
        assert look(run_copy, before) == "named"
        with pytest.raises(StoreError):
            Store.resume(run_copy)


def test_a_changed_row_is_named(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        store._database.execute("UPDATE trials SET epoch = epoch + 1 WHERE position = 2")
    with pytest.raises(StoreError, match=r"store\.sqlite3 is damaged: the row of table trials that begins with \(2, "):
        content(run_copy)


def test_a_row_moved_to_another_number_is_named(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        (seq,) = store._database.row("SELECT min(seq) FROM observations")
        store._database.execute("UPDATE observations SET seq = 1000000 WHERE seq = ?", (seq,))
    with pytest.raises(StoreError, match="the row of table observations"):
        content(run_copy)
