"""What a fit predicts: quantiles, ratios, validation and where it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.law_fit import best_in_range, best_mean, quantiles
from scaling.simulation import grid_design, paper_truth, simulate_study

N, D = 145e6, 145e8


def fitted(seed: int = 0, noise_sd: float = 0.006, **options: int) -> LawFit:
    points = simulate_study(paper_truth(), grid_design(N), generator=np.random.default_rng(seed), noise_sd=noise_sd)
    return fit_conditional(points, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_draws", [19, 50, 200])
def test_a_new_draw_falls_outside_as_often_as_the_level_says(num_draws: int) -> None:
    generator = np.random.default_rng(0)
    low, high = quantiles(generator.standard_normal((num_draws, 4000)), 0.9)
    new = generator.standard_normal(4000)
    assert np.mean((low <= new) & (new <= high)) == pytest.approx(0.9, abs=0.02)


@settings(deadline=None)
@given(slope=st.floats(-1, 1), inverse=st.floats(-1, 1))
def test_the_best_shape_in_range_is_no_worse_than_any_other(slope: float, inverse: float) -> None:
    bracket = np.array([[1.0, slope, inverse]])
    best = best_in_range(bracket, (0.5, 5.0))[0]
    assert 0.5 <= best <= 5.0
    at = np.geomspace(0.5, 5.0, 200)
    assert 1 + slope * np.log(best) + inverse / best <= (1 + slope * np.log(at) + inverse / at).min() + 1e-12


def test_the_best_mean_is_over_replicates_of_one_shape() -> None:
    points = ShapePoints(
        x=np.array([0.1, 0.1, 0.2]),
        r=np.ones(3),
        num_parameters=np.full(3, N),
        num_tokens=np.full(3, D),
        loss=np.array([3.0, 3.4, 3.1]),
    )
    assert best_mean(points) == pytest.approx(3.1)


def test_draws_of_shapes_are_paired_so_that_their_common_level_cancels() -> None:
    draws = fitted().sample_loss([0.08, 0.09], [1.0, 1.2], N, D)
    apart = np.sqrt(draws.var(axis=0).sum())
    assert (draws[:, 0] - draws[:, 1]).std() < 0.3 * apart


def test_intervals_shrink_with_the_noise() -> None:
    wide, narrow = (fitted(noise_sd=sd).predict_loss(0.08, 1.0, N, D) for sd in (0.006, 0.0006))
    assert (narrow.high - narrow.low)[0] < 0.2 * (wide.high - wide.low)[0]


def test_few_degrees_of_freedom_widen_intervals_as_students_do() -> None:
    points = simulate_study(paper_truth(), grid_design(N), generator=np.random.default_rng(3))
    few = fit_conditional(points.take(np.array([0, 3, 5, 6, 9, 12, 15])), num_bootstrap=500)
    assert few.degrees_of_freedom == 2
    draws = few.sample_loss(0.08, 1.0, N, D)[:, 0]
    five, quarter = (np.diff(np.quantile(draws, ends))[0] for ends in ((0.05, 0.95), (0.25, 0.75)))
    # Normal: 2.44; Student with two degrees of freedom: 3.58.
    assert five / quarter > 2.8


def test_a_fit_without_a_law_predicts_nothing_and_says_why() -> None:
    points = simulate_study(paper_truth(), grid_design(N), generator=np.random.default_rng(0))
    fit = fit_conditional(points.take(np.array([0, 5, 10])))
    assert fit.law is None
    with pytest.raises(ValueError, match="run at least"):
        fit.predict_loss(0.08, 1.0, N, D)
