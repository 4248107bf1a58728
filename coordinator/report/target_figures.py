"""Figures about the target: predicted against measured loss, loss against throughput, and the reference law."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.analysis import Analysis, same_size
from coordinator.choice import answered_hardware, measured_throughput, shortlist, target_point
from coordinator.recommendation import HardwareAnswer, HeldOutLoss
from coordinator.record import RunRecord
from coordinator.report.canvas import COLOURS, FigureBlock, LegendEntry, draw, set_log_axis, spans
from coordinator.report.formats import figure as digits
from coordinator.report.formats import plural, short
from coordinator.shapes import baseline_at, candidates_at
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.points import find_cell
from scaling.quantity import Measured, NotMeasured, Predicted
from scaling.recommend import Comparison, Shortlist
from scaling.reference import ReferenceLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHED = (0, (3, 2))


# Predicted against measured


def held_out(record: RunRecord) -> FigureBlock:
    """Predicted against measured loss of the shapes trained at the held-out target, with intervals on both."""
    name, title = "held-out", "Held-out: predicted against measured loss"
    if record.recommendation is None:
        return FigureBlock(name=name, title=title, reason=no_recommendation(record))
    rows = record.recommendation.held_out
    pairs = [(row, row.predicted) for row in rows if isinstance(row.predicted, Predicted)]
    refused = len(rows) - len(pairs)
    if not pairs:
        reason = "no shape has both a predicted and a measured loss at the target; see the held-out check below."
        return FigureBlock(name=name, title=title, reason=reason)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        ends: list[float] = []
        for row, predicted in pairs:
            ends += _paint_pair(axes, row, predicted)
        margin = 0.08 * (max(ends) - min(ends)) or 0.01
        limits = (min(ends) - margin, max(ends) + margin)
        axes.plot(limits, limits, color=COLOURS["soft"], linewidth=0.9, zorder=0)
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_xlabel("measured loss (nats/token)")
        axes.set_ylabel("predicted loss (nats/token)")

    error = record.recommendation.heldout_error_ratio
    words = [
        "Diagonal: prediction equals measurement. Horizontal bars: interval of the measured mean; vertical dashed "
        "bars: interval of the predicted expectation."
    ]
    if error is not None:
        words.append(
            f"Held-out error: median |predicted − measured| / measured = {error:.2%} over {plural(len(pairs), 'shape')}"
            " (no interval: too few shapes)."
        )
    if refused:
        words.append(f"{plural(refused, 'shape')} without a prediction: see the held-out check below.")
    caption = " ".join(words)
    roles = dict.fromkeys(row.role for row, _ in pairs)
    legend = [LegendEntry(glyph="diamond", colour=role, text=role) for role in roles]
    legend += [
        LegendEntry(glyph="line", colour="soft", text="interval, horizontal", kind="measured"),
        LegendEntry(glyph="dashes", colour="soft", text="interval, vertical", kind="predicted"),
    ]
    return FigureBlock(
        name=name,
        title=title,
        caption=caption,
        legend=tuple(legend),
        svg=draw(paint, name=name, label=f"{title}. {caption}"),
    )


def no_recommendation(record: RunRecord) -> str:
    """Why a run has no recommendation, in words that go on after a colon."""
    ended = sum(trial.state in ("succeeded", "failed") for trial in record.trials)
    if record.state != "finished":
        return (
            f"the run is {record.state}, {ended} of {plural(len(record.trials), 'planned trial')} ended; "
            "the recommendation comes last."
        )
    if record.analysis is None:
        return "no loss at the fit's size was measured, so nothing was fitted."
    if record.analysis.law_fit.law is None:
        return f"no law was fitted. {' '.join(record.analysis.law_fit.messages)}"
    return "the run finished without one."


def _paint_pair(axes: "Axes", row: HeldOutLoss, predicted: Predicted) -> list[float]:
    """One shape; returns the losses that its marks reach."""
    colour, x, y = COLOURS[row.role], row.measured.value, predicted.value
    ends = [x, y]
    if row.measured.interval is not None:
        bar = [row.measured.interval.low, row.measured.interval.high]
        axes.plot(bar, [y, y], color=colour)
        ends += bar
    if predicted.interval is not None:
        bar = [predicted.interval.low, predicted.interval.high]
        axes.plot([x, x], bar, color=colour, linestyle=_DASHED)
        ends += bar
    axes.plot(x, y, "D", color=colour, markersize=7)
    return ends


# Loss against throughput


def paretos(record: RunRecord) -> list[FigureBlock]:
    """One figure for each hardware that the study asks for, or on which it measured."""
    kinds = answered_hardware(record.study, record.observations)
    return [_pareto(record, hardware, alone=len(kinds) == 1) for hardware in kinds]


def _pareto(record: RunRecord, hardware: str, *, alone: bool) -> FigureBlock:
    """Predicted loss, as a difference to the baseline's, against throughput measured on one hardware."""
    name = "pareto" if alone else f"pareto-{hardware}"
    title = "Loss against serving throughput" + ("" if alone else f" on {hardware}")
    rates = measured_throughput(record.study, record.observations, hardware)
    reason = _no_pareto(record, rates)
    found = None if reason or record.analysis is None else _shortlist(record, record.analysis, rates, hardware)
    if found is None:
        return FigureBlock(name=name, title=title, reason=reason)
    points = {i: rate for shape, rate in rates.items() if (i := found.candidates.index_of(shape)) is not None}
    if len(points) < 2:
        reason = "fewer than two shapes of the target's size have a valid benchmark; the serving table has the one."
        return FigureBlock(name=name, title=title, reason=reason if points else "no such shape was benchmarked.")
    answer = _answer_for(record, hardware)
    roles, names = _roles(answer, found), _names(answer, found, points)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        _paint_front(axes, found, points)
        for index, rate in points.items():
            _paint_shape(axes, rate, found.compare(index, found.baseline), roles.get(index, "front"))
        _label_shapes(axes, found, points, names)
        axes.axhline(0, color=COLOURS["soft"], linewidth=0.9, zorder=0)
        axes.margins(x=0.16, y=0.16)
        axes.set_xlabel("measured output tokens/s" + ("" if alone else f" on {hardware}"))
        axes.set_ylabel("predicted loss − baseline's (nats/token)")

    caption = _pareto_caption(record, found, points, hardware)
    legend = [
        LegendEntry(
            glyph="diamond",
            colour=roles.get(index, "front"),
            text=f"{name}: {found.candidates.architecture(index).label}",
        )
        for index, name in names.items()
    ]
    legend += [
        LegendEntry(glyph="line", colour="soft", text="interval of throughput, horizontal", kind="measured"),
        LegendEntry(glyph="dashes", colour="soft", text="interval of the loss difference, vertical", kind="predicted"),
    ]
    return FigureBlock(
        name=name,
        title=title,
        caption=caption,
        legend=tuple(legend),
        svg=draw(paint, name=name, label=f"{title}. {caption}"),
    )


