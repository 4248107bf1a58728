"""Several D on one trunk: what a plan trains first, what branches off, and what that costs."""

from pathlib import Path

import pytest

from agent.assignment import TrainAssignment
from coordinator import planner
from coordinator.analysis import analyse
from coordinator.budget import first_runs, planned_train_seconds
from coordinator.forecast import describe, expected_trials, seconds_left
from coordinator.plan import PlannedTrial, Role
from coordinator.planning import DecisionInputs
from coordinator.replay import replan
from coordinator.shapes import centre_shape
from coordinator.store import Store
from coordinator.study import ReferenceSpec, StudySpec
from coordinator.trunks import share_trunks, trained_tokens
from scaling.observations import TrainingObservation
from scaling.recipes import TrainingRecipe


def trial(study: StudySpec, num_tokens: int, *, role: Role = "reference", **recipe: object) -> PlannedTrial:
    return PlannedTrial(
        role=role,
        reason="Because.",
        assignment=TrainAssignment(
            architecture=centre_shape(study, study.fit.num_parameters),
            recipe=TrainingRecipe(**({"num_tokens": num_tokens, "warmup_tokens": 5_120} | recipe)),
            corpus_id="c" * 64,
        ),
    )


N = 51_200


@pytest.fixture
def three(study: StudySpec) -> list[PlannedTrial]:
    return [trial(study, ratio * N) for ratio in (5, 20, 10)]


def test_the_longest_run_is_the_trunk_and_the_others_branch_off(three: list[PlannedTrial]) -> None:
    shared = share_trunks(three)
    (trunk,) = shared.first
    assert trunk.assignment.recipe.num_tokens == 20 * N
    assert trunk.assignment.branch_tokens == (5 * N, 10 * N)
    assert [branch.trial.assignment.recipe.num_tokens for branch in shared.branches] == [10 * N, 5 * N]
    assert {branch.trunk for branch in shared.branches} == {trunk.trial_id}
    assert "Branches off a run of 1,024,000 tokens, 70% on its way." in shared.branches[0].trial.reason


def test_three_d_cost_a_quarter_less_than_three_runs(three: list[PlannedTrial]) -> None:
    shared = share_trunks(three)
    branches = [branch.trial for branch in shared.branches]
    assert trained_tokens(three) == 35 * N
    assert trained_tokens([*shared.first, *branches]) == pytest.approx(24.5 * N)


@pytest.mark.parametrize(
    "change", [{"warmup_tokens": None}, {"seed": 1}, {"base_learning_rate": 0.004}], ids=["warm-up", "seed", "rate"]
)
def test_runs_that_differ_in_more_than_d_are_left_as_they_are(study: StudySpec, change: dict[str, object]) -> None:
    trials = (trial(study, 20 * N), trial(study, 5 * N, **change))
    assert share_trunks(trials).first == trials


def test_a_run_asked_for_twice_is_trained_once_for_whom_asked_first(study: StudySpec) -> None:
    trials = [trial(study, 10 * N, role="space"), trial(study, 10 * N), trial(study, 5 * N)]
    shared = share_trunks(trials)
    assert [(one.role, one.assignment.branch_tokens) for one in shared.first] == [("space", (5 * N,))]
    assert len(shared.branches) == 1


@pytest.fixture
def branching(study: StudySpec) -> StudySpec:
    """The reference cells of the smoke study on trunks: its fit's runs (ratio 4), and a size of their own."""
    small, other = study.fit.num_parameters, study.reference[-1].num_parameters
    return study.model_copy(
        update={
            "reference": (
                ReferenceSpec(num_parameters=small, ratios=(2,), num_shapes=3),
                ReferenceSpec(num_parameters=other, ratios=(1, 2, 4)),
            )
        }
    )


@pytest.fixture
def driver(branching: StudySpec, make_driver, world, tmp_path: Path):
    with Store.create(tmp_path / "branching", branching, now_unix=0) as store:
        yield make_driver(store, world)


def train_runs(driver, stage: str) -> list[TrainAssignment]:
    return [row.planned.assignment for row in driver.store.trials() if row.stage == stage]


