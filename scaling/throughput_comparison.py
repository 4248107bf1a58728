"""Measured throughputs compared: a ratio with an interval, corrected for the number of ratios that are looked at."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.observations import INVALIDATING_FLAGS, ServingObservation
from scaling.quantity import Interval

Floats = NDArray[np.float64]
Clock = Literal["wall", "processor"]


class ThroughputComparison(Value):
    """One measured throughput as a ratio to the first one's, e.g. 1.2 = 20 % faster."""

    schema_version: Literal[1] = 1
    baseline: Architecture
    architecture: Architecture
    ratio: float
    interval: Interval | None
    """Of the ratio, corrected for the number of comparisons; null where repeats are too few."""
    clock: Clock = "wall"
    """What tokens were divided by: seconds on the wall, or the engine's processor seconds."""
    verdict: str

    @property
    def shows_difference(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.interval is not None and not self.interval.low <= 1 <= self.interval.high


def compare_throughput(
    observations: Sequence[ServingObservation],
    *,
    level: float = 0.95,
    clock: Clock = "wall",
    num_comparisons: int | None = None,
) -> tuple[ThroughputComparison, ...]:
    """Compare each observation with the first: ratio of mean output tokens/s, and whether a difference is shown.

    With y = ln(tokens/s) of the repeats, means ȳ, variances s² and counts n (Welch 1947; Bonferroni over m ratios):

        ln ratio = ȳ_i - ȳ_0  ±  t(1 - (1 - level) / 2m, ν) · sqrt(s_i²/n_i + s_0²/n_0)

    with ν by Welch and Satterthwaite. The ratio is therefore that of geometric means.

    Args:
        observations: what was measured; the first is the baseline.
        level: coverage of all intervals together.
        num_comparisons: m, where more ratios are looked at than these, e.g. at other batch sizes.
        clock: "processor" divides tokens by the engine's processor seconds, for a CPU that others kept busy.

    Raises:
        ValueError: fewer than two observations, they do not share workload, recipe, hardware and engine version, or no
            processor seconds were recorded.
    """
    if len(observations) < 2:
        raise ValueError(f"a comparison needs at least two observations, got {len(observations)}")
    baseline, *others = observations
    for other in others:
        _require_comparable(baseline, other)
    num_ratios = num_comparisons or len(others)
    corrected_level = 1 - (1 - level) / num_ratios
    return tuple(_compare(baseline, other, corrected_level, num_ratios, clock) for other in others)


def _require_comparable(baseline: ServingObservation, other: ServingObservation) -> None:
    pairs = (
        ("workload", baseline.workload, other.workload),
        ("recipe", baseline.recipe, other.recipe),
        ("hardware", baseline.provenance.hardware, other.provenance.hardware),
        ("device", baseline.provenance.device, other.provenance.device),
        ("engine version", baseline.engine_version, other.engine_version),
    )
    for name, first, second in pairs:
        if first != second:
            raise ValueError(
                f"throughputs compare only under the same {name}: {baseline.architecture.label} has {first!s}, "
                f"{other.architecture.label} has {second!s}; measure both under one"
            )


def _compare(
    baseline: ServingObservation, other: ServingObservation, level: float, num_comparisons: int, clock: Clock
) -> ThroughputComparison:
    log_ratio, half_width = _welch(_log_throughputs(other, clock), _log_throughputs(baseline, clock), level)
    interval = None
    if math.isfinite(half_width):
        method = f"Welch t on log ratios, {clock} time" + (
            f", Bonferroni over {num_comparisons}" if num_comparisons > 1 else ""
        )
        low, high = math.exp(log_ratio - half_width), math.exp(log_ratio + half_width)
        interval = Interval(low=low, high=high, level=level, method=method)
    return ThroughputComparison(
        baseline=baseline.architecture,
        architecture=other.architecture,
        ratio=math.exp(log_ratio),
        interval=interval,
        clock=clock,
        verdict=_verdict(math.exp(log_ratio), interval, INVALIDATING_FLAGS.intersection(baseline.flags + other.flags)),
    )


def _log_throughputs(observation: ServingObservation, clock: Clock) -> Floats:
    if clock == "wall":
        return np.log([repeat.output_tokens_per_second for repeat in observation.repeats])
    seconds = [repeat.processor_seconds or math.nan for repeat in observation.repeats]
    if not all(math.isfinite(s) for s in seconds):
        raise ValueError(f"{observation.architecture.label} was measured without processor seconds; compare wall time")
    return np.log([repeat.num_output_tokens for repeat in observation.repeats]) - np.log(seconds)


def _welch(first: Floats, second: Floats, level: float) -> tuple[float, float]:
    """Difference of means and the half width of its interval; NaN width if a sample has fewer than two values."""
    difference = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return difference, math.nan
    variances = [float(sample.var(ddof=1)) / len(sample) for sample in (first, second)]
    if not sum(variances):
        return difference, 0.0
    squares = sum(v**2 / (len(sample) - 1) for v, sample in zip(variances, (first, second), strict=True))
    degrees_of_freedom = sum(variances) ** 2 / squares
    quantile = float(stats.t.ppf((1 + level) / 2, degrees_of_freedom))
    return difference, quantile * math.sqrt(sum(variances))


def _verdict(ratio: float, interval: Interval | None, invalid: frozenset[str]) -> str:
    if invalid:
        return f"not comparable: invalid measurement ({', '.join(sorted(invalid))})"
    if interval is None:
        return f"{ratio:.3f} times the first; no interval: fewer than two repeats"
    span = f"{ratio:.3f} times the first [{interval.low:.3f}, {interval.high:.3f}]"
    if interval.low <= 1 <= interval.high:
        return f"no difference shown: {span}"
    return f"{'faster' if interval.low > 1 else 'slower'}: {span}"
