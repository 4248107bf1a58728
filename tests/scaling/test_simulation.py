"""Simulated worlds: known optima, the drift between published fits, and an interaction that leaves the optimum."""

import numpy as np
import pytest
from scipy.optimize import minimize

from scaling.simulation import (
    TRUTHS,
    drifting_truth,
    grid_design,
    interaction_truth,
    paper_truth,
    simulate_study,
)


def test_the_papers_truth_has_its_published_optimum() -> None:
    x, r = paper_truth().optimum(145e6)
    assert float(x) == pytest.approx(0.080082, rel=1e-4)
    assert float(r) == pytest.approx(1.031746, rel=1e-4)


def test_the_drift_reaches_the_law_published_for_one_billion() -> None:
    x, r = drifting_truth().optimum([151e6, 1e9])
    assert x[1] == pytest.approx(0.07395, rel=1e-4)
    assert r[1] == pytest.approx(1.215686, rel=1e-4)
    assert x[0] == pytest.approx(0.0801, rel=1e-2)


@pytest.mark.parametrize("name", sorted(TRUTHS))
@pytest.mark.parametrize("N", [80e6, 1e9, 3e9])
def test_the_best_shape_has_the_reference_loss_and_is_a_minimum(name: str, N: float) -> None:
    truth = TRUTHS[name]()
    x, r = (float(z) for z in truth.optimum(N))
    assert float(truth.loss(x, r, N, 100 * N)) == pytest.approx(float(truth.reference_loss(N, 100 * N)))
    found = minimize(
        lambda u: float(truth.ratio(np.exp(u[0]), np.exp(u[1]), N)),
        [np.log(x) + 0.2, np.log(r) - 0.3],
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-12},
    )
    assert np.exp(found.x) == pytest.approx([x, r], rel=1e-3)


def test_an_interaction_is_no_product_of_brackets() -> None:
    def cross(truth_name: str) -> float:
        """ln ratio has no mixed difference where it is a product."""
        at = np.log(TRUTHS[truth_name]().ratio([0.05, 0.05, 0.15, 0.15], [0.6, 4.0, 0.6, 4.0], 145e6))
        return float(at[0] - at[1] - at[2] + at[3])

    assert cross("paper") == pytest.approx(0.0, abs=1e-12)
    assert abs(cross("interaction")) > 0.02
    assert interaction_truth(0.0).interaction == 0.0


def test_a_study_repeats_with_its_seed_and_scatters_as_asked() -> None:
    design = grid_design([80e6, 145e6], num_x=10, num_r=10)
    one, same, other = (
        simulate_study(paper_truth(), design, generator=np.random.default_rng(seed)).loss for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    expected = paper_truth().loss(design.x, design.r, design.num_parameters, design.num_tokens)
    assert np.std(one - expected) == pytest.approx(0.006, rel=0.2)
