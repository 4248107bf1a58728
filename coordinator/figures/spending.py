"""What the run has spent over time: accelerator time of all attempts that belong to ended trials."""

from collections.abc import Sequence

import numpy as np

from coordinator.course import Spent
from coordinator.figures.figure import Axis, Colour, Figure, Guide, Series
from coordinator.figures.formats import duration, plural
from coordinator.figures.origin import kind_of_losses
from coordinator.figures.timeline import time_unit
from coordinator.record import RunRecord

_PHASES: dict[str, tuple[str, Colour]] = {"train": ("training", "space"), "bench": ("serving benchmarks", "serving")}


def spending(record: RunRecord) -> Figure:
    """Accelerator time spent so far against time since the run began, training and serving apart and together."""
    name, title = "spend", "Accelerator time spent"
    ended = record.course.spent
    if not ended:
        axis = Axis(label="time since the run began", unit="s")
        reason = "no trial has ended yet."
        return Figure(name=name, title=title, x=axis, y=Axis(label="accelerator time", unit="s"), reason=reason)
    total = sum(trial.seconds for trial in ended)
    length = max(0.0, ended[-1].ended_unix - record.created_unix)
    (unit, scale), (spent_unit, spent_scale) = time_unit(length), time_unit(total)
    phases = list(dict.fromkeys(trial.phase for trial in ended))
    groups: dict[str, Sequence[Spent]] = {"together": ended} if len(phases) > 1 else {}
    groups |= {phase: [trial for trial in ended if trial.phase == phase] for phase in phases}
    limit = record.study.budget.accelerator_hours
    budget = "no limit on it was set" if limit is None else f"{total / 3600 / limit:.1%} of the limit of {limit:g} h"
    return Figure(
        name=name,
        title=title,
        caption=f"{plural(len(ended), 'ended trial')}, {duration(total)} in all, failed attempts included; {budget}. "
        "Counted when a trial ends; a sum of durations, so without interval.",
        x=Axis(label="time since the run began", unit=unit, low=0),
        y=Axis(label="accelerator time", unit=spent_unit, low=0),
        series=tuple(_steps(record, phase, inside, scale, spent_scale) for phase, inside in groups.items()),
        guides=_limit(record, total / spent_scale, spent_scale),
    )


def _steps(record: RunRecord, phase: str, trials: Sequence[Spent], scale: float, spent_scale: float) -> Series:
    ended_unix, _, seconds = zip(*trials, strict=True)
    since = np.maximum(0.0, np.array(ended_unix) - record.created_unix) / scale
    name, colour = _PHASES.get(phase, (phase, "ink"))
    return Series(
        name=name,
        kind=kind_of_losses(record),
        mark="step",
        colour=colour,
        x=(0.0, *since.tolist()),
        y=(0.0, *np.cumsum(np.array(seconds) / spent_scale).tolist()),
    )


def _limit(record: RunRecord, spent: float, spent_scale: float) -> tuple[Guide, ...]:
    """The budget, where enough of it is spent for it to be on the figure."""
    hours = record.study.budget.accelerator_hours
    if hours is None or spent < 0.25 * (limit := hours * 3600 / spent_scale):
        return ()
    return (Guide(axis="y", low=limit, high=limit, colour="bad", dashed=True, name=f"limit: {hours:g} accelerator-h"),)
