"""The laws as formulas: published optima, the free scale, limits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.law import ChinchillaLaw, ConditionalLaw, LawForm

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "bian2025_reference.json"
coefficient = st.floats(0.01, 3.0)
brackets = st.tuples(coefficient, coefficient, coefficient)
positive = st.floats(0.05, 8.0)


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data are not beside the repository")
def test_published_coefficients_give_the_published_optima() -> None:
    for fit in json.loads(REFERENCE.read_text())["fits"][:2]:
        law = ConditionalLaw(a=tuple(fit["a"]), b=tuple(fit["b"]))
        expected = fit["optimum_from_rounded_coefficients"]
        assert law.x_opt == pytest.approx(expected["x"], rel=1e-4)
        assert law.r_opt == pytest.approx(expected["r"], rel=1e-4)
        assert float(law.predict(expected["x"], expected["r"], 1.0)) == pytest.approx(fit["value_at_optimum"], abs=2e-5)


@pytest.mark.parametrize("form", ["multiplicative", "additive"])
@given(a=brackets, b=brackets, x=positive, r=positive, scale=st.floats(0.1, 10.0))
def test_the_free_scale_changes_no_prediction_and_normalising_removes_it(
    form: LawForm,
    a: tuple[float, float, float],
    b: tuple[float, float, float],
    x: float,
    r: float,
    scale: float,
) -> None:
    law = ConditionalLaw(form=form, a=a, b=b)
    if form == "multiplicative":
        same = ConditionalLaw(form=form, a=tuple(scale * v for v in a), b=tuple(v / scale for v in b))  # type: ignore[arg-type]
    else:
        same = ConditionalLaw(form=form, a=(a[0] + scale, a[1], a[2]), b=(b[0] - scale, b[1], b[2]))
    expected = float(law.predict(x, r, 3.0))
    for other in (same, law.normalised(), same.normalised()):
        assert float(other.predict(x, r, 3.0)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert (other.x_opt, other.r_opt) == (pytest.approx(law.x_opt), pytest.approx(law.r_opt))
    if form == "additive" or float(law.r_factor(law.r_opt or 1.0)) > 0:
        neutral = 1.0 if form == "multiplicative" else 0.0
        normal = law.normalised()
        assert float(normal.r_factor(normal.r_opt or 1.0)) == pytest.approx(neutral, abs=1e-9)
        if form == "additive":
            assert np.allclose(same.normalised().a, normal.a, atol=1e-9)


@given(a=brackets)
def test_the_optimum_is_a_minimum(a: tuple[float, float, float]) -> None:
    law = ConditionalLaw(a=a, b=(1.0, 0.0, 0.0))
    x = law.x_opt
    assert x is not None
    assert float(law.x_factor(x)) <= min(float(law.x_factor(x * 1.01)), float(law.x_factor(x / 1.01)))


@pytest.mark.parametrize("a", [(1.0, -0.1, 0.1), (1.0, 0.1, -0.1), (1.0, 0.0, 0.1), (1.0, -0.1, -0.1)])
def test_without_two_positive_arms_there_is_no_optimum(a: tuple[float, float, float]) -> None:
    assert ConditionalLaw(a=a, b=(1.0, 0.0, 0.0)).x_opt is None


def test_chinchilla_tends_to_its_irreducible_loss() -> None:
    law = ChinchillaLaw(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    assert float(law.predict(1e30, 1e30)) == pytest.approx(1.8, abs=1e-6)
    by_hand = 1.8 + 480.0 / math.pow(1e9, 0.35) + 2100.0 / math.pow(2e10, 0.37)
    assert float(law.predict(1e9, 2e10)) == pytest.approx(by_hand)
    assert law.predict(np.array([[1e8], [1e9]]), np.array([1e10, 1e11])).shape == (2, 2)
