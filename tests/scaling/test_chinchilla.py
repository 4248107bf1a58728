"""The Chinchilla fit: published minima, known coefficients, intervals, and designs that identify nothing."""

import csv
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from scaling.chinchilla import fit_chinchilla
from scaling.chinchilla_solver import ChinchillaProblem, descend, minimise_from
from scaling.law import ChinchillaLaw, Floats
from scaling.quantity import Interval, NotMeasured

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the reference data are not beside the repository")
TRUTH = ChinchillaLaw(E=1.8172, A=477.83, B=2143.42, alpha=0.3473, beta=0.3672)


def read(name: str, size: str, used: str | None = None) -> tuple[Floats, Floats, Floats]:
    with (DATA / name).open() as file:
        rows = [row for row in csv.DictReader(file) if used is None or row[used] == "1"]
    N, D, L = (np.array([float(row[key]) for row in rows]) for key in (size, "n_tokens", "loss"))
    return N, D, L


@needs_data
def test_the_published_chinchilla_minimum_is_reached() -> None:
    fit = fit_chinchilla(*read("chinchilla_epoch_points.csv", "n_params", "used_in_published_fit"))
    assert fit.converged
    assert fit.law is not None
    assert fit.num_points == 240
    assert fit.objective is not None
    assert fit.objective <= 0.00101828
    assert abs(fit.law.E - 1.8172) <= 0.002
    assert fit.law.alpha == pytest.approx(0.3473, abs=0.002)
    assert fit.law.beta == pytest.approx(0.3672, abs=0.002)


@needs_data
@pytest.mark.parametrize(
    ("name", "objective", "alpha", "beta"),
    [
        ("gemstones_hot_le100b.csv", 0.0019816129, 0.29287, 0.71287),
        ("gemstones_cooldown.csv", 0.0019640865, 0.30027, 0.58024),
    ],
)
def test_the_published_gemstones_minima_are_reached(name: str, objective: float, alpha: float, beta: float) -> None:
    fit = fit_chinchilla(*read(name, "n_params_total"))
    assert fit.converged
    assert fit.law is not None
    assert fit.objective == pytest.approx(objective, rel=1e-6)
    assert fit.law.alpha == pytest.approx(alpha, abs=0.002)
    assert fit.law.beta == pytest.approx(beta, abs=0.002)


@settings(max_examples=10, deadline=None)
@given(E=st.floats(1.0, 2.0), alpha=st.floats(0.2, 0.6), beta=st.floats(0.2, 0.6))
def test_chinchilla_coefficients_are_recovered(E: float, alpha: float, beta: float) -> None:
    # Terms of about half a nat at the middle of the data, whatever the exponents.
    truth = ChinchillaLaw(E=E, A=0.5 * 3e8**alpha, B=0.7 * 1e10**beta, alpha=alpha, beta=beta)
    N = np.repeat([5e7, 1.5e8, 5e8, 1.5e9], 4)
    D = N * np.tile([5.0, 20.0, 80.0, 320.0], 4)
    fit = fit_chinchilla(N, D, truth.predict(N, D))
    assert fit.law is not None
    assert abs(fit.law.E / E - 1) <= 1e-3
    assert fit.law.alpha == pytest.approx(alpha, rel=1e-3)
    assert fit.law.beta == pytest.approx(beta, rel=1e-3)


