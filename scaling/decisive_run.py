"""The one extra run that would most likely change the answer, and what it costs.

A run of a shape at a cell that was trained before is imagined; its outcome y is not known, but its distribution is: the
fit's replicates plus one run's noise. Given y, every difference of interest moves linearly (Gaussian conditioning, the
moments taken from the paired replicates), so the chance that the answer changes follows without simulating.

    d_m   loss of shape m at the target minus the limit, mean m_m and sd s_m over replicates
    G_j   expected loss of run j at its cell;  y = G_j + noise of sd sigma
    c_mj = Cov(d_m, G_j) / sqrt(Var G_j + sigma²)
    after the run:  mean m_m + c_mj z,  variance s_m² - c_mj²,  with z ~ N(0, 1) not yet known
    m is safe after it  iff  m_m + c_mj z + q_p sqrt(s_m² - c_mj²) <= 0,  q_p the normal quantile of the probability p

For each (m, j) that is a half-line of z. The answer counts as changed where the fastest safe shape becomes faster or
slower than today's by more than `min_gain` (unions and complements of half-lines, whose normal probability is exact);
without throughputs, where another shape's expected loss falls below Panda's by more than `tolerance` of the loss.

Shares of replicates are not normal in their tails: m_m is set so that the share that the shortlist used is met exactly,
unless no replicate, or every one, is on one side.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from scaling.law import Floats
from scaling.law_fit import LawFit, ReferenceSamples
from scaling.points import Integers
from scaling.recommend import Shortlist
from scaling.space import Mask
from scaling.support import MARGIN

_ABOUT_AS_LIKELY = 0.9
"""Among runs whose chance is at least this share of the best one's, the cheapest is told."""
UNLIKELY = 0.01
"""A chance that is not worth telling as a run."""
_MAX_ELEMENTS = 2_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class PossibleRuns:
    """Runs that could be made, columns (J,): shape (x, r), N in parameters, D in tokens, cost in device-seconds."""

    x: Floats
    r: Floats
    num_parameters: Floats
    num_tokens: Floats
    seconds: Floats

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.x)


@dataclass(frozen=True, kw_only=True)
class DecisiveRun:
    """Run `index` of the possible ones; `probability_of_change` is the chance that the answer is another after it."""

    index: int
    x: float
    r: float
    num_parameters: float
    num_tokens: float
    probability_of_change: float
    seconds: float

    def sentence(self) -> str:
        """The run, what it may do, and its cost; or that no single run would do much."""
        if self.probability_of_change < UNLIKELY:
            return f"No single extra run is likely to change this answer: each has a chance below {UNLIKELY:.0%}."
        return (
            f"The one extra run that would most likely change this answer: x {self.x:.3g}, r {self.r:.3g} at N = "
            f"{self.num_parameters:.3g}, D = {self.num_tokens:.3g} (chance {self.probability_of_change:.0%}), about "
            f"{self.seconds:,.0f} device-seconds."
        )


def decisive_run(
    fit: LawFit,
    found: Shortlist,
    runs: PossibleRuns,
    *,
    reference: ReferenceSamples | None = None,
    min_gain: float = 0.01,
    tolerance: float = 1e-3,
) -> DecisiveRun | None:
    """The run with the highest chance to change the answer; of those about as likely, the cheapest.

    Args:
        fit: the fit that the shortlist was chosen from.
        found: the answer so far.
        runs: what could be trained next, at cells that the fit (or `reference`) knows.
        reference: reaches cells that were not fitted.
        min_gain: relative difference of throughput that counts as another answer.
        tolerance: relative difference of loss that counts as another Panda, where no throughput is known.

    Returns:
        None where the noise of a run is not known, or there are no runs to choose from.
    """
    if not len(runs) or not fit.residual_sd or not len(fit.bootstrap):
        return None
    chance = chances_of_change(fit, found, runs, reference=reference, min_gain=min_gain, tolerance=tolerance)
    likely = np.flatnonzero(chance >= _ABOUT_AS_LIKELY * chance.max())
    index = int(likely[np.argmin(runs.seconds[likely])])
    return DecisiveRun(
        index=index,
        x=float(runs.x[index]),
        r=float(runs.r[index]),
        num_parameters=float(runs.num_parameters[index]),
        num_tokens=float(runs.num_tokens[index]),
        probability_of_change=float(chance[index]),
        seconds=float(runs.seconds[index]),
    )


def chances_of_change(
    fit: LawFit,
    found: Shortlist,
    runs: PossibleRuns,
    *,
    reference: ReferenceSamples | None = None,
    min_gain: float = 0.01,
    tolerance: float = 1e-3,
) -> Floats:
    """Per possible run the probability that the answer is another one after it, (J,); arguments as `decisive_run`."""
    outcome = _outcome_deviations(fit, runs, reference)
    noise = fit.pure_error_sd or fit.residual_sd or 0.0
    # Deviations per unit of what will be seen: (B, J), so that products with them are c_mj.
    seen = outcome / (len(outcome) * np.sqrt((outcome**2).mean(axis=0) + noise**2))
    if found.throughput is None:
        return _chances_of_another_panda(found, seen, tolerance)
    return _chances_of_another_surefire(found, runs, seen, min_gain)


