"""Plans are values: named by content, and read back as they were."""

import pytest
from pydantic import ValidationError

from coordinator import planner
from coordinator.plan import Plan, PlannedTrial


def test_a_plan_survives_its_json(driver) -> None:
    plan = planner.next_plan(driver.state())
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_trial_is_named_by_its_assignment_alone(driver) -> None:
    trial = planner.next_plan(driver.state()).trials[0]
    renamed = trial.model_copy(update={"reason": "another", "role": "proposed"})
    assert renamed.trial_id == trial.trial_id == trial.assignment.id


def test_trials_of_different_seeds_have_different_names(driver) -> None:
    trials = planner.next_plan(driver.state()).trials
    assert len({trial.trial_id for trial in trials}) == len(trials)


def test_an_unknown_role_is_refused(driver) -> None:
    assignment = planner.next_plan(driver.state()).trials[0].assignment
    with pytest.raises(ValidationError, match="role"):
        PlannedTrial(role="whim", reason="", assignment=assignment)
