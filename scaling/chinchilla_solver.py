"""Minimises the Chinchilla objective from many starts, or for many weightings of the data, as one batch.

With n = ln N - mean ln N and d = ln D - mean ln D the law is a log-sum-exp of linear functions of
u = (ln E, ln A', alpha, ln B', beta):

    residual_i = ln[exp(u0) + exp(u1 - u2 n_i) + exp(u3 - u4 d_i)] - ln L_i
    f(u)       = sum_i w_i Huber_delta(residual_i)

so that gradient and Hessian are exact and cheap: with p_k the share of term k in the prediction, z_k its linear
coefficients, q = sum_k p_k z_k and psi = Huber's derivative,

    grad f = sum_i w_i psi_i q_i,
    hess f = sum_i w_i [ (1(|residual_i| <= delta) - psi_i) q_i q_i' + psi_i sum_k p_ik z_ik z_ik' ].

Damped Newton steps on |hess f| (absolute eigenvalues: saddles repel) end in a minimum in 10 to 30 steps. Huber's delta
is small against the residuals, so that f is nearly a sum of absolute values: it is approached through wider deltas.

Legend of shapes: B starts or weightings, n points.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.law import Floats

_BOUND = 60.0
"""Coordinates beyond are terms that vanish or exponents that are infinite."""
_MAX_ITERATIONS = 200
_LOOSE, _TIGHT = 1e-4, 1e-13
"""Ends of an iteration: predicted decrease relative to the objective, on the way and at the last delta."""
_BATCH_ELEMENTS = 60_000
"""Points times rows handled at once: what stays in a core's cache is twice as fast."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChinchillaProblem:
    """Centred logarithms `n`, `d` and `log_loss`, (n,), and Huber's `delta` in units of ln loss (inf: squares)."""

    n: Floats
    d: Floats
    log_loss: Floats
    delta: float

    def residual(self, u: Floats) -> tuple[Floats, Floats]:
        """ln predicted - ln observed (B, n), and its Jacobian q (B, n, 5)."""
        e = np.exp(u[:, :1])
        a = np.exp(u[:, 1:2] - u[:, 2:3] * self.n)
        b = np.exp(u[:, 3:4] - u[:, 4:5] * self.d)
        total = e + a + b
        jacobian = np.empty((*total.shape, 5))
        jacobian[..., 0] = e / total
        jacobian[..., 1] = a / total
        jacobian[..., 2] = -self.n * jacobian[..., 1]
        jacobian[..., 3] = b / total
        jacobian[..., 4] = -self.d * jacobian[..., 3]
        return np.log(total) - self.log_loss, jacobian

    def value(self, u: Floats, weight: Floats | float = 1.0) -> Floats:
        """f(u), (B,)."""
        residual, _ = self.residual(u)
        return self._value(residual, np.clip(residual, -self.delta, self.delta), weight)

    def _value(self, residual: Floats, clipped: Floats, weight: Floats | float) -> Floats:
        # Huber in one expression: r²/2 inside, delta (|r| - delta/2) outside.
        return np.asarray((weight * clipped * (residual - 0.5 * clipped)).sum(axis=1), dtype=float)

    def expand(self, u: Floats, weight: Floats | float = 1.0) -> tuple[Floats, Floats, Floats]:
        """f (B,), its gradient (B, 5) and its Hessian (B, 5, 5)."""
        residual, q = self.residual(u)
        clipped = np.clip(residual, -self.delta, self.delta)
        psi = weight * clipped
        gradient = (psi[:, None, :] @ q)[:, 0, :]
        curvature = weight * (np.abs(residual) <= self.delta) - psi
        hessian = (q * curvature[:, :, None]).transpose(0, 2, 1) @ q
        hessian[:, 0, 0] += gradient[:, 0]
        for first, z in ((1, self.n), (3, self.d)):
            pulled = psi * q[:, :, first]
            cross, square = -(pulled @ z), pulled @ z**2
            hessian[:, first, first] += gradient[:, first]
            hessian[:, first, first + 1] += cross
            hessian[:, first + 1, first] += cross
            hessian[:, first + 1, first + 1] += square
        return self._value(residual, clipped, weight), gradient, hessian

    def with_delta(self, delta: float) -> "ChinchillaProblem":
        """The same data under another Huber loss."""
        return ChinchillaProblem(n=self.n, d=self.d, log_loss=self.log_loss, delta=delta)


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """Distinct ends `u` (M, 5), their objectives `value` (M,) and how many starts reached each, `count` (M,)."""

    u: Floats
    value: Floats
    count: NDArray[np.intp]


