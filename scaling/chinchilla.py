"""Fits the Chinchilla law, L = E + A/N^alpha + B/D^beta, and says which of its terms the data identify.

The objective is that of arXiv 2203.15556 and 2404.10102: the sum of Huber(delta) over residuals of ln loss. It is
minimised in u = (ln E, ln A', alpha, ln B', beta) with A' = A/N0^alpha, B' = B/D0^beta and N0, D0 the geometric
means of the data: A and alpha are correlated to 0.99 and more, A' and alpha are not, so that the minimum is found
rather than a point on the valley floor; logarithms keep E, A and B positive. `scaling/chinchilla_solver.py` does it.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from scaling.chinchilla_solver import ChinchillaProblem, Minima, minimise_from, refit
from scaling.law import ChinchillaLaw, Floats
from scaling.law_fit import Prediction, quantiles
from scaling.quantity import Interval, NotMeasured

ChinchillaObjective = Literal["huber", "least_squares"]
COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
"""Order of the columns of `ChinchillaFit.draws`."""
_NUM_UNKNOWNS = 5
_SAME = 0.05
"""Values within 5 % count as one level of N, of D, or of D/N."""
_ILL_CONDITIONED = 1e4


@dataclass(frozen=True, kw_only=True, eq=False)
class ChinchillaFit:
    """A fitted reference law, or why there is none.

    `objective` is the minimised sum (of Huber values, or of half squares, of residuals of ln loss).
    `condition_number` is that of the column-scaled Jacobian at the minimum. `not_identified` names the
    coefficients that the design cannot tell apart. `draws` (B, 5) holds the bootstrap replicates of E, A, B, alpha,
    beta, empty where none were asked for; `level` is the nominal coverage of intervals from them.
    """

    law: ChinchillaLaw | None
    objective: float | None
    converged: bool
    condition_number: float | None
    not_identified: tuple[str, ...]
    messages: tuple[str, ...]
    num_points: int
    draws: Floats = field(default_factory=lambda: np.zeros((0, len(COEFFICIENTS))))
    level: float = 0.9

    def predict(self, num_parameters: ArrayLike, num_tokens: ArrayLike) -> Floats:
        """L(N, D) in nats per token.

        Raises:
            ValueError: there is no law; the fit's own sentences say why.
        """
        return self._law().predict(num_parameters, num_tokens)

    def predict_interval(self, num_parameters: ArrayLike, num_tokens: ArrayLike) -> Prediction:
        """L(N, D) in nats per token with the interval of the expected loss; the arguments broadcast.

        Raises:
            ValueError: there is no law, or no bootstrap was asked for.
        """
        mean = self._law().predict(num_parameters, num_tokens)
        if not len(self.draws):
            raise ValueError("no interval without replicates: fit with num_bootstrap=1000, for instance")
        E, A, B, alpha, beta = (column.reshape(-1, *[1] * mean.ndim) for column in self.draws.T)
        N, D = np.asarray(num_parameters, dtype=float), np.asarray(num_tokens, dtype=float)
        low, high = quantiles(E + A * N**-alpha + B * D**-beta, self.level)
        return Prediction(mean, np.minimum(low, mean), np.maximum(high, mean))

    def interval(self, name: str) -> Interval | NotMeasured:
        """The interval of one coefficient, "E", "A", "B", "alpha" or "beta", or the reason for having none."""
        column = COEFFICIENTS.index(name)
        if self.law is None or name in self.not_identified:
            return NotMeasured(reason=f"{name} is not identified. {' '.join(self.messages)}")
        if not len(self.draws):
            return NotMeasured(reason="no bootstrap replicates were asked for")
        value = getattr(self.law, name)
        low, high = quantiles(self.draws[:, column], self.level)
        return Interval(
            low=min(float(low), value), high=max(float(high), value), level=self.level, method="weighted bootstrap"
        )

    def _law(self) -> ChinchillaLaw:
        if self.law is None:
            raise ValueError(f"the Chinchilla law was not fitted, so it predicts nothing: {' '.join(self.messages)}")
        return self.law


def fit_chinchilla(
    num_parameters: ArrayLike,
    num_tokens: ArrayLike,
    losses: ArrayLike,
    *,
    objective: ChinchillaObjective = "huber",
    huber_delta: float = 1e-3,
    num_bootstrap: int = 0,
    level: float = 0.9,
    seed: int = 0,
) -> ChinchillaFit:
    """Estimate E, A, B, alpha and beta, from 16 starting points.

    Args:
        num_parameters: N of every run, (n,).
        num_tokens: D of every run, (n,).
        losses: nats per token, (n,).
        objective: "huber" as published, or "least_squares" on ln loss.
        huber_delta: where Huber's parabola turns into a line, in units of ln loss.
        num_bootstrap: replicates, for intervals; 0 for the estimate alone.
        level: nominal coverage of intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: the columns differ in length, or hold numbers that are not finite and positive.
    """
    N, D, L = (np.atleast_1d(np.asarray(column, dtype=float)) for column in (num_parameters, num_tokens, losses))
    if not N.shape == D.shape == L.shape or N.ndim != 1:
        raise ValueError(f"N, D and loss must be columns of one length, got shapes {N.shape}, {D.shape}, {L.shape}")
    if not (np.isfinite(N) & np.isfinite(D) & np.isfinite(L) & (N > 0) & (D > 0) & (L > 0)).all():
        raise ValueError("N, D and loss must all be finite and positive; leave diverged runs out before fitting")
    if len(L) < _NUM_UNKNOWNS + 1:
        return _too_few(len(L))
    delta = huber_delta if objective == "huber" else np.inf
    problem = _Problem(N, D, L, delta)
    ends = minimise_from(problem.curve, problem.starts())
    fit = _judge(problem, ends, *_identification(N, D))
    if fit.law is None or not num_bootstrap:
        return replace(fit, level=level)
    draws = problem.bootstrap(ends.u[0], num_bootstrap, np.random.default_rng(seed))
    return replace(fit, level=level, draws=draws[np.isfinite(draws).all(axis=1)])


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


def _judge(problem: "_Problem", ends: Minima, not_identified: tuple[str, ...], messages: list[str]) -> ChinchillaFit:
    """The lowest end as a fit, with everything that speaks against it."""
    best, lowest = ends.u[0], float(ends.value[0])
    law = problem.law(best)
    if law is None:
        return _no_finite_minimum(len(problem.loss))
    condition = problem.condition_number(best)
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
    # Two starts that end at the same height are the evidence that this is the minimum and not where one got stuck.
    reached = int(ends.count[ends.value <= lowest * (1 + 1e-4) + 1e-15].sum())
    converged = reached >= 2 and problem.gradient_is_zero(best)
    if not converged:
        messages.append(
            "The minimum was not confirmed: fewer than two of the starting points ended at the lowest objective, or "
            "its gradient is not zero. Look for diverged runs in the data."
        )
    return ChinchillaFit(
        law=law,
        objective=lowest,
        converged=converged and not not_identified,
        condition_number=condition if np.isfinite(condition) else None,
        not_identified=not_identified,
        messages=tuple(messages),
        num_points=len(problem.loss),
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
    """The data in centred coordinates u = (ln E, ln A', alpha, ln B', beta), and what its minimum says of them."""

    names = ("E", "A", "alpha", "B", "beta")

    def __init__(self, N: Floats, D: Floats, L: Floats, delta: float) -> None:
        self.log_N0, self.log_D0 = np.log(N).mean(), np.log(D).mean()
        self.loss = L
        self.curve = ChinchillaProblem(
            n=np.log(N) - self.log_N0, d=np.log(D) - self.log_D0, log_loss=np.log(L), delta=delta
        )

    def starts(self) -> Floats:
        """(16, 5): E at four shares of the lowest loss, each exponent at two levels: the published ones lie inside."""
        lowest, typical = float(self.loss.min()), float(np.median(self.loss))
        rows = []
        for share in (0.2, 0.5, 0.75, 0.95):
            rest = np.log(max(typical - share * lowest, 0.01 * typical) / 2)
            for alpha, beta in ((0.3, 0.3), (0.3, 0.7), (0.7, 0.3), (0.7, 0.7)):
                rows.append([np.log(share * lowest), rest, alpha, rest, beta])
        return np.array(rows)

    def _terms(self, u: Floats) -> tuple[Floats, Floats]:
        """Residuals (n,) and their Jacobian (n, 5) at one u."""
        residual, jacobian = self.curve.residual(u[None])
        return residual[0], jacobian[0]

    def gradient_is_zero(self, u: Floats) -> bool:
        """Judged against the gradient's own spread over points, since Huber residuals flip sign at the minimum."""
        residual, jacobian = self._terms(u)
        pull = np.clip(residual, -self.curve.delta, self.curve.delta)[:, None] * jacobian
        spread = np.sqrt((pull**2).sum(axis=0)) + 1e-12
        return bool(np.all(np.abs(pull.sum(axis=0)) <= 0.05 * spread + 1e-10))

    def condition_number(self, u: Floats) -> float:
        """Of the column-scaled Jacobian."""
        _, jacobian = self._terms(u)
        norms = np.linalg.norm(jacobian, axis=0)
        return float(np.linalg.cond(jacobian / norms)) if np.all(norms > 0) else float("inf")

    def vanished(self, u: Floats) -> tuple[str, ...]:
        """Coefficients of terms below a millionth of the loss at every point."""
        n, d = self.curve.n, self.curve.d
        terms = np.exp(np.stack([np.full_like(n, u[0]), u[1] - u[2] * n, u[3] - u[4] * d]))
        gone = (terms / self.loss).max(axis=1) < 1e-6
        return tuple(
            name
            for group, dead in zip((("E",), ("A", "alpha"), ("B", "beta")), gone, strict=True)
            if dead
            for name in group
        )

    def weakest(self, u: Floats) -> tuple[str, ...]:
        """The coefficients that make up the direction the data see least."""
        _, jacobian = self._terms(u)
        norms = np.linalg.norm(jacobian, axis=0)
        if not np.all(norms > 0):
            return tuple(name for name, norm in zip(self.names, norms, strict=True) if norm == 0)
        direction = np.abs(np.linalg.svd(jacobian / norms)[2][-1])
        return tuple(name for name, size in zip(self.names, direction, strict=True) if size > 0.3)

    def coefficients(self, u: Floats) -> Floats:
        """(B, 5) -> E, A = A' N0^alpha, B = B' D0^beta, alpha, beta; infinite where they overflow."""
        log_E, log_a, alpha, log_b, beta = u.T
        with np.errstate(over="ignore"):
            E, A, B = np.exp([log_E, log_a + alpha * self.log_N0, log_b + beta * self.log_D0])
        return np.stack([E, A, B, alpha, beta], axis=1)

    def law(self, u: Floats) -> ChinchillaLaw | None:
        """The law at one u; None where its coefficients overflow."""
        values = self.coefficients(u[None])[0]
        if not np.isfinite(values).all():
            return None
        return ChinchillaLaw(**dict(zip(COEFFICIENTS, map(float, values), strict=True)))

    def bootstrap(self, u: Floats, num_replicates: int, generator: np.random.Generator) -> Floats:
        """(B, 5) coefficients of refits under random weights.

        Exponential weights of mean one (Rubin 1981) leave every design point in every replicate; drawing points with
        replacement would lose the only run of a size. The spread is that of maximum likelihood: it is widened by
        n / (n - 5) in variance, and by Student's factor for few degrees of freedom.
        """
        num_points = len(self.loss)
        dof = num_points - _NUM_UNKNOWNS
        ends = refit(self.curve, u, generator.standard_exponential((num_replicates, num_points)))
        widen = np.sqrt(num_points / dof * dof / generator.chisquare(dof, size=(num_replicates, 1)))
        return self.coefficients(u + (ends - u) * widen)
