"""ThroughputFit: what an engine adds to the roofline, fitted from its own measured throughputs.

    t = n · (c0 + c1 · B + c2 · L) + s · R + k · C        t = B · output tokens / (output tokens/s), seconds of one pass

over a pass of n steps (one an output token) of B sequences (the effective batch, by the engine's own KV capacity where
it told it) through L layers; R is the roofline's time of the pass (`scaling/serving_cost.py`). c0, c1, c2 are the
host's time a step, a step and sequence, a step and layer; s scales the roofline, either one s for all of it or one for
matrices and one for attention; k counts copies of the whole KV cache a step, C the seconds of one, for engines that
grow it by concatenation. Which of these terms a fit has is decided by its error on shapes left out, one at a time; that
error is reported.

Coefficients are least squares of the relative error 1 - t_predicted / t with weights that count a run's own noise
beside the misfit to be expected of any run, none of them below zero: a host or a kernel takes no negative time.
Intervals are Student's, with n - p degrees of freedom; a new shape's is never narrower than the error on shapes left
out. A host term belongs to one engine version, its numbers and one device: runs of two are never fitted together.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from scipy import optimize, stats

from hwprofiles.profile import HardwareProfile
from hwprofiles.value import Value
from scaling.observations import INVALIDATING_FLAGS, ServingObservation
from scaling.quantity import Interval, Measured
from scaling.recipes import ServingRecipe, Workload
from scaling.serving_cost import PassCost, Shapes, pass_cost
from scaling.weight_formats import recipe_words

Floats = NDArray[np.float64]
Term = Literal["step", "step and sequence", "step and layer", "roofline", "matrices", "attention", "cache copy"]
Clock = Literal["wall", "processor"]

MIN_SHAPES = 3
MIN_DEGREES_OF_FREEDOM = 2
EXPECTED_MISFIT = 0.03
"""Relative. A model of this kind is seldom better; runs much quieter than it count alike."""
TIE_FACTOR = 1.02
TIE_ERROR = 1e-4
"""Forms whose errors on shapes left out differ by less than this do equally well."""
BATCH_REACH = 2.0
"""How far outside the fitted runs' batches an interval is still given."""
_HOST_TERMS: tuple[tuple[Term, ...], ...] = (
    ("step",),
    ("step", "step and sequence"),
    ("step", "step and layer"),
    ("step", "step and sequence", "step and layer"),
)
_ROOFLINE_TERMS: tuple[tuple[Term, ...], ...] = (
    ("roofline",),
    ("matrices", "attention"),
    ("roofline", "cache copy"),
    ("matrices", "attention", "cache copy"),
)


class EngineKey(NamedTuple):
    """What a host term belongs to."""

    engine: str
    engine_version: str
    hardware: str
    device: str
    dtype: str
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1

    @classmethod
    def of(cls, observation: ServingObservation) -> "EngineKey":
        """The key of one run."""
        return cls(
            observation.recipe.engine,
            observation.engine_version,
            observation.provenance.hardware,
            observation.provenance.device,
            observation.recipe.dtype,
            observation.recipe.quantization,
            observation.recipe.kv_cache_dtype,
            observation.recipe.tensor_parallel_size,
        )

    def __str__(self) -> str:
        numbers = recipe_words(self)
        return f"{self.engine} {self.engine_version} in {numbers} on {self.device} ({self.hardware})"


class FittedTerm(Value):
    """One coefficient: seconds for host terms, dimensionless for scales of the roofline."""

    term: Term
    value: float
    interval: Interval


class ThroughputFit(Value):
    """A fitted engine: turns the roofline's seconds into expected seconds, with an interval."""

    kind: Literal["throughput-fit"] = "throughput-fit"
    schema_version: Literal[1] = 1
    engine: str
    engine_version: str
    hardware: str
    device: str
    dtype: str
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: PositiveInt = 1
    clock: Clock
    profile_sha256: str
    """Content hash of the profile whose roofline was scaled; the fit holds for no other."""
    terms: tuple[FittedTerm, ...]
    covariance: tuple[tuple[float, ...], ...]
    """Of the coefficients, in the order of `terms`."""
    num_runs: PositiveInt
    num_shapes: PositiveInt
    batch_range: tuple[float, float]
    """Least and largest effective batch of the runs."""
    residual_sd: float
    """Relative, of one run around the fit."""
    left_out_error: float
    """Root mean square of ln(predicted / measured) over the shapes, each predicted by a fit to the others."""
    degrees_of_freedom: PositiveInt
    level: float

    @property
    def basis(self) -> str:
        """How predictions by this fit name themselves."""
        clock = "" if self.clock == "wall" else ", processor time"
        return f"roofline + host term fitted on {self.num_runs} runs of {self.engine} {self.engine_version}{clock}"


