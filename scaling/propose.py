"""What to run next: the runs that tell most, per second, about the loss of the shapes that may be chosen.

The first round fills the space. Later rounds take a Gaussian model of ln loss over the candidates,

    ln L = level + X·α + R·β + δ(ln x, ln r) + noise,

with the law's own features X, R and a small smooth misfit δ, condition it on all that was run or is pending (which
shape, not which loss: the model is linear, so its variance does not depend on the losses), and greedily take the run
whose outcome reduces the summed variance at the target most per second. Every pick counts as observed for the next: a
batch is diverse. δ is why a new shape tells a little more than one more seed of an old one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.bilinear import make_basis
from scaling.law import Floats
from scaling.law_fit import LawFit
from scaling.points import Integers
from scaling.space import Candidates, Mask

_PRIOR_SD = 0.05
"""Prior sd of ln loss from each feature: shapes within the usual ranges differ by a few per cent."""
_MISFIT_SHARE = 1.0
"""sd of the smooth misfit relative to the noise of one run."""
_MISFIT_LENGTH = 0.5
"""Correlation length of the misfit in ln x and ln r: about a factor of 1.6."""
_DEFAULT_NOISE = 0.003
"""sd of ln loss over seeds, where no fit knows it: 0.011 nats of 3.6 (measured at 0.1 M parameters)."""
_MAX_TARGETS = 256


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Run candidate `index` as its replicate `num_replicate` (0 = first run of this shape), because `reason`.

    `gain` is the reduction of summed target variance of ln loss per second; None in a space-filling round.
    """

    index: int
    num_replicate: int
    reason: str
    gain: float | None


def propose(
    fit: LawFit | None,
    candidates: Candidates,
    *,
    existing: Sequence[int],
    pending: Sequence[int],
    num: int,
    seconds_per_run: Floats,
    target_weights: Floats | None = None,
    r_range: tuple[float, float] = (0.5, 5.0),
    seed: int = 0,
) -> list[Proposal]:
    """The next `num` runs, most informative first.

    Args:
        fit: the fit so far; None, or one without a law, gives a space-filling round.
        candidates: the legal shapes, (M,).
        existing: indices of candidates that were run, once for each run.
        pending: indices of candidates that are running or queued, once for each.
        num: how many to propose.
        seconds_per_run: expected cost of a run of each candidate, (M,).
        target_weights: how much the loss of each candidate matters, (M,); by default its chance, under the
            fit's replicates, of being within one noise sd of the best.
        r_range: what the fit uses; a run outside would teach it nothing, so none is proposed there.
        seed: breaks ties.

    Raises:
        ValueError: no candidate has r within `r_range`, or costs are not positive or do not match the candidates.
    """
    cost = np.asarray(seconds_per_run, dtype=float)
    if cost.shape != (len(candidates),) or not (np.isfinite(cost) & (cost > 0)).all():
        raise ValueError(f"seconds_per_run must be {len(candidates)} positive numbers, one a candidate")
    taken = [*existing, *pending]
    useful = (candidates.r >= r_range[0]) & (candidates.r <= r_range[1])
    if not useful.any():
        raise ValueError(
            f"no candidate has r within {r_range[0]:g} to {r_range[1]:g} (theirs are {candidates.r.min():.3g} to "
            f"{candidates.r.max():.3g}); widen r_range here and in the fit, or the space"
        )
    if fit is None or fit.law is None:
        return _fill_space(candidates, useful, taken, num)
    weights = _near_optimal(fit, candidates) if target_weights is None else np.asarray(target_weights, dtype=float)
    # An unusable shape costs for ever.
    cost = np.where(useful, cost, np.inf)
    return _most_informative(fit, candidates, taken, num, cost, weights, np.random.default_rng(seed))


def _coordinates(candidates: Candidates) -> Floats:
    return np.stack([np.log(candidates.x), np.log(candidates.r)], axis=1)


def _fill_space(candidates: Candidates, useful: Mask, taken: Sequence[int], num: int) -> list[Proposal]:
    """The centre, both flanks of r and of x through the centre, then whatever is farthest from all runs."""
    raw = _coordinates(candidates)
    low, high = raw[useful].min(axis=0), raw[useful].max(axis=0)
    unit = (raw - low) / np.maximum(high - low, 1e-12)
    # Extreme in x and in r at once is where no model would be built, and where the law's form is least sure.
    inner = useful & ((np.abs(unit - 0.5) > 0.35).sum(axis=1) < 2)
    chosen: list[Proposal] = []
    used = list(taken)

    def choose(index: int, reason: str) -> None:
        chosen.append(Proposal(index=index, num_replicate=used.count(index), reason=reason, gain=None))
        used.append(index)

    for wanted, reason in _CROSS:
        nearest = int(np.argmin(np.where(useful, ((unit - wanted) ** 2).sum(axis=1), np.inf)))
        if len(chosen) < num and nearest not in used:
            choose(nearest, reason)
    while len(chosen) < num:
        gaps = np.where(inner, ((unit[:, None] - unit[used][None]) ** 2).sum(axis=2).min(axis=1), 0.0)
        farthest = int(np.argmax(gaps))
        if gaps[farthest] > 0:
            at = f"x {candidates.x[farthest]:.3g}, r {candidates.r[farthest]:.3g}"
            choose(farthest, f"Farthest from every shape run so far ({at}).")
        else:
            counts = np.where(useful, np.bincount(used, minlength=len(candidates)), len(used) + 1)
            choose(int(np.argmin(counts)), "Every shape has been run: one more seed tells the noise.")
    return chosen