def test_a_collinear_design_names_what_is_not_identified() -> None:
    N = np.geomspace(5e7, 5e9, 10)
    truth = ChinchillaLaw(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    fit = fit_chinchilla(N, 20 * N, truth.predict(N, 20 * N))
    assert not fit.converged
    assert set(fit.not_identified) >= {"alpha", "beta"}
    assert "D is proportional to N" in fit.messages[0]
    # The sum along the line is still known.
    assert np.allclose(fit.predict(N, 20 * N), truth.predict(N, 20 * N), rtol=1e-4)


def test_one_size_does_not_identify_the_size_term() -> None:
    D = np.geomspace(1e9, 1e11, 8)
    N = np.full(8, 1e8)
    fit = fit_chinchilla(N, D, 2.0 + 2100 / D**0.37)
    assert not fit.converged
    assert "alpha" in fit.not_identified
    assert "N hardly varies" in fit.messages[0]


def test_too_few_points_are_a_sentence() -> None:
    fit = fit_chinchilla([1e8, 2e8], [1e9, 1e9], [3.0, 2.9])
    assert fit.law is None
    assert not fit.converged
    assert "at least 6" in fit.messages[0]
    with pytest.raises(ValueError, match="was not fitted"):
        fit.predict(1e8, 1e9)


def test_a_diverged_run_is_refused_before_fitting() -> None:
    with pytest.raises(ValueError, match="diverged"):
        fit_chinchilla([1e8] * 7, [1e9] * 7, [3.0] * 6 + [float("nan")])


def design(num_sizes: int = 4) -> tuple[Floats, Floats]:
    N = np.repeat(np.geomspace(3e7, 3e9, num_sizes), 5)
    return N, N * np.tile([5.0, 10.0, 20.0, 60.0, 200.0], num_sizes)


def noisy(N: Floats, D: Floats, seed: int, sd: float = 0.003) -> Floats:
    return TRUTH.predict(N, D) * np.exp(sd * np.random.default_rng(seed).standard_normal(len(N)))


@pytest.mark.parametrize("objective", ["huber", "least_squares"])
def test_no_start_of_scipy_ends_lower(objective: Literal["huber", "least_squares"]) -> None:
    N, D = design()
    for seed in range(3):
        L = noisy(N, D, seed, sd=0.01)
        fit = fit_chinchilla(N, D, L, objective=objective)
        assert fit.objective is not None
        delta = 1e-3 if objective == "huber" else np.inf
        problem = ChinchillaProblem(n=np.log(N / 3e8), d=np.log(D / 1e10), log_loss=np.log(L), delta=delta)
        ends = [
            minimize(lambda u, problem=problem: 1e4 * float(problem.value(u[None])[0]), start, method="Nelder-Mead")
            for start in ([0.5, -0.5, 0.3, -0.5, 0.3], [0.7, 0.0, 0.5, 0.0, 0.5])
        ]
        assert fit.objective <= min(end.fun for end in ends) / 1e4 * (1 + 1e-9)


def test_gradient_and_hessian_are_those_of_the_objective() -> None:
    N, D = design()
    problem = ChinchillaProblem(n=np.log(N / 3e8), d=np.log(D / 1e10), log_loss=np.log(noisy(N, D, 0)), delta=0.02)
    u, weight = np.array([[0.4, -0.3, 0.3, -0.6, 0.5]]), np.random.default_rng(0).uniform(0.5, 2.0, (1, len(N)))
    _, gradient, hessian = problem.expand(u, weight)
    for k in range(5):
        step = np.zeros((1, 5))
        step[0, k] = 1e-5
        above, below = problem.expand(u + step, weight), problem.expand(u - step, weight)
        assert (above[0] - below[0]) / 2e-5 == pytest.approx(gradient[0, k], rel=1e-5, abs=1e-9)
        assert (above[1] - below[1])[0] / 2e-5 == pytest.approx(hessian[0, k], rel=1e-4, abs=1e-7)


def test_starts_that_fall_together_are_followed_as_one_and_counted() -> None:
    N, D = design()
    n, d = np.log(N) - np.log(N).mean(), np.log(D) - np.log(D).mean()
    problem = ChinchillaProblem(n=n, d=d, log_loss=np.log(noisy(N, D, 0)), delta=np.inf)
    starts = np.array([[0.5, -0.5, a, -0.5, b] for a in (0.2, 0.4, 0.6) for b in (0.2, 0.4, 0.6)])
    ends = minimise_from(problem, starts)
    assert ends.count.sum() == 9
    assert ends.count[0] >= 5
    assert np.array_equal(ends.value, np.sort(ends.value))
    assert descend(problem, ends.u[:1]) == pytest.approx(ends.u[:1], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num_points=st.integers(6, 40), sd=st.sampled_from([0.0, 1e-3, 0.05, 0.5]))
def test_no_data_give_a_negative_term_or_an_exception(seed: int, num_points: int, sd: float) -> None:
    generator = np.random.default_rng(seed)
    N = np.exp(generator.uniform(np.log(1e5), np.log(1e10), num_points))
    D = N * np.exp(generator.uniform(np.log(2), np.log(500), num_points))
    L = TRUTH.predict(N, D) * np.exp(sd * generator.standard_normal(num_points))
    fit = fit_chinchilla(N, D, L, num_bootstrap=20)
    if fit.law is None:
        assert fit.messages
    else:
        assert min(fit.law.E, fit.law.A, fit.law.B) >= 0
        assert (fit.draws[:, :3] >= 0).all()


# Intervals ------------------------------------------------------------------------------------------------------------


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    N, D = design()
    hits = {"E": 0, "alpha": 0, "beta": 0, "prediction": 0}
    trials = 60
    for seed in range(trials):
        fit = fit_chinchilla(N, D, noisy(N, D, seed), objective="least_squares", num_bootstrap=200, seed=seed)
        for name in ("E", "alpha", "beta"):
            found = fit.interval(name)
            assert isinstance(found, Interval)
            hits[name] += found.low <= getattr(TRUTH, name) <= found.high
        predicted = fit.predict_interval(1e10, 2e11)
        hits["prediction"] += bool(predicted.low <= TRUTH.predict(1e10, 2e11) <= predicted.high)
    # At a true coverage of 85 %, 43 of 60 or fewer have a chance of about 0.6 %.
    assert min(hits.values()) >= 44, hits


@needs_data
def test_the_published_law_lies_within_the_intervals_of_its_own_data() -> None:
    fit = fit_chinchilla(*read("chinchilla_epoch_points.csv", "n_params", "used_in_published_fit"), num_bootstrap=500)
    for name, published in (("E", 1.8172), ("alpha", 0.3478), ("beta", 0.3658)):
        found = fit.interval(name)
        assert isinstance(found, Interval)
        assert found.low < published < found.high
    # Published standard errors of alpha and beta: 0.02 each.
    assert fit.draws[:, 3:].std(axis=0) == pytest.approx([0.02, 0.02], abs=0.01)


def test_predictions_are_less_sure_outside_the_data() -> None:
    N, D = design()
    fit = fit_chinchilla(N, D, noisy(N, D, 0), num_bootstrap=200)
    inside, outside = (fit.predict_interval(size, 20 * size) for size in (3e8, 3e11))
    assert outside.high - outside.low > inside.high - inside.low
    low, high = fit.predict_interval(N, D).low, fit.predict_interval(N, D).high
    assert low.shape == high.shape == N.shape


def test_an_exponent_that_is_not_identified_has_a_reason_instead_of_an_interval() -> None:
    N = np.geomspace(5e7, 5e9, 10)
    fit = fit_chinchilla(N, 20 * N, noisy(N, 20 * N, 0), num_bootstrap=50)
    found = fit.interval("alpha")
    assert isinstance(found, NotMeasured)
    assert "D is proportional to N" in found.reason


def test_without_replicates_there_is_no_interval_and_the_way_to_one() -> None:
    N, D = design()
    fit = fit_chinchilla(N, D, noisy(N, D, 0))
    assert isinstance(fit.interval("E"), NotMeasured)
    with pytest.raises(ValueError, match="num_bootstrap=1000"):
        fit.predict_interval(1e9, 2e10)
