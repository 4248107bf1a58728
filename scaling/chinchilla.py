"""Fits the Chinchilla law, L = E + A/N^alpha + B/D^beta, and says which of its terms the data identify.

The objective is that of arXiv 2203.15556 and 2404.10102: the sum of Huber(delta) over residuals of ln loss. It is
minimised in u = (ln E, ln A', alpha, ln B', beta) with A' = A/N0^alpha, B' = B/D0^beta and N0, D0 the geometric
means of the data: A and alpha are correlated to 0.99 and more, A' and alpha are not, so that the minimum is found
rather than a point on the valley floor; logarithms keep E, A and B positive.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from scaling.law import ChinchillaLaw, Floats

ChinchillaObjective = Literal["huber", "least_squares"]
_NUM_UNKNOWNS = 5
_SAME = 0.05
"""Values within 5 % count as one level of N, of D, or of D/N."""
_ILL_CONDITIONED = 1e4


@dataclass(frozen=True, kw_only=True)
class ChinchillaFit:
    """A fitted reference law, or why there is none.

    `objective` is the minimised sum (of Huber values, or of half squares, of residuals of ln loss).
    `condition_number` is that of the column-scaled Jacobian at the minimum. `not_identified` names the
    coefficients that the design cannot tell apart.
    """

    law: ChinchillaLaw | None
    objective: float | None
    converged: bool
    condition_number: float | None
    not_identified: tuple[str, ...]
    messages: tuple[str, ...]
    num_points: int

    def predict(self, num_parameters: ArrayLike, num_tokens: ArrayLike) -> Floats:
        """L(N, D) in nats per token.

        Raises:
            ValueError: there is no law; the fit's own sentences say why.
        """
        if self.law is None:
            raise ValueError(f"the Chinchilla law was not fitted, so it predicts nothing: {' '.join(self.messages)}")
        return self.law.predict(num_parameters, num_tokens)


def fit_chinchilla(
    num_parameters: ArrayLike,
    num_tokens: ArrayLike,
    losses: ArrayLike,
    *,
    objective: ChinchillaObjective = "huber",
    huber_delta: float = 1e-3,
) -> ChinchillaFit:
    """Estimate E, A, B, alpha and beta.

    Args:
        num_parameters: N of every run, (n,).
        num_tokens: D of every run, (n,).
        losses: nats per token, (n,).
        objective: "huber" as published, or "least_squares" on ln loss.
        huber_delta: where Huber's parabola turns into a line, in units of ln loss.
    """
    N, D, L = (np.atleast_1d(np.asarray(column, dtype=float)) for column in (num_parameters, num_tokens, losses))
    if not N.shape == D.shape == L.shape or N.ndim != 1:
        raise ValueError(f"N, D and loss must be columns of one length, got shapes {N.shape}, {D.shape}, {L.shape}")
    if not (np.isfinite(N) & np.isfinite(D) & np.isfinite(L) & (N > 0) & (D > 0) & (L > 0)).all():
        raise ValueError("N, D and loss must all be finite and positive; leave diverged runs out before fitting")
    if len(L) < _NUM_UNKNOWNS + 1:
        return _too_few(len(L))
    delta = huber_delta if objective == "huber" else np.inf
    return _fit(N, D, L, delta)


def _too_few(num_points: int) -> ChinchillaFit:
    return ChinchillaFit(
        law=None,
        objective=None,
        converged=False,
        condition_number=None,
        not_identified=("E", "A", "B", "alpha", "beta"),
        messages=(
            f"{num_points} point{'s' if num_points != 1 else ''} cannot determine the five coefficients of "
            f"the Chinchilla law: give at least {_NUM_UNKNOWNS + 1}, at three or more tokens-per-parameter ratios.",
        ),
        num_points=num_points,
    )


def _fit(N: Floats, D: Floats, L: Floats, delta: float) -> ChinchillaFit:
    problem = _Problem(N, D, L, delta)
    ends = [problem.minimise(start) for start in problem.starts()]
    best = min(ends, key=problem.value)
    # Two starts that end at the same height are the evidence that this is the minimum and not where one got stuck.
    reached = sum(problem.value(end) <= problem.value(best) * (1 + 1e-4) + 1e-15 for end in ends)
    flat = problem.gradient_is_zero(best)
    law = problem.law(best)
    if law is None:
        return _no_finite_minimum(len(L))
    condition = problem.condition_number(best)
    not_identified, messages = _identification(N, D)
    if condition > _ILL_CONDITIONED and not not_identified:
        not_identified = problem.weakest(best)
        messages.append(
            f"The design hardly separates {', '.join(not_identified)} (condition number {condition:.2g}): "
            "add runs at other sizes and tokens-per-parameter ratios."
        )
    vanished = problem.vanished(best)
    if vanished:
        not_identified = tuple(sorted({*not_identified, *vanished}))
        messages.append(
            f"A term is zero at the minimum, so the fit says nothing of {', '.join(vanished)}: the losses are as "
            "well described without it. Vary N and D over a wider range, and leave badly tuned runs out."
        )
    converged = reached >= 2 and flat
    if not converged:
        messages.append(
            "The minimum was not confirmed: fewer than two of the starting points ended at the lowest objective, or "
            "its gradient is not zero. Look for diverged runs in the data."
        )
    return ChinchillaFit(
        law=law,
        objective=problem.value(best),
        converged=converged and not not_identified,
        condition_number=condition if np.isfinite(condition) else None,
        not_identified=not_identified,
        messages=tuple(messages),
        num_points=len(L),
    )


def _no_finite_minimum(num_points: int) -> ChinchillaFit:
    return ChinchillaFit(
        law=None,
        objective=None,
        converged=False,
        condition_number=None,
        not_identified=("A", "B", "alpha", "beta"),
        messages=(
            "The minimum lies at an infinite exponent: the losses follow no sum of two power laws. Look for diverged "
            "runs, and add runs at other sizes and tokens-per-parameter ratios.",
        ),
        num_points=num_points,
    )


def num_levels(values: Floats) -> int:
    """How many values are more than 5 % apart from the one before."""
    return 1 + int((np.diff(np.sort(np.log(values))) > np.log1p(_SAME)).sum())


def _identification(N: Floats, D: Floats) -> tuple[tuple[str, ...], list[str]]:
    """Which coefficients no estimator could separate on this design, and what to run to cure it."""
    levels_n, levels_d, ratios = num_levels(N), num_levels(D), num_levels(D / N)
    if levels_n == 1 and levels_d == 1:
        return ("E", "A", "B", "alpha", "beta"), ["All runs have one N and one D: no exponent is identified."]
    if levels_n == 1:
        return ("E", "A", "alpha"), [
            f"N hardly varies (all within 5 % of {np.median(N):.3g}): E, A and alpha are not identified, only their "
            "sum at this N. Train at two more sizes."
        ]
    if levels_d == 1:
        return ("E", "B", "beta"), [
            f"D hardly varies (all within 5 % of {np.median(D):.3g}): E, B and beta are not identified, only their "
            "sum at this D. Train at two more token counts."
        ]
    if ratios == 1:
        return ("A", "B", "alpha", "beta"), [
            f"D is proportional to N (all runs at {np.median(D / N):.3g} tokens per parameter): the terms A/N^alpha "
            "and B/D^beta are not identified apart from each other, only their sum along this line. Train at three or "
            "more tokens-per-parameter ratios."
        ]
    if levels_n + levels_d - 1 < _NUM_UNKNOWNS:
        return ("E", "alpha", "beta"), [
            f"{levels_n} sizes and {levels_d} token counts cannot determine E, alpha and beta together: sizes plus "
            "token counts must be at least six."
        ]
    return (), []


class _Problem:
    """The objective in centred coordinates u = (ln E, ln A', alpha, ln B', beta)."""

    names = ("E", "A", "alpha", "B", "beta")

    def __init__(self, N: Floats, D: Floats, L: Floats, delta: float) -> None:
        self.log_N0, self.log_D0 = np.log(N).mean(), np.log(D).mean()
        self.n, self.d = np.log(N) - self.log_N0, np.log(D) - self.log_D0
        self.log_loss, self.loss, self.delta = np.log(L), L, delta

    def residual(self, u: Floats) -> tuple[Floats, Floats]:
        """ln predicted - ln observed (n,), and its Jacobian (n, 5)."""
        e = np.exp(u[0])
        a = np.exp(u[1] - u[2] * self.n)
        b = np.exp(u[3] - u[4] * self.d)
        predicted = e + a + b
        columns = np.stack([np.full_like(a, e), a, -a * self.n, b, -b * self.d], axis=1)
        return np.log(predicted) - self.log_loss, columns / predicted[:, None]

    def value(self, u: Floats) -> float:
        residual, _ = self.residual(u)
        return float(self._huber(residual).sum())

    def _huber(self, residual: Floats) -> Floats:
        size = np.abs(residual)
        if not np.isfinite(self.delta):
            return 0.5 * residual**2
        return np.where(size <= self.delta, 0.5 * residual**2, self.delta * (size - 0.5 * self.delta))

    def _value_and_gradient(self, u: Floats) -> tuple[float, Floats]:
        residual, jacobian = self.residual(u)
        gradient = jacobian.T @ np.clip(residual, -self.delta, self.delta)
        return float(self._huber(residual).sum()), gradient

    def _scale(self) -> float:
        """Makes the objective of order one: BFGS's stopping rules are absolute."""
        width = self.delta if np.isfinite(self.delta) else 0.01
        return 1.0 / (width * 0.01 * len(self.loss))

    def starts(self) -> list[Floats]:
        """E at three shares of the lowest loss, exponents at three levels: the published ones lie inside."""
        lowest, typical = float(self.loss.min()), float(np.median(self.loss))
        result = []
        for share in (0.3, 0.6, 0.9):
            rest = max(typical - share * lowest, 0.01 * typical) / 2
            for alpha, beta in ((0.3, 0.3), (0.3, 0.7), (0.7, 0.3)):
                result.append(np.array([np.log(share * lowest), np.log(rest), alpha, np.log(rest), beta]))
        return result

    def minimise(self, start: Floats) -> Floats:
        """BFGS, restarted from its own end until that gains nothing: Huber's kinks stall its Hessian early."""
        scale = self._scale()

        def scaled(u: Floats) -> tuple[float, Floats]:
            value, gradient = self._value_and_gradient(np.clip(u, -60, 60))
            return value * scale, gradient * scale

        u = start
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for _ in range(8):
                before = self.value(u)
                u = np.clip(minimize(scaled, u, jac=True, method="BFGS", options={"gtol": 1e-9}).x, -60, 60)
                if not self.value(u) < before * (1 - 1e-9):
                    break
        return np.asarray(u, dtype=float)

    def gradient_is_zero(self, u: Floats) -> bool:
        """Judged against the gradient's own spread over points, since Huber residuals flip sign at the minimum."""
        residual, jacobian = self.residual(u)
        pull = np.clip(residual, -self.delta, self.delta)[:, None] * jacobian
        spread = np.sqrt((pull**2).sum(axis=0)) + 1e-12
        return bool(np.all(np.abs(pull.sum(axis=0)) <= 0.05 * spread + 1e-10))

    def condition_number(self, u: Floats) -> float:
        _, jacobian = self.residual(u)
        norms = np.linalg.norm(jacobian, axis=0)
        return float(np.linalg.cond(jacobian / norms)) if np.all(norms > 0) else float("inf")

    def vanished(self, u: Floats) -> tuple[str, ...]:
        """Coefficients of terms below a millionth of the loss at every point."""
        terms = np.exp(np.stack([np.full_like(self.n, u[0]), u[1] - u[2] * self.n, u[3] - u[4] * self.d]))
        gone = (terms / self.loss).max(axis=1) < 1e-6
        return tuple(
            name
            for group, dead in zip((("E",), ("A", "alpha"), ("B", "beta")), gone, strict=True)
            if dead
            for name in group
        )

    def weakest(self, u: Floats) -> tuple[str, ...]:
        """The coefficients that make up the direction the data see least."""
        _, jacobian = self.residual(u)
        norms = np.linalg.norm(jacobian, axis=0)
        if not np.all(norms > 0):
            return tuple(name for name, norm in zip(self.names, norms, strict=True) if norm == 0)
        direction = np.abs(np.linalg.svd(jacobian / norms)[2][-1])
        return tuple(name for name, size in zip(self.names, direction, strict=True) if size > 0.3)

    def law(self, u: Floats) -> ChinchillaLaw | None:
        """Back to A = A' N0^alpha and B = B' D0^beta; None where they overflow."""
        log_E, log_a, alpha, log_b, beta = (float(value) for value in u)
        with np.errstate(over="ignore"):
            E, A, B = np.exp([log_E, log_a + alpha * self.log_N0, log_b + beta * self.log_D0])
        if not np.isfinite([E, A, B]).all():
            return None
        return ChinchillaLaw(E=float(E), A=float(A), B=float(B), alpha=alpha, beta=beta)
