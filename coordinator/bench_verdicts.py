"""What a campaign shows: each candidate against the first, at each batch size, in numbers and in a plain sentence.

A ratio's interval is corrected for all ratios that are looked at, over candidates and batch sizes. Where the first
architecture, measured twice, differs from itself, the restarts' spread does not hold all the noise: there a candidate
differs only if its interval lies wholly outside that ratio and its reciprocal. The verdict rests on wall time. Where
a row says that others kept the processor busy, the same comparison in processor time stands beside it.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from agent.benchmark.campaign import Campaign
from hwprofiles.value import Value
from scaling.observations import INVALIDATING_FLAGS, Failure, ServingObservation
from scaling.throughput_comparison import Clock, ThroughputComparison, compare_throughput

Outcome = Literal["faster", "slower", "no-difference-shown", "not-compared"]
Result = ServingObservation | Failure


class BenchRow(Value):
    """One architecture at one batch size."""

    name: str
    batch_size: PositiveInt
    is_control: bool = False
    """Whether it is the first architecture again."""
    result: ServingObservation | Failure | None
    """None while restarts are missing."""

    @property
    def observation(self) -> ServingObservation | None:
        """What was measured, valid or not."""
        return self.result if isinstance(self.result, ServingObservation) else None

    @property
    def why_not_comparable(self) -> str | None:
        """Why nothing may be concluded from this row; None if something may."""
        if self.result is None:
            return "not all of its restarts were run"
        if isinstance(self.result, Failure):
            return f"it failed ({self.result.failure_kind}): {self.result.message}"
        invalid = INVALIDATING_FLAGS.intersection(self.result.flags)
        return f"an invalid measurement ({', '.join(sorted(invalid))})" if invalid else None


class BenchComparison(Value):
    """One candidate, or the control, against the first at one batch size."""

    name: str
    batch_size: PositiveInt
    is_control: bool
    outcome: Outcome
    wall: ThroughputComparison | None
    """None where the two are not compared."""
    processor: ThroughputComparison | None = None
    """In processor time; only where one of the two is flagged `busy-cpu`."""
    sentence: str


def compare_rows(campaign: Campaign, rows: Sequence[BenchRow]) -> tuple[BenchComparison, ...]:
    """Every row against the first of its batch size; at each batch size the control comes first."""
    found = []
    for workload in campaign.workloads:
        at_batch = [row for row in rows if row.batch_size == workload.batch_size]
        first, *others = at_batch
        controls = [_compare_control(first, row, campaign) for row in others if row.is_control]
        floor = controls[0].wall if controls else None
        found += controls
        found += [_compare_candidate(first, row, campaign, floor) for row in others if not row.is_control]
    return tuple(found)


def _compare_control(first: BenchRow, again: BenchRow, campaign: Campaign) -> BenchComparison:
    where = f"batch {again.batch_size}"
    reason = _not_comparable(first, again)
    if reason is not None:
        text = f"There is no noise floor at {where}: {reason}."
        return _comparison(again, "not-compared", None, None, text)
    wall, processor = _ratios(first, again, campaign)
    outcome = _outcome(wall, None)
    text = f"Noise floor at {where}: {first.name}, measured twice, gave {_times(wall)}" + (
        ". Its interval leaves out 1, so differences up to that size are noise here"
        if outcome in ("faster", "slower")
        else ""
    )
    return _comparison(again, outcome, wall, processor, f"{text}.{_in_processor_time(processor)}")


def _compare_candidate(
    first: BenchRow, row: BenchRow, campaign: Campaign, floor: ThroughputComparison | None
) -> BenchComparison:
    where = f"at batch {row.batch_size}"
    reason = _not_comparable(first, row)
    if reason is not None:
        text = f"{row.name} is not compared with {first.name} {where}: {reason}."
        return _comparison(row, "not-compared", None, None, text)
    wall, processor = _ratios(first, row, campaign)
    outcome = _outcome(wall, floor)
    if outcome == "no-difference-shown":
        beyond = " beyond the noise floor" if wall.shows_difference else ""
        text = f"No difference{beyond} between {row.name} and {first.name} is shown {where}: {_times(wall)}."
    else:
        text = f"{row.name} is {100 * abs(wall.ratio - 1):.1f} % {outcome} than {first.name} {where}: {_times(wall)}."
    return _comparison(row, outcome, wall, processor, text + _in_processor_time(processor))


def _comparison(
    row: BenchRow,
    outcome: Outcome,
    wall: ThroughputComparison | None,
    processor: ThroughputComparison | None,
    sentence: str,
) -> BenchComparison:
    return BenchComparison(
        name=row.name,
        batch_size=row.batch_size,
        is_control=row.is_control,
        outcome=outcome,
        wall=wall,
        processor=processor,
        sentence=sentence,
    )


def _not_comparable(first: BenchRow, other: BenchRow) -> str | None:
    """Why two rows are not compared, said of the one that is to blame."""
    for row in (first, other):
        if row.why_not_comparable is not None:
            return f"{row.name}: {row.why_not_comparable}"
    return None


def _ratios(
    first: BenchRow, other: BenchRow, campaign: Campaign
) -> tuple[ThroughputComparison, ThroughputComparison | None]:
    pair = [row.observation for row in (first, other)]
    observations = [one for one in pair if one is not None]
    assert len(observations) == 2, "rows without an observation are not comparable"

    def ratio(clock: Clock) -> ThroughputComparison:
        return compare_throughput(observations, clock=clock, num_comparisons=campaign.num_comparisons)[0]

    busy = any("busy-cpu" in one.flags for one in observations)
    timed = all(repeat.processor_seconds for one in observations for repeat in one.repeats)
    return ratio("wall"), ratio("processor") if busy and timed else None


def _outcome(wall: ThroughputComparison, floor: ThroughputComparison | None) -> Outcome:
    if wall.interval is None:
        return "no-difference-shown"
    noise = 1.0 if floor is None or not floor.shows_difference else max(floor.ratio, 1 / floor.ratio)
    if wall.interval.low > noise:
        return "faster"
    return "slower" if wall.interval.high < 1 / noise else "no-difference-shown"


def correction(num_comparisons: int) -> str:
    """How wide the ratios' intervals are, in a sentence."""
    if num_comparisons < 2:
        return "The ratio's interval is at 95 %."
    level = 100 * (1 - 0.05 / num_comparisons)
    return f"Each ratio's interval is at {level:.4g} %, so that all {num_comparisons} hold together at 95 %."


def _times(comparison: ThroughputComparison) -> str:
    """1.123 times its output tokens/s [1.050, 1.201]."""
    interval = comparison.interval
    span = "(no interval)" if interval is None else f"[{interval.low:.3f}, {interval.high:.3f}]"
    return f"{comparison.ratio:.3f} times its output tokens/s {span}"


def _in_processor_time(processor: ThroughputComparison | None) -> str:
    if processor is None:
        return ""
    interval = processor.interval
    span = "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f" Others kept this processor busy; per second of processor time the ratio is {processor.ratio:.3f}{span}."
