"""The fits of a run: what goes in, what comes out, and whether sizes agree."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.analysis import Analysis, analyse, same_size
from coordinator.shapes import candidates_at
from coordinator.store import StoreReader
from scaling.law_fit import Optimum
from scaling.quantity import Interval


@pytest.fixture(scope="module")
def observations(finished_run: Path):
    with StoreReader.open(finished_run) as reader:
        return reader.observations()


@pytest.fixture(scope="module")
def analysis(study, observations) -> Analysis:
    found = analyse(study, observations)
    assert found is not None
    return found


def with_optima(analysis: Analysis, *intervals: tuple[float, float]) -> Analysis:
    fits = [
        replace(
            analysis.law_fit,
            **{
                f"{name}_opt": Optimum(
                    value=(low + high) / 2, interval=Interval(low=low, high=high, level=0.9, method="bootstrap"),
                    fraction_without=0.0,
                )
                for name in ("x", "r")
            },
        )
        for low, high in intervals
    ]  # fmt: skip
    return replace(analysis, by_size=tuple((1e5 * 2**k, fit) for k, fit in enumerate(fits)))


def test_nothing_is_analysed_before_the_first_loss_at_the_fits_size(study, observations) -> None:
    elsewhere = [o for o in observations if not same_size(o.architecture.num_parameters, study.fit.num_parameters)]
    assert elsewhere
    assert analyse(study, elsewhere) is None
    assert analyse(study, []) is None


def test_losses_at_the_target_change_no_fit(study, observations, analysis: Analysis) -> None:
    inside = [o for o in observations if not same_size(o.architecture.num_parameters, study.target.num_parameters)]
    assert len(inside) < len(observations)
    assert analyse(study, inside).to_json() == analysis.to_json()


def test_the_same_observations_give_the_same_analysis(study, observations, analysis: Analysis) -> None:
    assert analyse(study, observations).to_json() == analysis.to_json()


def test_analysis_survives_json(analysis: Analysis) -> None:
    plain = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    again = Analysis.from_json(plain)
    assert again.to_json() == analysis.to_json()
    assert again.sentence() == analysis.sentence()
    assert again.num_points == analysis.num_points


def test_predictions_survive_json(analysis: Analysis) -> None:
    again = Analysis.from_json(json.loads(json.dumps(analysis.to_json())))
    before, after = (one.law_fit.predict_ratio([0.2, 0.4], [1.0, 3.0]).mean for one in (analysis, again))
    assert after == pytest.approx(before)


def test_optima_of_the_world_are_recovered(make_world, study) -> None:
    """Noiseless losses over the whole space: the fit finds the world's own optimum."""
    from agent.assignment import TrainAssignment
    from scaling.recipes import TrainingRecipe

    world = make_world(noise_sd=0)
    candidates = candidates_at(study, study.fit.num_parameters)
    recipe = TrainingRecipe(num_tokens=102_400)
    runs = [
        world.train(TrainAssignment(architecture=candidates.architecture(i), recipe=recipe, corpus_id="c"))
        for i in range(len(candidates))
    ]
    fit = analyse(study, runs).law_fit
    assert fit.x_opt.value == pytest.approx(world.x_opt, rel=0.05)
    assert fit.r_opt.value == pytest.approx(world.r_opt, rel=0.05)


def test_sentence_tells_points_optima_and_noise(analysis: Analysis) -> None:
    sentence = analysis.sentence()
    assert f"law from {analysis.num_points} runs" in sentence
    assert "x* " in sentence
    assert "nats/token" in sentence


def test_sentence_of_too_few_runs_says_so(study, observations) -> None:
    few = [o for o in observations if same_size(o.architecture.num_parameters, study.fit.num_parameters)][:2]
    assert analyse(study, few).sentence().startswith("no law yet from 2 runs: ")


def test_agreement_with_one_size_was_not_tested(analysis: Analysis) -> None:
    assert "was not tested" in replace(analysis, by_size=analysis.by_size[:1]).agreement()


def test_overlapping_intervals_agree(analysis: Analysis) -> None:
    sentence = with_optima(analysis, (0.2, 0.4), (0.3, 0.5)).agreement()
    assert "x* agrees between sizes within its 90% intervals" in sentence
    assert "r* agrees" in sentence


def test_disjoint_intervals_differ_and_warn(analysis: Analysis) -> None:
    sentence = with_optima(analysis, (0.1, 0.2), (0.3, 0.5)).agreement()
    assert "x* differs between sizes" in sentence
    assert "Do not extrapolate" in sentence


def test_an_optimum_missing_at_a_size_leaves_agreement_untested(analysis: Analysis) -> None:
    both = with_optima(analysis, (0.1, 0.2), (0.3, 0.5))
    missing = replace(both.by_size[1][1], x_opt=None)
    sentence = replace(both, by_size=(both.by_size[0], (2e5, missing))).agreement()
    assert "x* was not found at two sizes" in sentence


def test_by_size_holds_sizes_with_enough_shapes_only(study, analysis: Analysis) -> None:
    assert [size for size, _ in analysis.by_size] == [study.fit.num_parameters]
