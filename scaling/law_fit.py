"""LawFit: a fitted conditional law with its uncertainty, its doubts in sentences, and what it predicts.

Every prediction carries an interval from the bootstrap replicates, in which coefficients and reference losses belong
together: differences between shapes are taken within a replicate, so that what they share cancels.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from scaling.law import ChinchillaLaw, ConditionalLaw, Floats, LawForm, shape_features
from scaling.points import ShapePoints, find_cell, make_cells
from scaling.quantity import Interval, NotMeasured, Predicted
from scaling.support import Hull

ReferenceKind = Literal["joint", "best", "chinchilla", "given"]
Pooling = Literal["all", "nearest", "partial"]


class Prediction(NamedTuple):
    """Estimates with the two ends of their interval, arrays of one shape."""

    mean: Floats
    low: Floats
    high: Floats


class ReferenceSamples(Protocol):
    """A reference law that can be drawn from: `scaling/reference.py` has one."""

    def samples(self, num_parameters: float, num_tokens: float) -> Floats | None:
        """Draws of L_opt(N, D), (B,), or None where it predicts nothing."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """x* or r*, dimensionless.

    Replicates without an interior minimum count at the end of the measured range where their loss is lowest, so the
    interval reaches that end when the data cannot close it. `fraction_without` is their share.
    """

    value: float
    interval: Interval
    fraction_without: float


@dataclass(frozen=True, kw_only=True)
class CellReference:
    """L_opt of one (N, D) cell in nats per token; `num_shapes` different shapes were run in it."""

    num_parameters: float
    num_tokens: float
    loss: float
    num_points: int
    num_shapes: int


@dataclass(frozen=True, kw_only=True)
class GroupOffset:
    """What query group size g adds to the r bracket: a share of the loss (multiplicative) or nats (additive)."""

    query_group_size: float
    value: float
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a fit predicts held-out runs: mean squared error in nats squared, and rank correlation with the measured.

    `spearman` is None for fewer than three different runs; `reference` says where the held-out L_opt came from.
    """

    mse: float
    spearman: float | None
    num_points: int
    reference: str


