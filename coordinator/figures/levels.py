"""Loss of the best shape against data and against compute: every run, the fitted cells, and the law between them.

Compute is 6 N D FLOPs: forward and backward pass of N non-embedding parameters over D tokens, attention scores and
embeddings left out, as scaling laws count it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.analysis import same_size
from coordinator.choice import target_point
from coordinator.figures.figure import Axis, Colour, Figure, Kind, Series
from coordinator.figures.formats import NATS, digits, plural, short
from coordinator.figures.origin import kind_of_losses
from coordinator.figures.scales import place_of, run_label, scale_colour, sizes_of
from coordinator.figures.standing import COLOUR_OF, standing
from coordinator.record import RunRecord
from scaling.law import Floats
from scaling.law_fit import quantiles
from scaling.observations import TrainingObservation
from scaling.points import find_cell
from scaling.quantity import NotMeasured, Predicted
from scaling.reference import ReferenceLaw

FLOPS_PER_PARAMETER_AND_TOKEN = 6
_NUM_PLACES = 60

Along = Callable[[float, float], float]
"""What stands on the x axis for (N, D)."""


@dataclass(frozen=True, kw_only=True)
class _Levels:
    """The reference law of a run with the sizes to draw it at, ascending, and the target (N, D)."""

    law: ReferenceLaw
    sizes: list[float]
    target: tuple[float, float]
    tokens: Floats
    """Places of the curves, in tokens."""

    def colour(self, N: float) -> Colour:
        """The colour of a size."""
        step = next((k for k, size in enumerate(self.sizes) if same_size(N, size)), 0)
        return scale_colour(step, len(self.sizes))


def reference(record: RunRecord) -> Figure:
    """Loss of the best shape against D for every N, the reference law's curves, and the target."""
    x_axis = Axis(label="D, training tokens", unit="tokens", scale="log")
    title = "Reference law: best loss against data"
    return _figure(record, name="reference", title=title, x_axis=x_axis, along=lambda _, D: D)


def loss_compute(record: RunRecord) -> Figure:
    """Loss against training compute for every N: a line of constant N each, and the target."""
    x_axis = Axis(label="training compute, 6 N D", unit="FLOPs", scale="log")
    return _figure(record, name="loss-compute", title="Loss against compute", x_axis=x_axis, along=_compute)


def _compute(N: float, D: float) -> float:
    return FLOPS_PER_PARAMETER_AND_TOKEN * N * D


def _figure(record: RunRecord, *, name: str, title: str, x_axis: Axis, along: Along) -> Figure:
    y_axis = Axis(label="held-out loss", unit=NATS)
    runs = list(record.training.values())
    if not runs:
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason="no training run has finished yet.")
    levels, why_not = _levels(record)
    if levels is None:
        sizes = sizes_of([place_of(run.architecture).num_parameters for run in runs])
        series = _run_series(record, sizes, along)
        caption = f"Dots: every run. No curve: {why_not}"
        return Figure(name=name, title=title, caption=caption, x=x_axis, y=y_axis, series=tuple(series))
    curves = [one for size in levels.sizes for one in _size_series(levels, size, along)]
    return Figure(
        name=name,
        title=title,
        caption=_caption(levels),
        x=x_axis,
        y=y_axis,
        series=(
            *curves,
            *_run_series(record, levels.sizes, along),
            *_cell_series(levels, along),
            *_target_series(record, levels, along),
        ),
    )


def _levels(record: RunRecord) -> tuple[_Levels | None, str]:
    """The law with its places, or None and the reason."""
    analysis = record.analysis
    if analysis is None:
        return None, "nothing was fitted yet."
    if analysis.pooled.law is None:
        return None, " ".join(("no law was fitted.", *analysis.pooled.messages))
    law, target = analysis.reference, target_point(record.study, record.token_scale or 1.0)
    trained = [(place_of(run.architecture).num_parameters, run.num_tokens) for run in record.training.values()]
    cells = [*zip(law.cell_num_parameters.tolist(), law.cell_num_tokens.tolist(), strict=True), target]
    data = [D for _, D in (*cells, *trained)]
    tokens = np.geomspace(min(data) / 1.15, max(data) * 1.15, _NUM_PLACES)
    sizes = sizes_of([N for N, _ in (*cells, *trained)])
    return _Levels(law=law, sizes=sizes, target=target, tokens=tokens), ""


def _run_series(record: RunRecord, sizes: Sequence[float], along: Along) -> list[Series]:
    """All finished runs by size; those of the target's size were held out from every fit."""
    target = record.study.target.num_parameters
    kind, series = kind_of_losses(record), []
    for step, size in enumerate(sizes):
        runs = [run for run in record.training.values() if same_size(place_of(run.architecture).num_parameters, size)]
        if runs:
            held_out = ", the target: held out" if same_size(target, size) else ""
            series.append(
                _dots(runs, f"runs at N = {short(size)}{held_out}", scale_colour(step, len(sizes)), along, kind)
            )
    return series


