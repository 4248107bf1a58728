"""Figures of a campaign: throughput against requested and effective batch, and ratios with the noise floor."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from coordinator.bench_record import BenchRecord
from coordinator.bench_verdicts import BenchComparison, BenchRow
from coordinator.report.canvas import COLOURS, FigureBlock, LegendEntry, draw, set_log_axis, spans
from scaling.quantity import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = ("baseline", "front", "recommended", "scale-4", "worse", "scale-5", "scale-2", "scale-1")
"""Colours of the candidates, the first one's first; more candidates than these share colours, not places."""
_SPREAD = 0.35
"""Share of the distance between neighbouring batch sizes over which the candidates' marks are spread."""


def look(number: int) -> str:
    """Colour name of a candidate."""
    return LOOKS[number % len(LOOKS)]


def throughput_by_requested(record: BenchRecord) -> FigureBlock:
    """Output tokens/s over the batch that was asked for."""
    title = "Throughput against the requested batch"
    rows = {name: [(row, float(row.batch_size)) for row in found] for name, found in _valid(record).items()}
    return _throughput(record, rows, name="requested", title=title, label="requested batch (sequences)")


def throughput_by_effective(record: BenchRecord) -> FigureBlock:
    """Output tokens/s over the sequences that really ran, where the engine tells them."""
    rows = {
        name: [(row, running) for row in found if (running := effective_batch(row)) is not None]
        for name, found in _valid(record).items()
    }
    return _throughput(
        record,
        rows,
        name="effective",
        title="Throughput against the effective batch",
        label="effective batch (mean running sequences)",
        reason="the engine does not tell how many sequences ran.",
    )


def effective_batch(row: BenchRow) -> float | None:
    """Mean running sequences of a row, where they are known."""
    seen = row.observation
    running = None if seen is None else seen.mean_running_sequences
    return running.value if isinstance(running, Measured) and running.value > 0 else None


def kind(record: BenchRecord) -> Literal["measured", ""]:
    """How numbers are labelled: those of the fake engine are no measurements."""
    return "" if record.campaign.recipe.engine == "fake" else "measured"


def _valid(record: BenchRecord) -> dict[str, list[BenchRow]]:
    """Valid measurements by candidate, in order of batch; the control is left out."""
    return {
        candidate.name: sorted(
            (r for r in record.rows if r.name == candidate.name and r.why_not_comparable is None and _rate(r) > 0),
            key=lambda row: row.batch_size,
        )
        for candidate in record.campaign.candidates
    }


def _rate(row: BenchRow) -> float:
    return 0.0 if row.observation is None else row.observation.output_tokens_per_second.value


def _interval(row: BenchRow) -> tuple[float, float]:
    """The rate's interval, cut at a hundredth of the rate for the logarithmic axis; the rate itself without one."""
    assert row.observation is not None
    rate = row.observation.output_tokens_per_second
    if rate.interval is None:
        return rate.value, rate.value
    return max(rate.interval.low, rate.value / 100), rate.interval.high


def _throughput(
    record: BenchRecord,
    rows: dict[str, list[tuple[BenchRow, float]]],
    *,
    name: str,
    title: str,
    label: str,
    reason: str = "no valid measurement has finished.",
) -> FigureBlock:
    if not any(rows.values()):
        return FigureBlock(name=name, title=title, reason=reason)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for number, found in enumerate(rows.values()):
            _paint_rates(axes, found, COLOURS[look(number)])
        every = [pair for found in rows.values() for pair in found]
        _batch_axis(axes, [at for _, at in every], label=label)
        ends = [end for row, _ in every for end in _interval(row)]
        set_log_axis(axes, "y", ends, label="output tokens/s (log scale)")

    caption = "Mean over engine restarts with its 95 % t-interval. Dummy weights. Invalid rows are in the table alone."
    legend = tuple(
        LegendEntry(glyph="dot", colour=look(number), text=candidate, kind=kind(record))
        for number, candidate in enumerate(rows)
        if rows[candidate]
    )
    svg = draw(paint, name=name, label=f"{title}. {caption}")
    return FigureBlock(name=name, title=title, caption=caption, legend=legend, svg=svg)


def _paint_rates(axes: "Axes", found: Sequence[tuple[BenchRow, float]], colour: str) -> None:
    if not found:
        return
    at, rates = [x for _, x in found], [_rate(row) for row, _ in found]
    low, high = zip(*(_interval(row) for row, _ in found), strict=True)
    axes.errorbar(at, rates, yerr=spans(low, rates, high), color=colour, marker="o", markersize=5.5, capsize=3)


