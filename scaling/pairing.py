"""Paired comparison of trained models: the same held-out windows for all, so what is hard for all cancels.

Two sources of error remain in a difference of mean losses, and both are in its interval:

    se² = se² over windows of the paired difference (scaling/windows.py)  +  sigma² (1/n + 1/m)

with sigma the spread of one run's loss over seeds (nats per token), estimated elsewhere with `degrees_of_freedom`.
Windows alone would make any two runs of one architecture differ significantly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scaling.law import Floats
from scaling.observations import TrainingObservation
from scaling.quantity import Interval, Measured
from scaling.windows import degrees_of_freedom, standard_error

UNIT = "nats/token"


@dataclass(frozen=True, kw_only=True)
class RunNoise:
    """Spread of one run's loss over seeds: sd in nats per token (None if unknown) and its degrees of freedom."""

    sd: float | None
    degrees_of_freedom: int


def mean_loss(runs: Sequence[TrainingObservation], noise: RunNoise, *, level: float = 0.9) -> Measured:
    """Mean loss of one architecture over its seeds, with the interval of that mean over seeds.

    Args:
        runs: finished runs that differ in the seed alone.
        noise: of one run; where its sd is unknown there is no interval.
        level: nominal coverage.
    """
    value = float(np.mean([run.loss for run in runs]))
    if noise.sd is None or noise.degrees_of_freedom < 1:
        return Measured(
            value=value, unit=UNIT, num_samples=len(runs), no_interval_because="the noise over seeds is not known"
        )
    half = _half_width(noise.sd / math.sqrt(len(runs)), noise.degrees_of_freedom, level)
    return Measured(value=value, unit=UNIT, num_samples=len(runs), interval=_around(value, half, level, "t over seeds"))


def paired_difference(
    runs: Sequence[TrainingObservation],
    others: Sequence[TrainingObservation],
    noise: RunNoise,
    *,
    level: float = 0.9,
) -> Measured:
    """Mean loss of `runs` minus that of `others` in nats per token; negative means that `runs` are better.

    Raises:
        ValueError: the runs were evaluated on different windows or corpora.
    """
    paired = _paired_windows(runs, others)
    value, count = float(paired.mean()), len(runs) + len(others)
    if noise.sd is None or noise.degrees_of_freedom < 1:
        reason = "the noise over seeds is not known, and windows alone understate the error"
        return Measured(value=value, unit=UNIT, num_samples=count, no_interval_because=reason)
    windows_variance = standard_error(paired) ** 2
    seeds_variance = noise.sd**2 * (1 / len(runs) + 1 / len(others))
    half = _half_width(math.sqrt(windows_variance + seeds_variance), noise.degrees_of_freedom, level)
    return Measured(
        value=value, unit=UNIT, num_samples=count, interval=_around(value, half, level, "paired windows, t over seeds")
    )


def noise_floor(noise: RunNoise, *, level: float = 0.9) -> float | None:
    """By how much two runs of one architecture differ at most, with this probability, in nats per token.

        t · sqrt(2) · sigma

    None where the noise is not known.
    """
    if noise.sd is None or noise.degrees_of_freedom < 1:
        return None
    return _half_width(math.sqrt(2) * noise.sd, noise.degrees_of_freedom, level)


@dataclass(frozen=True, kw_only=True)
class WindowDifference:
    """A paired difference and its error over windows alone: how it might be on other text, for these very runs."""

    difference: Measured
    standard_error: float


def window_difference(
    runs: Sequence[TrainingObservation], others: Sequence[TrainingObservation], *, level: float = 0.9
) -> WindowDifference:
    """Mean loss of `runs` minus that of `others`, with its t-interval over windows and no noise over seeds in it.

    Raises:
        ValueError: the runs were evaluated on different windows or corpora, or on one window alone.
    """
    paired = _paired_windows(runs, others)
    if len(paired) < 2:
        raise ValueError("one held-out window has no standard error; evaluate on two or more")
    value, error = float(paired.mean()), standard_error(paired)
    half = _half_width(error, degrees_of_freedom(paired), level)
    interval = _around(value, half, level, "paired windows, t over blocks of windows")
    count = len(runs) + len(others)
    return WindowDifference(
        difference=Measured(value=value, unit=UNIT, num_samples=count, interval=interval), standard_error=error
    )


def _paired_windows(runs: Sequence[TrainingObservation], others: Sequence[TrainingObservation]) -> Floats:
    everything = (*runs, *others)
    if len({(run.corpus_id, len(run.window_losses), run.recipe.sequence_length) for run in everything}) > 1:
        raise ValueError("losses pair only over the same held-out windows of one corpus")
    return _mean_windows(runs) - _mean_windows(others)


def _mean_windows(runs: Sequence[TrainingObservation]) -> Floats:
    return np.asarray(np.mean([run.window_losses for run in runs], axis=0), dtype=float)


def _half_width(standard_error: float, degrees_of_freedom: int, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, degrees_of_freedom)) * standard_error


def _around(value: float, half: float, level: float, method: str) -> Interval:
    return Interval(low=value - half, high=value + half, level=level, method=method)
