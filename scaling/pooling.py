"""How far shape terms may drift with scale: a random walk in ln N whose pace is chosen by leave-one-scale-out error.

Published coefficients differ between 80 M to 297 M and 1 B (arXiv 2510.18245 had to fit 1 B alone to reach 3 B). So
every scale s may have shape terms θ_s of its own, with Gaussian increments between neighbours,

    θ_{s+1} - θ_s ~ N(0, (ρ σ / level)² (ln N_{s+1} - ln N_s)),

in coordinates whose unit is a root-mean-square relative loss of one over the data: ρ is the drift per e-fold of N in
units of one run's noise σ. ρ = 0 pools everything, ρ = ∞ fits each scale alone; between, a scale that has few runs
borrows from its neighbours what its own runs leave open.
"""

from dataclasses import dataclass, replace

import numpy as np

from scaling.bilinear import solve
from scaling.law import Floats
from scaling.points import Cells, Integers, Scales, ShapePoints, make_scales
from scaling.shape_model import ScaleTies, ShapeModel

PACES = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Candidates for ρ; the ends are as good as pooling everything and as fitting each scale alone."""
_MIN_SHAPES = 3
"""A scale with fewer different shapes says nothing about the shape terms."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The chosen drift `rho`, and how it was chosen as a sentence."""

    rho: float
    message: str


def tie_scales(points: ShapePoints, cells: Cells, at_num_parameters: float) -> ScaleTies:
    """One block of shape terms a scale; a scale without runs joins where `at_num_parameters` lies between or beyond."""
    scales = make_scales(points.num_parameters)
    centres, of_point = scales.num_parameters, scales.of_point
    nearest = scales.nearest(at_num_parameters)
    if _same_scale(centres[nearest], at_num_parameters):
        return _ties(np.log(centres), of_point, cells, nearest)
    asked = int((centres < at_num_parameters).sum())
    shifted = np.where(of_point >= asked, of_point + 1, of_point)
    return _ties(np.log(np.insert(centres, asked, at_num_parameters)), shifted, cells, asked)


def one_scale(points: ShapePoints, cells: Cells) -> ScaleTies:
    """Shape terms common to all points."""
    return _ties(np.zeros(1), np.zeros(len(points), dtype=np.intp), cells, 0)


def nearest_scale(points: ShapePoints, at_num_parameters: float) -> tuple[ShapePoints, Scales]:
    """The runs of the scale nearest to N, and all scales."""
    scales = make_scales(points.num_parameters)
    return points.take(scales.of_point == scales.nearest(at_num_parameters)), scales


def _same_scale(N: float, other: float) -> bool:
    return bool(abs(np.log(N / other)) <= np.log(1.1))


def _ties(log_N: Floats, of_point: Integers, cells: Cells, asked: int) -> ScaleTies:
    of_cell = np.zeros(len(cells), dtype=np.intp)
    of_cell[cells.of_point] = of_point
    return ScaleTies(of_point=of_point, of_cell=of_cell, log_num_parameters=log_N, asked=asked)


def drift_penalty(model: ShapeModel, rho: float, level: float) -> Floats:
    """Rows P (m, p) with |P θ|² = σ² · (minus twice the log density of the increments); see the module's text."""
    rows = []
    for scale, gap in enumerate(np.diff(model.scales.log_num_parameters)):
        # Coordinates are relative losses (nats, additive): their noise is σ over the level.
        unit = level if model.design.form == "multiplicative" else 1.0
        row = np.zeros((model.num_shape_columns, model.design.num_unknowns))
        index = np.arange(model.num_shape_columns)
        row[index, model.shape_coordinates(scale)] = -unit / (rho * np.sqrt(gap))
        row[index, model.shape_coordinates(scale + 1)] = unit / (rho * np.sqrt(gap))
        rows.append(row)
    return np.concatenate(rows) if rows else np.zeros((0, model.design.num_unknowns))


def choose_pace(model: ShapeModel, points: ShapePoints) -> Pace:
    """The ρ with the least error on scales left out, whose shape terms come from their neighbours alone."""
    scored = [
        scale
        for scale in range(len(model.scales))
        if _num_shapes(points, model.scales.of_point == scale) >= _MIN_SHAPES
    ]
    if len(scored) < 3:
        return Pace(
            rho=1.0,
            message=f"Partial pooling over {len(scored)} scales: too few to choose the drift by leaving one out; "
            "one noise sd per e-fold of N is assumed.",
        )
    errors = [_left_out_error(model, points, scored, rho) for rho in PACES]
    best = int(np.argmin(errors))
    return Pace(
        rho=PACES[best],
        message=(
            f"Partial pooling over {len(scored)} scales: shape terms may drift by {PACES[best]:g} noise sd per e-fold "
            f"of N, chosen by leave-one-scale-out error ({errors[best]:.4f} nats rms, against {errors[0]:.4f} when "
            f"pooling everything and {errors[-1]:.4f} with the nearest scales alone)."
        ),
    )


def _num_shapes(points: ShapePoints, inside: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int:
    assert points.group is not None
    return len(np.unique(points.group[inside]))


def _left_out_error(model: ShapeModel, points: ShapePoints, scored: list[int], rho: float) -> float:
    """Root mean square error in nats of left-out runs about their own cell's level."""
    penalty = drift_penalty(model, rho, float(points.loss.mean()))
    squares, count = 0.0, 0
    for scale in scored:
        outside = model.scales.of_point == scale
        design = replace(model.design, weight=np.where(outside, 0.0, 1.0))
        theta = solve(design, points.loss[None], penalty=penalty).theta
        predicted = design.evaluate(theta)[0][0]
        squares += _about_levels(model, points.loss, predicted, outside)
        count += int(outside.sum())
    return float(np.sqrt(squares / count))


def _about_levels(
    model: ShapeModel, loss: Floats, predicted: Floats, inside: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> float:
    """Sum of squares after every cell's level is fitted: only the shape terms are judged."""
    total = 0.0
    for group in np.unique(model.design.group[inside]):
        rows = inside & (model.design.group == group)
        y, f = loss[rows], predicted[rows]
        off = y - f - (y - f).mean() if model.design.form == "additive" else y - f * (y @ f) / (f @ f)
        total += float(off @ off)
    return total