def minimise_from(problem: ChinchillaProblem, starts: Floats) -> Minima:
    """The ends of all starts (B, 5), lowest first; starts that fall together on the way go on as one."""
    u, count = starts, np.ones(len(starts), dtype=np.intp)
    for delta in _wider(problem):
        u = descend(problem.with_delta(delta), u, tolerance=_LOOSE)
        u, count = _merge(u, problem.with_delta(delta).value(u), count, 1e-2)
    u = descend(problem, u)
    u, count = _merge(u, problem.value(u), count, 1e-6)
    return Minima(u=u, value=problem.value(u), count=count)


def refit(problem: ChinchillaProblem, start: Floats, weights: Floats) -> Floats:
    """The minimum (B, 5) under every row of `weights` (B, n), each from `start` (5,): bootstrap refits."""
    rows = max(1, _BATCH_ELEMENTS // max(1, weights.shape[1]))
    parts = [
        descend(problem, np.tile(start, (len(part), 1)), part, tolerance=1e-7)
        for part in (weights[i : i + rows] for i in range(0, len(weights), rows))
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 5))


def _wider(problem: ChinchillaProblem) -> list[float]:
    """Deltas on the way to the problem's own: least squares as far as the data look Gaussian, then ever more robust."""
    return [delta for delta in (0.1, 0.01) if delta > 2 * problem.delta]


def descend(
    problem: ChinchillaProblem, start: Floats, weight: Floats | None = None, *, tolerance: float = _TIGHT
) -> Floats:
    """Damped Newton from every row of `start` (B, 5), under `weight` (B, n) or equal weights. Returns u (B, 5)."""
    u = np.clip(start, -_BOUND, _BOUND)
    active = np.arange(len(u))
    with np.errstate(all="ignore"):
        state = problem.expand(u, 1.0 if weight is None else weight)
        damping = np.full(len(u), 1e-3)
        for _ in range(_MAX_ITERATIONS):
            value, gradient, hessian = state
            step, predicted = _newton_step(gradient, hessian, damping)
            trial = np.clip(u[active] + step, -_BOUND, _BOUND)
            trial_state = problem.expand(trial, 1.0 if weight is None else weight[active])
            better = trial_state[0] < value
            u[active[better]] = trial[better]
            damping = np.where(better, np.maximum(damping * 0.1, 1e-12), damping * 6.0)
            going = (predicted > tolerance * np.abs(value)) & (damping < 1e8)
            state = tuple(  # type: ignore[assignment]
                np.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)[going]
                for old, new in zip(state, trial_state, strict=True)
            )
            active, damping = active[going], damping[going]
            if not len(active):
                break
    return u


def _newton_step(gradient: Floats, hessian: Floats, damping: Floats) -> tuple[Floats, Floats]:
    """-(|H| + damping · largest)^-1 grad (B, 5), and the decrease that it promises (B,)."""
    # A row that overflowed promises nothing, so it ends where it last was.
    finite = np.asarray(np.isfinite(hessian).all(axis=(1, 2)) & np.isfinite(gradient).all(axis=1))
    values, vectors = np.linalg.eigh(np.where(finite[:, None, None], hessian, np.eye(5)))
    size = np.abs(values)
    largest = np.maximum(size.max(axis=1, keepdims=True), 1e-300)
    along = np.einsum("bij,bi->bj", vectors, np.where(finite[:, None], gradient, 0.0))
    step = along / (size + (damping[:, None] + 1e-13) * largest)
    return -np.einsum("bij,bj->bi", vectors, step), np.asarray((along * step).sum(axis=1), dtype=float)


def _merge(u: Floats, value: Floats, count: NDArray[np.intp], tolerance: float) -> tuple[Floats, NDArray[np.intp]]:
    """Drop ends that lie at the place of a lower one; their starts count for it."""
    order = np.argsort(np.where(np.isfinite(value), value, np.inf), kind="stable")
    kept: list[int] = []
    total: list[int] = []
    for index in order:
        near = [k for k, other in enumerate(kept) if np.abs(u[index] - u[other]).max() <= tolerance]
        if near:
            total[near[0]] += int(count[index])
        else:
            kept.append(int(index))
            total.append(int(count[index]))
    return u[kept], np.array(total, dtype=np.intp)
