"""Loss against serving throughput on one hardware and engine: the benchmarked shapes and their Pareto front."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.analysis import Analysis, same_size
from coordinator.choice import answered_hardware, measured_throughput, shortlist
from coordinator.figures.figure import Axis, Colour, Figure, Guide, Kind, Series
from coordinator.figures.formats import short
from coordinator.figures.origin import kind_of_rates
from coordinator.figures.standing import COLOUR_OF, proposal
from coordinator.recommendation import HardwareAnswer
from coordinator.record import RunRecord
from coordinator.shapes import baseline_at, candidates_at
from coordinator.target_runs import target_runs, verdicts
from scaling.architecture import Architecture
from scaling.quantity import Measured
from scaling.recommend import Comparison, Shortlist, Verdict

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One benchmarked shape of the target's size."""

    index: int
    name: str
    colour: Colour
    rate: Measured
    loss: Comparison
    """Predicted, to the baseline."""
    label: str


def pareto_hardware(record: RunRecord) -> tuple[str, ...]:
    """Profile ids that get a figure: those that the study asks for, or on which it measured."""
    return answered_hardware(record.study, record.observations)


def pareto(record: RunRecord, hardware: str, *, name: str) -> Figure:
    """Predicted loss, as a difference to the baseline's, against throughput measured on one hardware."""
    recipe = record.study.serving.recipe
    title = f"Loss against serving throughput: {recipe.engine} on {hardware}"
    x_axis = Axis(label=f"output rate on {hardware}", unit="tokens/s")
    y_axis = Axis(label="predicted loss − baseline's", unit="nats/token")
    rates = measured_throughput(record.study, record.observations, hardware)
    reason = _no_pareto(record, rates)
    if reason or record.analysis is None:
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=reason)
    found = _shortlist(record, record.analysis, rates, hardware)
    points = _points(record, found, rates, hardware)
    if len(points) < 2:
        reason = "fewer than two shapes of the target's size have a valid benchmark; the serving table has the one."
        reason = reason if points else "no such shape was benchmarked."
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=reason)
    return Figure(
        name=name,
        title=title,
        caption=_caption(record, found, points, hardware),
        x=x_axis,
        y=y_axis,
        series=(*_front_series(found, points), *_point_series(points, kind_of_rates(record))),
        guides=(Guide(axis="y", colour="soft", name="the baseline's predicted loss"),),
    )


def _no_pareto(record: RunRecord, rates: dict[Architecture, Measured]) -> str:
    if record.analysis is None or record.analysis.law_fit.law is None:
        return "there is no law yet to predict losses with."
    if not rates:
        flagged = " Every benchmark has an invalidating flag; see the serving table." if record.serving else ""
        return f"no valid serving benchmark has finished.{flagged}"
    return ""


def _shortlist(record: RunRecord, analysis: Analysis, rates: dict[Architecture, Measured], hardware: str) -> Shortlist:
    study = record.study
    candidates, baseline = candidates_at(study, study.target.num_parameters), baseline_at(study)
    scale = record.token_scale or 1.0
    checked = _checked(record, analysis, baseline, token_scale=scale)
    return shortlist(
        study, analysis, candidates, baseline, rates, hardware=hardware, token_scale=scale, checked=checked
    )


def _checked(
    record: RunRecord, analysis: Analysis, baseline: Architecture, *, token_scale: float
) -> dict[Architecture, Verdict]:
    """Shapes that were trained at the target, against the baseline; runs without windows by the answers alone."""
    runs = target_runs(record.study, record.observations, token_scale=token_scale)
    answers = () if record.recommendation is None else record.recommendation.answers
    told = {one.recommended: one.measured_verdict for one in answers if one.measured_verdict is not None}
    return verdicts(analysis, baseline, [run for run in runs if run.window_losses]) | told


def _points(record: RunRecord, found: Shortlist, rates: dict[Architecture, Measured], hardware: str) -> list[_Point]:
    """In order of throughput."""
    placed = {i: rate for shape, rate in rates.items() if (i := found.candidates.index_of(shape)) is not None}
    answers = () if record.recommendation is None else record.recommendation.answers
    answer = next((one for one in answers if one.hardware == hardware), None)
    names, colours = _names(answer, found, placed), _colours(answer, found)
    return [
        _Point(
            index=index,
            name=names[index],
            colour=colours.get(index, "front"),
            rate=rate,
            loss=found.compare(index, found.baseline),
            label=found.candidates.architecture(index).label,
        )
        for index, rate in sorted(placed.items(), key=lambda item: item[1].value)
    ]