def _no_pareto(record: RunRecord, rates: dict[Architecture, Measured]) -> str:
    if record.analysis is None or record.analysis.law_fit.law is None:
        return "there is no law yet to predict losses with."
    if not rates:
        flagged = " Every benchmark has an invalidating flag; see the serving table." if record.serving else ""
        return f"no valid serving benchmark has finished.{flagged}"
    return ""


def _answer_for(record: RunRecord, hardware: str) -> HardwareAnswer | None:
    answers = () if record.recommendation is None else record.recommendation.answers
    return next((answer for answer in answers if answer.hardware == hardware), None)


def _shortlist(record: RunRecord, analysis: Analysis, rates: dict[Architecture, Measured], hardware: str) -> Shortlist:
    study = record.study
    candidates, baseline = candidates_at(study, study.target.num_parameters), baseline_at(study)
    scale = record.token_scale or 1.0
    return shortlist(study, analysis, candidates, baseline, rates, hardware=hardware, token_scale=scale)


def _roles(answer: HardwareAnswer | None, found: Shortlist) -> dict[int, str]:
    """Colour by index: recommended before baseline before the rest."""
    roles = {found.baseline: "baseline"}
    if answer is not None:
        index = found.candidates.index_of(answer.recommended)
        if index is not None:
            roles[index] = "recommended"
    return roles


def _paint_front(axes: "Axes", found: Shortlist, points: dict[int, Measured]) -> None:
    front = [index for index in found.front if index in points]
    rates = [points[index].value for index in front]
    differences = [found.compare(index, found.baseline).difference for index in front]
    if len(front) > 1:
        axes.step(rates, differences, where="pre", color=COLOURS["front"], linewidth=1, alpha=0.6, zorder=0)


def _paint_shape(axes: "Axes", rate: Measured, loss: Comparison, role: str) -> None:
    colour = COLOURS[role]
    if rate.interval is not None:
        axes.plot([rate.interval.low, rate.interval.high], [loss.difference] * 2, color=colour)
    axes.plot([rate.value] * 2, [loss.low, loss.high], color=colour, linestyle=_DASHED)
    axes.plot(rate.value, loss.difference, "D", color=colour, markersize=7)


