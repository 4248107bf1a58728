"""Loss against x and against r in the cell that decides: every run, the fitted curve with its interval, the optimum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.analysis import same_size
from coordinator.figures.figure import Axis, Colour, Figure, Guide, Kind, Series
from coordinator.figures.formats import NATS, count, short
from coordinator.figures.origin import kind_of_losses
from coordinator.figures.scales import (
    MEANING,
    NUM_SCALE_STEPS,
    ShapeAxis,
    coordinate,
    deciding_cell,
    is_fitted,
    place_of,
    run_label,
    scale_colour,
)
from coordinator.record import RunRecord
from scaling.law import Floats
from scaling.law_fit import CellReference, LawFit, Optimum, Prediction, best_in_range
from scaling.observations import TrainingObservation
from scaling.points import CELL_TOLERANCE

_NUM_PLACES = 80
"""Places at which a curve is told."""


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """The fitted loss along one coordinate, with the other held at `other`."""

    at: Floats
    loss: Prediction
    other: float
    other_is_optimum: bool
    level: float


def loss_against(record: RunRecord, axis: ShapeAxis) -> Figure:
    """Every run of the deciding cell as a point, coloured by the other coordinate; the fitted curve with its band."""
    name, title = f"loss-{axis}", f"Loss against {axis}"
    x_axis = Axis(label=MEANING[axis], scale="log")
    fit = None if record.analysis is None else record.analysis.law_fit
    cell = None if fit is None else deciding_cell(fit)
    runs = _runs_of(record, cell)
    if not runs:
        reason = f"no run at the fit's size, N = {count(record.study.fit.num_parameters)}, has finished yet."
        return Figure(name=name, title=title, x=x_axis, y=Axis(label="held-out loss", unit=NATS), reason=reason)
    curve = None if fit is None or cell is None else _curve(fit, cell, axis)
    losses = [run.loss for run in runs] + ([] if curve is None else curve.loss.mean.tolist())
    noise = None if fit is None else fit.residual_sd
    y_axis = _loss_axis(losses, noise or 0.0)
    kind = kind_of_losses(record)
    series = [*_curve_series(curve, axis), *_run_series(runs, axis, fit, kind)]
    if noise and y_axis.high is not None:
        series.append(_noise_bar(noise, kind, at=max(coordinate(run, axis) for run in runs), top=y_axis.high))
    return Figure(
        name=name,
        title=title,
        caption=_caption(runs, fit, curve, axis),
        x=x_axis,
        y=y_axis,
        series=tuple(series),
        guides=_optimum_guides(None if fit is None or curve is None else _optimum(fit, axis), axis),
    )


def _optimum(fit: LawFit, axis: ShapeAxis) -> Optimum | None:
    return fit.x_opt if axis == "x" else fit.r_opt


def _runs_of(record: RunRecord, cell: CellReference | None) -> list[TrainingObservation]:
    wanted = record.study.fit.num_parameters
    runs = [run for run in record.training.values() if same_size(place_of(run.architecture).num_parameters, wanted)]
    if cell is None:
        return runs
    return [run for run in runs if abs(math.log(run.num_tokens / cell.num_tokens)) < CELL_TOLERANCE]


def _curve(fit: LawFit, cell: CellReference, axis: ShapeAxis) -> _Curve | None:
    if fit.law is None:
        return None
    optimum = fit.r_opt if axis == "x" else fit.x_opt
    coefficients, limits = (fit.law.b, fit.r_range) if axis == "x" else (fit.law.a, fit.x_range)
    other = optimum.value if optimum else float(best_in_range(np.array([coefficients]), limits)[0])
    at = np.geomspace(*(fit.x_range if axis == "x" else fit.r_range), _NUM_PLACES)
    held = np.full_like(at, other)
    x, r = (at, held) if axis == "x" else (held, at)
    loss = fit.predict_loss(x, r, cell.num_parameters, cell.num_tokens)
    return _Curve(at=at, loss=loss, other=other, other_is_optimum=optimum is not None, level=fit.level)


def _curve_series(curve: _Curve | None, axis: ShapeAxis) -> list[Series]:
    if curve is None:
        return []
    at, mean = tuple(curve.at.tolist()), tuple(curve.loss.mean.tolist())
    ends = tuple(zip(curve.loss.low.tolist(), curve.loss.high.tolist(), strict=True))
    other = "r" if axis == "x" else "x"
    return [
        Series(
            name=f"{curve.level:.0%} interval of the expected loss",
            kind="predicted",
            mark="band",
            colour="band",
            x=at,
            y=mean,
            y_interval=ends,
        ),
        Series(
            name=f"fitted law at {other} = {curve.other:.3g}",
            kind="predicted",
            mark="line",
            colour="law",
            dashed=True,
            x=at,
            y=mean,
        ),
    ]


def _run_series(runs: Sequence[TrainingObservation], axis: ShapeAxis, fit: LawFit | None, kind: Kind) -> list[Series]:
    """Runs in steps of the other coordinate, evenly in its logarithm; those that were not fitted as crosses."""
    other: ShapeAxis = "r" if axis == "x" else "x"
    values = np.array([coordinate(run, other) for run in runs])
    edges = _edges(values)
    looks: dict[tuple[int, bool], list[TrainingObservation]] = {}
    for run, step in zip(runs, _steps(values, edges), strict=True):
        looks.setdefault((step, not is_fitted(run, fit)), []).append(run)
    series = []
    for step, is_cross in sorted(looks):
        low, high = edges[step - 1], edges[step]
        name = f"{other} {low:.2g} to {high:.2g}{', r outside the law: not fitted' if is_cross else ''}"
        series.append(_marks(looks[step, is_cross], axis, name, kind, scale_colour(step - 1, len(edges) - 1), is_cross))
    return series


def _marks(
    runs: Sequence[TrainingObservation], axis: ShapeAxis, name: str, kind: Kind, colour: Colour, is_cross: bool
) -> Series:
    return Series(
        name=name,
        kind=kind,
        mark="cross" if is_cross else "dot",
        colour=colour,
        x=tuple(coordinate(run, axis) for run in runs),
        y=tuple(run.loss for run in runs),
        labels=tuple(map(run_label, runs)),
        trial_ids=tuple(run.assignment_id for run in runs),
    )


def _edges(values: Floats) -> Floats:
    """Edges of the colour steps; one step where the values do not vary."""
    low, high = float(values.min()), float(values.max())
    steps = NUM_SCALE_STEPS if high / low > 1.05 else 1
    return np.asarray(np.geomspace(low, high, steps + 1), dtype=float)


def _steps(values: Floats, edges: Floats) -> list[int]:
    """The colour step of each value, from 1."""
    found: list[int] = np.clip(np.searchsorted(edges, values, side="right"), 1, len(edges) - 1).tolist()
    return found


def _loss_axis(losses: Sequence[float], noise: float) -> Axis:
    """Limits by runs and curve, the band may leave at the ends; above them room for the scale bar of the noise."""
    low, high = min(losses), max(losses)
    margin = 0.12 * (high - low) or 0.01
    return Axis(label="held-out loss", unit=NATS, low=low - margin, high=high + margin + 2.4 * noise)


def _noise_bar(noise: float, kind: Kind, *, at: float, top: float) -> Series:
    middle = top - 1.3 * noise
    return Series(
        name=f"±1 residual sd of one run: {noise:.4f} {NATS}",
        kind=kind,
        mark="bar",
        colour="soft",
        x=(at,),
        y=(middle,),
        y_interval=((middle - noise, middle + noise),),
        labels=("a scale, not a run",),
    )


def _optimum_guides(optimum: Optimum | None, axis: ShapeAxis) -> tuple[Guide, ...]:
    if optimum is None:
        return ()
    interval, value = optimum.interval, optimum.value
    return (
        Guide(
            axis="x",
            low=interval.low,
            high=interval.high,
            colour="law",
            name=f"{axis}* and its {interval.level:.0%} interval",
        ),
        Guide(axis="x", low=value, high=value, colour="law", dashed=True),
    )


def _caption(runs: Sequence[TrainingObservation], fit: LawFit | None, curve: _Curve | None, axis: ShapeAxis) -> str:
    tokens = sorted({run.num_tokens for run in runs})
    at = f"N = {short(float(np.median([place_of(run.architecture).num_parameters for run in runs])))}"
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
        words.append(_optimum_words(axis, _optimum(fit, axis), fit.x_opt_reason if axis == "x" else fit.r_opt_reason))
    return " ".join(words)


def _optimum_words(axis: str, optimum: Optimum | None, reason: str | None) -> str:
    if optimum is None:
        return f"No {axis}* is marked: {reason}"
    interval = optimum.interval
    return f"{axis}* = {optimum.value:.3g}, {interval.level:.0%} interval {interval.low:.3g} to {interval.high:.3g}."