def _outcome_deviations(fit: LawFit, runs: PossibleRuns, reference: ReferenceSamples | None) -> Floats:
    """Expected loss of every run in every replicate, less its mean: (B, J) in nats per token."""
    draws = np.empty((len(fit.bootstrap), len(runs)))
    cells = np.stack([runs.num_parameters, runs.num_tokens], axis=1)
    for N, D in np.unique(cells, axis=0):
        inside = (cells == (N, D)).all(axis=1)
        draws[:, inside] = fit.sample_loss(runs.x[inside], runs.r[inside], float(N), float(D), reference=reference)
    return np.asarray(draws - draws.mean(axis=0), dtype=float)


def _chances_of_another_surefire(found: Shortlist, runs: PossibleRuns, seen: Floats, min_gain: float) -> Floats:
    throughput = found.throughput
    assert throughput is not None
    rate = np.where(np.isfinite(throughput.mean), throughput.mean, -np.inf)
    if found.surefire is None:
        faster = as_fast = np.flatnonzero(rate > 0)
    else:
        today = rate[found.surefire]
        faster = np.flatnonzero(rate > today * (1 + min_gain))
        as_fast = np.flatnonzero(rate >= today * (1 - min_gain))
    chance = _normal_share(*_where_some_is_safe(found, faster, runs, seen))
    if found.surefire is None:
        return chance
    # Disjoint from the first: where a faster shape is safe, one of `as_fast` is.
    return chance + 1.0 - _normal_share(*_where_some_is_safe(found, as_fast, runs, seen))


def _where_some_is_safe(found: Shortlist, shapes: Integers, runs: PossibleRuns, seen: Floats) -> tuple[Floats, Floats]:
    """Per run the union of the shapes' half-lines: some shape is safe where z <= upper or z >= lower, (J,) each.

    A shape that no run is near may be chosen after a run near it, and after no other.
    """
    num_runs = seen.shape[1]
    upper, lower = np.full(num_runs, -np.inf), np.full(num_runs, np.inf)
    if not len(shapes):
        return upper, lower
    quantile = float(special.ndtri(found.probability))
    step = max(1, _MAX_ELEMENTS // num_runs)
    for start in range(0, len(shapes), step):
        chosen = shapes[start : start + step]
        mean, sd, deviation = _margins(found, chosen)
        slope = deviation.T @ seen
        left = np.sqrt(np.maximum(sd[:, None] ** 2 - slope**2, 0.0))
        # Safe where slope · z <= room.
        room = -(mean[:, None] + quantile * left)
        always = (np.abs(slope) <= 1e-12) & (room >= 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = room / slope
        falling = np.where(always, np.inf, np.where(slope > 1e-12, bound, -np.inf))
        rising = np.where(slope < -1e-12, bound, np.inf)
        eligible = found.supported[chosen, None] | _are_near(found, chosen, runs)
        falling, rising = np.where(eligible, falling, -np.inf), np.where(eligible, rising, np.inf)
        upper, lower = np.maximum(upper, falling.max(axis=0)), np.minimum(lower, rising.min(axis=0))
    return upper, lower


def _are_near(found: Shortlist, shapes: Integers, runs: PossibleRuns) -> Mask:
    """Which runs would support which shapes, (m, J)."""
    across = np.log(found.candidates.x[shapes, None] / runs.x)
    along = np.log(found.candidates.r[shapes, None] / runs.r)
    return np.asarray(np.hypot(across, along) <= MARGIN, dtype=bool)


def _margins(found: Shortlist, shapes: Integers) -> tuple[Floats, Floats, Floats]:
    """Mean and sd (m,) of the loss above the limit, and its deviations per replicate (B, m)."""
    draws = found.loss_draws[:, shapes] - found.limit_draws
    raw_mean = draws.mean(axis=0)
    deviation = draws - raw_mean
    sd = np.sqrt((deviation**2).mean(axis=0))
    share = found.probability_within_limit[shapes]
    end = 0.5 / len(draws)
    matched = -sd * special.ndtri(np.clip(share, end, 1 - end))
    inner = (share > 0) & (share < 1)
    # Where all replicates agree the share says "beyond the end": the moments may say how far.
    outer = np.where(share >= 1, np.minimum(raw_mean, matched), np.maximum(raw_mean, matched))
    return np.where(inner, matched, outer), sd, deviation


def _chances_of_another_panda(found: Shortlist, seen: Floats, tolerance: float) -> Floats:
    """Another shape's expected loss comes out below Panda's by `tolerance` of it."""
    panda = found.panda
    slope = (found.loss_draws - found.loss_draws[:, [panda]]).T
    slope = (slope - slope.mean(axis=1, keepdims=True)) @ seen
    need = found.loss.mean - found.loss.mean[panda] + tolerance * found.loss.mean[panda]
    need = np.where(found.supported, need, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = -need[:, None] / slope
    upper = np.where(slope > 1e-12, bound, -np.inf).max(axis=0)
    lower = np.where(slope < -1e-12, bound, np.inf).min(axis=0)
    return _normal_share(upper, lower)


def _normal_share(upper: Floats, lower: Floats) -> Floats:
    """P(z <= upper or z >= lower) for a standard normal z."""
    return np.asarray(np.minimum(1.0, special.ndtr(upper) + special.ndtr(-lower)), dtype=float)
