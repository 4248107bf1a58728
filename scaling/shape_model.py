"""ShapeModel: the design of one conditional fit, and the way back from its solutions to laws and cell losses.

The shape terms may be common to all scales, or each scale s may have its own, tied to its neighbours in ln N:

    multiplicative: y_i = level(cell) · (1 + X_i·α_s) · (1 + R_i·β_s + γ_g)
    additive:       y_i = level(cell) + X_i·α_s + R_i·β_s + γ_g

γ_g is the offset of query group size g against the most frequent one, where runs of one cell differ in g.
Legend of shapes: B replicates, n points, K cells, S scales, G offsets.
"""

from dataclasses import dataclass, replace

import numpy as np

from scaling.bilinear import Design, ShapeBasis, condition_number
from scaling.law import Floats, LawForm, shape_features
from scaling.law_fit import best_in_range
from scaling.points import Cells, Integers, ShapePoints


@dataclass(frozen=True, kw_only=True)
class QueryGroups:
    """`base` is the g of the fitted law, `estimated` those with an offset, `reasons` why the others have none."""

    base: float | None = None
    estimated: tuple[float, ...] = ()
    reasons: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleTies:
    """Scale of every point (n,) and of every cell (K,), ln N of every scale (S,), and which scale is asked for."""

    of_point: Integers
    of_cell: Integers
    log_num_parameters: Floats
    asked: int

    def __len__(self) -> int:
        """Number of scales."""
        return len(self.log_num_parameters)


@dataclass(frozen=True, kw_only=True, eq=False)
class Laws:
    """Normalised laws of the scale asked for: coefficients (B, 6), cell losses (B, K), offsets (B, G)."""

    coefficients: Floats
    levels: Floats
    offsets: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapeModel:
    """A design and what its columns stand for; `of_cell` (K,) are known reference losses, None where estimated."""

    design: Design
    x_basis: ShapeBasis
    r_basis: ShapeBasis
    scales: ScaleTies
    groups: QueryGroups
    of_cell: Floats | None

    @property
    def num_shape_columns(self) -> int:
        """Columns of X and R of one scale."""
        return self.x_basis.rank + self.r_basis.rank

    def shape_coordinates(self, scale: int) -> Integers:
        """Where α_s and β_s of one scale stand among the unknowns."""
        first, x_rank, r_rank = self.design.num_groups, self.x_basis.rank, self.r_basis.rank
        second = first + len(self.scales) * x_rank
        x_part = np.arange(first + scale * x_rank, first + (scale + 1) * x_rank, dtype=np.intp)
        r_part = np.arange(second + scale * r_rank, second + (scale + 1) * r_rank, dtype=np.intp)
        return np.concatenate([x_part, r_part])

    def common(self, points: ShapePoints) -> Design:
        """The same points with shape terms common to all scales: what x and r could tell at best."""
        columns = self.x_basis.columns(points.x), self.r_basis.columns(points.r)
        offsets = self.design.r_columns[:, len(self.scales) * self.r_basis.rank :]
        return replace(self.design, x_columns=columns[0], r_columns=np.concatenate([columns[1], offsets], axis=1))

    def condition_number(self, points: ShapePoints) -> float:
        """At a flat law: the product form's own curvature must not pass for evidence that x and r varied apart."""
        design = self.common(points)
        return condition_number(design, design.flat_start(points.loss[None])[0])

    def laws(self, theta: Floats, limits: tuple[tuple[float, float], tuple[float, float]]) -> Laws:
        """Solutions (B, p) as laws whose brackets are neutral at the best shape of the measured range."""
        additive = self.design.form == "additive"
        neutral = 0.0 if additive else 1.0
        level, alpha, beta = self.design.split(theta)
        asked, x_rank, r_rank = self.scales.asked, self.x_basis.rank, self.r_basis.rank
        best_x, best_r = [], []
        for scale in range(len(self.scales)):
            a = self.x_basis.bracket(alpha[:, scale * x_rank : (scale + 1) * x_rank], at_centre=neutral)
            b = self.r_basis.bracket(beta[:, scale * r_rank : (scale + 1) * r_rank], at_centre=neutral)
            best_x.append(_lowest(a, limits[0], positive=not additive))
            best_r.append(_lowest(b, limits[1], positive=not additive))
            if scale == asked:
                law = a, b
        a, b = law
        offsets = beta[:, len(self.scales) * r_rank :]
        of_cell = self.scales.of_cell if self.of_cell is None else np.array([asked], dtype=np.intp)
        at_best = np.stack(best_x, axis=1)[:, of_cell], np.stack(best_r, axis=1)[:, of_cell]
        if additive:
            a[:, 0] -= best_x[asked]
            b[:, 0] -= best_r[asked]
            level = level + at_best[0] + at_best[1]
        else:
            a, b = a / best_x[asked][:, None], b / best_r[asked][:, None]
            offsets = offsets / best_r[asked][:, None]
            level = level * at_best[0] * at_best[1]
        if self.of_cell is not None:
            # Known references: the one free level is the law's own scale, and goes into its x bracket.
            a = a * level if not additive else a + level * np.array([1.0, 0.0, 0.0])
            level = np.broadcast_to(self.of_cell, (len(theta), len(self.of_cell)))
        return Laws(coefficients=np.concatenate([a, b], axis=1), levels=level, offsets=offsets)


