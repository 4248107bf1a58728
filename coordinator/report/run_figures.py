"""Figures beside the law: roofline predictions for hardware that was not at hand, and the run as a timeline."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from coordinator.plan import Role
from coordinator.record import RunRecord
from coordinator.report.canvas import COLOURS, FigureBlock, LegendEntry, draw, set_log_axis
from coordinator.report.formats import duration, plural
from coordinator.report.target_figures import no_recommendation
from scaling.quantity import Predicted
from scaling.serving import ServingPrediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_AGENTS_DRAWN = 40
_DASHES = {"recommended": (0, (5, 2.5)), "baseline": (0, (2, 1.6))}
_MARKERS = "os^v"


# Hardware that was not at hand


def predictions_by(record: RunRecord) -> dict[str, dict[str, list[ServingPrediction]]]:
    """Roofline predictions by hardware, then by role (recommended, baseline), in order of batch.

    Where different shapes are recommended, each role names the hardware that it was measured on.
    """
    assert record.recommendation is not None
    answers = record.recommendation
    different = [shape for shape in answers.recommended if shape != answers.baseline]
    shapes = {
        "recommended" + (f" for {', '.join(answers.hardware_of(shape))}" if len(different) > 1 else ""): shape
        for shape in different
    }
    shapes["baseline"] = answers.baseline
    found: dict[str, dict[str, list[ServingPrediction]]] = defaultdict(dict)
    for prediction in answers.gpu_predictions:
        for role, shape in shapes.items():
            if prediction.architecture == shape:
                # One shape may have been predicted twice, as recommended and as baseline.
                row = found[prediction.hardware].setdefault(role, [])
                if all(one.workload != prediction.workload for one in row):
                    row.append(prediction)
    return dict(found)


def roofline(record: RunRecord) -> FigureBlock:
    """Predicted output tokens/s over the requested batch, one panel a device."""
    name, title = "roofline", "Serving on hardware that was not at hand: predicted, uncalibrated"
    if record.recommendation is None:
        return FigureBlock(name=name, title=title, reason=no_recommendation(record))
    by_hardware = predictions_by(record)
    drawn = {hardware: rows for hardware, rows in by_hardware.items() if any(map(_rates, rows.values()))}
    if not drawn:
        reason = "the study names no hardware to predict for." if not by_hardware else _why_none(by_hardware)
        return FigureBlock(name=name, title=title, reason=reason)

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for axes, (hardware, rows) in zip(panels, drawn.items(), strict=True):
            axes.set_title(f"{hardware} (predicted)")
            _paint_rates(axes, rows)
        rates = [rate for rows in drawn.values() for row in rows.values() for _, rate in _rates(row)]
        set_log_axis(panels[0], "y", rates, label="output tokens/s (log scale)")

    workload = record.recommendation.gpu_predictions[0].workload
    caption = (
        f"Every number here is a roofline bound: predicted, uncalibrated, never measured; it leaves out the host's "
        f"time, which dominates at this size. Read the ratio, not the level. {workload.input_tokens} input and "
        f"{workload.output_tokens} output tokens, bfloat16. No interval: the roofline's error on these devices was not "
        "measured."
    )
    shown = dict.fromkeys(role for rows in drawn.values() for role in rows)
    note = " (the recommended shape itself)" if list(shown) == ["baseline"] else ""
    legend = tuple(
        LegendEntry(
            glyph="ring", colour=colour_of(role), text=role + (note if role == "baseline" else ""), kind="predicted"
        )
        for role in shown
    )
    svg = draw(paint, name=name, label=f"{title}. {caption}", size=(6.2, 3.9))
    return FigureBlock(name=name, title=title, caption=caption, legend=legend, svg=svg)


def colour_of(role: str) -> str:
    """The colour of a role, whatever hardware it names."""
    return role.partition(" ")[0]


def _rates(rows: Sequence[ServingPrediction]) -> list[tuple[int, float]]:
    return [
        (row.workload.batch_size, row.output_tokens_per_second.value)
        for row in rows
        if isinstance(row.output_tokens_per_second, Predicted)
    ]


def _why_none(by_hardware: dict[str, dict[str, list[ServingPrediction]]]) -> str:
    rows = [row for roles in by_hardware.values() for rows in roles.values() for row in rows]
    reasons = dict.fromkeys(getattr(row.output_tokens_per_second, "reason", "") for row in rows)
    return "nothing could be predicted: " + " ".join(reasons)


def _paint_rates(axes: "Axes", rows: dict[str, list[ServingPrediction]]) -> None:
    batches = sorted({batch for row in rows.values() for batch, _ in _rates(row)})
    for number, (role, row) in enumerate(rows.items()):
        at, colour = _rates(row), colour_of(role)
        style: dict[str, Any] = {"linestyle": _DASHES[colour], "marker": _MARKERS[number % len(_MARKERS)]}
        axes.plot(
            [batch for batch, _ in at], [rate for _, rate in at], color=COLOURS[colour], markerfacecolor="none", **style
        )
    set_log_axis(axes, "x", batches, label="requested batch (sequences)")
    axes.set_xticks(batches, [str(batch) for batch in batches], rotation=45)


# The run over time


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """The time that one attempt took, in seconds since the run began."""

    agent: str
    role: Role
    start: float
    seconds: float
    failed: bool = False
    unfinished: bool = False


def timeline(record: RunRecord) -> FigureBlock:
    """Agents against time: each attempt as a bar, coloured by why it was made."""
    name, title = "timeline", "The run over time"
    bars = _bars(record)
    if not bars:
        return FigureBlock(name=name, title=title, reason="no trial was leased yet.")
    busy: dict[str, float] = defaultdict(float)
    for bar in bars:
        busy[bar.agent] += bar.seconds
    drawn = sorted(sorted(busy, key=lambda agent: -busy[agent])[:MAX_AGENTS_DRAWN])
    length = max(bar.start + bar.seconds for bar in bars)
    unit, scale = ("min", 60.0) if length > 180 else ("s", 1.0)
    if length > 4 * 3600:
        unit, scale = "h", 3600.0

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        rows = {agent: row for row, agent in enumerate(reversed(drawn))}
        for bar in bars:
            if bar.agent in rows:
                _paint_bar(axes, bar, rows[bar.agent], scale)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(0, length / scale * 1.01)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"time since the run began ({unit})")

    caption = _timeline_words(record, bars, busy, drawn)
    roles = [role for role in get_args(Role) if any(bar.role == role and not bar.failed for bar in bars)]
    legend = [LegendEntry(glyph="swatch", colour=role, text=role) for role in roles]
    if any(bar.failed for bar in bars):
        legend.append(LegendEntry(glyph="swatch", colour="bad", text="failed attempt"))
    height = 1.1 + 0.34 * len(drawn)
    svg = draw(paint, name=name, label=f"{title}. {caption}", size=(12.2, height))
    return FigureBlock(name=name, title=title, caption=caption, legend=tuple(legend), svg=svg)


def _bars(record: RunRecord) -> list[_Bar]:
    """The last attempt of every trial from its lease, earlier failed ones from what the agent said of them."""
    began, latest = record.created_unix, _latest_unix(record)
    bars = []
    for trial in record.trials:
        if trial.agent is None or trial.leased_unix is None:
            continue
        end = latest if trial.ended_unix is None else trial.ended_unix
        bars.append(
            _Bar(
                agent=trial.agent,
                role=trial.planned.role,
                start=trial.leased_unix - began,
                seconds=max(0.0, end - trial.leased_unix),
                failed=trial.state == "failed",
                unfinished=trial.ended_unix is None,
            )
        )
    final = {trial.trial_id: trial.state == "failed" for trial in record.trials}
    roles = {trial.trial_id: trial.planned.role for trial in record.trials}
    last_failure = {failure.assignment_id: failure for failure in record.failures}
    for failure in record.failures:
        if final.get(failure.assignment_id) and failure is last_failure[failure.assignment_id]:
            continue  # the lease of that attempt is drawn already
        if failure.assignment_id in roles:
            made = failure.provenance
            start = made.started_at_unix - began
            role = roles[failure.assignment_id]
            bars.append(_Bar(agent=made.agent, role=role, start=start, seconds=made.seconds, failed=True))
    return bars


def _latest_unix(record: RunRecord) -> float:
    """The last moment that the store knows of: nothing here reads a clock."""
    moments = [record.created_unix, *(agent.heartbeat_unix for agent in record.agents)]
    moments += [moment for trial in record.trials for moment in (trial.leased_unix, trial.ended_unix) if moment]
    return max(moments)


def _paint_bar(axes: "Axes", bar: _Bar, row: int, scale: float) -> None:
    colour = COLOURS["bad"] if bar.failed else COLOURS[bar.role]
    hollow = {"facecolor": "none", "edgecolor": colour, "linewidth": 1.2} if bar.unfinished else {"facecolor": colour}
    gap = min(0.4, 0.1 * bar.seconds)  # neighbours stay apart
    axes.broken_barh([(bar.start / scale, max(bar.seconds - gap, 0) / scale)], (row - 0.32, 0.64), **hollow)


def _timeline_words(record: RunRecord, bars: Sequence[_Bar], busy: dict[str, float], drawn: Sequence[str]) -> str:
    words = [
        f"{plural(len(bars), 'attempt')} on {plural(len(busy), 'agent')}, {duration(sum(busy.values()))} of agents' "
        "time from lease to result."
    ]
    if len(drawn) < len(busy):
        words.append(f"Drawn are the {len(drawn)} busiest agents.")
    if any(bar.unfinished for bar in bars):
        words.append("Hollow bars had not ended when this was written.")
    return " ".join(words)
