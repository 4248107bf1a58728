"""Serving throughput and latency of an architecture, predicted.

What one pass of the engine costs is in `scaling/serving_cost.py`. Predictions come in three strengths, and each number
names its own as its basis:

    a data sheet                    a bound: no efficiencies below one, no host, no scheduling, no sampling
    a measured profile              the roofline at efficiencies measured by operation and size; still no host
    a ThroughputFit besides         the host's time for a step and a scale, fitted to an engine's runs; with an interval

The first orders shapes that are bound by a device; absolute numbers are optimistic, and at the sizes of a laptop study
(under a million parameters) the host's time dominates and the order itself may be wrong. Measured numbers always win.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from hwprofiles.profile import HardwareProfile
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import Interval, NotMeasured, Predicted
from scaling.recipes import ServingRecipe, Workload
from scaling.serving_cost import PassCost, Shapes, device_share, pass_cost, splits, usable_bytes
from scaling.throughput_fit import (
    BATCH_REACH,
    FittedSeconds,
    ThroughputFit,
    expected_seconds,
    fitted_seconds,
    require_same_target,
)
from scaling.weight_formats import recipe_words, why_unknown

Floats = NDArray[np.float64]

BASIS = "roofline, uncalibrated"
NO_INTERVAL = "an uncalibrated roofline is a bound; its error on this engine was not measured"
NO_ENGINE_INTERVAL = "efficiencies of single operations were measured, but no run of a whole engine"


class OperationPrediction(Value):
    """The share of one kind of operation in a whole request, prefill and decode, in seconds for the batch."""

    operation: Literal["gemm", "attention", "head", "exchange", "host", "cache copy"]
    prefill_seconds: float
    decode_seconds: float


class ServingPrediction(Value):
    """What the roofline says of one architecture under one workload. Predicted, never measured.

    Throughput is that of the steady state at the effective batch: where more is asked than fits, the rest waits
    and `num_waves` passes are made; the drain of the last one is left out. `ttft_seconds` is from admission to the
    first token of the whole effective batch, waiting in the queue excluded. With tensor parallelism every number is
    that of the whole group of devices.
    """

    schema_version: Literal[1] = 1
    architecture: Architecture
    hardware: str
    recipe: ServingRecipe
    workload: Workload
    output_tokens_per_second: Predicted | NotMeasured
    total_tokens_per_second: Predicted | NotMeasured
    requests_per_second: Predicted | NotMeasured
    ttft_seconds: Predicted | NotMeasured
    itl_seconds: Predicted | NotMeasured
    kv_capacity_tokens: Predicted | NotMeasured
    effective_batch: Predicted | NotMeasured
    num_waves: PositiveInt | None
    operations: tuple[OperationPrediction, ...] = ()


def predict_serving(
    architecture: Architecture,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    workload: Workload,
    *,
    fit: ThroughputFit | None = None,
) -> ServingPrediction:
    """Predict throughput, latency and KV capacity of one architecture on one device, or on the recipe's group of them.

    Args:
        architecture: what is served.
        profile: the device: a data sheet, or measured.
        recipe: engine, dtype, quantisation, KV cache and devices.
        workload: requested batch and lengths.
        fit: host term and scale of this engine on this profile; without it, the profile's roofline alone.

    Raises:
        ValueError: the profile has no peak for the recipe's dtype or no memory, or the fit is another target's.
    """
    if fit is not None:
        require_same_target(fit, profile, recipe)
    unknown = why_unknown(recipe) or _why_not_shared(architecture, recipe)
    if unknown is not None:
        absent = NotMeasured(reason=unknown)
        return _prediction(architecture, profile, recipe, workload, absent, capacity=absent, batch=absent)
    cost = pass_cost(architecture, architecture.vocab_size, architecture.tie_word_embeddings, profile, recipe, workload)
    fitted = None if fit is None else fitted_seconds(fit, cost, architecture, workload)
    batch = float(cost.effective_batch)
    if batch < 1:
        absent = NotMeasured(reason=_does_not_fit(architecture, profile, recipe, workload))
        return _prediction(architecture, profile, recipe, workload, absent, capacity=absent, batch=absent)
    told = _Told(profile, fit, fitted, batch)
    capacity = told.exact(max(0, math.floor(float(cost.kv_capacity_tokens))), "tokens")
    effective_batch = told.exact(batch, "sequences")
    prefill_seconds, decode_seconds = _phases(cost, fitted, workload)
    if math.isnan(prefill_seconds + decode_seconds):
        absent = NotMeasured(reason=_no_data(cost, profile, recipe))
        return _prediction(
            architecture, profile, recipe, workload, absent, capacity=capacity, batch=effective_batch, waves=batch
        )
    requests_per_second = batch / (prefill_seconds + decode_seconds)
    itl: Predicted | NotMeasured = told.latency(decode_seconds / max(1, workload.output_tokens - 1), "s")
    if workload.output_tokens == 1:
        itl = NotMeasured(reason="one output token has no inter-token latency")
    return ServingPrediction(
        architecture=architecture,
        hardware=profile.id,
        recipe=recipe,
        workload=workload,
        output_tokens_per_second=told.rate(requests_per_second * workload.output_tokens, "tokens/s"),
        total_tokens_per_second=told.rate(
            requests_per_second * (workload.input_tokens + workload.output_tokens), "tokens/s"
        ),
        requests_per_second=told.rate(requests_per_second, "requests/s"),
        ttft_seconds=told.latency(prefill_seconds, "s"),
        itl_seconds=itl,
        kv_capacity_tokens=capacity,
        effective_batch=effective_batch,
        num_waves=math.ceil(workload.batch_size / batch),
        operations=_operations(cost, fitted, workload),
    )


def _prediction(
    architecture: Architecture,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    workload: Workload,
    absent: NotMeasured,
    *,
    capacity: Predicted | NotMeasured,
    batch: Predicted | NotMeasured,
    waves: float | None = None,
) -> ServingPrediction:
    """A prediction without times, and why."""
    return ServingPrediction(
        architecture=architecture,
        hardware=profile.id,
        recipe=recipe,
        workload=workload,
        output_tokens_per_second=absent,
        total_tokens_per_second=absent,
        requests_per_second=absent,
        ttft_seconds=absent,
        itl_seconds=absent,
        kv_capacity_tokens=capacity,
        effective_batch=batch,
        num_waves=None if waves is None else math.ceil(workload.batch_size / waves),
    )


@dataclass(frozen=True)
class _Told:
    """How numbers of one prediction name their basis and their uncertainty."""

    profile: HardwareProfile
    fit: ThroughputFit | None
    fitted: FittedSeconds | None
    batch: float

    def exact(self, value: float, unit: str) -> Predicted:
        """A count from memory sizes alone."""
        return Predicted(value=value, unit=unit, basis=basis(self.profile), no_interval_because=self._no_interval())

    def latency(self, value: float, unit: str) -> Predicted:
        """A part of the pass: a throughput fit knows the whole alone."""
        if self.fit is None:
            return self.exact(value, unit)
        reason = "the engine's throughput was fitted; how it splits into prefill and decode was not measured"
        return Predicted(value=value, unit=unit, basis=self.fit.basis, no_interval_because=reason)

    def rate(self, value: float, unit: str) -> Predicted:
        """A throughput, with an interval where a fit supports one."""
        if self.fit is None or self.fitted is None:
            return self.exact(value, unit)
        low, high = self.fit.batch_range
        if not low / BATCH_REACH <= self.batch <= high * BATCH_REACH:
            reason = (
                f"an effective batch of {self.batch:.0f} is far from those of the fitted runs, {low:.0f} to {high:.0f}"
            )
            return Predicted(value=value, unit=unit, basis=self.fit.basis, no_interval_because=reason)
        factor = math.exp(float(self.fitted.relative_half_width))
        method = f"t with {self.fit.degrees_of_freedom} degrees of freedom, at least the error on shapes left out"
        interval = Interval(low=value / factor, high=value * factor, level=self.fit.level, method=method)
        return Predicted(value=value, unit=unit, basis=self.fit.basis, interval=interval)

    def _no_interval(self) -> str:
        return NO_ENGINE_INTERVAL if self.profile.efficiencies else NO_INTERVAL


def basis(profile: HardwareProfile) -> str:
    """What a prediction on this profile rests on, without a fit."""
    if profile.calibration is None:
        return BASIS
    return f"roofline at efficiencies measured on {profile.calibration.device}, {profile.calibration.measured_at}"


def _phases(cost: PassCost, fitted: FittedSeconds | None, workload: Workload) -> tuple[float, float]:
    """Seconds up to the first token and after it; the host's time is spread evenly over the steps."""
    if fitted is None:
        return float(cost.prefill_seconds), float(cost.decode_seconds)
    host_step_seconds = float(fitted.host_seconds) / workload.output_tokens
    matrices, attention = fitted.matrix_scale, fitted.attention_scale
    products = float(cost.prefill_gemm + cost.prefill_head + cost.prefill_exchange)
    prefill = matrices * products + attention * float(cost.prefill_attention)
    return prefill + host_step_seconds, float(fitted.seconds) - prefill - host_step_seconds