def _names(answer: HardwareAnswer | None, found: Shortlist, points: Iterable[int]) -> dict[int, str]:
    """What each benchmarked shape is called on the figure: its roles, else a letter that the legend explains."""
    titles: dict[int, list[str]] = defaultdict(list)
    if answer is not None:
        index = found.candidates.index_of(answer.recommended)
        titles[-1 if index is None else index].append("recommended")
    for title, index in (("Surefire", found.surefire), ("Panda", found.panda), ("baseline", found.baseline)):
        if index is not None:
            titles[index].append(title)
    letters = iter("abcdefghijklmnopqrstuvwxyz" * 9)
    return {index: ", ".join(titles[index]) if index in titles else next(letters) for index in sorted(points)}


def _label_shapes(axes: "Axes", found: Shortlist, points: dict[int, Measured], names: dict[int, str]) -> None:
    """Names beside the marks, above and below in turn so that neighbours keep apart."""
    for place, (index, rate) in enumerate(sorted(points.items(), key=lambda item: item[1].value)):
        # A name on the right half is written towards the left, inside the figure.
        right = rate.value > np.mean([one.value for one in points.values()])
        axes.annotate(
            names[index],
            (rate.value, found.compare(index, found.baseline).difference),
            xytext=(-6 if right else 6, 7 if place % 2 else -13),
            ha="right" if right else "left",
            textcoords="offset points",
            fontsize=9,
        )


def _pareto_caption(record: RunRecord, found: Shortlist, points: dict[int, Measured], hardware: str) -> str:
    load, recipe = record.study.serving.workload, record.study.serving.recipe
    words = [
        f"Horizontal: measured on {hardware} with {recipe.engine}, {recipe.dtype}, batch {load.batch_size}, "
        f"{load.input_tokens} input and {load.output_tokens} output tokens. Vertical: predicted, and paired with the "
        f"baseline within bootstrap replicates ({found.level:.0%} interval); lower is better. "
        f"N = {short(found.num_parameters)}, D = {short(found.num_tokens)} tokens. "
        "Line: the Pareto front of the benchmarked shapes."
    ]
    if not same_size(found.num_parameters, record.study.target.num_parameters):
        words.append(
            "The reference law does not reach the target, so differences are stated at the fit's own size and data."
        )
    unmeasured = [index for index in {found.panda, *found.front} if index not in points]
    words += [
        f"Not on the figure, because not benchmarked: {found.candidates.architecture(index).label} "
        f"({'Panda, ' if index == found.panda else ''}predicted difference "
        f"{found.compare(index, found.baseline).difference:+.4f} nats/token)."
        for index in sorted(unmeasured)
    ]
    return " ".join(words)


# The reference law


def reference(record: RunRecord) -> FigureBlock:
    """Loss of the best shape against D for every N, the reference law's curves, and the target."""
    name, title = "reference", "Reference law: best loss against data"
    analysis = record.analysis
    if analysis is None:
        return FigureBlock(name=name, title=title, reason="nothing was fitted yet.")
    if analysis.pooled.law is None:
        return FigureBlock(name=name, title=title, reason=" ".join(("no law was fitted.", *analysis.pooled.messages)))
    law, target = analysis.reference, target_point(record.study, record.token_scale or 1.0)
    sizes = _sizes([*(cell.num_parameters for cell in analysis.pooled.cells), target[0]])
    cells = [(N, D) for N, D in zip(law.cell_num_parameters, law.cell_num_tokens, strict=True)]
    all_tokens = np.geomspace(
        min(D for _, D in [*cells, target]) / 1.15, max(D for _, D in [*cells, target]) * 1.15, 60
    )

    fitted = [run for run in record.training.values() if not same_size(run.architecture.num_parameters, target[0])]

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for step, size in enumerate(sizes):
            runs = [run for run in fitted if same_size(run.architecture.num_parameters, size)]
            tokens, losses = [run.num_tokens for run in runs], [run.loss for run in runs]
            axes.plot(tokens, losses, ".", color=COLOURS[_size_colour(step, len(sizes))], markersize=5, alpha=0.75)
            _paint_size(axes, law, size, all_tokens, COLOURS[_size_colour(step, len(sizes))])
        _paint_target(axes, record, law.predict(*target), target)
        set_log_axis(axes, "x", all_tokens, label="D, training tokens (log scale)")
        axes.set_ylabel("loss of the best shape (nats/token)")

    return FigureBlock(
        name=name,
        title=title,
        caption=_reference_caption(law, target),
        legend=_reference_legend(record, law, sizes, target),
        svg=draw(paint, name=name, label=title),
    )


def _sizes(parameters: Sequence[float]) -> list[float]:
    """Parameter counts with those of one size taken together."""
    sizes: list[float] = []
    for N in sorted(parameters):
        if not sizes or not same_size(N, sizes[-1]):
            sizes.append(N)
    return sizes