def _dots(runs: Sequence[TrainingObservation], name: str, colour: Colour, along: Along, kind: Kind) -> Series:
    return Series(
        name=name,
        kind=kind,
        mark="dot",
        colour=colour,
        x=tuple(along(place_of(run.architecture).num_parameters, run.num_tokens) for run in runs),
        y=tuple(run.loss for run in runs),
        labels=tuple(map(run_label, runs)),
        trial_ids=tuple(run.assignment_id for run in runs),
    )


def _size_series(levels: _Levels, size: float, along: Along) -> list[Series]:
    """The law at one N with its interval; nothing where it does not reach."""
    law = levels.law
    # At a fitted cell the law answers with the cell's own loss: the curve is drawn between the cells.
    between = [
        D for D in levels.tokens.tolist() if find_cell(law.cell_num_parameters, law.cell_num_tokens, size, D) is None
    ]
    reached = [(D, samples) for D in between if (samples := law.samples(size, D)) is not None]
    if not reached:
        return []
    middle = [float(np.median(samples)) for _, samples in reached]
    ends = [tuple(quantiles(samples, law.level).tolist()) for _, samples in reached]
    at, colour = tuple(along(size, D) for D, _ in reached), levels.colour(size)
    band = Series(name="", kind="predicted", mark="band", colour=colour, x=at, y=tuple(middle), y_interval=tuple(ends))
    name = f"law at N = {short(size)}"
    line = Series(name=name, kind="predicted", mark="line", colour=colour, dashed=True, x=at, y=tuple(middle))
    return [band, line]


def _cell_series(levels: _Levels, along: Along) -> list[Series]:
    """Loss of the best shape in every fitted cell."""
    law = levels.law
    series: list[Series] = []
    low, high = quantiles(law.cell_draws, law.level)
    for size in levels.sizes:
        inside = [k for k, N in enumerate(law.cell_num_parameters.tolist()) if same_size(N, size)]
        if inside:
            series.append(
                Series(
                    name="" if series else "best shape of a fitted cell",
                    kind="predicted",
                    mark="ring",
                    colour=levels.colour(size),
                    dashed=True,
                    x=tuple(along(float(law.cell_num_parameters[k]), float(law.cell_num_tokens[k])) for k in inside),
                    y=tuple(float(law.cell_losses[k]) for k in inside),
                    y_interval=tuple(
                        (float(min(low[k], law.cell_losses[k])), float(max(high[k], law.cell_losses[k])))
                        for k in inside
                    ),
                    labels=tuple(
                        f"best shape at N = {short(law.cell_num_parameters[k])}, D = {short(law.cell_num_tokens[k])}"
                        for k in inside
                    ),
                )
            )
    return series


def _target_series(record: RunRecord, levels: _Levels, along: Along) -> list[Series]:
    """What the law says of the target, and what the proposed shapes measured there."""
    N, D = levels.target
    level, at, series = levels.law.predict(N, D), along(N, D), []
    if isinstance(level, Predicted):
        span = None if level.interval is None else (level.interval.low, level.interval.high)
        series.append(
            Series(
                name="best shape at the target",
                kind="predicted",
                mark="hollow-diamond",
                colour="recommended",
                dashed=True,
                x=(at,),
                y=(level.value,),
                y_interval=(span,),
                labels=(f"best shape at N = {short(N)}, D = {short(D)}",),
            )
        )
    held_out = () if record.recommendation is None else record.recommendation.held_out
    for row in (row for row in held_out if row.role == "recommended"):
        word, measured = standing(record, row), row.measured
        series.append(
            Series(
                name=f"{word} shape at the target, mean of {plural(measured.num_samples, 'run')}",
                kind=kind_of_losses(record),
                mark="diamond",
                colour=COLOUR_OF[word],
                x=(along(row.architecture.num_parameters, D),),
                y=(measured.value,),
                y_interval=(None if (i := measured.interval) is None else (i.low, i.high),),
                labels=(row.architecture.label,),
            )
        )
    return series


def _caption(levels: _Levels) -> str:
    law, target = levels.law, levels.target
    words = [
        f"Dots: every run. Rings: loss of the best shape in each (N, D) cell, by the joint fit, with {law.level:.0%} "
        "bootstrap intervals. Curves, of the best shape: E + A/N^α + B/D^β through the cells, with bands at that level."
    ]
    level = law.predict(*target)
    at = f"N = {short(target[0])}, D = {short(target[1])} tokens"
    if isinstance(level, NotMeasured):
        words.append(f"No prediction at the target ({at}): {level.reason}")
    else:
        span = f" [{digits(i.low, level.unit)}, {digits(i.high, level.unit)}]" if (i := level.interval) else ""
        words.append(f"At the target ({at}): predicted {digits(level.value, level.unit)}{span} nats/token.")
    return " ".join([*words, *law.messages])
