"""Predicted beside measured throughput: fitted to the study's own runs, and never one taken for the other."""

from pathlib import Path

import pytest

from agent.assignment import BenchAssignment
from coordinator import planner
from coordinator.choice import NUM_FIRST_SERVED
from coordinator.planner import StudyState
from coordinator.recommendation import Recommendation
from coordinator.store import Store, StoreReader
from coordinator.throughput_ranking import MIN_RANKED, rank, valid_runs
from scaling.quantity import Measured, NotMeasured, Predicted

NUM_CANDIDATES = 7


@pytest.fixture(scope="module")
def serving_more(study):
    return study.model_copy(update={"serving": study.serving.model_copy(update={"num_candidates": NUM_CANDIDATES - 1})})


@pytest.fixture
def finished(make_driver, tmp_path: Path, serving_more, world):
    with Store.create(tmp_path / "more", serving_more, now_unix=0) as store:
        driver = make_driver(store, world)
        driver.finish()
        yield driver


def served(state: StudyState, stage: str) -> list[BenchAssignment]:
    return [t.planned.assignment for t in state.trials if t.stage == stage]


def runs_of(state: StudyState):
    return valid_runs(state.observations, state.study.serving.recipe, state.study.serving.workload, "cpu-generic")


def test_a_few_shapes_are_served_first_and_the_rest_of_the_budget_goes_to_the_best_predicted(finished) -> None:
    state = finished.state()
    first, best = (served(state, stage) for stage in ("serving", "serving-best"))
    assert len(first) <= NUM_FIRST_SERVED
    assert len(first) + len(best) == NUM_CANDIDATES
    assert len({assignment.architecture for assignment in first + best}) == NUM_CANDIDATES


def test_the_best_predicted_keep_the_loss_limit(finished) -> None:
    state = finished.state()
    found = planner.choices_of(state)[0].shortlist
    for assignment in served(state, "serving-best"):
        index = found.candidates.index_of(assignment.architecture)
        assert found.probability_within_limit[index] >= state.study.target.probability


def test_the_plan_says_what_its_ranking_rests_on(finished) -> None:
    plan = next(plan for plan in finished.store.plans() if plan.stage == "serving-best")
    assert "host term fitted on 4 runs of transformers synthetic" in plan.notes[0]


def test_a_study_that_serves_few_has_no_second_stage(finished_run: Path) -> None:
    with StoreReader.open(finished_run) as reader:
        assert "serving-best" not in [plan.stage for plan in reader.plans()]


def test_failed_first_benchmarks_leave_the_roofline_and_the_plan_says_so(
    make_driver, tmp_path: Path, serving_more, world
) -> None:
    with Store.create(tmp_path / "failing", serving_more, now_unix=0) as store:
        driver = make_driver(store, world)
        while "check" not in driver.state().stages:
            driver.run_queue() if "serving" not in driver.state().stages else None
            driver.plan()
        for trial_id in [t.trial_id for t in store.trials() if t.phase == "bench"]:
            driver.fail_trial(trial_id, "engine-start")
        plan = planner.next_plan(driver.state())
    assert plan.stage == "serving-best"
    assert "the roofline alone; no valid run to fit" in plan.notes[0]


def test_the_recommendation_holds_predicted_beside_measured(finished) -> None:
    answer = Recommendation.model_validate(finished.store.recommendation())
    ranking = answer.answers[0].throughput_ranking
    measured = [row for row in ranking.shapes if isinstance(row.measured, Measured)]
    others = [row for row in ranking.shapes if isinstance(row.measured, NotMeasured)]
    assert len(measured) == ranking.num_compared == NUM_CANDIDATES
    assert others
    assert all(isinstance(row.predicted, Predicted) for row in ranking.shapes)
    assert -1 <= ranking.spearman <= 1
    assert ranking.median_error < 0.5
    assert f"of {NUM_CANDIDATES} shapes" in ranking.sentence()


def test_the_recommended_throughput_is_measured(finished) -> None:
    answer = Recommendation.model_validate(finished.store.recommendation())
    assert isinstance(answer.answers[0].recommended_throughput, Measured)
    assert answer.answers[0].recommended in {run.architecture for run in runs_of(finished.state())}


def test_a_measured_shape_is_predicted_from_the_others_alone(finished) -> None:
    state = finished.state()
    runs, serving = runs_of(state), state.study.serving

    def first_row(runs):
        found = rank(
            runs, (), recipe=serving.recipe, workload=serving.workload, hardware="cpu-generic", num_candidates=1
        )
        return found.shapes[0]

    faster = tuple(
        one.model_copy(update={"output_tokens_per_second": 3 * one.output_tokens_per_second}) for one in runs[0].repeats
    )
    moved = (runs[0].model_copy(update={"repeats": faster}), *runs[1:])
    assert first_row(moved).predicted == first_row(runs).predicted


@pytest.mark.parametrize(("num_runs", "num_compared"), [(0, 0), (4, 0), (5, 5)])
def test_too_few_runs_are_no_data(finished, num_runs: int, num_compared: int) -> None:
    serving = finished.state().study.serving
    runs = runs_of(finished.state())[:num_runs]
    ranking = rank(runs, (), recipe=serving.recipe, workload=serving.workload, hardware="cpu-generic", num_candidates=0)
    assert ranking.num_compared == num_compared
    assert (ranking.spearman is None) == (num_compared < MIN_RANKED)
    if not num_compared:
        assert "no data" in ranking.sentence()


def test_hardware_on_which_serving_was_measured_is_not_predicted(finished_run: Path) -> None:
    from dataclasses import replace

    from coordinator.recommendation import make_recommendation

    with StoreReader.open(finished_run) as reader:
        state = planner.state_of(reader, corpus_id=reader.meta("corpus_id"))
    here = state.study.serving.predict_hardware[0]
    moved = tuple(
        o.model_copy(update={"provenance": o.provenance.model_copy(update={"hardware": here})})
        if o.kind == "serving"
        else o
        for o in state.observations
    )
    state = replace(state, observations=moved)
    answer = make_recommendation(
        state.study, state.analysis, planner.choices_of(state), moved, token_scale=1.0, made_unix=1.0
    )
    assert {p.hardware for p in answer.gpu_predictions} == set(state.study.serving.predict_hardware) - {here}
