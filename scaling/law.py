"""The two laws: loss against size and data, and loss against the shape at one size and one amount of data.

`ChinchillaLaw` is the reference, L_opt(N, D); `ConditionalLaw` says how much a shape (x, r) costs on top of it
(arXiv 2510.18245, section 3). Formulas only: `scaling/fit.py` estimates them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LawForm = Literal["multiplicative", "additive"]
Coefficients = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ChinchillaLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token (arXiv 2203.15556), N in parameters, D in tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def predict(self, num_parameters: ArrayLike, num_tokens: ArrayLike) -> Floats:
        """L(N, D) in nats per token; the arguments broadcast."""
        N = np.asarray(num_parameters, dtype=float)
        D = np.asarray(num_tokens, dtype=float)
        return np.asarray(self.E + self.A * N**-self.alpha + self.B * D**-self.beta, dtype=float)


def shape_features(z: ArrayLike) -> Floats:
    """(1, ln z, 1/z) along a new last axis: what both brackets of the conditional law are linear in."""
    values = np.asarray(z, dtype=float)
    return np.stack([np.ones_like(values), np.log(values), 1.0 / values], axis=-1)


@dataclass(frozen=True, kw_only=True)
class ConditionalLaw:
    """The loss of shape (x, r) given the loss L_opt of the best shape at the same N and D.

    multiplicative: L = (a0 + a1 ln x + a2/x) · (b0 + b1 ln r + b2/r) · L_opt
    additive:       L = (a0 + a1 ln x + a2/x) + (b0 + b1 ln r + b2/r) + L_opt

    x = d / sqrt(N), r = MLP / attention parameters, natural logarithms, losses in nats per token. Only five of the
    six coefficients are identifiable: (s·a, b/s), or (a0 + s, b0 - s) for the additive form, is the same law. Compare
    laws through predictions, optima, or `normalised` coefficients.
    """

    form: LawForm = "multiplicative"
    a: Coefficients
    b: Coefficients

    def x_factor(self, x: ArrayLike) -> Floats:
        """a0 + a1 ln x + a2/x: a factor (multiplicative) or nats per token (additive)."""
        return np.asarray(shape_features(x) @ np.asarray(self.a), dtype=float)

    def r_factor(self, r: ArrayLike) -> Floats:
        """b0 + b1 ln r + b2/r: a factor (multiplicative) or nats per token (additive)."""
        return np.asarray(shape_features(r) @ np.asarray(self.b), dtype=float)

    def predict(self, x: ArrayLike, r: ArrayLike, reference_loss: ArrayLike) -> Floats:
        """Loss in nats per token of shape (x, r) where the best shape has `reference_loss`; arguments broadcast."""
        reference = np.asarray(reference_loss, dtype=float)
        if self.form == "multiplicative":
            return np.asarray(self.x_factor(x) * self.r_factor(r) * reference, dtype=float)
        return np.asarray(self.x_factor(x) + self.r_factor(r) + reference, dtype=float)

    @property
    def x_opt(self) -> float | None:
        """x* = a2/a1, or None where the bracket has no interior minimum (a1 and a2 must both be positive)."""
        return _interior_minimum(self.a)

    @property
    def r_opt(self) -> float | None:
        """r* = b2/b1, or None where the bracket has no interior minimum (b1 and b2 must both be positive)."""
        return _interior_minimum(self.b)

    def normalised(self, *, r_at: float | None = None) -> "ConditionalLaw":
        """The same law with its free scale fixed: the r bracket is 1 (additive: 0) at `r_at`.

        `r_at` defaults to r*, or to 1 where there is no r*. Where the r bracket is not positive at `r_at` the scale is
        meaningless and the law is returned as it is.
        """
        at = r_at if r_at is not None else (self.r_opt or 1.0)
        value = float(self.r_factor(at))
        a, b = np.asarray(self.a), np.asarray(self.b)
        if self.form == "additive":
            shift = np.array([value, 0.0, 0.0])
            return ConditionalLaw(form=self.form, a=_triple(a + shift), b=_triple(b - shift))
        if value <= 0:
            return self
        return ConditionalLaw(form=self.form, a=_triple(a * value), b=_triple(b / value))


def _interior_minimum(coefficients: Coefficients) -> float | None:
    _, slope, inverse = coefficients
    if slope <= 0 or inverse <= 0:
        return None
    at = inverse / slope
    return at if np.isfinite(at) and at > 0 else None


def _triple(values: NDArray[Any]) -> Coefficients:
    first, second, third = (float(value) for value in values)
    return (first, second, third)
