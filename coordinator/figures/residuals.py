"""Residuals: measured minus predicted loss of every fitted run, in nats and in residual standard deviations.

A law that holds leaves no pattern in them: about two in three within one sd, no slope and no bend along x, r or loss.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from coordinator.analysis import same_size
from coordinator.figures.figure import Axis, Figure, Guide, Series
from coordinator.figures.formats import NATS, plural, short
from coordinator.figures.origin import kind_of_losses
from coordinator.figures.scales import (
    MEANING,
    ShapeAxis,
    coordinate,
    is_fitted,
    place_of,
    run_label,
    scale_colour,
    sizes_of,
)
from coordinator.record import RunRecord
from scaling.law_fit import LawFit
from scaling.observations import TrainingObservation
from scaling.points import find_cell


@dataclass(frozen=True, kw_only=True)
class _Residual:
    """One fitted run."""

    run: TrainingObservation
    predicted: float

    @property
    def value(self) -> float:
        """Measured minus predicted, in nats/token."""
        return self.run.loss - self.predicted


def residuals(record: RunRecord) -> Figure:
    """Against the predicted loss, over all sizes, by the fit of all sizes together."""
    return _figure(
        record,
        None if record.analysis is None else record.analysis.pooled,
        name="residuals",
        title="Residuals against the predicted loss",
        x=(Axis(label="predicted loss", unit=NATS), lambda one: one.predicted),
        groups=("N = {}", lambda run: place_of(run.architecture).num_parameters),
        which="The fit of all sizes together",
    )


def residuals_against(record: RunRecord, axis: ShapeAxis) -> Figure:
    """Against x or r, of the fit at the deciding size."""
    return _figure(
        record,
        None if record.analysis is None else record.analysis.law_fit,
        name=f"residuals-{axis}",
        title=f"Residuals against {axis}",
        x=(Axis(label=MEANING[axis], scale="log"), lambda one: coordinate(one.run, axis)),
        groups=("D = {} tokens", lambda run: run.num_tokens),
        which=f"The fit that decides, at N = {short(record.study.fit.num_parameters)}",
    )


def _figure(
    record: RunRecord,
    fit: LawFit | None,
    *,
    name: str,
    title: str,
    x: tuple[Axis, Callable[[_Residual], float]],
    groups: tuple[str, Callable[[TrainingObservation], float]],
    which: str,
) -> Figure:
    """A series for each group of runs, named by its value."""
    x_axis, place = x
    y_axis = Axis(label=f"{kind_of_losses(record)} − predicted loss", unit=NATS)
    found = _residuals(record, fit)
    if fit is None or not found:
        reason = "nothing was fitted yet." if fit is None else f"no law was fitted. {' '.join(fit.messages)}"
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=reason)
    words, value = groups
    values = sizes_of([value(one.run) for one in found])
    series = []
    for step, size in enumerate(values):
        inside = [one for one in found if same_size(value(one.run), size)]
        series.append(
            Series(
                name=words.format(short(size)),
                kind=kind_of_losses(record),
                mark="dot",
                colour=scale_colour(step, len(values)),
                x=tuple(place(one) for one in inside),
                y=tuple(one.value for one in inside),
                labels=tuple(f"{run_label(one.run)}{_in_sd(one, fit)}" for one in inside),
                trial_ids=tuple(one.run.assignment_id for one in inside),
            )
        )
    return Figure(
        name=name,
        title=title,
        caption=f"{which}: {_caption(fit, found)}",
        x=x_axis,
        y=y_axis,
        series=tuple(series),
        guides=_noise_guides(fit),
    )


def _residuals(record: RunRecord, fit: LawFit | None) -> list[_Residual]:
    """Of the runs that the fit knows, in the order of the store."""
    if fit is None or fit.law is None:
        return []
    cell_N = np.array([cell.num_parameters for cell in fit.cells])
    cell_D = np.array([cell.num_tokens for cell in fit.cells])
    by_cell: dict[int, list[TrainingObservation]] = {}
    cell_of = lru_cache(maxsize=None)(partial(find_cell, cell_N, cell_D))
    target = record.study.target.num_parameters
    for run in record.training.values():
        N = place_of(run.architecture).num_parameters
        if same_size(N, target) or not is_fitted(run, fit):
            continue
        cell = cell_of(N, run.num_tokens)
        if cell is not None and _knows_group(fit, run):
            by_cell.setdefault(cell, []).append(run)
    return [one for cell, runs in by_cell.items() for one in _of_cell(fit, cell, runs)]


def _knows_group(fit: LawFit, run: TrainingObservation) -> bool:
    known = (fit.base_query_group_size, *(offset.query_group_size for offset in fit.offsets))
    return fit.base_query_group_size is None or run.architecture.query_group_size in known


def _of_cell(fit: LawFit, cell: int, runs: list[TrainingObservation]) -> Iterable[_Residual]:
    N, D = fit.cells[cell].num_parameters, fit.cells[cell].num_tokens
    for group in sorted({run.architecture.query_group_size for run in runs}):
        same = [run for run in runs if run.architecture.query_group_size == group]
        x, r = ([coordinate(run, axis) for run in same] for axis in ("x", "r"))
        known = None if fit.base_query_group_size is None else group
        predicted = fit.predict_loss(np.array(x), np.array(r), N, D, query_group_size=known).mean
        yield from (_Residual(run=run, predicted=loss) for run, loss in zip(same, predicted.tolist(), strict=True))


def _in_sd(one: _Residual, fit: LawFit) -> str:
    return f", {one.value / fit.residual_sd:+.1f} sd" if fit.residual_sd else ""


def _noise_guides(fit: LawFit) -> tuple[Guide, ...]:
    zero = Guide(axis="y", colour="ink")
    sd = fit.residual_sd
    if not sd:
        return (zero,)
    one = Guide(axis="y", low=-sd, high=sd, colour="band", name=f"±1 residual sd: {sd:.4f} {NATS}")
    two = [Guide(axis="y", low=end, high=end, dashed=True) for end in (-2 * sd, 2 * sd)]
    return (one, zero, two[0].model_copy(update={"name": "±2 residual sd"}), two[1])


def _caption(fit: LawFit, found: list[_Residual]) -> str:
    words = [f"{plural(len(found), 'run')}."]
    if fit.residual_sd:
        within = sum(abs(one.value) <= fit.residual_sd for one in found) / len(found)
        words.append(f"{within:.0%} lie within one residual sd (about 68% are expected).")
    if fit.lack_of_fit_p is not None:
        words.append(f"Lack of fit against the replicates: p = {fit.lack_of_fit_p:.3g}.")
    words.append("Each residual's own uncertainty is one run's noise, the stripe.")
    if fit.num_points > len(found):
        words.append(f"{plural(fit.num_points - len(found), 'fitted run')} of another query group size not shown.")
    return " ".join(words)