def make_model(
    form: LawForm,
    points: ShapePoints,
    cells: Cells,
    bases: tuple[ShapeBasis, ShapeBasis],
    scales: ScaleTies,
    reference: tuple[Floats | None, Floats | None],
    *,
    with_offsets: bool = True,
) -> ShapeModel:
    """One level a cell where references are estimated; one common level (the law's free scale) where they are known.

    Args:
        form: of the law.
        points: the runs.
        cells: their cells.
        bases: of x and of r.
        scales: whose shape terms differ; a single one where they are common.
        reference: known L_opt of every point and of every cell, or None twice.
        with_offsets: whether query group sizes may have offsets.
    """
    of_point, of_cell = reference
    neutral = np.ones(len(points)) if form == "multiplicative" else np.zeros(len(points))
    x_columns, r_columns = bases[0].columns(points.x), bases[1].columns(points.r)
    group = cells.of_point if of_point is None else np.zeros(len(points), dtype=np.intp)
    num_levels = len(cells) if of_point is None else 1
    linear = np.concatenate([np.eye(num_levels)[group], x_columns, r_columns], axis=1)
    groups = _query_groups(points, linear) if with_offsets else QueryGroups()
    design = Design(
        form=form,
        x_columns=_by_scale(x_columns, scales),
        r_columns=np.concatenate([_by_scale(r_columns, scales), _offset_columns(points, groups)], axis=1),
        group=group,
        num_groups=num_levels,
        reference=neutral if of_point is None else of_point,
        weight=np.ones(len(points)),
    )
    return ShapeModel(design=design, x_basis=bases[0], r_basis=bases[1], scales=scales, groups=groups, of_cell=of_cell)


def _lowest(bracket: Floats, limits: tuple[float, float], *, positive: bool) -> Floats:
    """Value of every bracket (B, 3) at its lowest point on the limits; a factor below zero is no law: not finite."""
    value = (shape_features(best_in_range(bracket, limits)) * bracket).sum(axis=1)
    return np.where(value > 0, value, np.nan) if positive else np.asarray(value, dtype=float)


def _by_scale(columns: Floats, scales: ScaleTies) -> Floats:
    """(n, k) -> (n, S·k): the columns of each point stand in the block of its scale."""
    own = np.eye(len(scales))[scales.of_point]
    return (own[:, :, None] * columns[:, None, :]).reshape(len(columns), len(scales) * columns.shape[1])


def _query_groups(points: ShapePoints, linear: Floats) -> QueryGroups:
    """Which g get an offset: those that the runs tell apart from cells, x and r."""
    if points.query_group_size is None:
        return QueryGroups()
    sizes, counts = np.unique(points.query_group_size, return_counts=True)
    base = float(sizes[np.argmax(counts)])
    estimated, reasons = [], []
    rank = np.linalg.matrix_rank(linear)
    for size in (float(size) for size in sizes if size != base):
        more = np.concatenate([linear, (points.query_group_size == size)[:, None]], axis=1)
        if np.linalg.matrix_rank(more) > rank:
            linear, rank = more, rank + 1
            estimated.append(size)
        else:
            reasons.append((size, f"no cell has runs of g = {size:g} beside comparable runs of another g"))
    return QueryGroups(base=base, estimated=tuple(estimated), reasons=tuple(reasons))


def _offset_columns(points: ShapePoints, groups: QueryGroups) -> Floats:
    if points.query_group_size is None:
        return np.zeros((len(points), 0))
    return np.asarray(points.query_group_size[:, None] == np.array(groups.estimated)[None], dtype=float)
