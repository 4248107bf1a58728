"""One trial in words: its attempts, its numbers with unit and kind, and what it said."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.errors import UserError
from coordinator.logs import Logs
from coordinator.store import StoreReader
from coordinator.trial_status import describe_trial, read_trial_status


def words(run_directory: Path, trial_id: str) -> str:
    return "\n".join(describe_trial(read_trial_status(run_directory, trial_id, now_unix=0)))


def first_trial(run_directory: Path, phase: str) -> str:
    with StoreReader.open(run_directory) as store:
        return next(trial.trial_id for trial in store.trials() if trial.phase == phase)


def test_a_training_tells_its_loss_with_unit_and_interval(finished_run: Path) -> None:
    told = words(finished_run, first_trial(finished_run, "train"))
    assert ", succeeded (" in told
    assert "  attempt 1: succeeded after " in told
    assert " nats/token [" in told
    assert "(measured" in told


def test_a_benchmark_tells_its_throughput(finished_run: Path) -> None:
    assert "  throughput: " in words(finished_run, first_trial(finished_run, "bench"))


def test_a_failure_is_told_with_its_attempt_and_a_trial_that_waits_has_no_numbers(driver) -> None:
    driver.plan()
    trial = driver.queued()[0]
    assert "log: No attempt has begun." in words(driver.store.run_directory, trial)
    driver.fail_trial(trial, "nan-loss")
    told = words(driver.store.run_directory, trial)
    assert "    nan-loss: " in told
    assert "held-out loss" not in told


def test_the_log_of_the_last_attempt_is_told_as_it_was_said(driver) -> None:
    driver.plan()
    trial = driver.queued()[0]
    driver.lease(trial)
    logs = Logs(driver.store.run_directory)
    logs.add(trial, 1, "12:00:00 loading\n12:00:01 [corpus] is there\n")
    logs.write()
    told = words(driver.store.run_directory, trial)
    assert "  attempt 1: goes on, agent-0 (" in told
    assert told.endswith("whole; times in UTC:\n    12:00:00 loading\n    12:00:01 [corpus] is there")


def test_a_misspelt_trial_is_suggested(finished_run: Path) -> None:
    trial = first_trial(finished_run, "train")
    with pytest.raises(UserError, match=rf"has no trial '{trial[:-1]}' among its \d+\. Did you mean '{trial}'\?"):
        read_trial_status(finished_run, trial[:-1], now_unix=0)
    with pytest.raises(UserError, match=r"Give an id of its runs\.csv"):
        read_trial_status(finished_run, "../../etc/passwd", now_unix=0)


def test_the_command_tells_a_trial_in_words_and_as_json(run_copy: Path) -> None:
    trial = first_trial(run_copy, "train")
    arguments = ["status", "--runs", str(run_copy.parent), "--trial", trial]
    assert CliRunner().invoke(main, arguments).stdout.startswith(f"{trial}: train ")
    page = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert (page["trial"]["trial_id"], page["trial"]["state"]) == (trial, "succeeded")