class NoThroughputFit(Value):
    """Why nothing could be fitted, and what would help."""

    kind: Literal["no-throughput-fit"] = "no-throughput-fit"
    reason: str


def group_runs(observations: Sequence[ServingObservation]) -> dict[EngineKey, tuple[ServingObservation, ...]]:
    """The valid runs of each engine version, device and dtype; the labelled fake's are nobody's."""
    groups: dict[EngineKey, tuple[ServingObservation, ...]] = {}
    for observation in observations:
        if INVALIDATING_FLAGS.intersection(observation.flags) - {"too-few-repeats"}:
            continue
        key = EngineKey.of(observation)
        groups[key] = (*groups.get(key, ()), observation)
    return groups


def fit_throughput(
    observations: Sequence[ServingObservation],
    profile: HardwareProfile,
    *,
    clock: Clock = "wall",
    level: float = 0.9,
) -> ThroughputFit | NoThroughputFit:
    """Fit the host term and the roofline's scale of one engine; call it again as observations arrive.

    Args:
        observations: runs of one engine version in one dtype on one device; invalid ones are left out. Single repeats
            count: the fit's own residuals tell the noise.
        profile: whose roofline is scaled; measured or a data sheet.
        clock: "processor" takes tokens per processor second, for a CPU that others kept busy.
        level: coverage of intervals.

    Returns:
        The fit, or why there is none: too few runs or shapes, several engines, no data in the profile.
    """
    groups = group_runs(observations)
    if len(groups) > 1:
        return NoThroughputFit(reason=f"runs of several engines or devices: {'; '.join(sorted(map(str, groups)))}")
    if not groups:
        return NoThroughputFit(reason="no valid run to fit; `archfleet bench` makes some")
    ((key, runs),) = groups.items()
    if clock == "processor" and any(_relative_rate(run, clock) is None for run in runs):
        return NoThroughputFit(reason="some runs have no processor seconds (measured on a GPU?); fit wall time")
    data = _design_data(runs, profile, clock)
    if data is None:
        return NoThroughputFit(
            reason=f"no data: the profile {profile.id} was not measured at the sizes of these shapes in {key.dtype}, "
            "or one of them does not fit its memory; calibrate on this device"
        )
    num_shapes = len(set(data.shapes.tolist()))
    candidates = [
        (_left_out_error(data, terms), len(terms), index, terms)
        for index, terms in enumerate(_admissible_forms(data))
        if num_shapes >= MIN_SHAPES
    ]
    usable = [candidate for candidate in candidates if math.isfinite(candidate[0])]
    if not usable:
        return NoThroughputFit(
            reason=f"{len(runs)} runs of {num_shapes} shapes with {key}: a host term and a scale need at least "
            f"{MIN_SHAPES} shapes and {2 + MIN_DEGREES_OF_FREEDOM} runs; measure more with `archfleet bench`"
        )
    # Among forms that do as well, the one with fewest terms, and the more ordinary one.
    good_enough = TIE_FACTOR * min(usable)[0] + TIE_ERROR
    _, _, left_out_error, terms = min(
        (num_terms, index, error, terms) for error, num_terms, index, terms in usable if error <= good_enough
    )
    return _fit_of(data, terms, key, profile, clock, level, left_out_error)


@dataclass(frozen=True)
class _Data:
    """Runs as arrays of length n."""

    seconds: Floats
    weights: Floats
    columns: dict[Term, Floats]
    shapes: NDArray[np.intp]
    batches: Floats


