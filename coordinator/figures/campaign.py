"""Figures of a campaign: throughput against requested and effective batch, and ratios with the noise floor."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from coordinator.bench_record import BenchRecord
from coordinator.bench_verdicts import BenchComparison, BenchRow
from coordinator.figures.figure import Axis, Colour, Figure, Guide, Kind, Series
from scaling.quantity import Measured
from scaling.throughput_comparison import ThroughputComparison

LOOKS: tuple[Colour, ...] = (
    *("baseline", "front", "recommended", "scale-4"),
    *("worse", "scale-5", "scale-2", "scale-1"),
)
"""Colours of the candidates, the first one's first; more candidates than these share colours, not places."""
_SPREAD = 0.35
"""Share of the distance between neighbouring batch sizes over which the candidates' marks are spread."""
_RATES = Axis(label="output rate", unit="tokens/s", scale="log")


def look(number: int) -> Colour:
    """Colour of a candidate."""
    return LOOKS[number % len(LOOKS)]


def figures_of_campaign(record: BenchRecord) -> tuple[Figure, ...]:
    """All of them, in the order in which they are read."""
    return ratios(record), throughput_by_requested(record), throughput_by_effective(record)


def throughput_by_requested(record: BenchRecord) -> Figure:
    """Output tokens/s over the batch that was asked for."""
    return _throughput(
        record,
        lambda row: float(row.batch_size),
        name="requested",
        title="Throughput against the requested batch",
        label="requested batch",
        reason="no valid measurement has finished.",
    )


def throughput_by_effective(record: BenchRecord) -> Figure:
    """Output tokens/s over the sequences that really ran, where the engine tells them."""
    return _throughput(
        record,
        effective_batch,
        name="effective",
        title="Throughput against the effective batch",
        label="effective batch: mean running sequences",
        reason="the engine does not tell how many sequences ran.",
    )


def effective_batch(row: BenchRow) -> float | None:
    """Mean running sequences of a row, where they are known."""
    seen = row.observation
    running = None if seen is None else seen.mean_running_sequences
    return running.value if isinstance(running, Measured) and running.value > 0 else None


def _kind(record: BenchRecord) -> Kind:
    return "simulated" if record.campaign.recipe.engine == "fake" else "measured"


def _rate(row: BenchRow) -> float:
    return 0.0 if row.observation is None else row.observation.output_tokens_per_second.value


def _interval(row: BenchRow) -> tuple[float, float] | None:
    """The rate's interval, cut at a hundredth of the rate for the logarithmic axis."""
    assert row.observation is not None
    rate = row.observation.output_tokens_per_second
    return None if rate.interval is None else (max(rate.interval.low, rate.value / 100), rate.interval.high)


def _throughput(
    record: BenchRecord,
    place: Callable[[BenchRow], float | None],
    *,
    name: str,
    title: str,
    label: str,
    reason: str,
) -> Figure:
    """Valid rows of every candidate, the control left out, in order of batch."""
    x_axis = Axis(label=label, unit="sequences", scale="log")
    valid = [row for row in record.rows if not row.is_control and row.why_not_comparable is None and _rate(row) > 0]
    if not valid:
        reason = "no valid measurement has finished."
    series: list[Series] = []
    for number, candidate in enumerate(record.campaign.candidates):
        placed = [(at, row) for row in valid if row.name == candidate.name and (at := place(row)) is not None]
        if placed:
            series += _rate_series(sorted(placed, key=lambda one: one[0]), candidate.name, look(number), _kind(record))
    if not series:
        return Figure(name=name, title=title, x=x_axis, y=_RATES, reason=reason)
    caption = "Mean over engine restarts with its 95 % t-interval. Dummy weights. Invalid rows are in the table alone."
    ticks = sorted({at for one in series for at in one.x})
    few = len(ticks) <= 10 and all(b / a > 1.15 for a, b in pairwise(ticks))
    x_axis = x_axis.model_copy(
        update={"low": ticks[0] / 1.25, "high": ticks[-1] * 1.25, "ticks": tuple(ticks) if few else ()}
    )
    return Figure(name=name, title=title, caption=caption, x=x_axis, y=_RATES, series=tuple(series))


def _rate_series(
    placed: Sequence[tuple[float, BenchRow]], name: str, colour: Colour, kind: Kind
) -> tuple[Series, Series]:
    line = Series(
        name="",
        kind=kind,
        mark="line",
        colour=colour,
        x=tuple(at for at, _ in placed),
        y=tuple(_rate(row) for _, row in placed),
    )
    marks = {
        "name": name,
        "mark": "dot",
        "y_interval": tuple(_interval(row) for _, row in placed),
        "labels": tuple(f"{name}, batch {row.batch_size}" for _, row in placed),
    }
    return line, line.model_copy(update=marks)


