"""Least squares for the conditional law, for many data vectors on one design at once.

The law is nearly linear in well-chosen coordinates, so a damped Gauss-Newton iteration (Levenberg-Marquardt) from a
flat law converges in a few steps, and all bootstrap replicates are solved together as one batch of small systems.

    multiplicative: y_i = c_g(i) · ref_i · (1 + X_i·α) · (1 + R_i·β)
    additive:       y_i = c_g(i) + ref_i + X_i·α + R_i·β

X, R: orthonormalised shape features, zero at the centre of the data. c_g: one free level for each group. Gaussian
knowledge of the parameters θ enters as rows P with targets t: the objective is sum_i w_i (y_i - f_i)² + |P θ - t|².
Legend of shapes: B replicates, n points, G groups, p = G + columns of X + columns of R parameters, m rows of P.
"""

from dataclasses import dataclass

import numpy as np

from scaling.law import Floats, LawForm, shape_features

_MAX_ITERATIONS = 60
_RELATIVE_STEP = 1e-11
_BATCH_ELEMENTS = 300_000
"""Jacobian elements held at once: 2.4 MB, of which a solution holds some copies. What stays in the cache is faster."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapeBasis:
    """Orthonormal combinations of (ln z, 1/z) over the data, zero at `centre`; `mixing` is (2, rank)."""

    centre: float
    mixing: Floats

    @property
    def rank(self) -> int:
        """How many directions the data can tell apart: 2 for a curve, 1 for a slope, 0 for nothing."""
        return int(self.mixing.shape[1])

    def columns(self, z: Floats) -> Floats:
        """Features of `z`, shape (n, rank)."""
        return np.asarray((shape_features(z) - shape_features(self.centre))[..., 1:] @ self.mixing, dtype=float)

    def bracket(self, coordinates: Floats, *, at_centre: float) -> Floats:
        """(B, rank) coordinates -> (B, 3) bracket coefficients whose value at the centre is `at_centre`."""
        raw = coordinates @ self.mixing.T
        constant = at_centre - raw @ shape_features(self.centre)[1:]
        return np.concatenate([constant[:, None], raw], axis=1)


def make_basis(z: Floats, rank: int) -> ShapeBasis:
    """The basis of `rank` leading directions of (ln z, 1/z) over the data, scaled to unit root mean square.

    ln z and 1/z are correlated to 0.95 and more over any real range: without this the coefficients are, and the
    iteration crawls along their valley.
    """
    centre = float(np.exp(np.mean(np.log(z))))
    raw = (shape_features(z) - shape_features(centre))[:, 1:]
    scale = np.sqrt(np.mean(raw**2, axis=0))
    if rank == 0 or not np.all(scale > 0):
        return ShapeBasis(centre=centre, mixing=np.zeros((2, 0)))
    _, singular, directions = np.linalg.svd(raw / scale, full_matrices=False)
    keep = directions[:rank].T / singular[:rank] * np.sqrt(len(z))
    return ShapeBasis(centre=centre, mixing=keep / scale[:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """What the loss depends on, point by point: `x_columns` (n, .), `r_columns` (n, .), `group` (n,), `reference` (n,).

    `reference` is the known part of the loss: ones (zeros, additive) where the levels are estimated instead.
    `weight` (n,) is 1 / variance up to a factor.
    """

    form: LawForm
    x_columns: Floats
    r_columns: Floats
    group: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    num_groups: int
    reference: Floats
    weight: Floats

    @property
    def num_unknowns(self) -> int:
        """p = G + columns of X + columns of R."""
        return int(self.num_groups + self.x_columns.shape[1] + self.r_columns.shape[1])

    def split(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """(B, p) -> levels (B, G), x coordinates, r coordinates."""
        first = self.num_groups
        second = first + self.x_columns.shape[1]
        return theta[:, :first], theta[:, first:second], theta[:, second:]

    def evaluate(self, theta: Floats) -> tuple[Floats, Floats]:
        """Predictions (B, n) and their Jacobian (B, n, p)."""
        level, alpha, beta = self.split(theta)
        x_part, r_part = alpha @ self.x_columns.T, beta @ self.r_columns.T
        one_hot = np.eye(self.num_groups)[self.group]
        at = level[:, self.group]
        if self.form == "additive":
            shared = np.concatenate([one_hot, self.x_columns, self.r_columns], axis=1)
            jacobian = np.broadcast_to(shared, (len(theta), *shared.shape))
            return at + self.reference + x_part + r_part, jacobian
        x_bracket, r_bracket = 1.0 + x_part, 1.0 + r_part
        scale = at * self.reference
        jacobian = np.concatenate(
            [
                (self.reference * x_bracket * r_bracket)[:, :, None] * one_hot,
                (scale * r_bracket)[:, :, None] * self.x_columns,
                (scale * x_bracket)[:, :, None] * self.r_columns,
            ],
            axis=2,
        )
        return scale * x_bracket * r_bracket, jacobian

    def flat_start(self, y: Floats) -> Floats:
        """A law without any shape effect: the mean level of each group."""
        relative = y / self.reference if self.form == "multiplicative" else y - self.reference
        counts = np.bincount(self.group, minlength=self.num_groups)
        level = np.stack([np.bincount(self.group, row, minlength=self.num_groups) / counts for row in relative])
        return np.concatenate([level, np.zeros((len(y), self.num_unknowns - self.num_groups))], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """`theta` (B, p), weighted residual sums of squares (B,), and which replicates converged (B,)."""

    theta: Floats
    rss: Floats
    converged: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def solve(
    design: Design,
    y: Floats,
    start: Floats | None = None,
    *,
    penalty: Floats | None = None,
    target: Floats | None = None,
) -> Solution:
    """Weighted least squares of every row of `y` (B, n) on one design, from `start` (B, p) or a flat law.

    `penalty` (m, p) and `target` (B, m), by default zero, are the Gaussian knowledge P, t.
    """
    begin = design.flat_start(y) if start is None else np.broadcast_to(start, (len(y), design.num_unknowns))
    P = np.zeros((0, design.num_unknowns)) if penalty is None else penalty
    t = np.zeros((len(y), len(P))) if target is None else target
    chunk = max(1, _BATCH_ELEMENTS // max(1, y.shape[1] * design.num_unknowns))
    parts = [
        _solve_batch(design, y[i : i + chunk], begin[i : i + chunk], P, t[i : i + chunk])
        for i in range(0, len(y), chunk)
    ]
    return Solution(
        theta=np.concatenate([part.theta for part in parts]),
        rss=np.concatenate([part.rss for part in parts]),
        converged=np.concatenate([part.converged for part in parts]),
    )


def _solve_batch(design: Design, y: Floats, start: Floats, P: Floats, t: Floats) -> Solution:
    theta = np.array(start)
    damping = np.full(len(y), 1e-6)
    done = np.zeros(len(y), dtype=bool)
    predicted, jacobian = design.evaluate(theta)
    objective = _objective(design, y - predicted, theta, P, t)
    for _ in range(_MAX_ITERATIONS):
        step = _damped_step(jacobian, design.weight, y - predicted, damping, P, t - theta @ P.T)
        trial = theta + step
        trial_predicted, trial_jacobian = design.evaluate(trial)
        trial_objective = _objective(design, y - trial_predicted, trial, P, t)
        better = (trial_objective <= objective) & ~done
        tiny = np.abs(step).max(axis=1) <= _RELATIVE_STEP * (1.0 + np.abs(theta).max(axis=1))
        # A rejected step whose damping is already huge can improve nothing: the minimum in floating point.
        done = done | tiny | (damping > 1e8)
        damping = np.where(better, damping * 0.1, damping * 10.0)
        theta[better], objective[better] = trial[better], trial_objective[better]
        predicted = np.where(better[:, None], trial_predicted, predicted)
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)
        if done.all():
            break
    rss = (design.weight * (y - predicted) ** 2).sum(axis=1)
    return Solution(theta=theta, rss=rss, converged=done & np.isfinite(rss))


def _objective(design: Design, residual: Floats, theta: Floats, P: Floats, t: Floats) -> Floats:
    misfit = (design.weight * residual**2).sum(axis=1)
    return np.asarray(misfit + ((theta @ P.T - t) ** 2).sum(axis=1), dtype=float)


def _damped_step(
    jacobian: Floats, weight: Floats, residual: Floats, damping: Floats, P: Floats, missing: Floats
) -> Floats:
    # As matrix products: einsum would run these sums over points without BLAS.
    weighted = (jacobian * weight[None, :, None]).transpose(0, 2, 1)
    normal = weighted @ jacobian + P.T @ P
    gradient = (weighted @ residual[:, :, None])[:, :, 0] + missing @ P
    index = np.arange(normal.shape[1])
    diagonal = normal[:, index, index]
    # A floor keeps a direction that the data do not see (a zero column) solvable: its step is then zero.
    floor = 1e-12 * np.maximum(diagonal.max(axis=1, keepdims=True), 1e-300)
    normal[:, index, index] = diagonal * (1.0 + damping[:, None]) + floor
    return np.asarray(np.linalg.solve(normal, gradient[:, :, None])[:, :, 0], dtype=float)


def leverage(design: Design, theta: Floats, penalty: Floats | None = None) -> Floats:
    """Diagonal of the hat matrix (n,) at one solution `theta` (p,): how much each point determines its own fit.

    Its sum is the effective number of parameters.
    """
    _, jacobian = design.evaluate(theta[None])
    rows = np.sqrt(design.weight)[:, None] * jacobian[0]
    if penalty is not None:
        rows = np.concatenate([rows, penalty])
    orthonormal, _ = np.linalg.qr(rows)
    return np.asarray((orthonormal**2).sum(axis=1)[: len(design.weight)], dtype=float)


def condition_number(design: Design, theta: Floats) -> float:
    """Condition number of the column-scaled weighted Jacobian: above about 1e4 some direction is not identified."""
    _, jacobian = design.evaluate(theta[None])
    weighted = np.sqrt(design.weight)[:, None] * jacobian[0]
    norms = np.linalg.norm(weighted, axis=0)
    if not np.all(norms > 0):
        return float("inf")
    return float(np.linalg.cond(weighted / norms))
