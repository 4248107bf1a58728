"""Fits the conditional law to runs: estimates, intervals, residuals, diagnostics, and advice where data do not suffice.

Nothing here raises for data that are merely few or badly placed: that is a `LawFit` with sentences. Where L_opt of a
cell comes from decides what is fitted:

- "joint" (default): every (N, D) cell has a level of its own, estimated together with the shape terms. It is unbiased
  with any number of shapes in a cell, and a cell with a single shape is harmless.
- "best": the best observed mean over replicates in the cell, held fixed, as in arXiv 2510.18245. The minimum of k noisy
  means is low by about one standard error (more with more shapes), and in a cell with few shapes it is the loss
  of whatever was run: use it to repeat the paper. In a single cell it gives the same optima and curves as "joint".
- "chinchilla": L(N, D) fitted to the best observed means; predicts outside the cells.
- a mapping from (N, D) to losses that you know.

Shape terms drift with scale. `pooling` says which runs speak for the size that is asked for (the largest, by default):

- "all" (default): shape terms common to all sizes.
- "nearest": only the runs of the nearest size.
- "partial": every size has shape terms of its own, tied to its neighbours in ln N by a random walk whose pace is chosen
  by leave-one-scale-out error (`scaling/pooling.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from scaling.bilinear import Solution, leverage, make_basis, solve
from scaling.chinchilla import ChinchillaFit, fit_chinchilla
from scaling.law import ChinchillaLaw, Coefficients, ConditionalLaw, Floats, LawForm
from scaling.law_fit import (
    CellReference,
    GroupOffset,
    LawFit,
    Optimum,
    Pooling,
    Prediction,
    ReferenceKind,
    Validation,
    best_in_range,
    best_mean,
    quantiles,
)
from scaling.points import Cells, ShapePoints, find_cell, make_cells
from scaling.pooling import Pace, choose_pace, drift_penalty, nearest_scale, one_scale, tie_scales
from scaling.quantity import Interval
from scaling.shape_model import ShapeModel, make_model
from scaling.support import hull_of

__all__ = [
    "ChinchillaFit",
    "LawFit",
    "Optimum",
    "Prediction",
    "ShapePoints",
    "Validation",
    "fit_chinchilla",
    "fit_conditional",
]

Reference = Literal["joint", "best", "chinchilla"] | Mapping[tuple[float, float], float]
_SAME_SHAPE = 0.05
"""Values of x (or r) within 5 % count as one: they cannot carry a curvature."""
_ILL_CONDITIONED = 50.0
_SINGULAR = 1e3
_SMALL_P = 0.05


def fit_conditional(
    points: ShapePoints,
    *,
    form: LawForm = "multiplicative",
    reference: Reference = "joint",
    pooling: Pooling = "all",
    at_num_parameters: float | None = None,
    r_range: tuple[float, float] = (0.5, 5.0),
    level: float = 0.9,
    num_bootstrap: int = 200,
    seed: int = 0,
) -> LawFit:
    """Estimate the shape terms (a, b) of the conditional law, x*, r*, and the reference loss of every cell.

    Least squares in nats, weighted by 1 / (standard error² + tau²), where tau² is what the runs scatter beyond their
    stated standard errors (seed noise, above all). Intervals are percentiles of a residual bootstrap: residuals are
    rescaled by their leverage, and each replicate by sqrt(dof / chi²_dof), so that with few degrees of freedom
    intervals are as wide as Student's. Runs that differ in query group size get an offset for each (`group_offset`).

    Args:
        points: finished runs.
        form: "multiplicative" or "additive".
        reference: where L_opt comes from; see the module's text.
        pooling: "all", "nearest" or "partial"; see the module's text.
        at_num_parameters: the size N that the shape terms are for, where they are not common to all; by default the
            largest one.
        r_range: rows with r outside are left out, and said so: the form does not hold there (arXiv 2510.18245).
        level: nominal coverage of all intervals.
        num_bootstrap: replicates.
        seed: of the bootstrap.

    Raises:
        ValueError: `reference` lacks a cell of the data, or it or `pooling` is no known word.
    """
    if pooling not in ("all", "nearest", "partial"):
        raise ValueError(f'pooling is "all", "nearest" or "partial", not {pooling!r}')
    inside = (points.r >= r_range[0]) & (points.r <= r_range[1])
    used, num_left_out = points.take(inside), int((~inside).sum())
    messages = []
    if num_left_out:
        messages.append(
            f"{num_left_out} of {len(points)} runs have r outside {r_range[0]:g} to {r_range[1]:g}: left out."
        )
    setting = _Setting(
        form=form,
        level=level,
        pooling=pooling,
        at_num_parameters=at_num_parameters or float(used.num_parameters.max(initial=0.0)),
        num_left_out=num_left_out,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    if not len(used):
        return _unfitted(setting, used, [*messages, "No runs are left to fit: train some shapes first."])
    if pooling == "nearest":
        used, message = _only_nearest(used, setting.at_num_parameters)
        messages += message
    cells = make_cells(used.num_parameters, used.num_tokens)
    resolved = _resolve_reference(reference, used, cells)
    if isinstance(resolved, str):
        return _unfitted(setting, used, [*messages, resolved])
    messages += resolved.messages
    return _fit(setting, used, cells, resolved, messages)


def _only_nearest(points: ShapePoints, at_num_parameters: float) -> tuple[ShapePoints, list[str]]:
    nearest, scales = nearest_scale(points, at_num_parameters)
    if len(scales) == 1:
        return nearest, []
    size = float(np.exp(np.log(nearest.num_parameters).mean()))
    return nearest, [
        f"Fitted to the {len(nearest)} runs near N {size:.4g} alone; {len(points) - len(nearest)} runs of "
        f"{len(scales) - 1} other sizes are not used."
    ]


@dataclass(frozen=True, kw_only=True)
class _Setting:
    form: LawForm
    level: float
    pooling: Pooling
    at_num_parameters: float
    num_left_out: int
    num_bootstrap: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class _ResolvedReference:
    """`of_point` and `of_cell` are None where levels are estimated jointly."""

    kind: ReferenceKind
    of_point: Floats | None = None
    of_cell: Floats | None = None
    chinchilla: ChinchillaLaw | None = None
    messages: tuple[str, ...] = ()


def _resolve_reference(reference: Reference, points: ShapePoints, cells: Cells) -> _ResolvedReference | str:
    if isinstance(reference, Mapping):
        of_cell = np.array([_given(reference, N, D) for N, D in _cell_list(cells)])
        return _ResolvedReference(kind="given", of_cell=of_cell, of_point=of_cell[cells.of_point])
    if reference == "joint":
        return _ResolvedReference(kind="joint")
    best = np.array([best_mean(points.take(cells.of_point == cell)) for cell in range(len(cells))])
    if reference == "best":
        return _ResolvedReference(kind="best", of_cell=best, of_point=best[cells.of_point])
    if reference == "chinchilla":
        fitted = fit_chinchilla(cells.num_parameters, cells.num_tokens, best)
        if fitted.law is None:
            return " ".join((*fitted.messages, 'Or fit with reference "joint", which needs one cell only.'))
        return _ResolvedReference(
            kind="chinchilla",
            of_cell=fitted.law.predict(cells.num_parameters, cells.num_tokens),
            of_point=fitted.law.predict(points.num_parameters, points.num_tokens),
            chinchilla=fitted.law,
            messages=fitted.messages,
        )
    raise ValueError(
        f'reference is "joint", "best", "chinchilla" or a mapping from (N, D) to a loss, not {reference!r}'
    )


def _cell_list(cells: Cells) -> list[tuple[float, float]]:
    return [(float(N), float(D)) for N, D in zip(cells.num_parameters, cells.num_tokens, strict=True)]


def _given(reference: Mapping[tuple[float, float], float], N: float, D: float) -> float:
    keys = list(reference)
    found = find_cell(np.array([key[0] for key in keys]), np.array([key[1] for key in keys]), N, D)
    if found is None:
        raise ValueError(f"no reference loss was given for N {N:.4g}, D {D:.4g}; add it, or use reference 'joint'")
    return reference[keys[found]]


def _fit(
    setting: _Setting, points: ShapePoints, cells: Cells, reference: _ResolvedReference, messages: list[str]
) -> LawFit:
    x_values, r_values = (_values_within_cells(z, cells) for z in (points.x, points.r))
    model = _model(setting, points, cells, reference, (x_values, r_values))
    pace = choose_pace(model, points) if len(model.scales) > 1 else None
    messages += [pace.message] if pace else []
    messages += [f"No offset for g = {g:g}: {reason}." for g, reason in model.groups.reasons]
    estimate = _estimate(setting, model, points, pace)
    if isinstance(estimate, str) and model.groups.estimated:
        messages.append("Too few runs to tell offsets of query group sizes: they are taken to cost nothing.")
        model = _model(setting, points, cells, reference, (x_values, r_values), with_offsets=False)
        estimate = _estimate(setting, model, points, pace)
    if isinstance(estimate, str):
        return _unfitted(setting, points, [*messages, estimate])
    limits = (_range(points.x), _range(points.r))
    laws = estimate.model.laws(np.concatenate([estimate.solution.theta, estimate.replicates.theta]), limits)
    usable = np.concatenate([[True], np.isfinite(laws.coefficients[1:]).all(axis=1)])
    coefficients, levels, offsets = laws.coefficients[usable], laws.levels[usable], laws.offsets[usable]
    error = _pure_error(points, cells, estimate)
    if error.message:
        messages.append(error.message)
    x_opt, x_reason = _optimum("x", coefficients[:, :3], limits[0], x_values, setting)
    r_opt, r_reason = _optimum("r", coefficients[:, 3:], limits[1], r_values, setting)
    condition = estimate.model.condition_number(points)
    if condition > _SINGULAR:
        x_opt, r_opt = None, None
        x_reason = r_reason = "x and r were not varied apart from each other: their optima cannot be told"
    else:
        messages += [reason for reason in (x_reason, r_reason) if reason]
    messages += [_warn_open(name, found) for name, found in (("x", x_opt), ("r", r_opt)) if found and _is_open(found)]
    if condition > _ILL_CONDITIONED:
        messages.append(
            f"x and r hardly vary apart from each other (condition number {condition:.2g}): add shapes that change one "
            "and keep the other."
        )
    converged = bool(estimate.solution.converged[0])
    if not converged:
        messages.append("The least-squares iteration did not settle: look for a diverged run among the points.")
    return LawFit(
        form=setting.form,
        reference=reference.kind,
        law=_law(setting.form, coefficients[0]),
        cells=_cell_references(points, cells, levels[0]),
        converged=converged and condition <= _SINGULAR,
        objective=float(estimate.solution.rss[0]),
        num_points=len(points),
        num_left_out=setting.num_left_out,
        degrees_of_freedom=estimate.dof,
        condition_number=condition if np.isfinite(condition) else None,
        residual_sd=float(np.sqrt(estimate.scatter)),
        pure_error_sd=error.sd,
        pure_error_reason=error.reason,
        lack_of_fit_p=error.lack_of_fit_p,
        x_opt=x_opt,
        x_opt_reason=x_reason,
        r_opt=r_opt,
        r_opt_reason=r_reason,
        x_range=limits[0],
        r_range=limits[1],
        level=setting.level,
        bootstrap=coefficients[1:],
        bootstrap_references=levels[1:],
        chinchilla=reference.chinchilla,
        messages=tuple(messages),
        pooling=setting.pooling,
        at_num_parameters=None if setting.pooling == "all" else setting.at_num_parameters,
        drift_per_efold=pace.rho if pace else None,
        base_query_group_size=estimate.model.groups.base,
        offsets=_offsets(points, estimate.model, offsets[0]),
        offset_reasons=estimate.model.groups.reasons,
        bootstrap_offsets=offsets[1:],
        hull=hull_of(points.x, points.r),
    )


def _model(
    setting: _Setting,
    points: ShapePoints,
    cells: Cells,
    reference: _ResolvedReference,
    num_values: tuple[int, int],
    *,
    with_offsets: bool = True,
) -> ShapeModel:
    bases = (
        make_basis(points.x, min(2, num_values[0] - 1)),
        make_basis(points.r, min(2, num_values[1] - 1)),
    )
    partial = setting.pooling == "partial"
    scales = tie_scales(points, cells, setting.at_num_parameters) if partial else one_scale(points, cells)
    known = (reference.of_point, reference.of_cell)
    return make_model(setting.form, points, cells, bases, scales, known, with_offsets=with_offsets)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Estimate:
    """A solution with its bootstrap; `model` carries the weights. `scatter` is the weighted residual variance."""

    model: ShapeModel
    solution: Solution
    replicates: Solution
    dof: int
    scatter: float


def _estimate(setting: _Setting, model: ShapeModel, points: ShapePoints, pace: Pace | None) -> _Estimate | str:
    """The least-squares solution and its replicates, or why there are too few runs for one."""
    penalty = None if pace is None else drift_penalty(model, pace.rho, float(points.loss.mean()))
    equal = solve(model.design, points.loss[None], penalty=penalty)
    # Ties between scales take up a part of the unknowns: what the points determine is the trace of the hat matrix.
    used = float(model.design.num_unknowns)
    if penalty is not None:
        used = float(leverage(model.design, equal.theta[0], penalty).sum())
    dof = int(np.floor(len(points) - used + 1e-9))
    if dof < 1:
        needed = int(np.ceil(used)) + 1
        return (
            f"{len(points)} runs cannot determine {needed - 1} coefficients and their uncertainty: run at "
            f"least {needed - len(points)} more, of shapes on both sides of the optimum."
        )
    model, solution = _reweighted(model, points, equal, penalty, dof)
    replicates = _bootstrap(model, solution, points.loss, penalty, dof, setting)
    scatter = float(solution.rss[0]) / dof
    return _Estimate(model=model, solution=solution, replicates=replicates, dof=dof, scatter=scatter)


def _reweighted(
    model: ShapeModel, points: ShapePoints, equal: Solution, penalty: Floats | None, dof: int
) -> tuple[ShapeModel, Solution]:
    """If standard errors are known, the fit again with weights 1 / (se² + tau²)."""
    if points.standard_error is None:
        return model, equal
    known = points.standard_error**2
    variance = known + max(float(equal.rss[0]) / dof - float(known.mean()), 0.0)
    # Standard errors of zero would make a point infinitely heavy: no weight exceeds 1e4 times the mean one.
    weight = 1.0 / np.maximum(variance, max(1e-4 * float(variance.mean()), 1e-30))
    weighted = replace(model, design=replace(model.design, weight=weight / weight.mean()))
    return weighted, solve(weighted.design, points.loss[None], equal.theta, penalty=penalty)


def _bootstrap(
    model: ShapeModel, solution: Solution, loss: Floats, penalty: Floats | None, dof: int, setting: _Setting
) -> Solution:
    """Refits to the fitted losses plus resampled residuals.

    With ties between scales, refits are to the losses themselves plus residuals, and the ties are drawn anew: for
    Gaussian noise that samples the posterior (randomise, then optimise), where resampling alone would forget that
    tied estimates are biased.
    """
    generator = np.random.default_rng(setting.seed)
    design, theta = model.design, solution.theta[0]
    fitted = design.evaluate(theta[None])[0][0]
    root_weight = np.sqrt(design.weight)
    # A point of leverage 1 fits itself: its residual says nothing, and must not be divided by nearly zero.
    spread = np.sqrt(np.maximum(1.0 - leverage(design, theta, penalty), 0.05))
    residual = (loss - fitted) * root_weight / spread
    residual -= residual.mean()
    # Leverage has evened them out; their size is the unbiased estimate's, whose own error the chi² below stands for.
    scatter = float(solution.rss[0]) / dof
    residual *= np.sqrt(scatter / max(float(np.mean(residual**2)), 1e-300))
    shape = (setting.num_bootstrap, len(loss))
    drawn = residual[generator.integers(len(loss), size=shape)] / root_weight
    widen = np.sqrt(dof / generator.chisquare(dof, size=(setting.num_bootstrap, 1)))
    if penalty is None:
        return solve(design, fitted + drawn * widen, theta[None])
    ties = np.sqrt(scatter) * widen * generator.standard_normal((setting.num_bootstrap, len(penalty)))
    return solve(design, loss + drawn * widen, theta[None], penalty=penalty, target=ties)


def _offsets(points: ShapePoints, model: ShapeModel, values: Floats) -> tuple[GroupOffset, ...]:
    assert points.query_group_size is not None or not model.groups.estimated
    return tuple(
        GroupOffset(
            query_group_size=size, value=float(value), num_runs=int(np.count_nonzero(points.query_group_size == size))
        )
        for size, value in zip(model.groups.estimated, values, strict=True)
    )


def _law(form: LawForm, coefficients: Floats) -> ConditionalLaw | None:
    if not np.isfinite(coefficients).all():
        return None
    values = [float(value) for value in coefficients]
    a: Coefficients = (values[0], values[1], values[2])
    b: Coefficients = (values[3], values[4], values[5])
    return ConditionalLaw(form=form, a=a, b=b)


def _cell_references(points: ShapePoints, cells: Cells, level: Floats) -> tuple[CellReference, ...]:
    assert points.group is not None
    return tuple(
        CellReference(
            num_parameters=N,
            num_tokens=D,
            loss=float(level[cell]),
            num_points=int((cells.of_point == cell).sum()),
            num_shapes=len(np.unique(points.group[cells.of_point == cell])),
        )
        for cell, (N, D) in enumerate(_cell_list(cells))
    )


def _values_within_cells(z: Floats, cells: Cells) -> int:
    """The most different values (5 % apart) of x or r in any one cell: what differs between cells is no evidence."""
    counts = []
    for cell in range(len(cells)):
        logs = np.sort(np.log(z[cells.of_point == cell]))
        counts.append(1 + int((np.diff(logs) > np.log1p(_SAME_SHAPE)).sum()))
    return max(counts)


def _range(z: Floats) -> tuple[float, float]:
    return float(z.min()), float(z.max())


@dataclass(frozen=True, kw_only=True)
class _PureError:
    sd: float | None = None
    reason: str | None = None
    lack_of_fit_p: float | None = None
    message: str = ""


def _pure_error(points: ShapePoints, cells: Cells, estimate: _Estimate) -> _PureError:
    """Scatter of replicates about their own mean, and the F test of what the law misses against it.

    F = [(RSS - SS_pe) / (dof - dof_pe)] / (SS_pe / dof_pe).
    """
    assert points.group is not None
    names = np.unique(points.group, return_inverse=True)[1].reshape(-1)
    shape = np.unique(np.stack([cells.of_point, names]), axis=1, return_inverse=True)[1].reshape(-1)
    weight, rss, dof = estimate.model.design.weight, float(estimate.solution.rss[0]), estimate.dof
    mean = np.bincount(shape, weight * points.loss) / np.bincount(shape, weight)
    pure = float((weight * (points.loss - mean[shape]) ** 2).sum())
    dof_pure = len(points) - len(mean)
    if dof_pure == 0:
        reason = "no shape was run twice in one cell: repeat the centre shape with three more seeds to know the noise"
        return _PureError(reason=reason, message=f"Lack of fit cannot be tested: {reason}.")
    sd = float(np.sqrt(pure / dof_pure))
    dof_misfit = dof - dof_pure
    if dof_misfit < 1 or pure <= 0:
        return _PureError(sd=sd)
    p = float(stats.f.sf(max(rss - pure, 0.0) / dof_misfit / (pure / dof_pure), dof_misfit, dof_pure))
    message = ""
    if p < _SMALL_P:
        message = (
            f"The law misses the shapes by more than their repeats scatter (lack of fit p = {p:.2g}): its optimum is a "
            "summary, not a description; look at the residuals, and at the learning rates of the extreme shapes."
        )
    return _PureError(sd=sd, lack_of_fit_p=p, message=message)


def _optimum(
    name: str, brackets: Floats, limits: tuple[float, float], num_values: int, setting: _Setting
) -> tuple[Optimum | None, str | None]:
    """x* or r* from brackets (1 + B, 3), the estimate first; or None and what to run."""
    low, high = limits
    if num_values < 3:
        return None, (
            f"{name}* is not determined: a minimum needs three different values of {name} in one "
            f"cell, and there are {num_values}. Train shapes with {name} well below {low:.3g} and well "
            f"above {high:.3g}."
        )
    if not np.isfinite(brackets[0]).all():
        return None, f"{name}* is not determined: the fitted bracket is not positive. Look for a diverged run."
    at = best_in_range(brackets, limits)
    if not low < at[0] < high:
        side = "largest" if at[0] >= high else "smallest"
        beyond = f"above {high:.3g}" if at[0] >= high else f"below {low:.3g}"
        return None, (
            f"No interior optimum of {name}: the loss is lowest at the {side} {name} that was run ({at[0]:.3g})"
            f"{_formal_minimum(brackets[0])}. Train shapes with {name} {beyond}, and repeat those at both "
            "ends, to settle it."
        )
    ends, share = (
        quantiles(at[1:], setting.level),
        _share_at_ends(at[1:], limits),
    )
    interval = Interval(
        low=min(float(ends[0]), float(at[0])),
        high=max(float(ends[1]), float(at[0])),
        level=setting.level,
        method="residual bootstrap, within the measured range",
    )
    return Optimum(value=float(at[0]), interval=interval, fraction_without=share), None


def _formal_minimum(bracket: Floats) -> str:
    slope, inverse = float(bracket[1]), float(bracket[2])
    return f"; the curve, extended, would turn at {inverse / slope:.3g}" if slope > 0 and inverse > 0 else ""


def _share_at_ends(at: Floats, limits: tuple[float, float]) -> float:
    return float(np.mean((at <= limits[0]) | (at >= limits[1]))) if len(at) else 0.0


def _is_open(optimum: Optimum) -> bool:
    return optimum.fraction_without > (1 - optimum.interval.level) / 2


def _warn_open(name: str, optimum: Optimum) -> str:
    return (
        f"{name}* = {optimum.value:.3g} is weak: {optimum.fraction_without:.0%} of the resampled data sets have no "
        f"interior optimum of {name}. Repeat the shapes at both ends of {name}, and add one beyond each, to settle it."
    )


def _unfitted(setting: _Setting, points: ShapePoints, messages: list[str]) -> LawFit:
    """No law, and why."""
    reason = "the law was not fitted"
    return LawFit(
        form=setting.form,
        reference="joint",
        law=None,
        cells=(),
        converged=False,
        objective=None,
        num_points=len(points),
        num_left_out=setting.num_left_out,
        degrees_of_freedom=0,
        condition_number=None,
        residual_sd=None,
        pure_error_sd=None,
        pure_error_reason=reason,
        lack_of_fit_p=None,
        x_opt=None,
        x_opt_reason=reason,
        r_opt=None,
        r_opt_reason=reason,
        x_range=_range(points.x) if len(points) else (0.0, 0.0),
        r_range=_range(points.r) if len(points) else (0.0, 0.0),
        level=setting.level,
        bootstrap=np.zeros((0, 6)),
        bootstrap_references=np.zeros((0, 1)),
        chinchilla=None,
        messages=tuple(messages),
        pooling=setting.pooling,
    )