def test_branches_are_planned_when_their_trunks_are_trained(driver, branching: StudySpec) -> None:
    assert driver.plan() == ["first-round"]
    trunks = [row.trial_id for row in driver.store.trials() if row.planned.assignment.branch_tokens]
    assert len(trunks) == 4
    for trial_id in trunks[:-1]:
        driver.run_trial(trial_id)
        assert planner.next_plan(driver.state()) is None
    driver.run_trial(trunks[-1])
    assert driver.plan() == ["branches"]
    inherited = [run.trunk_tokens / run.recipe.num_tokens for run in train_runs(driver, "branches")]
    assert inherited == pytest.approx([0.7] * 5, abs=0.01)


def test_the_plan_of_the_branches_can_be_made_again_from_what_it_followed_from(driver) -> None:
    driver.plan()
    while (plan := planner.next_plan(driver.state())) is None:
        driver.run_trial(driver.queued()[0])
    inputs = DecisionInputs.of(driver.state()).model_dump(mode="json")
    driver.store.add_plan(plan, now_unix=driver.now, inputs=inputs)
    driver.run_queue()
    assert plan.stage == "branches"
    assert replan(driver.store, "branches") == plan


def test_agents_never_run_dry_for_a_trunk(driver) -> None:
    driver.plan()
    trunk = next(row.trial_id for row in driver.store.trials() if row.planned.assignment.branch_tokens)
    for trial_id in driver.queued():
        if trial_id != trunk:
            driver.run_trial(trial_id)
    assert driver.plan()[0] == "branches"


def test_a_branch_says_what_it_trains_itself(three: list[PlannedTrial]) -> None:
    words = describe(share_trunks(three).branches[0].trial)
    assert words.endswith("on 0.51 M tokens, 0.15 M of them after its trunk (reference)")


def test_branches_whose_trunk_failed_are_left_out_and_that_is_said(driver) -> None:
    driver.plan()
    for row in driver.store.trials():
        if len(row.planned.assignment.branch_tokens) == 2:
            driver.fail_trial(row.trial_id)
        else:
            driver.run_trial(row.trial_id)
    plan = planner.next_plan(driver.state())
    assert len(plan.trials) == 3
    assert plan.notes == ("2 branches are left out: their trunks failed.",)


def test_a_study_with_trunks_comes_to_its_end_and_expects_what_it_trains(driver, branching: StudySpec) -> None:
    driver.plan()
    speed = driver.state().speed
    expected = expected_trials(branching, driver.store.trials())
    left = seconds_left(branching, driver.store.trials(), speed, 1.0)
    num_first = len(driver.store.trials())
    while "branches" not in driver.state().stages:
        driver.run_trial(driver.queued()[0])
        driver.plan()
    assert expected_trials(branching, driver.store.trials()) == expected
    assert len(driver.store.trials()) == num_first + 5
    assert seconds_left(branching, driver.store.trials(), speed, 1.0) < left
    assert driver.finish()[-1] == "verdict"


def test_branches_enter_the_fit_with_their_own_d(driver, branching: StudySpec) -> None:
    driver.finish()
    runs = [one for one in driver.store.observations() if isinstance(one, TrainingObservation)]
    fit = analyse(branching, runs)
    assert fit is not None
    size = branching.fit.num_parameters
    cells = {round(cell.num_tokens / size) for cell in fit.law_fit.cells}
    assert cells == {2, 4}


def test_what_is_planned_is_what_was_priced(driver, branching: StudySpec) -> None:
    driver.plan()
    driver.run_queue()
    driver.plan()
    speed = driver.state().speed
    planned = [*train_runs(driver, "first-round"), *train_runs(driver, "branches")]
    priced = sum(run.seconds(branching, speed) for run in first_runs(branching))
    assert len(planned) == len(first_runs(branching))
    assert sum(speed.assignment_seconds(one) for one in planned) == pytest.approx(priced, rel=0.03)


def test_trunks_make_a_study_cheaper(branching: StudySpec, driver) -> None:
    as_runs = tuple(
        ReferenceSpec(num_parameters=c.num_parameters, tokens_per_parameter=ratio, num_shapes=c.num_shapes)
        for c in branching.reference
        for ratio in c.ratios
    )
    apart = branching.model_copy(update={"reference": as_runs})
    speed = driver.state().speed
    assert len(first_runs(apart)) == len(first_runs(branching))
    assert planned_train_seconds(branching, speed) < planned_train_seconds(apart, speed)
