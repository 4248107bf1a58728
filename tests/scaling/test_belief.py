"""The belief about shapes: it agrees with a plain Gaussian regression, and says what it does not know."""

import numpy as np
import pytest

from scaling.belief import Belief, Prior, RunMenu, ShapeModel, Target, condition, make_model, replicate_noise
from scaling.law import Floats
from scaling.simulation import drifting_truth, paper_truth

NOISE = 0.002


def study(*, sizes: tuple[float, ...] = (80e6, 297e6), ratios: tuple[float, ...] = (20.0, 100.0)) -> ShapeModel:
    x, r = (z.ravel() for z in np.meshgrid(np.geomspace(0.05, 0.25, 6), np.geomspace(0.5, 5.0, 6)))
    N, ratio = (z.ravel() for z in np.meshgrid(sizes, ratios))
    columns = {"x": np.tile(x, len(N)), "r": np.tile(r, len(N)), "num_parameters": np.repeat(N, len(x))}
    D = np.repeat(N * ratio, len(x))
    menu = RunMenu(**columns, num_tokens=D, seconds=6 * columns["num_parameters"] * D / 4e14)
    fine = np.meshgrid(np.geomspace(0.05, 0.25, 15), np.geomspace(0.5, 5.0, 15))
    return make_model(menu, Target(x=fine[0].ravel(), r=fine[1].ravel(), num_parameters=1e9, num_tokens=1e11))


def expected_losses(model: ShapeModel, rows: list[int], *, drifting: bool = False) -> Floats:
    menu, truth = model.menu, drifting_truth() if drifting else paper_truth()
    return truth.loss(menu.x[rows], menu.r[rows], menu.num_parameters[rows], menu.num_tokens[rows])


def plain_posterior(model: ShapeModel, rows: list[int], losses: Floats, scale: float) -> tuple[Floats, Floats]:
    """Mean and covariance of the coefficients by the normal equations, one hypothesis about the drift."""
    sd = np.where(model.is_misfit, NOISE, 1.0) * np.where(model.is_drift, scale, 1.0) * model.prior_sd
    features, y = model.menu_features[rows], np.log(losses)
    precision = np.diag(sd**-2) + features.T @ features / NOISE**2
    covariance = np.asarray(np.linalg.inv(precision), dtype=float)
    return np.asarray(covariance @ features.T @ (y - y.mean()) / NOISE**2, dtype=float), covariance


def test_one_hypothesis_is_plain_bayesian_regression() -> None:
    menu_and_target = study()
    model = make_model(menu_and_target.menu, menu_and_target.target, Prior(drift_scales=(0.5,)))
    rows = list(range(0, 140, 9))
    losses = expected_losses(model, rows)
    belief = condition(model, rows, losses, noise=NOISE)
    mean, covariance = plain_posterior(model, rows, losses, 0.5)
    features = model.target_features
    np.testing.assert_allclose(belief.target_log_loss() - belief.offset, features @ mean, atol=1e-7)
    plain = np.sqrt(((features @ covariance) * features).sum(axis=1))
    ours = np.sqrt(((features @ belief.covariance) * features).sum(axis=1))
    np.testing.assert_allclose(ours, plain, rtol=1e-5)


def test_exact_losses_of_a_law_give_its_optimum_at_the_target() -> None:
    model = study()
    rows = list(range(0, len(model.menu), 2))
    belief = condition(model, rows, expected_losses(model, rows), noise=1e-4)
    best = int(np.argmin(belief.target_log_loss()))
    x_best, r_best = paper_truth().optimum(1e9)
    assert abs(np.log(model.target.x[best] / x_best)) < 0.15
    assert abs(np.log(model.target.r[best] / r_best)) < 0.25


def test_small_runs_leave_the_large_target_uncertain_and_large_ones_less() -> None:
    model = study(sizes=(80e6, 297e6), ratios=(100.0,))
    small = [int(row) for row in np.flatnonzero(model.menu.num_parameters == 80e6)]
    large = [int(row) for row in np.flatnonzero(model.menu.num_parameters == 297e6)]
    sds = []
    for rows in (small, large):
        belief = condition(model, [], np.zeros(0), pending=rows, noise=NOISE)
        moment = belief.target_moment(np.ones(len(model.target)), level=False)
        sds.append(float(np.sqrt((moment * belief.covariance).sum())))
    assert sds[1] < 0.8 * sds[0]


def test_a_drift_in_the_losses_is_believed_in_and_no_drift_is_not() -> None:
    model = study(sizes=(80e6, 297e6, 600e6), ratios=(100.0,))
    rows = list(range(len(model.menu)))
    drifts = []
    for drifting in (False, True):
        losses = expected_losses(model, rows, drifting=drifting)
        noise = 1 + NOISE * np.random.default_rng(0).standard_normal(len(rows))
        drifts.append(condition(model, rows, losses * noise, noise=NOISE))

    def spread(belief: Belief) -> float:
        return float(np.sqrt(np.diag(belief.covariance)[model.is_drift][:4].sum()))

    assert spread(drifts[0]) < 0.6 * spread(drifts[1])


def test_pending_runs_narrow_the_belief_and_do_not_move_it() -> None:
    model = study()
    rows = [0, 20, 40, 60, 80]
    losses = expected_losses(model, rows)
    before = condition(model, rows, losses, noise=NOISE)
    after = condition(model, rows, losses, noise=NOISE, pending=[7, 70])
    np.testing.assert_allclose(after.target_log_loss(), before.target_log_loss(), atol=1e-9)
    assert after.menu_variance()[7] < before.menu_variance()[7]
    assert (after.menu_variance() <= before.menu_variance() + 1e-12).all()


def test_draws_have_the_beliefs_mean_and_spread() -> None:
    model = study()
    rows = list(range(0, 140, 5))
    belief = condition(model, rows, expected_losses(model, rows), noise=NOISE)
    draws = belief.target_draws(4000, np.random.default_rng(1))
    sd = np.sqrt(((model.target_features @ belief.covariance) * model.target_features).sum(axis=1))
    np.testing.assert_allclose(draws.mean(axis=0), belief.target_log_loss(), atol=float(5 * sd.max() / np.sqrt(4000)))
    np.testing.assert_allclose(draws.std(axis=0), sd, rtol=0.1)


def test_replicates_tell_the_noise_and_nothing_leaves_the_default() -> None:
    losses = 3.0 * np.exp(0.01 * np.random.default_rng(2).standard_normal(400))
    assert replicate_noise([3] * 400, losses) == pytest.approx(0.01, rel=0.15)
    assert replicate_noise([], np.zeros(0)) == replicate_noise([1, 2], np.array([3.0, 2.0]))


def test_a_menu_of_mismatched_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds must be 2 positive numbers"):
        RunMenu(
            x=np.array([0.1, 0.2]),
            r=np.ones(2),
            num_parameters=np.full(2, 1e8),
            num_tokens=np.full(2, 1e9),
            seconds=np.array([1.0, 0.0]),
        )
