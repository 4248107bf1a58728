"""Shape terms that drift with scale: partial pooling beats pooling everything and the largest scale alone."""

import numpy as np
import pytest

from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.held_out import held_out_scales
from scaling.law import Floats
from scaling.points import make_scales
from scaling.simulation import StudyDesign, Truth, drifting_truth, grid_design, paper_truth, simulate_study

SMALL_SIZES = [80e6, 145e6, 297e6]
LARGEST = 1e9
TARGET = grid_design([LARGEST], num_x=7, num_r=7)


def study(truth: Truth, seed: int, num_largest: int = 9) -> ShapePoints:
    """Sixteen shapes at each of three small sizes, and a few at the largest: what a study can pay for."""
    generator = np.random.default_rng(seed)
    grid = grid_design(SMALL_SIZES)
    x = np.exp(generator.uniform(np.log(0.045), np.log(0.15), num_largest))
    r = np.exp(generator.uniform(np.log(0.55), np.log(4.8), num_largest))
    N = np.concatenate([grid.num_parameters, np.full(num_largest, LARGEST)])
    design = StudyDesign(
        x=np.concatenate([grid.x, x]), r=np.concatenate([grid.r, r]), num_parameters=N, num_tokens=100 * N
    )
    return simulate_study(truth, design, generator=generator)


def error(fit: LawFit, truth: Truth) -> float:
    """Mean squared error of the predicted loss over the shapes of the largest size, nats squared."""
    predicted = fit.predict_loss(TARGET.x, TARGET.r, LARGEST, 100 * LARGEST).mean
    return float(np.mean((predicted - true_loss(truth)) ** 2))


def true_loss(truth: Truth) -> Floats:
    return truth.loss(TARGET.x, TARGET.r, TARGET.num_parameters, TARGET.num_tokens)


def test_with_drift_partial_pooling_predicts_the_largest_scale_best() -> None:
    truth = drifting_truth()
    errors: dict[str, list[float]] = {"all": [], "nearest": [], "partial": []}
    for seed in range(12):
        points = study(truth, seed)
        for pooling, found in errors.items():
            fit = fit_conditional(points, pooling=pooling, num_bootstrap=2)  # type: ignore[arg-type]
            found.append(error(fit, truth))
    mean = {pooling: float(np.mean(found)) for pooling, found in errors.items()}
    assert mean["partial"] < 0.5 * mean["all"], mean
    assert mean["partial"] < 0.8 * mean["nearest"], mean


def test_without_drift_partial_pooling_is_far_better_than_the_largest_scale_alone() -> None:
    truth = paper_truth()
    partial, nearest = (
        np.mean([error(fit_conditional(study(truth, seed), pooling=how, num_bootstrap=2), truth) for seed in range(6)])
        for how in ("partial", "nearest")
    )
    assert partial < 0.25 * nearest


def test_intervals_at_the_largest_scale_know_of_the_drift() -> None:
    truth = drifting_truth()
    covered = {"all": 0.0, "partial": 0.0}
    for seed in range(8):
        points = study(truth, seed)
        for pooling in covered:
            fit = fit_conditional(points, pooling=pooling, num_bootstrap=100)  # type: ignore[arg-type]
            found = fit.predict_loss(TARGET.x, TARGET.r, LARGEST, 100 * LARGEST)
            covered[pooling] += float(np.mean((found.low <= true_loss(truth)) & (true_loss(truth) <= found.high))) / 8
    assert covered["partial"] > 0.75
    assert covered["partial"] > covered["all"] + 0.2


def test_the_message_says_which_drift_was_chosen_and_against_what() -> None:
    fit = fit_conditional(study(drifting_truth(), 0), pooling="partial", num_bootstrap=2)
    assert fit.drift_per_efold is not None
    assert fit.drift_per_efold >= 1.0
    assert fit.at_num_parameters == LARGEST
    assert any("chosen by leave-one-scale-out error" in message for message in fit.messages)
    steady = [
        fit_conditional(study(paper_truth(), seed), pooling="partial", num_bootstrap=2).drift_per_efold or 0.0
        for seed in range(5)
    ]
    assert np.median(steady) <= 0.5