def _operations(cost: PassCost, fitted: FittedSeconds | None, workload: Workload) -> tuple[OperationPrediction, ...]:
    """Of one device; all devices of a group do the same at the same time."""
    matrices, attention = (1.0, 1.0) if fitted is None else (fitted.matrix_scale, fitted.attention_scale)
    operations = [
        OperationPrediction(
            operation="gemm",
            prefill_seconds=matrices * float(cost.prefill_gemm),
            decode_seconds=matrices * float(cost.decode_gemm),
        ),
        OperationPrediction(
            operation="attention",
            prefill_seconds=attention * float(cost.prefill_attention),
            decode_seconds=attention * float(cost.decode_attention),
        ),
        OperationPrediction(
            operation="head",
            prefill_seconds=matrices * float(cost.prefill_head),
            decode_seconds=matrices * float(cost.decode_head),
        ),
    ]
    if cost.prefill_exchange or cost.decode_exchange:
        operations.append(
            OperationPrediction(
                operation="exchange",
                prefill_seconds=matrices * float(cost.prefill_exchange),
                decode_seconds=matrices * float(cost.decode_exchange),
            )
        )
    if fitted is not None:
        step_seconds = float(fitted.host_seconds) / workload.output_tokens
        operations.append(
            OperationPrediction(
                operation="host",
                prefill_seconds=step_seconds,
                decode_seconds=step_seconds * (workload.output_tokens - 1),
            )
        )
        cache_seconds = float(fitted.cache_seconds)
        if cache_seconds:
            operations.append(
                OperationPrediction(operation="cache copy", prefill_seconds=0.0, decode_seconds=cache_seconds)
            )
    return tuple(operations)