def _names(answer: HardwareAnswer | None, found: Shortlist, points: Iterable[int]) -> dict[int, str]:
    """What each benchmarked shape is called on the figure: its roles, else a letter that the legend explains."""
    titles: dict[int, list[str]] = defaultdict(list)
    if answer is not None:
        index = found.candidates.index_of(answer.recommended)
        titles[-1 if index is None else index].append(proposal(answer))
    for title, index in (("Surefire", found.surefire), ("Panda", found.panda), ("baseline", found.baseline)):
        if index is not None:
            titles[index].append(title)
    letters = (f"{letter}{turn or ''}" for turn in range(len(found.candidates)) for letter in _LETTERS)
    return {index: ", ".join(titles[index]) if index in titles else next(letters) for index in sorted(points)}


def _colours(answer: HardwareAnswer | None, found: Shortlist) -> dict[int, Colour]:
    """By index: what was proposed before the baseline before the rest."""
    colours: dict[int, Colour] = {found.baseline: "baseline"}
    if answer is not None:
        index = found.candidates.index_of(answer.recommended)
        if index is not None:
            colours[index] = COLOUR_OF[proposal(answer)]
    return colours


def _front_series(found: Shortlist, points: list[_Point]) -> list[Series]:
    front = [point for point in points if point.index in found.front]
    if len(front) < 2:
        return []
    return [
        Series(
            name="Pareto front of the benchmarked shapes",
            kind="",
            mark="line",
            colour="front",
            x=tuple(point.rate.value for point in front for _ in range(2))[:-1],
            y=tuple(point.loss.difference for point in front for _ in range(2))[1:],
        )
    ]


def _point_series(points: list[_Point], kind: Kind) -> list[Series]:
    """By colour: diamonds with the measured interval across, and the predicted interval, broken, up and down."""
    series: list[Series] = []
    for colour in dict.fromkeys(point.colour for point in points):
        chosen = [point for point in points if point.colour == colour]
        x = tuple(point.rate.value for point in chosen)
        y = tuple(point.loss.difference for point in chosen)
        labels = tuple(f"{point.name}: {point.label}" for point in chosen)
        series += [
            Series(
                name="",
                kind="predicted",
                mark="bar",
                colour=colour,
                dashed=True,
                x=x,
                y=y,
                y_interval=tuple((point.loss.low, point.loss.high) for point in chosen),
                labels=labels,
            ),
            Series(
                name="",
                kind=kind,
                mark="diamond",
                colour=colour,
                x=x,
                y=y,
                x_interval=tuple(None if (i := p.rate.interval) is None else (i.low, i.high) for p in chosen),
                labels=labels,
                show_labels=True,
            ),
        ]
    return series


def _caption(record: RunRecord, found: Shortlist, points: list[_Point], hardware: str) -> str:
    load, recipe = record.study.serving.workload, record.study.serving.recipe
    origin = {"measured": "measured on", "simulated": "simulated for"}[kind_of_rates(record)]
    words = [
        f"Horizontal: {origin} {hardware} with {recipe.engine}, {recipe.dtype}, batch {load.batch_size}, "
        f"{load.input_tokens} input and {load.output_tokens} output tokens. Vertical: predicted, and paired with the "
        f"baseline within bootstrap replicates ({found.level:.0%} interval); lower is better. "
        f"N = {short(found.num_parameters)}, D = {short(found.num_tokens)} tokens. "
        "Bars are the intervals. Line: the Pareto front of the benchmarked shapes."
    ]
    if not same_size(found.num_parameters, record.study.target.num_parameters):
        words.append(
            "The reference law does not reach the target, so differences are stated at the fit's own size and data."
        )
    measured = {point.index for point in points}
    words += [
        f"Not on the figure, because not benchmarked: {found.candidates.architecture(index).label} "
        f"({'Panda, ' if index == found.panda else ''}predicted difference "
        f"{found.compare(index, found.baseline).difference:+.4f} nats/token)."
        for index in sorted({found.panda, *found.front} - measured)
    ]
    return " ".join(words)
