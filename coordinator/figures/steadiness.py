"""How steady a hardware is: repeats of its benchmarks about their own mean (the noise floor), and its canaries."""

import numpy as np
from scipy.stats import chi2

from coordinator.figures.figure import Axis, Figure, Guide, Series
from coordinator.figures.formats import plural
from coordinator.figures.origin import kind_of_losses, kind_of_rates
from coordinator.figures.timeline import time_unit
from coordinator.record import RunRecord
from scaling.observations import ServingObservation

MAX_BENCHMARKS_DRAWN = 30
MAX_CANARIES_DRAWN = 2_000
_LEVEL = 0.95


def benchmarked_hardware(record: RunRecord) -> list[str]:
    """Profile ids on which serving was measured, in order of name."""
    return sorted({one.provenance.hardware for one in record.serving.values()})


def canary_hardware(record: RunRecord) -> list[str]:
    """Profile ids on which canaries ran, in order of name."""
    return sorted({canary.hardware for canary in record.canaries})


def noise_floor(record: RunRecord, hardware: str, *, name: str) -> Figure:
    """Every repeat of the newest benchmarks as a deviation from its benchmark's mean, a lane each."""
    title = f"Noise floor of {hardware}: repeats about their mean"
    x_axis = Axis(label="repeat / mean − 1", unit="%")
    every = [one for one in record.serving.values() if one.provenance.hardware == hardware and len(one.repeats) > 1]
    drawn = every[-MAX_BENCHMARKS_DRAWN:]
    lanes = tuple(one.architecture.label for one in drawn)
    y_axis = Axis(label="", low=-0.6, high=max(len(lanes), 1) - 0.4, categories=lanes)
    if not drawn:
        reason = "no benchmark with repeats has finished there."
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=reason)
    places = [(100 * deviation, lane, one) for lane, one in enumerate(drawn) for deviation in _deviations(one)]
    sd, (low, high), freedom = _pooled(every)
    caption = (
        f"{plural(len(every), 'benchmark')}; each repeat is an engine process of its own. Pooled coefficient of "
        f"variation {sd:.2%}, {_LEVEL:.0%} interval {low:.2%} to {high:.2%} (chi-square, {freedom} degrees of freedom)."
        " Differences between shapes below it are noise."
    )
    if len(drawn) < len(every):
        caption += f" Drawn are the newest {len(drawn)}."
    repeats = Series(
        name="a repeat",
        kind=kind_of_rates(record),
        mark="dot",
        colour="serving",
        x=tuple(place for place, _, _ in places),
        y=tuple(float(lane) for _, lane, _ in places),
        labels=tuple(one.architecture.label for *_, one in places),
        trial_ids=tuple(one.assignment_id for *_, one in places),
    )
    stripe = Guide(axis="x", low=-100 * sd, high=100 * sd, colour="band", name="± pooled coefficient of variation")
    guides = (stripe, Guide(axis="x", colour="soft"))
    return Figure(name=name, title=title, caption=caption, x=x_axis, y=y_axis, series=(repeats,), guides=guides)


def _deviations(one: ServingObservation) -> list[float]:
    rates = np.array([repeat.output_tokens_per_second for repeat in one.repeats])
    return [float(deviation) for deviation in rates / rates.mean() - 1]


def _pooled(benchmarks: list[ServingObservation]) -> tuple[float, tuple[float, float], int]:
    """sd of relative deviations over all benchmarks, its chi-square interval, and its degrees of freedom."""
    squares = sum(deviation**2 for one in benchmarks for deviation in _deviations(one))
    freedom = sum(len(one.repeats) - 1 for one in benchmarks)
    low, high = (float(np.sqrt(squares / chi2.ppf(p, freedom))) for p in ((1 + _LEVEL) / 2, (1 - _LEVEL) / 2))
    return float(np.sqrt(squares / freedom)), (low, high), freedom


def canary(record: RunRecord, hardware: str, *, name: str) -> Figure:
    """Deviation of each canary from the baseline of its hardware over time."""
    title = f"Canaries on {hardware}"
    y_axis = Axis(label="rate / baseline − 1", unit="%")
    every = [one for one in record.canaries if one.hardware == hardware]
    known = [(one, one.deviation) for one in every if one.deviation is not None][-MAX_CANARIES_DRAWN:]
    if not known:
        axis = Axis(label="time since the run began", unit="s")
        reason = "no canary has run there since there is a baseline to set it beside."
        return Figure(name=name, title=title, x=axis, y=y_axis, reason=reason)
    unit, scale = time_unit(max(one.unix for one, _ in known) - record.created_unix)
    deviations = [100 * deviation for _, deviation in known]
    worst, worst_agent = min((deviation, one.agent) for one, deviation in known)
    return Figure(
        name=name,
        title=title,
        caption=f"{plural(len(known), 'canary')} of {plural(len({one.agent for one, _ in known}), 'agent')}: the same "
        f"small task again and again; lower is slower. The slowest was {100 * worst:+.1f} % on {worst_agent}. Single "
        "measurements, so without interval: their scatter is the uncertainty.",
        x=Axis(label="time since the run began", unit=unit),
        y=y_axis,
        series=(
            Series(
                name="a canary",
                kind=kind_of_losses(record),
                mark="dot",
                colour="validation",
                x=tuple((one.unix - record.created_unix) / scale for one, _ in known),
                y=tuple(deviations),
                labels=tuple(f"{one.agent}, {one.kind}: {one.rate:.4g} a second" for one, _ in known),
            ),
        ),
        guides=(Guide(axis="y", colour="soft", name="the baseline of this hardware"),),
    )
