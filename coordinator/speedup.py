"""Speedup: measured throughput of a recommended shape over the baseline's, in a number and in a word."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from coordinator.recommendation import HardwareAnswer
from scaling.architecture import Architecture
from scaling.observations import ServingObservation
from scaling.quantity import Measured, NotMeasured
from scaling.throughput_comparison import compare_throughput


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """`ratio` is 1.2 where the recommended shape serves 20 % more output tokens/s."""

    ratio: Measured | NotMeasured
    verdict: Literal["faster", "slower", "a tie", "not compared"]


def speedup(answer: HardwareAnswer, baseline: Architecture, benchmarks: Iterable[ServingObservation]) -> Speedup:
    """Compare the newest benchmarks of the two shapes on the answer's hardware.

    Args:
        answer: for one hardware.
        baseline: of the study.
        benchmarks: in order of arrival, on any hardware.
    """
    if answer.recommended == baseline:
        return _not_compared("the recommended shape is the baseline itself")
    newest = {one.architecture: one for one in benchmarks if one.provenance.hardware == answer.hardware}
    pair = [newest[shape] for shape in (baseline, answer.recommended) if shape in newest]
    rates = (answer.recommended_throughput, answer.baseline_throughput)
    if len(pair) < 2 or not all(isinstance(rate, Measured) for rate in rates):
        return _not_compared("one of the two has no valid benchmark")
    try:
        (found,) = compare_throughput(pair)
    except ValueError as error:
        return _not_compared(str(error))
    words = found.verdict.partition(":")[0]
    ratio = Measured(
        value=found.ratio,
        unit="×",
        interval=found.interval,
        no_interval_because=words if found.interval is None else None,
        num_samples=sum(len(one.repeats) for one in pair),
    )
    if not found.shows_difference:
        return Speedup(ratio=ratio, verdict="a tie" if found.interval is not None else "not compared")
    return Speedup(ratio=ratio, verdict="faster" if found.ratio > 1 else "slower")


def _not_compared(reason: str) -> Speedup:
    return Speedup(ratio=NotMeasured(reason=reason), verdict="not compared")
