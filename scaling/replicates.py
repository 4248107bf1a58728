"""Replicates: runs that differ in their seed alone, and how much one run's loss scatters.

mean ± t · sd / sqrt(n)                         n runs, sd with n - 1 degrees of freedom
sd · sqrt((n - 1) / chi²)                       interval of sd itself, wide for few seeds
pooled sd² = sum of squares / sum of (n - 1)    over several shapes that are thought to scatter alike
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from scaling.law import Floats
from scaling.pairing import UNIT, RunNoise
from scaling.quantity import Interval, Measured, NotMeasured
from scaling.windows import block_means

ONE_SEED = "one seed tells nothing of the scatter over seeds"


def mean_over_seeds(losses: Sequence[float], *, level: float = 0.9) -> Measured:
    """Mean loss in nats per token; its interval is a t-interval over seeds, absent for one seed."""
    value, count = float(np.mean(losses)), len(losses)
    if count < 2:
        return Measured(value=value, unit=UNIT, num_samples=count, no_interval_because=ONE_SEED)
    return Measured(value=value, unit=UNIT, num_samples=count, interval=_t_interval(losses, level, "t over seeds"))


def mean_over_windows(window_losses: Sequence[float], *, level: float = 0.9) -> Measured:
    """Mean loss of one run in nats per token; its interval tells of other text, nothing of other seeds."""
    value, count = float(np.mean(window_losses)), len(window_losses)
    if count < 2:
        return Measured(value=value, unit=UNIT, num_samples=1, no_interval_because="one held-out window")
    return Measured(
        value=value,
        unit=UNIT,
        num_samples=1,
        interval=_t_interval(block_means(window_losses), level, "t over blocks of windows"),
    )


def sd_over_seeds(losses: Sequence[float], *, level: float = 0.9) -> Measured | NotMeasured:
    """Standard deviation of one run's loss in nats per token, with its chi-square interval."""
    if len(losses) < 2:
        return NotMeasured(reason=ONE_SEED)
    return sd_of(pooled_noise(losses), num_samples=len(losses), level=level)


def sd_of(noise: RunNoise, *, num_samples: int, level: float = 0.9) -> Measured | NotMeasured:
    """The standard deviation of a noise with its chi-square interval, as a measured number."""
    if noise.sd is None or noise.degrees_of_freedom < 1:
        return NotMeasured(reason=ONE_SEED)
    degrees = noise.degrees_of_freedom
    low, high = (
        noise.sd * math.sqrt(degrees / float(stats.chi2.ppf(p, degrees))) for p in (_up(level), 1 - _up(level))
    )
    interval = Interval(low=low, high=high, level=level, method="chi-square over seeds")
    return Measured(value=noise.sd, unit=UNIT, num_samples=num_samples, interval=interval)


def pooled_noise(*shapes: Sequence[float]) -> RunNoise:
    """The scatter over seeds of one run's loss, from the losses of each shape by seed; unknown without replicates."""
    degrees = sum(len(losses) - 1 for losses in shapes)
    if degrees < 1:
        return RunNoise(sd=None, degrees_of_freedom=0)
    squares = sum(float(np.var(losses)) * len(losses) for losses in shapes)
    return RunNoise(sd=math.sqrt(squares / degrees), degrees_of_freedom=degrees)


def _up(level: float) -> float:
    """Probability below the upper end of a two-sided interval."""
    return (1 + level) / 2


def _t_interval(values: Sequence[float] | Floats, level: float, method: str) -> Interval:
    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(_up(level), count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(low=mean - half, high=mean + half, level=level, method=method)
