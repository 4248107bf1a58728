"""What is still to come: counts and seconds that shrink to nothing as a study proceeds."""

from itertools import pairwise
from pathlib import Path

import pytest

from coordinator import forecast
from coordinator.forecast import describe, expected_trials, seconds_left, slowdown
from coordinator.store import StoreReader


def test_a_study_not_planned_yet_expects_what_its_plans_will_hold(study, finished_run: Path, driver) -> None:
    driver.plan()
    expected = expected_trials(study, driver.store.trials())
    with StoreReader.open(finished_run) as reader:
        assert expected >= len(reader.trials())
        assert expected - len(reader.trials()) <= study.serving.num_candidates + study.target.num_validation_seeds + 1


def test_a_finished_study_expects_nothing_more(study, driver) -> None:
    driver.finish()
    trials = driver.store.trials()
    assert expected_trials(study, trials) == len(trials)
    assert seconds_left(study, trials, driver.state().speed, 1.0) == 0


def test_a_check_without_a_worse_shape_is_not_awaited(study, driver) -> None:
    driver.finish()
    trials = [t for t in driver.store.trials() if "worse" not in t.planned.reason]
    assert len(trials) == len(driver.store.trials()) - 1
    assert expected_trials(study, trials) == len(trials)


def test_time_left_shrinks_with_every_trial(study, driver) -> None:
    driver.plan()
    speed = driver.state().speed
    left = [seconds_left(study, driver.store.trials(), speed, 1.0)]
    for trial_id in driver.queued()[:4]:
        driver.run_trial(trial_id)
        left.append(seconds_left(study, driver.store.trials(), speed, 1.0))
    assert all(after < before for before, after in pairwise(left))


def test_progress_of_a_running_trial_counts(study, driver) -> None:
    from scaling.observations import Progress

    driver.plan()
    speed, trial = driver.state().speed, driver.queued()[0]
    before = seconds_left(study, driver.store.trials(), speed, 1.0)
    driver.lease(trial)
    driver.store.record_progress(trial, Progress(assignment_id=trial, done_fraction=0.5), expires_unix=driver.now + 60)
    cost = speed.assignment_seconds(driver.store.trials()[0].planned.assignment)
    left = seconds_left(study, driver.store.trials(), speed, 1.0)
    assert before - left == pytest.approx(0.5 * cost / speed.num_agents)


def test_of_many_finished_trials_the_last_planned_tell_how_slow_the_agents_are(driver, monkeypatch) -> None:
    driver.plan()
    speed = driver.state().speed
    for trial_id in driver.queued()[:4]:
        driver.run_trial(trial_id)
    done = [row for row in driver.store.trials() if row.state == "succeeded"]
    costs = [speed.assignment_seconds(row.planned.assignment) for row in done]
    trials = [row._replace(spent_seconds=(3 if place < 2 else 2) * costs[place]) for place, row in enumerate(done)]
    assert slowdown(trials, speed) > 2.1
    monkeypatch.setattr(forecast, "NUM_TIMED", 2)
    assert slowdown(trials, speed) == pytest.approx(2)


def test_a_training_is_described_by_shape_tokens_and_role(driver) -> None:
    driver.plan()
    planned = next(t.planned for t in driver.store.trials() if t.planned.role == "replicate")
    sentence = describe(planned)
    assert planned.assignment.architecture.label in sentence
    assert "0.10 M tokens" in sentence
    assert "replicate seed 1" in sentence


def test_a_benchmark_is_described_by_shape_and_engine(finished_run: Path) -> None:
    with StoreReader.open(finished_run) as reader:
        planned = next(t.planned for t in reader.trials() if t.phase == "bench")
    assert describe(planned) == f"bench {planned.assignment.architecture.label} under transformers"
