"""The answer of a study: what is chosen, how it held, and a tie called a tie."""

import json
from pathlib import Path

import pytest

from coordinator import planner
from coordinator.analysis import same_size
from coordinator.choice import measured_throughput, serving_candidates
from coordinator.recommendation import Recommendation, make_recommendation
from coordinator.shapes import baseline_at, candidates_at
from coordinator.store import StoreReader
from scaling.observations import ServingObservation
from scaling.quantity import Interval, Measured, NotMeasured, Predicted


@pytest.fixture(scope="module")
def state(finished_run: Path, study):
    with StoreReader.open(finished_run) as reader:
        return planner.state_of(reader, corpus_id=reader.meta("corpus_id"))


@pytest.fixture(scope="module")
def choice(state):
    return planner.choices_of(state)[0]


def recommendation_from(state, choice, observations) -> Recommendation:
    return make_recommendation(state.study, state.analysis, [choice], observations, token_scale=1.0, made_unix=1.0)


@pytest.fixture(scope="module")
def recommendation(state, choice) -> Recommendation:
    return recommendation_from(state, choice, state.observations)


def target_runs(state, architecture):
    return [o for o in state.observations if o.kind == "training" and o.architecture == architecture]


def with_loss_difference(state, choice, nats: float):
    """The same observations, the recommended shape's runs at the target shifted to the baseline's plus `nats`."""
    baseline = target_runs(state, baseline_at(state.study))[0]

    def moved(o):
        if o.kind != "training" or o.architecture != choice.recommended:
            return o
        windows = tuple(loss + nats for loss in baseline.window_losses)
        return o.model_copy(update={"loss": baseline.loss + nats, "window_losses": windows})

    return [moved(o) for o in state.observations]


def with_rates(observations, rate_of):
    """The same observations, with other measured rates; None marks the row invalid."""

    def changed(o):
        if not isinstance(o, ServingObservation):
            return o
        rate = rate_of(o.architecture)
        if rate is None:
            return o.model_copy(update={"flags": ("nan",)})
        interval = Interval(low=0.99 * rate, high=1.01 * rate, level=0.95, method="t")
        measured = Measured(value=rate, unit="tokens/s", interval=interval, num_samples=3)
        return o.model_copy(update={"output_tokens_per_second": measured})

    return [changed(o) for o in observations]


def choose_again(state, observations):
    from dataclasses import replace

    return planner.choices_of(replace(state, observations=tuple(observations)))[0]


def test_recommendation_survives_its_json(recommendation: Recommendation) -> None:
    plain = json.loads(json.dumps(recommendation.model_dump(mode="json"), allow_nan=False))
    assert Recommendation.model_validate(plain) == recommendation


def test_surefire_keeps_the_baselines_loss_and_was_measured_to_be_faster(state) -> None:
    baseline = baseline_at(state.study)
    fast = with_rates(state.observations, lambda shape: 1000.0 if shape == baseline else 2000.0)
    found = choose_again(state, fast)
    assert found.role == "surefire"
    assert measured_throughput(state.study, fast, "cpu-generic")[found.recommended].value == 2000
    within = found.shortlist.probability_within_limit[found.recommended_index]
    assert within >= state.study.target.probability


def test_when_no_other_shape_is_faster_panda_is_recommended(state) -> None:
    baseline = baseline_at(state.study)
    slow = with_rates(state.observations, lambda shape: 2000.0 if shape == baseline else 1000.0)
    found = choose_again(state, slow)
    assert found.role == "panda"
    assert found.recommended_index == found.shortlist.panda


def test_without_valid_benchmarks_panda_is_recommended_and_throughput_is_not_measured(state) -> None:
    invalid = with_rates(state.observations, lambda _: None)
    assert measured_throughput(state.study, invalid, "cpu-generic") == {}
    found = choose_again(state, invalid)
    assert found.role == "panda"
    recommendation = recommendation_from(state, found, invalid)
    assert isinstance(recommendation.answers[0].recommended_throughput, NotMeasured)
    assert "not measured" in recommendation.sentence(simulated=False)


def test_held_out_rows_set_prediction_beside_measurement(recommendation: Recommendation) -> None:
    assert [row.role for row in recommendation.held_out] == ["recommended", "baseline", "worse"]
    for row in recommendation.held_out:
        assert isinstance(row.measured, Measured)
        assert isinstance(row.predicted, Predicted)
        assert row.predicted.interval is not None


def test_measured_loss_is_the_mean_of_the_runs(state, recommendation: Recommendation) -> None:
    row = recommendation.held_out[0]
    runs = target_runs(state, row.architecture)
    assert row.measured.value == pytest.approx(sum(run.loss for run in runs) / len(runs))