@dataclass(frozen=True, kw_only=True, eq=False)
class LawFit:
    """A fit of the conditional law, or the reasons for having none (`law` None, `messages`).

    `law` is normalised at the best shape of the measured range (`x_range`, `r_range`), so that its brackets are 1 (0,
    additive) there and cell losses are those of the best shape, unless the reference was given: then the x bracket
    keeps the free scale. `objective` is the weighted residual sum of squares in nats squared, `residual_sd` and
    `pure_error_sd` (from replicates) are in nats. `bootstrap` (B, 6) holds (a0 a1 a2 b0 b1 b2) and
    `bootstrap_references` (B, K) the cell losses of each replicate. `lack_of_fit_p` is of the F test of the law
    against pure error: small means that the law misses what the runs repeat.

    Where shape terms are not common to all sizes (`pooling`), law and optima are those at `at_num_parameters`, while
    cell losses are those of each cell's own best shape; `drift_per_efold` is the pace of the drift in noise sds. The
    law is that of `base_query_group_size`, where the runs tell theirs; `offsets` are of the other sizes that were
    measured against it, and `bootstrap_offsets` (B, G) their replicates. `hull` holds the outermost shapes that were
    fitted (`scaling/support.py`); empty in fits of versions that did not keep it.
    """

    form: LawForm
    reference: ReferenceKind
    law: ConditionalLaw | None
    cells: tuple[CellReference, ...]
    converged: bool
    objective: float | None
    num_points: int
    num_left_out: int
    degrees_of_freedom: int
    condition_number: float | None
    residual_sd: float | None
    pure_error_sd: float | None
    pure_error_reason: str | None
    lack_of_fit_p: float | None
    x_opt: Optimum | None
    x_opt_reason: str | None
    r_opt: Optimum | None
    r_opt_reason: str | None
    x_range: tuple[float, float]
    r_range: tuple[float, float]
    level: float
    bootstrap: Floats
    bootstrap_references: Floats
    chinchilla: ChinchillaLaw | None
    messages: tuple[str, ...]
    pooling: Pooling = "all"
    at_num_parameters: float | None = None
    drift_per_efold: float | None = None
    base_query_group_size: float | None = None
    offsets: tuple[GroupOffset, ...] = ()
    offset_reasons: tuple[tuple[float, str], ...] = ()
    bootstrap_offsets: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    hull: Hull = ()

    def group_offset(self, query_group_size: float) -> Predicted | NotMeasured:
        """The cost of query group size g against the fitted law's own, with its interval, or why it is not known.

        A share of the loss (multiplicative: 0.01 costs one per cent at the best shape) or nats per token (additive).
        """
        g, unit = query_group_size, "share of the loss" if self.form == "multiplicative" else "nats/token"
        found = self._offset_index(g)
        if isinstance(found, NotMeasured):
            return found
        if found is None:
            return Predicted(
                value=0.0, unit=unit, no_interval_because="all others are stated against it", basis="the law's own g"
            )
        offset = self.offsets[found]
        low, high = quantiles(self.bootstrap_offsets[:, found], self.level)
        return Predicted(
            value=offset.value,
            unit=unit,
            interval=Interval(
                low=min(float(low), offset.value),
                high=max(float(high), offset.value),
                level=self.level,
                method="residual bootstrap",
            ),
            basis=f"{offset.num_runs} runs of g = {g:g} against g = {self.base_query_group_size:g}",
        )

    def _offset_index(self, g: float) -> int | NotMeasured | None:
        """Column of the offset of g; None for the law's own g."""
        if self.law is None:
            return NotMeasured(reason="the law was not fitted")
        if self.base_query_group_size is None:
            return NotMeasured(reason="the runs do not say their query group size")
        if g == self.base_query_group_size:
            return None
        sizes = [offset.query_group_size for offset in self.offsets]
        if g in sizes:
            return sizes.index(g)
        reason = dict(self.offset_reasons).get(g, f"no run has g = {g:g}")
        return NotMeasured(
            reason=f"{reason}; measured are g = {', '.join(f'{s:g}' for s in (self.base_query_group_size, *sizes))}. "
            "Train one shape at both g in the same cell."
        )

    def predict_loss(
        self,
        x: ArrayLike,
        r: ArrayLike,
        num_parameters: float,
        num_tokens: float,
        *,
        reference: ReferenceSamples | None = None,
        query_group_size: float | None = None,
    ) -> Prediction:
        """Expected loss of shapes in nats per token at one N and D, with the interval of that expectation.

        A run's own noise (`residual_sd`) comes on top. (N, D) must be a fitted cell, unless a Chinchilla reference was
        fitted or `reference` predicts there. Without `query_group_size` the prediction is for the law's own.

        Raises:
            ValueError: there is no law, no reference loss at (N, D), or that query group size was not measured.
        """
        samples = self.sample_loss(
            x, r, num_parameters, num_tokens, reference=reference, query_group_size=query_group_size
        )
        base, _ = self._reference_at(num_parameters, num_tokens, reference)
        law, found = self._law(), self._measured_offset(query_group_size)
        value = 0.0 if found is None else self.offsets[found].value
        extra = law.x_factor(x) * value * base if self.form == "multiplicative" else value
        return self._summary(law.predict(x, r, base) + extra, samples)

    def _measured_offset(self, query_group_size: float | None) -> int | None:
        found = None if query_group_size is None else self._offset_index(query_group_size)
        if isinstance(found, NotMeasured):
            raise ValueError(f"no loss at query group size {query_group_size:g}: {found.reason}")
        return found

    def sample_loss(
        self,
        x: ArrayLike,
        r: ArrayLike,
        num_parameters: float,
        num_tokens: float,
        *,
        reference: ReferenceSamples | None = None,
        query_group_size: float | None = None,
    ) -> Floats:
        """Bootstrap draws of the expected loss in nats per token, (B, number of shapes), paired within a row."""
        _, draws = self._reference_at(num_parameters, num_tokens, reference)
        x_part, r_part = self._brackets(x, r)
        found = self._measured_offset(query_group_size)
        if found is not None:
            r_part = r_part + self.bootstrap_offsets[:, found, None]
        if self.form == "multiplicative":
            return x_part * r_part * draws[:, None]
        return x_part + r_part + draws[:, None]

    def predict_ratio(self, x: ArrayLike, r: ArrayLike) -> Prediction:
        """Loss of shapes over the loss of the best shape in the measured range: 1.01 costs one per cent.

        The additive form is stated relative to the mean reference loss of the cells.
        """
        law = self._law()
        best_x, best_r = self._best_of(np.array([law.a + law.b]))
        mean = self._ratio(law.x_factor(x), law.r_factor(r), law.x_factor(best_x[0]), law.r_factor(best_r[0]))
        x_part, r_part = self._brackets(x, r)
        best_x, best_r = self._best_of(self.bootstrap)
        at_best = [
            _rows(features, self.bootstrap[:, part])
            for features, part in ((best_x, slice(0, 3)), (best_r, slice(3, 6)))
        ]
        return self._summary(mean, self._ratio(x_part, r_part, at_best[0][:, None], at_best[1][:, None]))

    def _ratio(self, x_part: Floats, r_part: Floats, best_x: Floats, best_r: Floats) -> Floats:
        if self.form == "multiplicative":
            return np.asarray((x_part / best_x) * (r_part / best_r), dtype=float)
        level = float(np.mean([cell.loss for cell in self.cells]))
        return np.asarray(1.0 + (x_part - best_x + r_part - best_r) / level, dtype=float)

    def _best_of(self, coefficients: Floats) -> tuple[Floats, Floats]:
        best_x = best_in_range(coefficients[:, :3], self.x_range)
        return best_x, best_in_range(coefficients[:, 3:], self.r_range)

    def _brackets(self, x: ArrayLike, r: ArrayLike) -> tuple[Floats, Floats]:
        x_part = self.bootstrap[:, :3] @ np.atleast_2d(shape_features(np.atleast_1d(x))).T
        r_part = self.bootstrap[:, 3:] @ np.atleast_2d(shape_features(np.atleast_1d(r))).T
        return np.asarray(x_part, dtype=float), np.asarray(r_part, dtype=float)

    def _law(self) -> ConditionalLaw:
        if self.law is None:
            raise ValueError(f"the conditional law was not fitted, so it predicts nothing: {' '.join(self.messages)}")
        return self.law

    def _reference_at(self, N: float, D: float, reference: ReferenceSamples | None) -> tuple[float, Floats]:
        """L_opt(N, D): the estimate and its draws (B,)."""
        self._law()
        cell = find_cell(
            np.array([c.num_parameters for c in self.cells]), np.array([c.num_tokens for c in self.cells]), N, D
        )
        if cell is not None:
            return self.cells[cell].loss, self.bootstrap_references[:, cell]
        if reference is not None and (drawn := reference.samples(N, D)) is not None:
            # The two sets of draws come from the same replicates where they have the same number, and pair.
            draws = np.resize(drawn, len(self.bootstrap))
            return float(np.median(draws)), draws
        if self.chinchilla is not None:
            value = float(self.chinchilla.predict(N, D))
            return value, np.full(len(self.bootstrap), value)
        known = "; ".join(f"N {c.num_parameters:.4g}, D {c.num_tokens:.4g}" for c in self.cells)
        raise ValueError(
            f"no reference loss at N {N:.4g}, D {D:.4g}: the fit knows the cells {known}. Ask for one of these, or "
            "give a reference law that reaches there (scaling.reference.fit_reference)."
        )

    def _summary(self, mean: Floats, samples: Floats) -> Prediction:
        """Percentiles of the draws, widened to hold the estimate."""
        estimate = np.atleast_1d(mean)
        low, high = quantiles(samples, self.level)
        return Prediction(estimate, np.minimum(low, estimate), np.maximum(high, estimate))

    def validate(self, points: ShapePoints, *, reference: ReferenceSamples | None = None) -> Validation:
        """Compare predictions with held-out runs.

        Cells that the fit does not know, and `reference` does not reach, take the best observed mean loss of the
        held-out cell itself as L_opt, as the paper does: only the shape terms are tested there.
        """
        cells = make_cells(points.num_parameters, points.num_tokens)
        predicted = np.empty(len(points))
        origins = set()
        for cell, (N, D) in enumerate(zip(cells.num_parameters, cells.num_tokens, strict=True)):
            inside = cells.of_point == cell
            try:
                level, _ = self._reference_at(N, D, reference)
                origins.add("predicted")
            except ValueError:
                self._law()
                level = best_mean(points.take(inside))
                origins.add("best observed among the held-out runs")
            predicted[inside] = self._law().predict(points.x[inside], points.r[inside], level)
        return Validation(
            mse=float(np.mean((predicted - points.loss) ** 2)),
            spearman=_spearman(predicted, points.loss),
            num_points=len(points),
            reference=" and ".join(sorted(origins)),
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that JSON holds exactly; `from_json` gives the fit back."""
        return {"schema_version": 1, **{name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "LawFit":
        """Read what `to_json` made.

        Raises:
            ValueError: a newer version wrote it.
        """
        if plain.get("schema_version") != 1:
            raise ValueError(f"a fit of schema version {plain.get('schema_version')!r}; this version reads 1: upgrade")
        values = {name: value for name, value in plain.items() if name != "schema_version"}
        values["law"] = None if values["law"] is None else _law_from_json(values["law"])
        values["chinchilla"] = None if values["chinchilla"] is None else ChinchillaLaw(**values["chinchilla"])
        values["cells"] = tuple(CellReference(**cell) for cell in values["cells"])
        for name in ("x_opt", "r_opt"):
            values[name] = _optimum_from_json(values[name])
        for name in ("x_range", "r_range", "messages"):
            values[name] = tuple(values[name])
        values["bootstrap"] = np.array(values["bootstrap"], dtype=float).reshape(-1, 6)
        values["offsets"] = tuple(GroupOffset(**offset) for offset in values.get("offsets", ()))
        values["offset_reasons"] = tuple((g, reason) for g, reason in values.get("offset_reasons", ()))
        values["hull"] = tuple((x, r) for x, r in values.get("hull", ()))
        offsets = np.array(values.get("bootstrap_offsets", ()), dtype=float)
        values["bootstrap_offsets"] = offsets.reshape(len(values["bootstrap"]), len(values["offsets"]))
        references = np.array(values["bootstrap_references"], dtype=float)
        values["bootstrap_references"] = references.reshape(-1, len(values["cells"]) or 1)
        return cls(**values)


def quantiles(draws: Floats, level: float) -> Floats:
    """Both ends (2, ...) of the central `level` of draws (B, ...).

    Weibull's positions p (B + 1): a new draw falls outside as often as `level` says, also for few replicates.
    """
    tails = ((1 - level) / 2, (1 + level) / 2)
    return np.asarray(np.quantile(draws, tails, axis=0, method="weibull"), dtype=float)


def best_in_range(coefficients: Floats, limits: tuple[float, float]) -> Floats:
    """Where each bracket (B, 3) is lowest on [low, high]: its interior minimum, or the better end. (B,)."""
    low, high = limits
    slope, inverse = coefficients[:, 1], coefficients[:, 2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        interior = inverse / slope
    legal = (slope > 0) & (inverse > 0) & (interior > low) & (interior < high)
    ends = coefficients @ shape_features(np.array([low, high])).T
    return np.where(legal, interior, np.where(ends[:, 0] <= ends[:, 1], low, high))


def best_mean(points: ShapePoints) -> float:
    """The lowest mean loss over replicates of one shape, in nats per token."""
    assert points.group is not None
    shape = np.unique(points.group, return_inverse=True)[1].reshape(-1)
    return float((np.bincount(shape, points.loss) / np.bincount(shape)).min())


def _rows(z: Floats, coefficients: Floats) -> Floats:
    return np.asarray((shape_features(z) * coefficients).sum(axis=1), dtype=float)


def _spearman(predicted: Floats, measured: Floats) -> float | None:
    if len(np.unique(predicted)) < 3 or len(np.unique(measured)) < 3:
        return None
    return float(np.corrcoef(_ranks(predicted), _ranks(measured))[0, 1])


def _ranks(values: Floats) -> Floats:
    """Mean ranks, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse.reshape(-1)], dtype=float)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Interval):
        return value.model_dump()
    if isinstance(value, Optimum | CellReference | GroupOffset | ConditionalLaw | ChinchillaLaw):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def _optimum_from_json(plain: dict[str, Any] | None) -> Optimum | None:
    if plain is None:
        return None
    return Optimum(**{**plain, "interval": Interval.model_validate(plain["interval"])})


def _law_from_json(plain: dict[str, Any]) -> ConditionalLaw:
    a, b = (cast("tuple[float, float, float]", tuple(plain[name])) for name in ("a", "b"))
    return ConditionalLaw(form=plain["form"], a=a, b=b)