def _no_data(cost: PassCost, profile: HardwareProfile, recipe: ServingRecipe) -> str:
    if np.isnan(cost.decode_exchange + cost.prefill_exchange).any():
        if not profile.efficiencies:
            return f"no data: the sheet of {profile.id} has no link between devices; leave out --tensor-parallel-size"
        return (
            f"no data: the measured profile of {profile.id} does not tell how fast devices exchange; without --profile "
            "the uncalibrated sheet answers"
        )
    names = ("prefill_gemm", "prefill_attention", "prefill_head", "decode_gemm", "decode_attention", "decode_head")
    absent = [name.replace("_", " ") for name in names if np.isnan(getattr(cost, name)).any()]
    return (
        f"no data: the measured profile of {profile.id} has no efficiency in {recipe_words(recipe)} near these "
        f"sizes for {', '.join(absent)}; without --profile the uncalibrated sheet answers"
    )


def _why_not_shared(architecture: Architecture, recipe: ServingRecipe) -> str | None:
    """Why the recipe's devices cannot share an architecture; None where they can."""
    num_devices = recipe.tensor_parallel_size
    if bool(splits(architecture, num_devices)):
        return None
    return (
        f"{num_devices} devices cannot share {architecture.num_attention_heads} heads, "
        f"{architecture.num_key_value_heads} KV heads and an intermediate size of {architecture.intermediate_size}: "
        "heads and intermediate size must be multiples of the devices, KV heads a multiple or a divisor of them"
    )


