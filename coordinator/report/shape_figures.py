"""Figures of the conditional law: loss against x and against r at the fit's size, and the optima by size."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from coordinator.analysis import same_size
from coordinator.record import RunRecord
from coordinator.report.canvas import COLOURS, NUM_SCALE_STEPS, FigureBlock, LegendEntry, draw, set_log_axis
from coordinator.report.formats import count, short
from scaling.law import Floats
from scaling.law_fit import CellReference, LawFit, Optimum, Prediction, best_in_range
from scaling.observations import TrainingObservation
from scaling.points import CELL_TOLERANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Axis = Literal["x", "r"]
MEANING = {"x": "x = d / √N", "r": "r = MLP / attention parameters"}


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """The fitted loss along one coordinate, with the other held at `other`."""

    at: Floats
    loss: Prediction
    other: float
    other_is_optimum: bool


def loss_against(record: RunRecord, axis: Axis) -> FigureBlock:
    """Every run of the deciding cell as a point, coloured by the other coordinate; the fitted curve with its band."""
    name, title = f"loss-{axis}", f"Loss against {axis}"
    analysis = record.analysis
    cell = None if analysis is None else deciding_cell(analysis.law_fit)
    runs = _runs_of(record, cell)
    if not runs:
        size = count(record.study.fit.num_parameters)
        return FigureBlock(name=name, title=title, reason=f"no run at the fit's size, N = {size}, has finished yet.")
    fit = None if analysis is None else analysis.law_fit
    curve = None if fit is None or cell is None else _curve(fit, cell, axis)
    other: Axis = "r" if axis == "x" else "x"
    edges = _edges([_coordinate(run, other) for run in runs])

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        losses = [run.loss for run in runs]
        if fit is not None and curve is not None:
            _paint_curve(axes, curve)
            losses += list(curve.loss.mean)
            _paint_optimum(axes, fit.x_opt if axis == "x" else fit.r_opt)
        _paint_runs(axes, runs, axis, edges, fit)
        _set_loss_limits(axes, losses, None if fit is None else fit.residual_sd)
        along = [_coordinate(run, axis) for run in runs]
        set_log_axis(axes, "x", along, label=f"{MEANING[axis]} (log scale)")

    caption = _caption(runs, fit, curve, axis)
    legend = _legend(edges, other, fit, curve, axis)
    return FigureBlock(
        name=name, title=title, caption=caption, legend=legend, svg=draw(paint, name=name, label=f"{title}. {caption}")
    )


def deciding_cell(fit: LawFit) -> CellReference | None:
    """The (N, D) cell with most runs: the one that tells x* and r*."""
    return max(fit.cells, key=lambda cell: cell.num_points, default=None)


def _runs_of(record: RunRecord, cell: CellReference | None) -> list[TrainingObservation]:
    runs = [
        run
        for run in record.training.values()
        if same_size(run.architecture.num_parameters, record.study.fit.num_parameters)
    ]
    if cell is None:
        return runs
    return [run for run in runs if abs(np.log(run.num_tokens / cell.num_tokens)) < CELL_TOLERANCE]


def _coordinate(run: TrainingObservation, axis: Axis) -> float:
    shape = run.architecture
    return shape.width_ratio if axis == "x" else shape.mlp_attention_ratio


def _edges(values: Sequence[float]) -> Floats:
    """Edges of the colour steps, evenly in the logarithm; fewer steps where the values do not vary."""
    low, high = min(values), max(values)
    steps = NUM_SCALE_STEPS if high / low > 1.05 else 1
    return np.asarray(np.geomspace(low, high, steps + 1), dtype=float)


def _step(value: float, edges: Floats) -> int:
    return int(np.clip(np.searchsorted(edges, value, side="right"), 1, len(edges) - 1))


def _curve(fit: LawFit, cell: CellReference, axis: Axis) -> _Curve | None:
    if fit.law is None:
        return None
    optimum = fit.r_opt if axis == "x" else fit.x_opt
    coefficients, limits = (fit.law.b, fit.r_range) if axis == "x" else (fit.law.a, fit.x_range)
    other = optimum.value if optimum else float(best_in_range(np.array([coefficients]), limits)[0])
    at = np.geomspace(*(fit.x_range if axis == "x" else fit.r_range), 80)
    held = np.full_like(at, other)
    x, r = (at, held) if axis == "x" else (held, at)
    loss = fit.predict_loss(x, r, cell.num_parameters, cell.num_tokens)
    return _Curve(at=at, loss=loss, other=other, other_is_optimum=optimum is not None)


def _paint_curve(axes: "Axes", curve: _Curve) -> None:
    axes.fill_between(curve.at, curve.loss.low, curve.loss.high, color=COLOURS["band"], alpha=0.22, linewidth=0)
    axes.plot(curve.at, curve.loss.mean, color=COLOURS["law"], linestyle=(0, (5, 2.5)))


def _paint_optimum(axes: "Axes", optimum: Optimum | None) -> None:
    if optimum is None:
        return
    axes.axvspan(optimum.interval.low, optimum.interval.high, color=COLOURS["law"], alpha=0.13, linewidth=0)
    axes.axvline(optimum.value, color=COLOURS["law"], linewidth=1.1, linestyle=(0, (2, 2)))


def _paint_runs(
    axes: "Axes", runs: Sequence[TrainingObservation], axis: Axis, edges: Floats, fit: LawFit | None
) -> None:
    other: Axis = "r" if axis == "x" else "x"
    for run in runs:
        colour = COLOURS[f"scale-{_step(_coordinate(run, other), edges)}"]
        marker = "o" if _is_fitted(run, fit) else "x"
        axes.plot(_coordinate(run, axis), run.loss, marker, color=colour, markeredgewidth=1.4 if marker == "x" else 0)


def _is_fitted(run: TrainingObservation, fit: LawFit | None) -> bool:
    """Runs outside the range of r for which the law holds are shown, but were not fitted."""
    if fit is None or fit.law is None:
        return True
    return fit.r_range[0] * 0.999 <= run.architecture.mlp_attention_ratio <= fit.r_range[1] * 1.001


def _set_loss_limits(axes: "Axes", losses: Sequence[float], noise_sd: float | None) -> None:
    """Limits by runs and curve (the band may leave at the ends), and the noise of one run as a scale bar."""
    low, high = min(losses), max(losses)
    margin = 0.12 * (high - low) or 0.01
    noise = noise_sd or 0.0
    top = high + margin + 2.4 * noise
    axes.set_ylim(low - margin, top)
    axes.set_ylabel("held-out loss (nats/token)")
    if noise:
        at, middle = 0.965, top - 1.3 * noise
        bar = [middle - noise, middle + noise]
        across = axes.get_yaxis_transform()
        axes.plot([at, at], bar, color=COLOURS["soft"], transform=across, marker="_", markersize=7, linewidth=1.3)


def _caption(runs: Sequence[TrainingObservation], fit: LawFit | None, curve: _Curve | None, axis: Axis) -> str:
    tokens = sorted({run.num_tokens for run in runs})
    at = f"N = {short(float(np.median([run.architecture.num_parameters for run in runs])))}"
    data = f"D = {short(tokens[0])}" if len(tokens) == 1 else f"D = {short(tokens[0])} to {short(tokens[-1])}"
    num_shapes = len({run.architecture for run in runs})
    words = [f"{len(runs)} finished runs of {num_shapes} shapes at {at}, {data} tokens."]
    if fit is None:
        words.append("Nothing was fitted yet.")
    elif curve is None:
        words.append(f"No law was fitted: {' '.join(fit.messages)}")
    else:
        other = "r" if axis == "x" else "x"
        held = f"the fitted {other}*" if curve.other_is_optimum else f"the best {other} of the measured range"
        words.append(
            f"Curve: the fitted law at {held} ({curve.other:.3g}), so runs at another {other} lie above it; "
            f"band: {fit.level:.0%} interval of the expected loss (bootstrap)."
        )
        optimum, reason = (fit.x_opt, fit.x_opt_reason) if axis == "x" else (fit.r_opt, fit.r_opt_reason)
        words.append(_optimum_words(axis, optimum, reason))
    return " ".join(words)


def _optimum_words(axis: str, optimum: Optimum | None, reason: str | None) -> str:
    if optimum is None:
        return f"No {axis}* is marked: {reason}"
    interval = optimum.interval
    return f"{axis}* = {optimum.value:.3g}, {interval.level:.0%} interval {interval.low:.3g} to {interval.high:.3g}."


def _legend(
    edges: Floats, other: Axis, fit: LawFit | None, curve: _Curve | None, axis: Axis
) -> tuple[LegendEntry, ...]:
    entries = [
        LegendEntry(glyph="dot", colour=f"scale-{step + 1}", text=f"{other} {low:.2g} to {high:.2g}", kind="measured")
        for step, (low, high) in enumerate(pairwise(edges))
    ]
    if fit is not None and fit.residual_sd is not None:
        text = f"±1 residual sd of one run: {fit.residual_sd:.4f} nats/token"
        entries.append(LegendEntry(glyph="bar", colour="soft", text=text, kind="measured"))
    if fit is not None and fit.num_left_out:
        entries.append(LegendEntry(glyph="cross", colour="soft", text="outside the law's range of r: not fitted"))
    if fit is not None and curve is not None:
        entries.append(
            LegendEntry(glyph="dashes", colour="law", text=f"fitted law, {fit.level:.0%} band", kind="predicted")
        )
        if (fit.x_opt if axis == "x" else fit.r_opt) is not None:
            entries.append(LegendEntry(glyph="band", colour="law", text=f"{axis}* and its {fit.level:.0%} interval"))
    return tuple(entries)


def optima_by_size(record: RunRecord) -> FigureBlock:
    """x* and r* of every size at which several shapes were run, with their intervals."""
    name, title = "optima", "Do x* and r* agree between sizes?"
    if record.analysis is None:
        return FigureBlock(name=name, title=title, reason="nothing was fitted yet.")
    agreement, by_size = record.analysis.agreement(), record.analysis.by_size
    if not any(fit.x_opt or fit.r_opt for _, fit in by_size):
        return FigureBlock(name=name, title=title, reason=f"no optimum was found at any size. {agreement}")

    def paint(figure: "Figure") -> None:
        both = figure.subplots(1, 2, sharey=True)
        for axes, axis in zip(both, ("x", "r"), strict=True):
            _paint_optima(axes, [(size, fit.x_opt if axis == "x" else fit.r_opt) for size, fit in by_size], axis)
        both[0].set_yticks(range(len(by_size)), [f"N = {short(size)}" for size, _ in by_size])
        both[0].set_ylim(-0.6, len(by_size) - 0.4)

    height = max(3.0, 1.3 + 0.42 * len(by_size))
    return FigureBlock(
        name=name,
        title=title,
        caption=f"{agreement} A size needs at least six shapes to be fitted alone.",
        legend=(
            LegendEntry(glyph="ring", colour="law", text="fitted optimum and its bootstrap interval", kind="predicted"),
        ),
        svg=draw(paint, name=name, label=f"{title} {agreement}", size=(6.2, height)),
    )


def _paint_optima(axes: "Axes", optima: Sequence[tuple[float, Optimum | None]], axis: str) -> None:
    ends: list[float] = []
    for row, (_, optimum) in enumerate(optima):
        if optimum is None:
            axes.text(0.5, row, "no optimum", transform=axes.get_yaxis_transform(), ha="center", va="center")
            continue
        interval = optimum.interval
        ends += [interval.low, interval.high]
        axes.plot([interval.low, interval.high], [row, row], color=COLOURS["law"], linestyle=(0, (5, 2.5)))
        axes.plot(optimum.value, row, "o", markerfacecolor="none", markeredgewidth=1.8, color=COLOURS["law"])
    if ends:
        set_log_axis(axes, "x", ends, label=f"{axis}*")
    axes.set_xlabel(f"{axis}* (dimensionless)")