def _design_data(runs: Sequence[ServingObservation], profile: HardwareProfile, clock: Clock) -> _Data | None:
    shapes = list(dict.fromkeys(run.architecture for run in runs))
    rows, seconds, weights, batches = [], [], [], []
    for run in runs:
        shape = run.architecture
        told = run.kv_cache_tokens
        cost = pass_cost(
            shape,
            shape.vocab_size,
            shape.tie_word_embeddings,
            profile,
            run.recipe,
            run.workload,
            told_capacity_tokens=told.value if isinstance(told, Measured) else None,
        )
        rows.append({term: float(values) for term, values in _columns(cost, shape, run.workload).items()})
        rate, relative_sd = _relative_rate(run, clock) or (math.nan, math.nan)
        batches.append(float(cost.effective_batch))
        seconds.append(batches[-1] * run.workload.output_tokens / rate)
        weights.append(EXPECTED_MISFIT / math.hypot(EXPECTED_MISFIT, relative_sd))
    columns = {term: np.array([row[term] for row in rows]) for term in rows[0]}
    if not all(np.isfinite(values).all() for values in columns.values()) or min(batches) < 1:
        return None
    return _Data(
        seconds=np.array(seconds),
        weights=np.array(weights),
        columns=columns,
        shapes=np.array([shapes.index(run.architecture) for run in runs]),
        batches=np.array(batches),
    )


def _columns(cost: PassCost, shapes: Shapes, workload: Workload) -> dict[Term, Floats]:
    """Seconds (or counts of steps) of a pass that each coefficient multiplies."""
    num_steps = float(workload.output_tokens)
    zero = np.zeros_like(cost.effective_batch)
    return {
        "step": zero + num_steps,
        "step and sequence": num_steps * cost.effective_batch,
        "step and layer": zero + num_steps * np.asarray(shapes.num_hidden_layers, dtype=float),
        "roofline": cost.matrix_seconds + cost.attention_seconds,
        "matrices": zero + cost.matrix_seconds,
        "attention": zero + cost.attention_seconds,
        "cache copy": zero + cost.cache_copy,
    }


def _relative_rate(run: ServingObservation, clock: Clock) -> tuple[float, float] | None:
    """Mean output tokens/s by this clock, and the relative standard error of the mean over repeats."""
    if clock == "wall":
        rates = [repeat.output_tokens_per_second for repeat in run.repeats]
    else:
        if not all(repeat.processor_seconds for repeat in run.repeats):
            return None
        rates = [repeat.num_output_tokens / (repeat.processor_seconds or math.nan) for repeat in run.repeats]
    mean = float(np.mean(rates))
    return mean, float(np.std(rates, ddof=1) / mean / math.sqrt(len(rates))) if len(rates) > 1 else 0.0


def _admissible_forms(data: _Data) -> list[tuple[Term, ...]]:
    """Sets of terms that these runs can tell apart, with degrees of freedom to spare."""
    forms = [host + roofline for roofline, host in itertools.product(_ROOFLINE_TERMS, _HOST_TERMS)]
    return [
        terms
        for terms in forms
        if len(data.seconds) - len(terms) >= MIN_DEGREES_OF_FREEDOM and _tells_apart(data, terms)
    ]


def _tells_apart(data: _Data, terms: tuple[Term, ...]) -> bool:
    matrix = _matrix(data, terms)
    return int(np.linalg.matrix_rank(matrix / np.linalg.norm(matrix, axis=0), tol=1e-6)) == len(terms)


def _matrix(data: _Data, terms: tuple[Term, ...]) -> Floats:
    """Weighted relative design, (n, p): a row times the coefficients is weight · t_predicted / t."""
    columns = np.stack([data.columns[term] for term in terms], axis=1)
    return np.asarray(columns * (data.weights / data.seconds)[:, None])


def _solve(matrix: Floats, weights: Floats) -> Floats:
    scale = np.linalg.norm(matrix, axis=0)  # columns differ by many orders of magnitude
    coefficients, _ = optimize.nnls(matrix / scale, weights)
    return np.asarray(coefficients / scale)


def _left_out_error(data: _Data, terms: tuple[Term, ...]) -> float:
    """Root mean square of ln(predicted / measured), each shape predicted from the others; infinite if one cannot be."""
    matrix, errors = _matrix(data, terms), []
    for shape in set(data.shapes.tolist()):
        out = data.shapes == shape
        if np.linalg.matrix_rank(matrix[~out]) < len(terms):
            return math.inf
        ratio = matrix[out] @ _solve(matrix[~out], data.weights[~out]) / data.weights[out]
        if not (ratio > 0).all():
            return math.inf
        errors.append(np.mean(np.log(ratio) ** 2))
    return math.sqrt(float(np.mean(errors)))