def _batch_axis(axes: "Axes", values: Sequence[float], *, label: str) -> None:
    """Batches as they were, not round numbers: they are few, and powers of two."""
    set_log_axis(axes, "x", values, label=label)
    axes.set_xlim(min(values) / 1.25, max(values) * 1.25)
    ticks = sorted(set(values))
    if len(ticks) <= 10 and all(b / a > 1.15 for a, b in pairwise(ticks)):
        axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks], rotation=45 if len(ticks) > 4 else 0)


def ratios(record: BenchRecord) -> FigureBlock:
    """Each candidate's ratio to the first, with the ratio of the first to itself as the noise floor."""
    name, title = "ratios", "Ratio to the first, and the noise floor"
    shown = [c for c in record.comparisons if c.wall is not None and not c.is_control]
    if len(record.campaign.candidates) < 2:
        return FigureBlock(name=name, title=title, reason="one architecture alone is compared with nothing.")
    if not shown:
        return FigureBlock(name=name, title=title, reason="no two valid measurements have finished.")
    controls = {c.batch_size: c for c in record.comparisons if c.wall is not None and c.is_control}
    batch_sizes = sorted(workload.batch_size for workload in record.campaign.workloads)
    names = [candidate.name for candidate in record.campaign.candidates][1:]

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axhline(1, color=COLOURS["ink"], linewidth=0.8)
        for place, batch_size in enumerate(batch_sizes):
            if batch_size in controls:
                _paint_floor(axes, controls[batch_size], place)
        places = {batch_size: place for place, batch_size in enumerate(batch_sizes)}
        for comparison in shown:
            number = names.index(comparison.name)
            offset = 0.0 if len(names) == 1 else _SPREAD * (2 * number / (len(names) - 1) - 1)
            _paint_ratio(axes, comparison, places[comparison.batch_size] + offset, COLOURS[look(number + 1)])
        axes.set_xticks(range(len(batch_sizes)), [str(batch_size) for batch_size in batch_sizes])
        axes.set_xlim(-0.6, len(batch_sizes) - 0.4)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("requested batch (sequences)")
        _ratio_axis(axes, [*shown, *controls.values()])

    first = record.campaign.candidates[0].name
    svg = draw(paint, name=name, label=f"{title}. Ratios to {first}", size=(12.2, 3.9))
    return FigureBlock(
        name=name, title=title, caption=_ratio_words(record), legend=_ratio_legend(record, shown), svg=svg
    )


def _paint_floor(axes: "Axes", control: BenchComparison, place: int) -> None:
    assert control.wall is not None
    ratio, interval = control.wall.ratio, control.wall.interval
    across = [place - 0.48, place + 0.48]
    if interval is not None:
        axes.fill_between(across, interval.low, interval.high, color=COLOURS["band"], alpha=0.16, linewidth=0)
    axes.plot(across, [ratio, ratio], color=COLOURS["band"], linewidth=1, linestyle=(0, (3, 2)))


def _paint_ratio(axes: "Axes", comparison: BenchComparison, at: float, colour: str) -> None:
    assert comparison.wall is not None
    wall, processor = comparison.wall, comparison.processor
    low, high = (wall.ratio, wall.ratio) if wall.interval is None else (wall.interval.low, wall.interval.high)
    axes.errorbar([at], [wall.ratio], yerr=spans(low, wall.ratio, high), color=colour, marker="o", capsize=3)
    if processor is not None:
        span = processor.interval
        low, high = (processor.ratio, processor.ratio) if span is None else (span.low, span.high)
        bars = axes.errorbar([at + 0.05], [processor.ratio], yerr=spans(low, processor.ratio, high), color=colour)
        bars.lines[0].set(marker="o", markerfacecolor="none")


def _ratio_axis(axes: "Axes", shown: Sequence[BenchComparison]) -> None:
    ends = [1.0]
    for comparison in shown:
        for one in (comparison.wall, comparison.processor):
            if one is not None:
                ends += [one.ratio] if one.interval is None else [one.interval.low, one.interval.high]
    low, high = float(np.clip(min(ends), 1e-3, 0.98)), max(*ends, 1.02)
    set_log_axis(axes, "y", [low, high], label="ratio of output tokens/s (log scale)")


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


def _ratio_legend(record: BenchRecord, shown: Sequence[BenchComparison]) -> tuple[LegendEntry, ...]:
    names = [candidate.name for candidate in record.campaign.candidates]
    drawn = [name for name in names if any(comparison.name == name for comparison in shown)]
    entries = [LegendEntry(glyph="dot", colour=look(names.index(name)), text=name, kind=kind(record)) for name in drawn]
    if any(comparison.processor is not None for comparison in shown):
        entries.append(LegendEntry(glyph="ring", colour="soft", text="in processor time", kind=kind(record)))
    if any(comparison.is_control and comparison.wall is not None for comparison in record.comparisons):
        text = f"noise floor: {names[0]} again"
        entries.append(LegendEntry(glyph="band", colour="band", text=text, kind=kind(record)))
    return tuple(entries)