def ratios(record: BenchRecord) -> Figure:
    """Each candidate's ratio to the first, with the ratio of the first to itself as the noise floor."""
    name, title = "ratios", "Ratio to the first, and the noise floor"
    batches = sorted(workload.batch_size for workload in record.campaign.workloads)
    x_axis = Axis(
        label="requested batch",
        unit="sequences",
        low=-0.6,
        high=len(batches) - 0.4,
        categories=tuple(map(str, batches)),
    )
    y_axis = Axis(label="ratio of output rates", unit="dimensionless", scale="log")
    shown = [one for one in record.comparisons if one.wall is not None and not one.is_control]
    if not shown:
        reason = "no two valid measurements have finished."
        if len(record.campaign.candidates) < 2:
            reason = "one architecture alone is compared with nothing."
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=reason, is_wide=True)
    controls = [one for one in record.comparisons if one.is_control]
    series = (*_floors(record, controls, batches), *_ratio_series(record, shown, batches))
    low, high = _limits([*shown, *controls])
    return Figure(
        name=name,
        title=title,
        caption=_ratio_words(record),
        x=x_axis,
        y=y_axis.model_copy(update={"low": low, "high": high}),
        series=series,
        guides=(Guide(axis="y", low=1, high=1, colour="ink"),),
        is_wide=True,
    )


def _ends(one: ThroughputComparison) -> tuple[float, float]:
    return (one.ratio, one.ratio) if one.interval is None else (one.interval.low, one.interval.high)


def _limits(shown: Sequence[BenchComparison]) -> tuple[float, float]:
    """About all intervals and 1; a hopeless interval leaves the figure below a thousandth."""
    ends = [end for one in shown for each in (one.wall, one.processor) if each is not None for end in _ends(each)]
    low, high = float(np.clip(min(ends), 1e-3, 0.98)), max(*ends, 1.02)
    margin = max((high / low) ** 0.06, 1.02)
    return low / margin, high * margin


def _floors(record: BenchRecord, controls: Sequence[BenchComparison], batches: Sequence[int]) -> list[Series]:
    """A stripe for each batch size at which the first architecture was measured twice."""
    series: list[Series] = []
    for control in controls:
        if control.wall is None:
            continue
        place, ratio, ends = batches.index(control.batch_size), control.wall.ratio, _ends(control.wall)
        name = "" if series else f"noise floor: {record.campaign.candidates[0].name} again"
        x, y = (place - 0.48, place + 0.48), (ratio, ratio)
        kind = _kind(record)
        series += [
            Series(name=name, kind=kind, mark="band", colour="band", x=x, y=y, y_interval=(ends, ends)),
            Series(name="", kind=kind, mark="line", colour="band", x=x, y=y),
        ]
    return series


def _ratio_series(record: BenchRecord, shown: Sequence[BenchComparison], batches: Sequence[int]) -> list[Series]:
    """A candidate's ratios side by side with the others'; those in processor time as rings right beside."""
    names = [candidate.name for candidate in record.campaign.candidates][1:]
    series: list[Series] = []
    for number, name in enumerate(names):
        offset = 0.0 if len(names) == 1 else _SPREAD * (2 * number / (len(names) - 1) - 1)
        for beside, words in ((0.0, ""), (0.05, " in processor time")):
            found = [
                (batches.index(one.batch_size) + offset + beside, each, one.batch_size)
                for one in shown
                if one.name == name and (each := one.processor if beside else one.wall) is not None
            ]
            if found:
                series.append(
                    Series(
                        name=f"{name}{words}",
                        kind=_kind(record),
                        mark="ring" if beside else "dot",
                        colour=look(number + 1),
                        x=tuple(at for at, *_ in found),
                        y=tuple(each.ratio for _, each, _ in found),
                        y_interval=tuple(None if each.interval is None else _ends(each) for _, each, _ in found),
                        labels=tuple(f"{name}{words}, batch {batch}" for *_, batch in found),
                    )
                )
    return series


def _ratio_words(record: BenchRecord) -> str:
    campaign = record.campaign
    words = (
        f"Output tokens/s over those of {campaign.candidates[0].name}, geometric means over engine restarts. Intervals "
        f"hold together at 95 %: corrected for {campaign.num_comparisons} comparisons. One that holds 1 shows no "
        "difference. The band is the interval of the first architecture against itself, measured as if it were another."
    )
    if any(comparison.processor is not None for comparison in record.comparisons):
        words += " Others kept this processor busy: rings are the same ratios per second of processor time."
    return words
