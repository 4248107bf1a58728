"""The conditional fit: known coefficients from synthetic runs, noise, and honest answers to bad designs."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.law import ChinchillaLaw, ConditionalLaw, Floats, LawForm

# Published coefficients (arXiv 2510.18245), fits to 80M-297M and to 1B.
PAPER = [
    ((2.697, 0.0974, 0.0078), (0.387, 0.0063, 0.0065)),
    ((2.319, 0.238, 0.0176), (0.5104, 0.0051, 0.0062)),
]
# Fitted to the 19 measured runs below.
LAPTOP = ConditionalLaw(a=(1.01287, 0.053859, 0.015603), b=(0.980084, 0.017632, 0.020070))
X9 = np.array([0.203, 0.203, 0.203, 0.203, 0.203, 0.101, 0.152, 0.305, 0.402])
R9 = np.array([4.8, 3.06, 1.71, 1.03, 0.6, 3.06, 2.63, 1.69, 3.13])
# d, A, f and losses by seed of runs at 0.1 M parameters (two layers, 1 M tokens).
MEASURED = [
    (64, 32, 228, (3.651, 3.675)),
    (64, 64, 196, (3.614, 3.612, 3.597)),
    (64, 96, 164, (3.618, 3.603)),
    (64, 128, 132, (3.590, 3.604)),
    (64, 192, 68, (3.667, 3.650)),
    (32, 128, 392, (3.752, 3.770)),
    (48, 96, 252, (3.639, 3.641)),
    (96, 64, 108, (3.573, 3.590)),
    (128, 32, 100, (3.615, 3.610)),
]


def points(x: Floats, r: Floats, loss: Floats, **columns: Any) -> ShapePoints:
    cell = {"num_parameters": np.full(len(x), 1e5), "num_tokens": np.full(len(x), 1e6)}
    return ShapePoints(x=x, r=r, loss=loss, **{**cell, **columns})


def measured_points() -> ShapePoints:
    rows = []
    for d, A, f, losses in MEASURED:
        attention, mlp = 2 * d * (A + A / 2), 3 * d * f
        N = 2 * (attention + mlp)
        rows += [(d / N**0.5, mlp / attention, N, loss) for loss in losses]
    x, r, N, loss = np.array(rows).T
    return points(x, r, loss, num_parameters=N)


def noisy(law: ConditionalLaw, x: Floats, r: Floats, seed: int, sd: float = 0.011) -> Floats:
    return law.predict(x, r, 3.58) + sd * np.random.default_rng(seed).standard_normal(len(x))


@pytest.mark.parametrize(("a", "b"), PAPER)
@pytest.mark.parametrize("reference", ["joint", "best"])
def test_the_papers_optima_are_recovered(a: Any, b: Any, reference: Any) -> None:
    law = ConditionalLaw(a=a, b=b)
    x, r = (z.ravel() for z in np.meshgrid([0.04, 0.06, 0.08, 0.12, 0.18], [0.5, 0.8, 1.2, 2.0, 4.8]))
    fit = fit_conditional(points(x, r, law.predict(x, r, 2.8)), reference=reference)
    assert fit.converged
    assert fit.x_opt is not None
    assert fit.r_opt is not None
    assert fit.x_opt.value == pytest.approx(law.x_opt, rel=1e-6)
    assert fit.r_opt.value == pytest.approx(law.r_opt, rel=1e-6)
    assert np.allclose(fit.predict_loss(x, r, 1e5, 1e6).mean, law.predict(x, r, 2.8), rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(x_opt=st.floats(0.12, 0.35), r_opt=st.floats(0.8, 3.5), arm_x=st.floats(0.02, 0.1), arm_r=st.floats(0.005, 0.05))
def test_any_interior_optimum_is_recovered(x_opt: float, r_opt: float, arm_x: float, arm_r: float) -> None:
    law = ConditionalLaw(a=(1.0, arm_x, arm_x * x_opt), b=(1.0, arm_r, arm_r * r_opt))
    fit = fit_conditional(points(X9, R9, law.predict(X9, R9, 3.58)), num_bootstrap=20)
    assert fit.x_opt is not None
    assert fit.r_opt is not None
    assert fit.x_opt.value == pytest.approx(x_opt, rel=1e-5)
    assert fit.r_opt.value == pytest.approx(r_opt, rel=1e-5)


def test_several_cells_share_the_shape_terms() -> None:
    x, r = np.tile(X9, 2), np.tile(R9, 2)
    N, D = np.repeat([5e4, 1e5], 9), np.repeat([5e5, 1e6], 9)
    levels = np.repeat([3.9, 3.58], 9)
    fit = fit_conditional(points(x, r, LAPTOP.predict(x, r, levels), num_parameters=N, num_tokens=D))
    assert [cell.loss for cell in fit.cells] == pytest.approx([3.9, 3.58], abs=1e-3)
    assert fit.x_opt is not None
    assert fit.x_opt.value == pytest.approx(LAPTOP.x_opt, rel=1e-5)


def test_a_cell_with_one_shape_does_not_move_the_shape_terms() -> None:
    loss = noisy(LAPTOP, X9, R9, 3)
    alone = fit_conditional(points(X9, R9, loss))
    more = points(
        np.append(X9, 0.203),
        np.append(R9, 1.71),
        np.append(loss, 4.2),
        num_parameters=np.append(np.full(9, 1e5), 5e4),
        num_tokens=np.append(np.full(9, 1e6), 5e5),
    )
    both = fit_conditional(more)
    assert alone.law is not None
    assert both.law is not None
    assert np.allclose(alone.law.a, both.law.a, rtol=1e-6)
    assert np.allclose(alone.law.b, both.law.b, rtol=1e-6)
    # With the paper's reference, that cell claims that its only shape is the best one.
    best = fit_conditional(more, reference="best")
    assert best.law is not None
    assert not np.allclose(best.law.b[1:], both.law.b[1:], rtol=1e-3)


@pytest.mark.parametrize("form", ["multiplicative", "additive"])
def test_least_squares_agrees_with_scipy(form: LawForm) -> None:
    loss = noisy(LAPTOP, X9, R9, 1)
    fit = fit_conditional(points(X9, R9, loss), form=form, num_bootstrap=1)

    def residual(theta: Floats) -> Floats:
        law = ConditionalLaw(form=form, a=tuple(theta[:3]), b=tuple(theta[3:]))
        return np.asarray(law.predict(X9, R9, 1.0 if form == "multiplicative" else 0.0) - loss)

    start = [3.5, 0.1, 0.1, 1.0, 0.1, 0.1]
    other = least_squares(residual, start, method="trf", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=20000)
    assert fit.objective == pytest.approx(2 * other.cost, rel=1e-5)


def test_the_measured_runs_give_the_known_optima() -> None:
    fit = fit_conditional(measured_points(), r_range=(0.3, 8.0))
    assert fit.x_opt is not None
    assert fit.r_opt is not None
    assert fit.x_opt.value == pytest.approx(0.29, abs=0.01)
    assert fit.r_opt.value == pytest.approx(1.14, abs=0.05)
    assert fit.x_opt.interval.low > 0.23
    assert fit.x_opt.interval.high < 0.37
    assert fit.residual_sd == pytest.approx(0.012, abs=0.001)
    assert fit.pure_error_sd == pytest.approx(0.011, abs=0.001)
    assert fit.lack_of_fit_p is not None
    assert fit.lack_of_fit_p > 0.05


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    hits = {"x": 0, "r": 0, "loss": 0}
    trials = 60
    truth = float(LAPTOP.predict(0.25, 1.2, 3.58))
    for seed in range(trials):
        x, r = np.tile(X9, 2), np.tile(R9, 2)
        fit = fit_conditional(points(x, r, noisy(LAPTOP, x, r, seed)), seed=seed, num_bootstrap=100)
        for name, optimum, value in (("x", fit.x_opt, LAPTOP.x_opt), ("r", fit.r_opt, LAPTOP.r_opt)):
            hits[name] += optimum is not None and optimum.interval.low <= (value or 0) <= optimum.interval.high
        predicted = fit.predict_loss(0.25, 1.2, 1e5, 1e6)
        hits["loss"] += bool(predicted.low[0] <= truth <= predicted.high[0])
    # Binomial with p = 0.9 and n = 60: below 46 has a chance of about 0.2 %.
    assert min(hits.values()) >= 46, hits


@pytest.mark.parametrize("num_points", [6, 7, 9, 12, 24])
def test_small_noisy_data_never_break_the_fit(num_points: int) -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        x, r = generator.uniform(0.1, 0.4, num_points), generator.uniform(0.5, 5.0, num_points)
        fit = fit_conditional(points(x, r, noisy(LAPTOP, x, r, seed)), num_bootstrap=50)
        assert json.loads(json.dumps(fit.to_json(), allow_nan=False)) == fit.to_json()
        if fit.law is not None:
            predicted = fit.predict_loss(0.2, 1.7, 1e5, 1e6)
            assert predicted.low[0] <= predicted.mean[0] <= predicted.high[0]
        for optimum, reason in ((fit.x_opt, fit.x_opt_reason), (fit.r_opt, fit.r_opt_reason)):
            assert (optimum is None) == (reason is not None)


def test_too_few_runs_are_a_value_with_advice() -> None:
    fit = fit_conditional(points(X9[2:6], R9[2:6], noisy(LAPTOP, X9[2:6], R9[2:6], 0)))
    assert fit.law is None
    assert not fit.converged
    assert any("more" in message for message in fit.messages)
    empty = fit_conditional(points(np.array([0.2]), np.array([9.0]), np.array([3.6])))
    assert empty.law is None
    assert "No runs are left" in empty.messages[-1]


def test_no_interior_optimum_says_which_runs_would_settle_it() -> None:
    falling = ConditionalLaw(a=(1.0, -0.05, 0.001), b=(1.0, 0.02, 0.03))
    fit = fit_conditional(points(X9, R9, falling.predict(X9, R9, 3.58)))
    assert fit.x_opt is None
    assert fit.x_opt_reason is not None
    assert "above 0.402" in fit.x_opt_reason
    assert fit.x_opt_reason in fit.messages
    assert fit.r_opt is not None


def test_one_value_of_x_leaves_x_undetermined_and_r_fitted() -> None:
    r = np.array([0.5, 0.8, 1.2, 2.0, 3.0, 4.8])
    x = np.full(6, 0.2)
    fit = fit_conditional(points(x, r, LAPTOP.predict(x, r, 3.58)))
    assert fit.x_opt is None
    assert "three different values of x" in (fit.x_opt_reason or "")
    assert fit.r_opt is not None
    assert fit.r_opt.value == pytest.approx(LAPTOP.r_opt, rel=1e-6)


def test_x_and_r_on_one_curve_cannot_be_told_apart() -> None:
    x = np.geomspace(0.1, 0.4, 8)
    r = 10 * x
    fit = fit_conditional(points(x, r, noisy(LAPTOP, x, r, 0)))
    assert not fit.converged
    assert fit.x_opt is None
    assert any("apart from each other" in message for message in fit.messages)


def test_rows_outside_the_range_of_r_are_left_out_and_said_so() -> None:
    fit = fit_conditional(measured_points())
    assert (fit.num_points, fit.num_left_out) == (15, 4)
    assert "4 of 19 runs have r outside 0.5 to 5: left out." in fit.messages


def test_lack_of_fit_is_found_where_the_law_is_wrong() -> None:
    x, r = np.tile(X9, 2), np.tile(R9, 2)
    bent = LAPTOP.predict(x, r, 3.58) + 0.15 * np.sin(9 * np.log(x) + 4 * np.log(r))
    loss = bent + 0.003 * np.random.default_rng(0).standard_normal(len(x))
    fit = fit_conditional(points(x, r, loss))
    assert fit.lack_of_fit_p is not None
    assert fit.lack_of_fit_p < 1e-3
    assert any("lack of fit" in message for message in fit.messages)


def test_without_replicates_the_noise_is_absent_with_a_reason() -> None:
    fit = fit_conditional(points(X9, R9, noisy(LAPTOP, X9, R9, 0)))
    assert fit.pure_error_sd is None
    assert "three more seeds" in (fit.pure_error_reason or "")


def test_a_run_with_a_large_standard_error_weighs_little() -> None:
    loss = LAPTOP.predict(X9, R9, 3.58) + 1e-4 * np.random.default_rng(0).standard_normal(9)
    spoiled = loss.copy()
    spoiled[0] += 0.05
    sure = np.full(9, 1e-4)
    unsure = sure.copy()
    unsure[0] = 0.05
    equal = fit_conditional(points(X9, R9, spoiled))
    weighted = fit_conditional(points(X9, R9, spoiled, standard_error=unsure))
    truth = LAPTOP.predict(X9[1:], R9[1:], 3.58)
    off_equal = np.abs(equal.predict_loss(X9[1:], R9[1:], 1e5, 1e6).mean - truth).max()
    off_weighted = np.abs(weighted.predict_loss(X9[1:], R9[1:], 1e5, 1e6).mean - truth).max()
    assert off_weighted < 0.3 * off_equal


def test_a_fit_is_fast_enough_to_follow_every_run() -> None:
    x, r = np.tile(X9, 4)[:30], np.tile(R9, 4)[:30]
    data = points(x, r, noisy(LAPTOP, x, r, 0))
    start = time.process_time()
    fit_conditional(data)
    assert time.process_time() - start < 1.0


def test_the_same_seed_gives_the_same_fit() -> None:
    data = points(X9, R9, noisy(LAPTOP, X9, R9, 0))
    assert fit_conditional(data).to_json() == fit_conditional(data).to_json()
    assert fit_conditional(data, seed=1).to_json() != fit_conditional(data).to_json()


def test_a_fit_survives_json_exactly() -> None:
    fit = fit_conditional(measured_points())
    text = json.dumps(fit.to_json(), allow_nan=False)
    back = LawFit.from_json(json.loads(text))
    assert back.to_json() == fit.to_json()
    assert np.array_equal(back.predict_loss(X9, R9, 1e5, 1e6).high, fit.predict_loss(X9, R9, 1e5, 1e6).high)
    with pytest.raises(ValueError, match="upgrade"):
        LawFit.from_json({**fit.to_json(), "schema_version": 2})


def test_ratios_are_one_at_the_optimum_and_above_it_elsewhere() -> None:
    fit = fit_conditional(measured_points(), r_range=(0.3, 8.0))
    assert fit.x_opt is not None
    assert fit.r_opt is not None
    assert fit.predict_ratio(fit.x_opt.value, fit.r_opt.value).mean[0] == pytest.approx(1.0)
    ratios = fit.predict_ratio(X9, R9)
    assert (ratios.mean >= 1.0 - 1e-12).all()
    assert (ratios.low <= ratios.mean).all()
    assert (ratios.mean <= ratios.high).all()


def test_validation_on_held_out_runs_of_an_unknown_cell_takes_its_best_loss() -> None:
    fit = fit_conditional(points(X9, R9, noisy(LAPTOP, X9, R9, 0, sd=0.002)))
    held_out = points(X9, R9, LAPTOP.predict(X9, R9, 3.2), num_parameters=np.full(9, 2e5), num_tokens=np.full(9, 2e6))
    found = fit.validate(held_out)
    assert found.spearman is not None
    assert found.spearman > 0.9
    assert found.mse < 5e-4
    assert "held-out" in found.reference


def test_references_can_be_given_and_missing_ones_are_named() -> None:
    loss = LAPTOP.predict(X9, R9, 3.58)
    fit = fit_conditional(points(X9, R9, loss), reference={(1e5, 1e6): 3.58})
    assert fit.law is not None
    assert np.allclose(fit.law.predict(X9, R9, 3.58), loss)
    with pytest.raises(ValueError, match="no reference loss was given for N 1e"):
        fit_conditional(points(X9, R9, loss), reference={(9e5, 1e6): 3.0})


def test_a_chinchilla_reference_predicts_outside_the_cells() -> None:
    truth = ChinchillaLaw(E=1.8, A=60.0, B=300.0, alpha=0.35, beta=0.4)
    N = np.repeat(np.repeat([5e4, 1e5, 2e5, 4e5], 3), 9)
    D = N * np.tile(np.repeat([5.0, 20.0, 80.0], 9), 4)
    x, r = np.tile(X9, 12), np.tile(R9, 12)
    fit = fit_conditional(
        points(x, r, LAPTOP.predict(x, r, truth.predict(N, D)), num_parameters=N, num_tokens=D),
        reference="chinchilla",
        num_bootstrap=20,
    )
    expected = LAPTOP.predict(0.25, 1.2, truth.predict(8e5, 1.6e7))
    assert fit.predict_loss(0.25, 1.2, 8e5, 1.6e7).mean[0] == pytest.approx(float(expected), rel=2e-3)


def test_a_loss_outside_the_cells_without_a_reference_is_refused() -> None:
    fit = fit_conditional(points(X9, R9, noisy(LAPTOP, X9, R9, 0)))
    with pytest.raises(ValueError, match="the fit knows the cells N 1e\\+05, D 1e\\+06"):
        fit.predict_loss(0.2, 1.0, 2e5, 2e6)