def test_heldout_error_is_the_median_of_the_rows(recommendation: Recommendation) -> None:
    errors = sorted(
        abs(row.predicted.value - row.measured.value) / row.measured.value for row in recommendation.held_out
    )
    assert recommendation.heldout_error_ratio == pytest.approx(errors[1])
    assert recommendation.heldout_error_ratio < 0.05  # the world obeys the law


@pytest.mark.parametrize(
    ("nats", "verdict", "words"),
    [(-0.2, "better", "lower than"), (0.0, "tie", "a tie with"), (0.2, "worse", "higher than")],
)
def test_measured_difference_decides_the_verdict(state, choice, nats: float, verdict: str, words: str) -> None:
    recommendation = recommendation_from(state, choice, with_loss_difference(state, choice, nats))
    (answer,) = recommendation.answers
    assert answer.loss_difference.value == pytest.approx(nats)
    assert answer.measured_verdict == verdict
    assert words in recommendation.sentence(simulated=False)
    assert answer.stands == (verdict != "worse")


def test_a_shape_that_failed_its_check_is_not_called_the_answer(state, choice) -> None:
    recommendation = recommendation_from(state, choice, with_loss_difference(state, choice, 0.2))
    assert recommendation.sentence(simulated=False).startswith("Keep the baseline: the proposed ")
    assert "failed its check" in recommendation.sentence(simulated=False)


def test_what_is_simulated_is_never_told_as_if_it_were_measured(recommendation: Recommendation) -> None:
    (answer,) = recommendation.answers
    assert "simulated" not in answer.sentence(simulated=False).lower()
    fake = answer.model_copy(update={"engine": "fake"}).sentence(simulated=False)
    assert fake.startswith("SIMULATED throughput, by the engine `fake`: ")
    assert "its measured loss" in fake
    assert "(measured)" not in fake
    assert fake.count("(simulated)") == 2
    simulated = recommendation.sentence(simulated=True)
    assert simulated.startswith("SIMULATED: ")
    assert "its simulated loss" in simulated
    assert "measured" not in simulated


def test_difference_has_an_interval_around_it(recommendation: Recommendation) -> None:
    difference = recommendation.answers[0].loss_difference
    assert difference.interval.low < difference.value < difference.interval.high


def test_missing_runs_at_the_target_leave_the_comparison_unmade(state, choice) -> None:
    size = state.study.target.num_parameters
    without = [
        o for o in state.observations if o.kind != "training" or not same_size(o.architecture.num_parameters, size)
    ]
    recommendation = recommendation_from(state, choice, without)
    assert isinstance(recommendation.answers[0].loss_difference, NotMeasured)
    assert recommendation.answers[0].measured_verdict is None
    assert recommendation.held_out == ()
    assert recommendation.heldout_error_ratio is None
    assert "not compared with" in recommendation.sentence(simulated=False)


def test_the_baseline_itself_as_the_answer_is_not_compared_with_itself(state, choice) -> None:
    from dataclasses import replace

    itself = replace(choice, recommended_index=choice.shortlist.baseline, role="panda")
    recommendation = recommendation_from(state, itself, state.observations)
    (answer,) = recommendation.answers
    assert answer.recommended == recommendation.baseline
    assert answer.loss_difference == NotMeasured(reason="the recommended shape is the baseline itself")
    assert "the baseline itself" in recommendation.sentence(simulated=False)


def test_other_hardware_is_predicted_for_both_shapes_at_every_batch(study, recommendation: Recommendation) -> None:
    predictions = recommendation.gpu_predictions
    assert {p.hardware for p in predictions} == set(study.serving.predict_hardware)
    assert len(predictions) == 2 * len(study.serving.predict_hardware) * len(study.serving.predict_batches)
    assert all(not isinstance(p.output_tokens_per_second, Measured) for p in predictions)


def test_the_answer_names_reasons_and_panda(recommendation: Recommendation) -> None:
    (answer,) = recommendation.answers
    assert answer.answer.reasons
    assert "panda" in {role for shape in answer.answer.shapes for role in shape.roles}


def test_serving_candidates_are_different_shapes_with_the_baseline_first(state) -> None:
    study = state.study
    candidates = candidates_at(study, study.target.num_parameters)
    chosen = serving_candidates(
        study, state.analysis, candidates, baseline_at(study), hardware=("cpu-generic",), token_scale=1.0
    )
    shapes = [shape for shape, _ in chosen]
    assert shapes[0] == baseline_at(study)
    assert len(set(shapes)) == len(shapes) == study.serving.num_candidates + 1