def test_the_nearest_scale_alone_is_the_fit_of_its_own_runs() -> None:
    points = study(drifting_truth(), 0)
    own = points.take(points.num_parameters == 145e6)
    nearest = fit_conditional(points, pooling="nearest", at_num_parameters=150e6, num_bootstrap=2)
    assert nearest.law == fit_conditional(own, num_bootstrap=2).law
    assert "41 runs of 3 other sizes are not used" in nearest.messages[0]


def test_one_size_pools_nothing() -> None:
    points = study(paper_truth(), 0).take(np.arange(16))
    pooled, partial = (fit_conditional(points, pooling=how, num_bootstrap=2) for how in ("all", "partial"))
    assert pooled.law == partial.law


def test_two_sizes_cannot_choose_a_drift_and_say_so() -> None:
    points = study(paper_truth(), 0).take(np.arange(32))
    fit = fit_conditional(points, pooling="partial", num_bootstrap=2)
    assert fit.drift_per_efold == 1.0
    assert any("too few to choose the drift" in message for message in fit.messages)


def test_a_size_without_runs_is_less_sure_the_farther_away_it_is() -> None:
    points = study(drifting_truth(), 1)
    widths = []
    for N in (1e9, 3e9, 10e9):
        fit = fit_conditional(points, pooling="partial", at_num_parameters=N, num_bootstrap=200)
        ratio = fit.predict_ratio(0.05, 4.5)
        widths.append(float(ratio.high[0] - ratio.low[0]))
    assert widths == sorted(widths)
    assert widths[2] > 1.5 * widths[0]


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match='pooling is "all", "nearest" or "partial"'):
        fit_conditional(study(paper_truth(), 0), pooling="some")  # type: ignore[arg-type]


def test_sizes_are_gathered_over_shapes_that_miss_them_by_a_few_per_cent() -> None:
    scales = make_scales(np.array([1.02e8, 2e8, 0.97e8, 2.1e8, 1e8, 9e8]))
    assert scales.of_point.tolist() == [0, 1, 0, 1, 0, 2]
    assert scales.num_parameters[2] == pytest.approx(9e8)


# Held-out scales ------------------------------------------------------------------------------------------------------


def test_the_papers_three_tasks_on_its_own_law() -> None:
    points = simulate_study(
        paper_truth(), grid_design([80e6, 145e6, 297e6, 1e9]), generator=np.random.default_rng(0), noise_sd=0.003
    )
    tasks = held_out_scales(points, reference="best", num_bootstrap=2)
    assert [len(task.fitted_sizes) for task in tasks] == [1, 2, 3]
    assert [task.held_out_size for task in tasks] == pytest.approx([145e6, 297e6, 1e9])
    for task in tasks:
        assert task.validation is not None
        assert task.validation.mse < 2e-4
        assert task.validation.spearman is not None
        assert task.validation.spearman > 0.75
        assert task.validation.num_points == 16


def test_drift_makes_the_largest_scale_the_hardest_task() -> None:
    points = simulate_study(
        drifting_truth(), grid_design([80e6, 145e6, 297e6, 1e9]), generator=np.random.default_rng(0), noise_sd=0.001
    )
    errors = [task.validation.mse for task in held_out_scales(points, num_bootstrap=2) if task.validation is not None]
    assert len(errors) == 3
    assert errors[2] > 5 * errors[0]


def test_a_task_with_too_few_runs_has_a_reason_and_one_size_is_refused() -> None:
    points = simulate_study(paper_truth(), grid_design([80e6, 145e6]), generator=np.random.default_rng(0))
    few = held_out_scales(points.take(np.arange(13, 32)), num_bootstrap=2)[0]
    assert few.validation is None
    assert "at least" in (few.reason or "")
    with pytest.raises(ValueError, match="runs of two sizes"):
        held_out_scales(points.take(np.arange(16)))