def predict_batches(
    architecture: Architecture,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    *,
    batch_sizes: Sequence[int] = (128, 256, 512, 1024, 2048, 4096),
    input_tokens: int = 1024,
    output_tokens: int = 1024,
    fit: ThroughputFit | None = None,
) -> tuple[ServingPrediction, ...]:
    """One prediction a batch size: the rows of `archfleet predict CONFIG --hardware ID --batch 128..4096`."""
    workloads = (
        Workload(batch_size=batch_size, input_tokens=input_tokens, output_tokens=output_tokens)
        for batch_size in batch_sizes
    )
    return tuple(predict_serving(architecture, profile, recipe, workload, fit=fit) for workload in workloads)


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """Read "64", "64,96" or "128..4096" (doubling from the first up to the last).

    Raises:
        ValueError: the text is none of these.
    """
    first, dots, last = text.partition("..")
    try:
        sizes = [int(part) for part in (first, last)] if dots else [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or (dots and sizes[0] > sizes[1]):
        raise ValueError(f"batch sizes {text!r}: expected whole numbers such as 64, 64,96 or 128..4096")
    if not dots:
        return tuple(sizes)
    doublings = range(int(math.log2(sizes[1] / sizes[0])) + 1)
    return tuple(sizes[0] << doubling for doubling in doublings)


def predict_throughput_array(
    shapes: Shapes,
    *,
    vocab_size: int,
    tie_word_embeddings: bool,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    workload: Workload,
    fit: ThroughputFit | None = None,
) -> Floats:
    """Predicted output tokens/s of many architectures at once, for ranking; NaN where one does not fit or has no data.

    The same formulas as `predict_serving`. On `cpu-generic` it is a tie-breaker before anything was measured.

    Args:
        shapes: arrays of config.json fields; all of one shape, or broadcastable.
        vocab_size: V, common to all.
        tie_word_embeddings: whether head and embedding share their weights (memory only).
        profile: the device.
        recipe: dtype, quantisation, KV cache and devices.
        workload: requested batch and lengths.
        fit: host term and scale of this engine on this profile, if there is one.

    Returns:
        float64 array of the broadcast shape, output tokens/s; of the whole group with tensor parallelism.
    """
    if fit is not None:
        require_same_target(fit, profile, recipe)
    cost = pass_cost(shapes, vocab_size, tie_word_embeddings, profile, recipe, workload)
    fits = cost.effective_batch >= 1
    if fit is None:
        pass_seconds = cost.prefill_seconds + cost.decode_seconds
    else:
        pass_seconds = expected_seconds(fit, cost, shapes, workload)
    seconds = np.where(fits, pass_seconds, np.nan)
    return np.asarray(cost.effective_batch * workload.output_tokens / seconds, dtype=float)


def _does_not_fit(
    architecture: Architecture, profile: HardwareProfile, recipe: ServingRecipe, workload: Workload
) -> str:
    share = device_share(architecture, recipe)
    tokens = workload.input_tokens + workload.output_tokens
    sequence = tokens * share.key_value_bytes_per_token
    each = f" on each of {recipe.tensor_parallel_size} devices" if recipe.tensor_parallel_size > 1 else ""
    return (
        f"does not fit on {profile.id}: weights of {share.weight_bytes / 1e9:.2f} GB and one sequence of {tokens} "
        f"tokens ({sequence / 1e9:.2f} GB of KV cache){each} need more than the {usable_bytes(profile) / 1e9:.2f} GB "
        "available"
    )