_CROSS: tuple[tuple[tuple[float, float], str], ...] = (
    ((0.5, 0.5), "The centre of the space, from which both arms of x and of r start."),
    ((0.5, 0.1), "The low flank of r: without both flanks there is no minimum to find."),
    ((0.5, 0.9), "The high flank of r: without both flanks there is no minimum to find."),
    ((0.1, 0.5), "The low flank of x: without both flanks there is no minimum to find."),
    ((0.9, 0.5), "The high flank of x: without both flanks there is no minimum to find."),
)


def _near_optimal(fit: LawFit, candidates: Candidates) -> Floats:
    """Chance of each candidate to be within one run's noise of the best, under the replicates; sums to one."""
    cell = fit.cells[0]
    losses = fit.sample_loss(candidates.x, candidates.r, cell.num_parameters, cell.num_tokens)
    if not len(losses):
        return np.full(len(candidates), 1.0 / len(candidates))
    margin = fit.pure_error_sd or fit.residual_sd or 0.0
    close = losses <= losses.min(axis=1, keepdims=True) + margin
    weight = close.mean(axis=0)
    return np.asarray(weight / weight.sum(), dtype=float)


def _most_informative(
    fit: LawFit,
    candidates: Candidates,
    taken: Sequence[int],
    num: int,
    cost: Floats,
    weights: Floats,
    generator: np.random.Generator,
) -> list[Proposal]:
    belief = _Belief(candidates, _noise_of(fit), _targets(weights), weights)
    for index in taken:
        belief.observe(index)
    counts = np.bincount(np.asarray(taken, dtype=np.intp), minlength=len(candidates))
    # Equal gains are common (mirror shapes); a seeded hair's breadth makes the choice reproducible, not positional.
    tie_break = 1.0 + 1e-9 * generator.random(len(candidates))
    chosen = []
    for _ in range(num):
        gain = belief.gains() / cost * tie_break
        index = int(np.argmax(gain))
        before = belief.target_sd()
        belief.observe(index)
        reason = _reason(fit, candidates, index, int(counts[index]), before, belief.target_sd())
        chosen.append(Proposal(index=index, num_replicate=int(counts[index]), reason=reason, gain=float(gain[index])))
        counts[index] += 1
    return chosen


def _targets(weights: Floats) -> Integers:
    return np.argsort(-weights, kind="stable")[: min(_MAX_TARGETS, int((weights > 0).sum()))]


def _noise_of(fit: LawFit) -> float:
    level = float(np.mean([cell.loss for cell in fit.cells]))
    return max((fit.pure_error_sd or fit.residual_sd or _DEFAULT_NOISE * level) / level, 1e-5)


def _reason(fit: LawFit, candidates: Candidates, index: int, run_before: int, before: float, after: float) -> str:
    x, r = candidates.x[index], candidates.r[index]
    what = f"one more seed of x {x:.3g}, r {r:.3g}" if run_before else f"a new shape, x {x:.3g}, r {r:.3g}"
    outside = [
        f"{name} beyond the measured range"
        for name, value, limits in (("x", x, fit.x_range), ("r", r, fit.r_range))
        if not limits[0] * 0.99 <= value <= limits[1] * 1.01
    ]
    where = f" ({', '.join(outside)})" if outside else ""
    return (
        f"Most knowledge per second about the near-optimal shapes: {what}{where}; the sd of their predicted loss "
        f"goes from {before:.3%} to {after:.3%}."
    )


class _Belief:
    """Gaussian belief about ln loss over all candidates, as prior kernel minus a growing sum of outer products."""

    def __init__(self, candidates: Candidates, noise: float, targets: Integers, weights: Floats) -> None:
        self.noise_variance = noise**2
        self.targets = targets
        self.weights = weights[targets] / weights[targets].sum()
        self.coordinates = _coordinates(candidates)
        x, r = make_basis(candidates.x, 2), make_basis(candidates.r, 2)
        # The level is a feature like the others, wide enough to be free.
        level = np.full((len(candidates), 1), 10.0)
        self.features = _PRIOR_SD * np.concatenate([level, x.columns(candidates.x), r.columns(candidates.r)], axis=1)
        self.misfit_variance = (_MISFIT_SHARE * noise) ** 2
        self.variance = (self.features**2).sum(axis=1) + self.misfit_variance
        self.factors = np.zeros((len(candidates), 0))
        self.target_covariance = np.stack([self._prior_column(int(t)) for t in targets])

    def _prior_column(self, index: int) -> Floats:
        distance = ((self.coordinates - self.coordinates[index]) ** 2).sum(axis=1) / _MISFIT_LENGTH**2
        linear = self.features @ self.features[index]
        return np.asarray(linear + self.misfit_variance * np.exp(-0.5 * distance), dtype=float)

    def gains(self) -> Floats:
        """By how much observing each candidate once would reduce the weighted variance at the targets, (M,)."""
        explained = self.weights @ self.target_covariance**2
        return np.asarray(explained / (self.variance + self.noise_variance), dtype=float)

    def observe(self, index: int) -> None:
        """Condition on one run of a candidate: a rank-one update."""
        column = self._prior_column(index) - self.factors @ self.factors[index]
        factor = column / np.sqrt(max(self.variance[index], 0.0) + self.noise_variance)
        self.factors = np.concatenate([self.factors, factor[:, None]], axis=1)
        self.variance = np.maximum(self.variance - factor**2, 0.0)
        self.target_covariance = self.target_covariance - np.outer(factor[self.targets], factor)

    def target_sd(self) -> float:
        """Root of the weighted mean variance of ln loss at the targets: a relative loss."""
        return float(np.sqrt(self.weights @ self.variance[self.targets]))