def _fit_of(
    data: _Data,
    terms: tuple[Term, ...],
    key: EngineKey,
    profile: HardwareProfile,
    clock: Clock,
    level: float,
    left_out_error: float,
) -> ThroughputFit:
    matrix = _matrix(data, terms)
    coefficients = _solve(matrix, data.weights)
    degrees = len(data.seconds) - len(terms)
    residuals = data.weights - matrix @ coefficients
    variance = float(residuals @ residuals) / degrees
    covariance = variance * np.linalg.pinv(matrix.T @ matrix)
    quantile = float(stats.t.ppf((1 + level) / 2, degrees))
    half_widths = quantile * np.sqrt(np.diag(covariance))
    return ThroughputFit(
        **key._asdict(),
        clock=clock,
        profile_sha256=profile.content_hash(),
        terms=tuple(
            FittedTerm(
                term=term,
                value=value,
                interval=Interval(low=max(0.0, value - half), high=value + half, level=level, method="t, not below 0"),
            )
            for term, value, half in zip(terms, coefficients.tolist(), half_widths.tolist(), strict=True)
        ),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        num_runs=len(data.seconds),
        num_shapes=len(set(data.shapes.tolist())),
        batch_range=(float(data.batches.min()), float(data.batches.max())),
        residual_sd=math.sqrt(variance),
        left_out_error=left_out_error,
        degrees_of_freedom=degrees,
        level=level,
    )


class FittedSeconds(NamedTuple):
    """Expected seconds of a pass and the relative half width of their interval; arrays of the candidates' shape."""

    seconds: Floats
    relative_half_width: Floats
    host_seconds: Floats
    cache_seconds: Floats
    matrix_scale: float
    attention_scale: float


def expected_seconds(fit: ThroughputFit, cost: PassCost, shapes: Shapes, workload: Workload) -> Floats:
    """Expected seconds of one pass under a fit, without their uncertainty: for ranking many shapes."""
    columns = _columns(cost, shapes, workload)
    return np.asarray(sum((term.value * columns[term.term] for term in fit.terms), np.zeros(())))


def fitted_seconds(fit: ThroughputFit, cost: PassCost, shapes: Shapes, workload: Workload) -> FittedSeconds:
    """Expected seconds of one pass under a fit.

    The half width is t · max(residual sd · sqrt(1 + leverage), error on shapes left out), of ln(seconds).
    """
    columns = _columns(cost, shapes, workload)
    values = {term.term: term.value for term in fit.terms}
    seconds = expected_seconds(fit, cost, shapes, workload)
    rows = np.stack(np.broadcast_arrays(*(columns[term] / seconds for term in values)), axis=-1)
    variance = np.einsum("...i,ij,...j->...", rows, np.array(fit.covariance), rows)
    sd = np.maximum(np.sqrt(fit.residual_sd**2 + np.maximum(variance, 0)), fit.left_out_error)
    scale = values.get("roofline", 1.0)
    matrix_scale, attention_scale = values.get("matrices", scale), values.get("attention", scale)
    cache_seconds = values.get("cache copy", 0.0) * columns["cache copy"]
    return FittedSeconds(
        seconds=np.asarray(seconds),
        relative_half_width=np.asarray(float(stats.t.ppf((1 + fit.level) / 2, fit.degrees_of_freedom)) * sd),
        host_seconds=np.asarray(
            seconds - cache_seconds - matrix_scale * cost.matrix_seconds - attention_scale * cost.attention_seconds
        ),
        cache_seconds=np.asarray(cache_seconds),
        matrix_scale=matrix_scale,
        attention_scale=attention_scale,
    )


def require_same_target(fit: ThroughputFit, profile: HardwareProfile, recipe: ServingRecipe) -> None:
    """A fit holds for its own profile, engine and numbers (dtype, quantisation, KV cache, devices in parallel).

    Raises:
        ValueError: it was made for another; the message says which.
    """
    if fit.profile_sha256 != profile.content_hash():
        raise ValueError(f"the fit scales another profile than this one of {profile.id}; fit again with this profile")
    fitted, asked = (f"{one.engine} in {recipe_words(one)}" for one in (fit, recipe))
    if fitted != asked:
        raise ValueError(
            f"the fit is of {fitted}, a prediction was asked for {asked}; ask for {fitted}, or measure the other"
        )
