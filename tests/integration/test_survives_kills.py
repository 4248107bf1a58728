"""Killed at any time, a run goes on: nothing finished is lost or repeated, and training resumes from its checkpoint."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from coordinator.record import read_record
from coordinator.store import StoreReader

pytestmark = [pytest.mark.fleet, pytest.mark.slow]


def some_done_and_one_checkpointed(user_folder: Any) -> bool:
    trials = user_folder.trials().values()
    done = sum(trial.state == "succeeded" for trial in trials)
    running = [trial for trial in trials if trial.state == "running"]
    saved = [
        t
        for t in running
        if list((user_folder.run_directory / "agents" / "checkpoints" / t.trial_id).glob("**/*.json"))
    ]
    return done >= 2 and bool(saved)


def test_killed_coordinator_resumes_without_losing_or_repeating_a_run(user_folder: Any, tiny_study: Path) -> None:
    first = user_folder.start("run", str(tiny_study), "--metrics-port", "0")
    user_folder.wait_for(some_done_and_one_checkpointed, first, timeout_seconds=300)
    first.kill()
    before = user_folder.trials()
    with StoreReader.open(user_folder.run_directory) as store:
        acknowledged = {o.assignment_id: o.model_dump_json() for o in store.observations()}

    second = user_folder.start("run", str(tiny_study), "--metrics-port", "0")
    log = second.finish(300)

    assert second.process.returncode == 0, log
    assert len(list((user_folder.folder / "runs").iterdir())) == 1
    record = read_record(user_folder.run_directory)
    assert record.state == "finished"
    finished_before = {name for name, trial in before.items() if trial.state == "succeeded"}
    assert len(finished_before) >= 2
    after = user_folder.trials()
    for name in finished_before:
        assert (after[name].epoch, after[name].attempts) == (before[name].epoch, before[name].attempts)
    results = {**record.training, **record.serving}
    assert {name: results[name].model_dump_json() for name in acknowledged} == acknowledged
    interrupted = {name for name, trial in before.items() if trial.state == "running"}
    assert all(after[name].epoch > before[name].epoch for name in interrupted)
    assert any(record.training[name].num_resumes >= 1 for name in interrupted)


def test_killed_agent_is_replaced_and_its_training_goes_on_from_the_checkpoint(
    user_folder: Any, tiny_study: Path
) -> None:
    command = user_folder.start("run", str(tiny_study), "--metrics-port", "0")
    user_folder.wait_for(some_done_and_one_checkpointed, command, timeout_seconds=300)
    with StoreReader.open(user_folder.run_directory) as store:
        running = [trial for trial in store.trials() if trial.state == "running"]
        victim = min(running, key=lambda trial: trial.done_fraction)  # the one that ends last
        pid = next(agent.pid for agent in store.agents() if agent.agent == victim.agent)

    os.kill(pid, signal.SIGKILL)
    log = command.finish(300)

    assert command.process.returncode == 0, log
    record = read_record(user_folder.run_directory)
    lost = {failure.assignment_id for failure in record.failures if failure.failure_kind == "agent-lost"}
    assert lost
    trials = user_folder.trials()
    assert all(trials[name].state == "succeeded" and trials[name].attempts == 2 for name in lost)
    assert all(trial.state == "succeeded" for trial in trials.values())
    assert len(record.training) + len(record.serving) == len(trials)


def test_interrupt_stops_cleanly_and_says_how_to_go_on(user_folder: Any, tiny_study: Path) -> None:
    command = user_folder.start("run", str(tiny_study), "--metrics-port", "0")
    user_folder.wait_for(
        lambda place: any(t.state == "running" for t in place.trials().values()), command, timeout_seconds=300
    )

    command.process.send_signal(signal.SIGINT)
    log = command.finish(240)

    assert command.process.returncode == 130
    assert "the same command goes on with runs/tiny-" in log.splitlines()[-1]
    assert "Traceback" not in log
    assert read_record(user_folder.run_directory).state == "interrupted"
