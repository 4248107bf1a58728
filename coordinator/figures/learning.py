"""How the fit grew with its runs: condition number, error, x* and r* of every fit that was made, in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.events import Estimate, Fitted
from coordinator.figures.figure import Axis, Colour, Figure, Guide, Kind, Mark, Series
from coordinator.figures.formats import NATS
from coordinator.figures.origin import kind_of_losses
from coordinator.figures.scales import ShapeAxis
from coordinator.record import RunRecord

_X = Axis(label="runs fitted", unit="runs")


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One number of one fit."""

    num_points: int
    value: float
    interval: tuple[float, float] | None = None


def condition(record: RunRecord) -> Figure:
    """Condition number of the design against the runs in it."""
    points = _points(record.fits, lambda fit: _bare(fit.condition_number))
    return _figure(
        record,
        points,
        name="condition",
        title="Condition number of the design",
        y=Axis(label="condition number", unit="dimensionless", scale="log"),
        legend="condition number of each fit",
        caption="Of the design of the fit that decides: 1 is ideal; large means that the runs cannot "
        "tell the coefficients apart. It follows from the shapes alone, so it has no interval.",
    )


def fit_error(record: RunRecord) -> Figure:
    """Residual sd of every fit; the noise of one run told by replicates as a guide, where it is known."""
    noise = None if record.analysis is None else record.analysis.law_fit.pure_error_sd
    known = () if noise is None else (Guide(axis="y", low=noise, high=noise, dashed=True, name=_noise_words(noise)),)
    return _figure(
        record,
        _points(record.fits, lambda fit: _bare(fit.residual_sd)),
        name="fit-error",
        title="Error of the fit",
        y=Axis(label="residual standard deviation", unit=NATS, low=0),
        legend="residual sd of each fit: noise and misfit",
        caption="Where the law holds, it comes down to the noise of one run. No intervals: few degrees of freedom.",
        guides=known,
    )


def _noise_words(noise: float) -> str:
    return f"noise of one run, by replicates, in the newest fit: {noise:.4f} {NATS}"


def convergence(record: RunRecord, axis: ShapeAxis) -> Figure:
    """x* or r* of every fit with its interval."""
    points = _points(record.fits, lambda fit: _estimate(fit.x_opt if axis == "x" else fit.r_opt))
    without = len({fit.num_points for fit in record.fits}) - len(points)
    absent = f" {without} of them found no {axis}*." if without else ""
    return _figure(
        record,
        points,
        name=f"convergence-{axis}",
        title=f"{axis}* as runs came in",
        y=Axis(label=f"{axis}*", unit="dimensionless", scale="log"),
        legend=f"fitted {axis}* with its bootstrap interval",
        caption=f"Of every fit of the deciding size, with its bootstrap interval.{absent}",
        kind="predicted",
        mark="ring",
        colour="law",
    )


Value = tuple[float, tuple[float, float] | None]


def _bare(value: float | None) -> Value | None:
    return None if value is None else (value, None)


def _estimate(one: Estimate | None) -> Value | None:
    return None if one is None else (one.value, (one.low, one.high))


def _points(fits: Sequence[Fitted], read: Callable[[Fitted], Value | None]) -> list[_Point]:
    """One number of each fit that has it; of several fits of the same runs, the newest."""
    found = {
        fit.num_points: _Point(num_points=fit.num_points, value=value[0], interval=value[1])
        for fit in fits
        if (value := read(fit)) is not None
    }
    return [found[number] for number in sorted(found)]


def _figure(
    record: RunRecord,
    points: Sequence[_Point],
    *,
    name: str,
    title: str,
    y: Axis,
    legend: str,
    caption: str,
    kind: Kind | None = None,
    mark: Mark = "dot",
    colour: Colour = "ink",
    guides: tuple[Guide, ...] = (),
) -> Figure:
    if not points:
        reason = "none of the fits tells it." if record.fits else "nothing was fitted yet."
        return Figure(name=name, title=title, x=_X, y=y, reason=reason)
    line = Series(
        name="",
        kind=kind or kind_of_losses(record),
        mark="line",
        colour=colour,
        dashed=kind == "predicted",
        x=tuple(float(point.num_points) for point in points),
        y=tuple(point.value for point in points),
    )
    marks = {
        "name": legend,
        "mark": mark,
        "y_interval": tuple(point.interval for point in points),
        "labels": tuple(f"fit of {point.num_points} runs" for point in points),
    }
    series = (line, line.model_copy(update=marks))
    return Figure(name=name, title=title, caption=caption, x=_X, y=y, series=series, guides=guides)
