"""Backups: whole, checked before they count, taken while the run goes on."""

from pathlib import Path

import pytest

from coordinator.backup import back_up
from coordinator.database import Database
from coordinator.errors import StoreError
from coordinator.logs import Logs, read_logs
from coordinator.store import FILE_NAME, Store, StoreReader

NOW = 1_700_000_000.0


def test_a_backup_holds_what_its_run_holds(run_copy: Path, tmp_path: Path) -> None:
    made = back_up(run_copy, tmp_path / "backups", now_unix=NOW)
    with StoreReader.open(run_copy) as run, StoreReader.open(made.path) as copy:
        assert copy.trials() == run.trials()
        assert copy.observations() == run.observations()
        assert copy.decisions() == run.decisions()
        assert (made.num_trials, made.num_observations) == (len(run.trials()), len(run.observations()))


def test_a_backup_has_the_logs_of_its_run_beside_the_store(run_copy: Path, tmp_path: Path) -> None:
    assert back_up(run_copy, tmp_path, now_unix=NOW).num_log_bytes == 0
    logs = Logs(run_copy, file_bytes=1)
    for said in ("begins", "ended"):
        logs.add("train-1", 1, said)
        logs.write()
    made = back_up(run_copy, tmp_path, now_unix=NOW + 1)
    assert read_logs(made.path, "train-1")[1].text == "begins\nended\n"
    assert made.num_log_bytes == sum(log.stat().st_size for log in (run_copy / "logs").iterdir()) > 0


def test_logs_that_cannot_be_copied_leave_no_half_backup(run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "logs" / "000001.log").mkdir(parents=True)  # no file
    with pytest.raises(StoreError, match="cannot back up to"):
        back_up(run_copy, tmp_path / "backups", now_unix=NOW)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_backup_becomes_a_run_that_goes_on(driver, tmp_path: Path) -> None:
    driver.plan()
    made = back_up(driver.store.run_directory, tmp_path, now_unix=NOW)
    with Store.resume(made.path) as restored:
        assert [row.trial_id for row in restored.trials()] == driver.queued()


def test_a_backup_is_taken_beside_its_writer_which_goes_on(driver, tmp_path: Path) -> None:
    driver.plan()
    first, second = driver.queued()[:2]
    driver.run_trial(first)
    made = back_up(driver.store.run_directory, tmp_path, now_unix=NOW)
    driver.run_trial(second)
    with StoreReader.open(made.path) as copy:
        assert [record.assignment_id for record in copy.observations()] == [first]
    assert len(driver.store.observations()) == 2


def test_the_store_knows_when_its_last_backup_was_made(driver, tmp_path: Path) -> None:
    back_up(driver.store.run_directory, tmp_path, now_unix=NOW)
    assert driver.store.meta("last_backup_unix") == repr(NOW)


def test_a_backup_lies_with_its_run_by_default_and_never_over_another(run_copy: Path) -> None:
    assert back_up(run_copy, now_unix=NOW).path.parent == run_copy / "backups"
    with pytest.raises(StoreError, match="exists already"):
        back_up(run_copy, now_unix=NOW)


def test_a_damaged_store_gives_no_backup(run_copy: Path, tmp_path: Path) -> None:
    database = Database.open_for_writing(run_copy / FILE_NAME)
    database.execute("UPDATE trials SET spent_seconds = 0 WHERE position = 3")
    database.close()
    with pytest.raises(StoreError, match=r"is damaged: the row of table trials") as caught:
        back_up(run_copy, tmp_path / "backups", now_unix=NOW)
    assert str(run_copy / FILE_NAME) in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert list((tmp_path / "backups").iterdir()) == []
    with StoreReader.open(run_copy) as run:
        assert run.meta("last_backup_unix") is None


def test_a_copy_that_came_out_damaged_is_not_taken_for_the_runs_fault(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_badly(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:5000])

    monkeypatch.setattr("coordinator.backup._copy", copy_badly)
    with pytest.raises(StoreError, match=r"is sound, but its copy in .*backups is not and was removed"):
        back_up(run_copy, tmp_path / "backups", now_unix=NOW)


def test_a_place_that_cannot_be_written_is_named(run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot back up to .*taken"):
        back_up(run_copy, tmp_path / "taken", now_unix=NOW)
