"""Influence: how far the optima and the answer move where one run is left out of the fit that decides.

The fit is made again without the run, as it was made with it. Many runs are screened first by Cook's distance (Cook,
1977) of a linear fit of ln loss on the law's own features: a level for each cell, ln x, 1/x, ln r, 1/r. With residual e
and leverage h of a run

    Cook's distance ~ e² h / (1 - h)²

up to a factor that is the same for all runs. Only those with the largest are left out in earnest.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.analysis import same_size
from coordinator.figures.scales import is_fitted
from coordinator.record import RunRecord
from scaling.architecture import Architecture
from scaling.fit import fit_conditional
from scaling.law import Floats, shape_features
from scaling.law_fit import LawFit, Optimum, quantiles
from scaling.observations import TrainingObservation
from scaling.points import ShapePoints, make_cells

MAX_REFITS = 12
"""Runs that are left out in earnest: a refit takes 10 to 30 ms."""
MAX_RUNS = 2_000
"""Of larger fits no run is left out: one of so many hardly moves them, and refits take long."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Something that the fit tells: `value` reads it of a fit, `half_width` is half its interval, in its own unit."""

    name: str
    value: Callable[[LawFit], float | None]
    half_width: float


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What leaving out one run does to everything that is watched.

    `shifts` are in half-widths of the intervals; null where the rest of the runs no longer tells it.
    """

    run: TrainingObservation
    shifts: tuple[float | None, ...]

    @property
    def largest(self) -> float:
        """The largest shift either way; infinite where something is no longer told."""
        return max((math.inf if shift is None else abs(shift) for shift in self.shifts), default=0.0)


def watched_of(record: RunRecord) -> tuple[Watched, ...]:
    """x* and r*, and for each proposed shape its predicted loss against the baseline's: what there is of these."""
    fit = None if record.analysis is None else record.analysis.law_fit
    if fit is None or fit.law is None:
        return ()
    optima = (("x*", fit.x_opt, _x_opt), ("r*", fit.r_opt, _r_opt))
    found = [
        Watched(name=name, value=read, half_width=_half_width((optimum.interval.low, optimum.interval.high)))
        for name, optimum, read in optima
        if optimum is not None
    ]
    found += [_against(fit, shape, baseline) for shape, baseline in _proposals(record)]
    return tuple(one for one in found if one.half_width > 0)


def influences(record: RunRecord, watched: Sequence[Watched]) -> list[Influence]:
    """The runs that pull most at the fit, the one that moves something furthest first."""
    fit = None if record.analysis is None else record.analysis.law_fit
    if fit is None or not watched or fit.num_points > MAX_RUNS:
        return []
    runs = _fitted_runs(record, fit)
    points = ShapePoints.from_observations(runs)
    of_all = _refit(points)
    whole = [one.value(of_all) for one in watched]
    chosen = np.argsort(-cooks_distances(points), kind="stable")[:MAX_REFITS]
    found = []
    for left_out in chosen:
        without = _refit(points.take(np.arange(len(points)) != left_out))
        shifts = tuple(_shift(one, before, one.value(without)) for one, before in zip(watched, whole, strict=True))
        found.append(Influence(run=runs[left_out], shifts=shifts))
    return sorted(found, key=lambda one: -one.largest)


def cooks_distances(points: ShapePoints) -> Floats:
    """Cook's distance of every run, (n,), up to a common factor.

    Infinite for a run that alone tells something of the shapes; 0 for one that is alone in its cell, and tells no more
    than its level.
    """
    cells = make_cells(points.num_parameters, points.num_tokens)
    levels = np.eye(len(cells))[cells.of_point]
    features = np.hstack([levels, shape_features(points.x)[:, 1:], shape_features(points.r)[:, 1:]])
    left, sizes, _ = np.linalg.svd(features, full_matrices=False)
    basis = left[:, sizes > 1e-9 * sizes[0]]
    leverage, loss = (basis**2).sum(axis=1), np.log(points.loss)
    residual, left_over = loss - basis @ (basis.T @ loss), 1.0 - leverage
    is_alone = left_over < 1e-9
    distance = residual**2 * leverage / np.where(is_alone, 1.0, left_over) ** 2
    lone_in_cell = np.bincount(cells.of_point)[cells.of_point] == 1
    return np.where(is_alone, np.where(lone_in_cell, 0.0, np.inf), distance)


def _fitted_runs(record: RunRecord, fit: LawFit) -> list[TrainingObservation]:
    """Finished runs at the fit's size within its range of r."""
    size = record.study.fit.num_parameters
    runs = (run for run in record.training.values() if same_size(run.architecture.num_parameters, size))
    return [run for run in runs if is_fitted(run, fit)]


def _refit(points: ShapePoints) -> LawFit:
    # Estimates alone: intervals are those of the stored fit.
    return fit_conditional(points, num_bootstrap=1)


def _proposals(record: RunRecord) -> Iterator[tuple[Architecture, Architecture]]:
    recommendation = record.recommendation
    if recommendation is not None:
        yield from ((s, recommendation.baseline) for s in recommendation.recommended if s != recommendation.baseline)


def _against(fit: LawFit, shape: Architecture, baseline: Architecture) -> Watched:
    """Predicted loss over the baseline's, less 1; at the cell that decides where the law is additive."""
    cell = max(fit.cells, key=lambda cell: cell.num_points)
    x = np.array([shape.width_ratio, baseline.width_ratio])
    r = np.array([shape.mlp_attention_ratio, baseline.mlp_attention_ratio])
    draws = fit.sample_loss(x, r, cell.num_parameters, cell.num_tokens)
    low, high = quantiles(draws[:, 0] / draws[:, 1], fit.level)

    def value(of: LawFit) -> float | None:
        if of.law is None:
            return None
        loss, other = of.law.predict(x, r, cell.loss).tolist()
        return float(loss / other - 1)

    name = f"loss of {shape.label} over the baseline's"
    return Watched(name=name, value=value, half_width=_half_width((float(low), float(high))))


def _x_opt(fit: LawFit) -> float | None:
    return _value(fit.x_opt)


def _r_opt(fit: LawFit) -> float | None:
    return _value(fit.r_opt)


def _value(optimum: Optimum | None) -> float | None:
    return None if optimum is None else optimum.value


def _half_width(ends: tuple[float, float]) -> float:
    return (ends[1] - ends[0]) / 2


def _shift(one: Watched, before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else (after - before) / one.half_width