def _size_colour(step: int, num_sizes: int) -> str:
    return f"scale-{1 + round(4 * step / max(1, num_sizes - 1))}"


def _paint_size(axes: "Axes", law: ReferenceLaw, size: float, tokens: Floats, colour: str) -> None:
    # At a fitted cell the law answers with the cell's own loss: the curve is drawn between the cells.
    tokens = np.array([D for D in tokens if find_cell(law.cell_num_parameters, law.cell_num_tokens, size, D) is None])
    samples = [law.samples(size, D) for D in tokens]
    reached = [(D, np.quantile(s, _quantiles(law))) for D, s in zip(tokens, samples, strict=True) if s is not None]
    if reached:
        at = [D for D, _ in reached]
        low, middle, high = np.array([ends for _, ends in reached]).T
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(at, middle, color=colour, linestyle=(0, (5, 2.5)))
    for k, N in enumerate(law.cell_num_parameters):
        if same_size(N, size):
            low, high = np.quantile(law.cell_draws[:, k], _quantiles(law)[[0, 2]])
            loss = law.cell_losses[k]
            style: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": 1.5, "capsize": 2.5}
            axes.errorbar(law.cell_num_tokens[k], loss, spans(low, loss, high), color=colour, fmt="o", **style)


def _quantiles(law: ReferenceLaw) -> Floats:
    return np.array([(1 - law.level) / 2, 0.5, (1 + law.level) / 2])


def _paint_target(axes: "Axes", record: RunRecord, level: Predicted | NotMeasured, target: tuple[float, float]) -> None:
    D = target[1]
    style: dict[str, Any] = {"markersize": 8, "markeredgewidth": 1.8}
    if isinstance(level, Predicted) and level.interval is not None:
        colour = COLOURS["recommended"]
        axes.plot([D, D], [level.interval.low, level.interval.high], color=colour, linestyle=_DASHED)
        axes.plot(D, level.value, "D", color=colour, markerfacecolor="none", **style)
    for row in _recommended_rows(record):
        axes.plot(D, row.measured.value, "D", color=COLOURS["recommended"], markersize=5)


def _recommended_rows(record: RunRecord) -> list[HeldOutLoss]:
    return (
        [] if record.recommendation is None else [r for r in record.recommendation.held_out if r.role == "recommended"]
    )


def _reference_caption(law: ReferenceLaw, target: tuple[float, float]) -> str:
    words = [
        f"Dots: every run. Rings: loss of the best shape in each (N, D) cell, by the joint fit, with {law.level:.0%} "
        "bootstrap intervals. Curves and bands: E + A/N^α + B/D^β through the cells."
    ]
    level = law.predict(*target)
    at = f"N = {short(target[0])}, D = {short(target[1])} tokens"
    if isinstance(level, NotMeasured):
        words.append(f"No prediction at the target ({at}): {level.reason}")
    else:
        interval = level.interval
        span = f" [{digits(interval.low, level.unit)}, {digits(interval.high, level.unit)}]" if interval else ""
        words.append(f"At the target ({at}): predicted {digits(level.value, level.unit)}{span} nats/token.")
    return " ".join([*words, *law.messages])


def _reference_legend(
    record: RunRecord, law: ReferenceLaw, sizes: Sequence[float], target: tuple[float, float]
) -> tuple[LegendEntry, ...]:
    entries = [
        LegendEntry(
            glyph="dot", colour=_size_colour(step, len(sizes)), text=f"runs at N = {short(size)}", kind="measured"
        )
        for step, size in enumerate(sizes)
        if any(same_size(N, size) for N in law.cell_num_parameters)
    ]
    if _recommended_rows(record):
        entries.append(
            LegendEntry(glyph="diamond", colour="recommended", text="recommended shape at the target", kind="measured")
        )
    target_colour = _size_colour(next(k for k, size in enumerate(sizes) if same_size(target[0], size)), len(sizes))
    entries.append(
        LegendEntry(glyph="dashes", colour=target_colour, text=f"N = {short(target[0])}, the target", kind="predicted")
    )
    entries.append(LegendEntry(glyph="ring", colour="soft", text="best shape of a cell, fitted", kind="predicted"))
    entries.append(
        LegendEntry(glyph="dashes", colour="soft", text="reference law, by the colour of N", kind="predicted")
    )
    if isinstance(law.predict(*target), Predicted):
        entries.append(
            LegendEntry(glyph="hollow-diamond", colour="recommended", text="best shape at the target", kind="predicted")
        )
    return tuple(entries)
