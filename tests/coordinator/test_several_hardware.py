"""A study of two kinds of hardware: each is served every candidate, and has a fit and an answer of its own."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator import planner
from coordinator.choice import fastest_safe, in_turn
from coordinator.forecast import expected_trials
from coordinator.outputs import named_shapes, write_outputs
from coordinator.planning import needs_of
from coordinator.recommendation import Recommendation, make_recommendation
from coordinator.record import read_record
from coordinator.shapes import baseline_at, candidates_at
from coordinator.status import describe_status, read_status
from coordinator.store import Store, StoreReader
from coordinator.study import StudySpec
from coordinator.throughput_ranking import roofline_basis
from scaling.observations import ServingObservation
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import ServingRecipe

HARDWARE = ("a100-80gb", "h200")
NUM_CANDIDATES = 7


@pytest.fixture(scope="module")
def mixed_study(study) -> StudySpec:
    serving = study.serving.model_copy(
        update={
            "hardware": HARDWARE,
            "num_candidates": NUM_CANDIDATES - 1,
            "recipe": ServingRecipe(engine="vllm", dtype="bfloat16"),
        }
    )
    return study.model_copy(update={"serving": serving})


@pytest.fixture(scope="module")
def mixed_world(make_world):
    """The A100 is faster with narrow shapes, the H200 with wide ones."""

    class Mixed(make_world):
        def bench(self, assignment: BenchAssignment) -> ServingObservation:
            found = super().bench(assignment)
            x = assignment.architecture.width_ratio
            factor = 4 * x if assignment.hardware == "h200" else 1 / x
            rate, provenance = found.output_tokens_per_second, found.provenance
            ends = {"low": factor * rate.interval.low, "high": factor * rate.interval.high}
            interval = rate.interval.model_copy(update=ends)
            return found.model_copy(
                update={
                    "repeats": tuple(
                        one.model_copy(update={"output_tokens_per_second": factor * one.output_tokens_per_second})
                        for one in found.repeats
                    ),
                    "output_tokens_per_second": rate.model_copy(
                        update={"value": factor * rate.value, "interval": interval}
                    ),
                    "provenance": provenance.model_copy(update={"hardware": assignment.hardware or "h200"}),
                }
            )

    return Mixed()


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory, make_driver, mixed_study, mixed_world) -> Path:
    directory = tmp_path_factory.mktemp("mixed") / "quick-20260101-000000"
    with Store.create(directory, mixed_study, now_unix=0) as store:
        make_driver(store, mixed_world).finish()
    write_outputs(directory)
    return directory


@pytest.fixture(scope="module")
def record(mixed_run: Path):
    return read_record(mixed_run)


@pytest.fixture(scope="module")
def state(mixed_run: Path):
    with StoreReader.open(mixed_run) as store:
        yield planner.state_of(store, corpus_id="c" * 64)


def rates_on(record, hardware: str) -> dict:
    return {
        run.architecture: run.output_tokens_per_second.value
        for run in record.serving.values()
        if run.provenance.hardware == hardware
    }


def test_every_candidate_is_served_on_each_hardware(record) -> None:
    served = defaultdict(set)
    for trial in record.trials:
        if trial.phase == "bench":
            served[trial.planned.assignment.hardware].add(trial.planned.assignment.architecture)
    assert set(served) == set(HARDWARE)
    assert served["a100-80gb"] == served["h200"]
    assert len(served["h200"]) == NUM_CANDIDATES
    assert len({trial.trial_id for trial in record.trials}) == len(record.trials)


def test_there_is_one_answer_for_each_hardware_engine_and_dtype(record) -> None:
    answers = record.recommendation.answers
    assert [(one.hardware, one.engine, one.dtype) for one in answers] == [(one, "vllm", "bfloat16") for one in HARDWARE]
    assert len(record.recommendation.recommended) == 2
    for answer in answers:
        assert isinstance(answer.recommended_throughput, Measured)
        assert answer.recommended_throughput.value == rates_on(record, answer.hardware)[answer.recommended]
        assert answer.baseline_throughput.value == rates_on(record, answer.hardware)[record.recommendation.baseline]
        assert answer.throughput_ranking.hardware == answer.answer.hardware == answer.hardware
        assert {"panda", "baseline"} <= {role for shape in answer.answer.shapes for role in shape.roles}


def test_a_surefire_is_the_fastest_measured_on_its_own_hardware_within_the_limit(state, record) -> None:
    for choice in planner.choices_of(state):
        found, rates = choice.shortlist, rates_on(record, choice.hardware)
        safe = {
            rate: shape
            for shape, rate in rates.items()
            if found.probability_within_limit[found.candidates.index_of(shape)] >= state.study.target.probability
        }
        assert choice.role == "surefire"
        assert choice.recommended == safe[max(safe)]


def test_each_recommended_shape_is_trained_at_the_target(record) -> None:
    at_target = [trial for trial in record.trials if trial.planned.role == "validation"]
    assert {trial.planned.assignment.architecture for trial in at_target} >= set(record.recommendation.recommended)
    held_out = [row.architecture for row in record.recommendation.held_out if row.role == "recommended"]
    assert set(held_out) == set(record.recommendation.recommended)
    assert all(answer.measured_verdict is not None for answer in record.recommendation.answers)


def test_what_one_hardware_is_predicted_to_do_rests_on_its_own_runs(state) -> None:
    def best_on(hardware: str, observations) -> tuple:
        return fastest_safe(
            state.study,
            state.analysis,
            candidates_at(state.study, state.study.target.num_parameters),
            baseline_at(state.study),
            observations,
            hardware=hardware,
            tried=(),
            num=3,
            token_scale=1.0,
        )

    without_h200 = [
        o for o in state.observations if not isinstance(o, ServingObservation) or o.provenance.hardware != "h200"
    ]
    assert best_on("a100-80gb", state.observations) == best_on("a100-80gb", without_h200)
    assert best_on("h200", state.observations).is_fitted
    assert not best_on("h200", without_h200).is_fitted


def test_a_benchmark_goes_to_its_hardware_alone_and_a_training_anywhere(state) -> None:
    for trial in state.trials:
        needs = needs_of(trial.planned, state.study, state.speed, bench_hardware="cpu-generic")
        assignment = trial.planned.assignment
        wanted = None if isinstance(assignment, TrainAssignment) else (assignment.hardware,)
        assert needs.hardware == wanted


def test_hardware_that_gave_no_valid_run_is_not_measured_and_the_other_is_answered(state) -> None:
    only = tuple(
        o for o in state.observations if not isinstance(o, ServingObservation) or o.provenance.hardware != "h200"
    )
    a100, h200 = planner.choices_of(replace(state, observations=only))
    assert (a100.role, h200.role) == ("surefire", "panda")
    made = make_recommendation(state.study, state.analysis, (a100, h200), only, token_scale=1.0, made_unix=0)
    assert made.answers[1].recommended_throughput == NotMeasured(reason="no valid benchmark on h200")
    assert "no data" in made.answers[1].throughput_ranking.basis


def test_as_many_trials_are_expected_as_there_will_be_at_most(make_driver, tmp_path, mixed_study, mixed_world) -> None:
    with Store.create(tmp_path / "expected", mixed_study, now_unix=0) as store:
        driver = make_driver(store, mixed_world)
        driver.plan()
        at_first = expected_trials(mixed_study, store.trials())
        driver.finish()
        assert expected_trials(mixed_study, store.trials()) == len(store.trials()) <= at_first


def test_without_a_law_the_baseline_is_measured_on_each(make_driver, tmp_path, mixed_study, mixed_world) -> None:
    with Store.create(tmp_path / "lawless", mixed_study, now_unix=0) as store:
        driver = make_driver(store, mixed_world)
        while not planner.is_finished(driver.state()):
            driver.plan()
            for trial_id in driver.queued():
                (driver.fail_trial if trial_id.startswith("train") else driver.run_trial)(trial_id)
        benches = [t.planned.assignment for t in store.trials() if t.phase == "bench"]
    assert {bench.hardware for bench in benches} == set(HARDWARE)
    assert {bench.architecture for bench in benches} == {baseline_at(mixed_study)}


def test_report_status_and_configs_hold_both_answers(mixed_run: Path, record) -> None:
    report = (mixed_run / "report.html").read_text()
    assert 'id="rates"' in report
    for answer in record.recommendation.answers:
        assert f"Serving throughput on {answer.hardware}" in report
        assert f'<figure id="figure-pareto-{answer.hardware}"' in report
        assert answer.throughput_ranking.sentence() in report
        assert answer.sentence(simulated=False) in describe_status(read_status(mixed_run))
        assert named_shapes(record)[f"recommended-{answer.hardware}"] == answer.recommended


def test_a_recommendation_of_schema_1_is_read_as_one_answer(finished_run: Path) -> None:
    new = read_record(finished_run).recommendation
    plain = json.loads(new.model_dump_json())
    (answer,) = plain.pop("answers")
    del answer["dtype"]  # it was told within `answer` alone
    old = {**plain, **answer, "schema_version": 1}
    assert Recommendation.model_validate(old) == new


def test_a_study_that_names_no_hardware_is_answered_for_what_measured_it(
    make_driver, tmp_path: Path, mixed_study, mixed_world
) -> None:
    serving = mixed_study.serving.model_copy(update={"hardware": ()})
    with Store.create(tmp_path / "there", mixed_study.model_copy(update={"serving": serving}), now_unix=0) as store:
        store.set_meta("bench_hardware", "h200")
        driver = make_driver(store, mixed_world)
        driver.finish()
        (answer,) = Recommendation.model_validate(store.recommendation()).answers
    assert answer.hardware == answer.throughput_ranking.hardware == "h200"


def test_hardware_without_a_usable_sheet_is_ordered_by_the_generic_one_and_says_so() -> None:
    recipe = ServingRecipe(engine="vllm", dtype="float32")
    assert roofline_basis("h200", recipe) == "the roofline of cpu-generic, as the sheet of h200 has no peak in float32"
    assert "there is no data sheet of hardware 'unknown'" in roofline_basis("unknown", recipe)
    assert "does not know what memory" in roofline_basis("l4", recipe)


def test_candidates_of_several_hardware_are_taken_in_turn_and_once(mixed_study) -> None:
    a, b, c = (candidates_at(mixed_study, mixed_study.target.num_parameters).architecture(k) for k in range(3))
    merged = in_turn(
        {"a100-80gb": [(a, "baseline"), (b, "fast")], "h200": [(a, "baseline"), (c, "fast"), (b, "front")]}
    )
    assert merged == [(a, "baseline"), (b, "fast (a100-80gb); front (h200)"), (c, "fast (h200)")]
