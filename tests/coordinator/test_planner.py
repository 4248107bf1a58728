"""The whole of `next_plan` on a real store, in a world that obeys the law."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from agent.assignment import TrainAssignment
from coordinator import planner
from coordinator.analysis import same_size
from coordinator.shapes import baseline_at, candidates_at
from coordinator.store import Store, StoreReader

STAGES = ["first-round", "round-1", "round-2", "serving", "check", "verdict"]


def planned_in(reader, stage):
    return next(plan for plan in reader.plans() if plan.stage == stage)


def test_stages_come_in_order_and_end(finished_run: Path) -> None:
    with StoreReader.open(finished_run) as reader:
        assert [plan.stage for plan in reader.plans()] == STAGES
        assert {trial.state for trial in reader.trials()} == {"succeeded"}


def test_nothing_is_planned_after_the_verdict(run_copy: Path, make_driver, world) -> None:
    with Store.resume(run_copy) as store:
        assert planner.next_plan(make_driver(store, world).state()) is None


def test_first_round_holds_space_replicates_and_reference_cells(finished_run: Path, study) -> None:
    with StoreReader.open(finished_run) as reader:
        roles = Counter(trial.role for trial in planned_in(reader, "first-round").trials)
    assert roles == {
        "space": study.fit.num_space_shapes,
        "replicate": study.fit.num_centre_replicates,
        "reference": sum(cell.num_shapes for cell in study.reference),
    }


def test_first_round_starts_with_its_longest_runs(driver) -> None:
    trials = planner.next_plan(driver.state()).trials
    seconds = [driver.state().speed.assignment_seconds(trial.assignment) for trial in trials]
    assert seconds == sorted(seconds, reverse=True)


def test_replicates_differ_from_the_centre_in_the_seed_alone(driver, study) -> None:
    trials = planner.next_plan(driver.state()).trials
    replicate = next(trial for trial in trials if trial.role == "replicate").assignment
    twins = [
        trial.assignment
        for trial in trials
        if trial.role == "space" and trial.assignment.architecture == replicate.architecture
    ]
    assert len(twins) == 1
    assert twins[0].recipe.seed != replicate.recipe.seed
    assert twins[0].recipe.model_copy(update={"seed": replicate.recipe.seed}) == replicate.recipe


def test_every_shape_of_a_cell_gets_the_same_number_of_tokens_in_whole_batches(driver, study) -> None:
    driver.store.set_meta("token_scale", "0.37")
    trials = [t.assignment for t in planner.next_plan(driver.state()).trials if t.role in ("space", "replicate")]
    tokens = {assignment.recipe.num_tokens for assignment in trials}
    assert len(tokens) == 1
    assert tokens.pop() % study.training.batch_tokens == 0


def test_scaled_tokens_are_said_in_the_plans_notes(driver) -> None:
    driver.store.set_meta("token_scale", "0.37")
    assert "37%" in planner.next_plan(driver.state()).notes[0]


def test_no_round_is_proposed_while_the_agents_are_busy(driver) -> None:
    assert driver.plan() == ["first-round"]
    assert planner.next_plan(driver.state()) is None


def test_a_round_is_proposed_before_the_agents_run_dry(driver) -> None:
    driver.plan()
    for trial_id in driver.queued()[:-1]:
        driver.run_trial(trial_id)
    assert planner.next_plan(driver.state()).stage == "round-1"


def test_proposed_rounds_come_from_the_fit_and_say_why(finished_run: Path, study) -> None:
    with StoreReader.open(finished_run) as reader:
        for stage in ("round-1", "round-2"):
            plan = planned_in(reader, stage)
            assert len(plan.trials) == study.fit.num_runs_per_round
            assert plan.notes == ()  # a law was fitted: the round does not merely fill the space
            assert all(trial.role == "proposed" and trial.reason for trial in plan.trials)


def test_no_assignment_is_planned_twice(finished_run: Path) -> None:
    with StoreReader.open(finished_run) as reader:
        fit_runs = [
            t.trial_id for plan in reader.plans() for t in plan.trials if plan.stage not in ("check", "verdict")
        ]
    assert len(fit_runs) == len(set(fit_runs))


def test_target_runs_never_reach_the_fit(finished_run: Path, study) -> None:
    with StoreReader.open(finished_run) as reader:
        num_fit_size = sum(
            isinstance(t.planned.assignment, TrainAssignment)
            and same_size(t.planned.assignment.architecture.num_parameters, study.fit.num_parameters)
            for t in reader.trials()
        )
        fit = reader.last_fit()
    assert fit is not None
    assert fit.num_points <= num_fit_size


def test_serving_measures_the_baseline_and_no_more_than_asked(finished_run: Path, study) -> None:
    with StoreReader.open(finished_run) as reader:
        shapes = [trial.assignment.architecture for trial in planned_in(reader, "serving").trials]
    assert baseline_at(study) in shapes
    assert len(shapes) == len(set(shapes)) <= study.serving.num_candidates + 1


def test_serving_waits_for_every_loss(driver) -> None:
    while "round-2" not in driver.state().stages:
        driver.plan()
        driver.run_trial(driver.queued()[0])
    assert driver.queued()
    assert planner.next_plan(driver.state()) is None
    driver.run_queue()
    assert planner.next_plan(driver.state()).stage == "serving"


def test_check_trains_the_baseline_and_a_worse_shape_at_the_target(finished_run: Path, study, world) -> None:
    with StoreReader.open(finished_run) as reader:
        trials = planned_in(reader, "check").trials
        verdict = planned_in(reader, "verdict").trials
    assert [t.assignment.architecture for t in trials][: study.target.num_validation_seeds] == [
        baseline_at(study)
    ] * study.target.num_validation_seeds
    worse, best = trials[-1].assignment, verdict[0].assignment
    assert world.loss(worse.architecture, worse.recipe.num_tokens) > world.loss(
        best.architecture, best.recipe.num_tokens
    )


def test_verdict_waits_for_serving_and_names_its_choice(driver) -> None:
    while "check" not in driver.state().stages:
        driver.run_queue()
        driver.plan()
    assert planner.next_plan(driver.state()) is None
    driver.run_queue()
    plan = planner.next_plan(driver.state())
    assert plan.stage == "verdict"
    assert plan.notes[0].startswith("Recommended for cpu-generic is ")


@pytest.mark.parametrize("num_done", [0, 3, 8])
def test_a_resumed_run_makes_the_same_next_plan(driver, make_driver, world, tmp_path: Path, num_done: int) -> None:
    driver.plan()
    for trial_id in driver.queued()[:num_done]:
        driver.run_trial(trial_id)
    interrupted = driver.queued()[0]
    epoch = driver.lease(interrupted)
    copy = shutil.copytree(driver.store.run_directory, tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm"))
    assignment = driver.store.trials()[num_done].planned.assignment
    driver.store.record_result(interrupted, epoch, world.observe(assignment), now_unix=driver.now)
    driver.run_queue()
    with Store.resume(copy) as store:
        assert store.requeue_running(now_unix=driver.now) == [interrupted]
        resumed = make_driver(store, world)
        resumed.run_queue()
        assert planner.next_plan(resumed.state()) == planner.next_plan(driver.state())


def test_planning_is_deterministic(driver) -> None:
    driver.plan()
    driver.run_queue()
    assert planner.next_plan(driver.state()) == planner.next_plan(driver.state())


def test_a_failed_training_does_not_block_the_study(driver) -> None:
    driver.plan()
    driver.fail_trial(driver.queued()[2])
    assert driver.finish()[-1] == "verdict"


def test_a_failed_benchmark_does_not_block_the_study(driver) -> None:
    while "serving" not in driver.state().stages:
        driver.run_queue()
        driver.plan()
    bench = [t.trial_id for t in driver.store.trials() if t.phase == "bench"]
    for trial_id in bench:
        driver.fail_trial(trial_id, "engine-start")
    assert driver.finish()[-1] == "verdict"
    assert driver.store.recommendation()["answers"][0]["recommended_throughput"]["kind"] == "not-measured"


def test_when_every_training_fails_nothing_is_recommended_and_the_study_ends(driver) -> None:
    for _ in range(10):
        driver.plan()
        for trial_id in driver.queued():
            if trial_id.startswith("train"):
                driver.fail_trial(trial_id)
            else:
                driver.run_trial(trial_id)
        if planner.is_finished(driver.state()):
            break
    assert planner.is_finished(driver.state())
    assert planner.choices_of(driver.state()) == ()
    assert "Nothing can be recommended" in driver.store.plans()[-1].notes[0]


def test_a_proposed_repeat_of_a_shape_gets_a_seed_of_its_own(make_driver, tmp_path: Path, study, world) -> None:
    replicated = study.model_copy(update={"fit": study.fit.model_copy(update={"num_runs_per_round": 8})})
    with Store.create(tmp_path / "many", replicated, now_unix=0) as store:
        driver = make_driver(store, world)
        for _ in range(3):
            driver.plan()
            driver.run_queue()
        fit_runs = [
            (t.planned.assignment.architecture, t.planned.assignment.recipe.seed)
            for t in store.trials()
            if t.planned.role in ("space", "replicate", "proposed")
        ]
    assert len(fit_runs) == 7 + 16
    assert len(set(fit_runs)) == len(fit_runs)


@pytest.fixture
def wide_driver(make_driver, tmp_path: Path, study, world):
    """A study with four runs a round and two seeds at the target, its first round done."""
    wide = study.model_copy(
        update={
            "fit": study.fit.model_copy(update={"num_runs_per_round": 4}),
            "target": study.target.model_copy(update={"num_validation_seeds": 2}),
        }
    )
    with Store.create(tmp_path / "wide", wide, now_unix=0) as store:
        driver = make_driver(store, world)
        driver.plan()
        driver.run_queue()
        yield driver


def late(driver, *, seconds: float) -> planner.StudyState:
    return planner.state_of(driver.store, corpus_id=driver.state().corpus_id, elapsed_seconds=seconds)


def test_a_round_within_the_budget_is_whole(wide_driver) -> None:
    assert len(planner.next_plan(late(wide_driver, seconds=0)).trials) == 4


def test_a_late_study_proposes_one_run_a_round_and_says_so(wide_driver) -> None:
    plan = planner.next_plan(late(wide_driver, seconds=10_000))
    assert len(plan.trials) == 1
    assert "1 runs instead of 4" in plan.notes[-1]


def test_a_late_study_trains_one_seed_a_shape_at_the_target_and_says_so(wide_driver) -> None:
    while "serving" not in late(wide_driver, seconds=0).stages:
        wide_driver.store.add_plan(planner.next_plan(late(wide_driver, seconds=0)), now_unix=0)
        for trial_id in wide_driver.queued():
            if trial_id.startswith("train"):
                wide_driver.run_trial(trial_id)
    plan = planner.next_plan(late(wide_driver, seconds=10_000))
    assert plan.stage == "check"
    assert sum("the baseline" in trial.reason for trial in plan.trials) == 1
    assert plan.notes[0].startswith("One seed a shape at the target")


def test_a_wall_clock_set_back_does_not_stop_the_planning(driver, world) -> None:
    driver.plan()
    assignments = {row.trial_id: row.planned.assignment for row in driver.store.trials()}
    for trial_id in driver.queued():
        epoch = driver.lease(trial_id)
        driver.store.record_result(trial_id, epoch, world.observe(assignments[trial_id]), now_unix=0)
    assert sum(row.spent_seconds for row in driver.store.trials()) == 0
    assert planner.next_plan(driver.state()).stage == "round-1"


def test_proposed_shapes_belong_to_the_space(finished_run: Path, study) -> None:
    candidates = candidates_at(study, study.fit.num_parameters)
    with StoreReader.open(finished_run) as reader:
        proposed = [t.planned.assignment.architecture for t in reader.trials() if t.planned.role == "proposed"]
    assert all(candidates.index_of(shape) is not None for shape in proposed)
