"""Status: a run's state from its store alone, while it runs and afterwards."""

import json
from pathlib import Path

from coordinator.status import describe_status, is_held, read_status
from coordinator.store import Store


def test_a_finished_run(run_copy: Path) -> None:
    status = read_status(run_copy)
    assert status["state"] == "finished"
    assert set(status["trials"]) == {"succeeded"}
    assert status["recommendation"] in describe_status(status)
    assert status["law"].startswith("law from ")


def test_status_is_json(run_copy: Path) -> None:
    status = read_status(run_copy)
    assert json.loads(json.dumps(status, allow_nan=False)) == status


def test_a_run_with_a_living_coordinator_is_running(driver) -> None:
    driver.store.set_meta("metrics_url", "http://10.0.0.7:9464/metrics")
    status = read_status(driver.store.run_directory)
    assert status["state"] == "running"
    assert status["metrics_url"] == "http://10.0.0.7:9464/metrics"
    assert "  metrics: http://10.0.0.7:9464/metrics" in describe_status(status).splitlines()


def test_a_run_whose_coordinator_died_is_called_killed_and_has_no_metrics(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        store.set_meta("state", "running")
        store.set_meta("metrics_url", "http://127.0.0.1:9464/metrics")
    status = read_status(run_copy)
    assert status["state"].startswith("killed")
    assert "archfleet run" in status["state"]
    assert status["metrics_url"] is None


def test_running_trials_are_told_with_their_agent_and_progress(driver) -> None:
    from scaling.observations import Progress

    driver.plan()
    trial = driver.queued()[0]
    driver.lease(trial)
    driver.store.record_progress(trial, Progress(assignment_id=trial, done_fraction=0.25), expires_unix=0)
    status = read_status(driver.store.run_directory)
    assert status["running"] == [{"trial": trial, "agent": "agent-0", "done_fraction": 0.25}]
    assert f"agent-0: {trial} 25% done" in describe_status(status)


def test_failed_attempts_are_counted_by_kind(driver) -> None:
    driver.plan()
    driver.fail_trial(driver.queued()[0], "nan-loss")
    status = read_status(driver.store.run_directory)
    assert status["failed_attempts"] == {"nan-loss": 1}
    assert "1 nan-loss" in describe_status(status)


def test_a_run_that_planned_nothing_yet(store: Store) -> None:
    words = describe_status(read_status(store.run_directory))
    assert "none planned yet" in words
    assert "law: none yet" in words


def test_looking_does_not_disturb_the_writer(driver) -> None:
    driver.plan()
    read_status(driver.store.run_directory)
    driver.run_trial(driver.queued()[0])


def test_a_run_is_held_exactly_while_its_store_is_open(run_copy: Path) -> None:
    assert not is_held(run_copy)
    with Store.resume(run_copy):
        assert is_held(run_copy)
    assert not is_held(run_copy)


def test_agents_of_a_run_that_ended_were_stopped_and_not_lost(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        store.requeue_running(now_unix=0)  # marks them lost
    assert {agent["state"] for agent in read_status(run_copy)["agents"]} == {"stopped"}
    with Store.resume(run_copy) as store:
        store.set_meta("state", "running")
    assert {agent["state"] for agent in read_status(run_copy)["agents"]} == {"lost"}
