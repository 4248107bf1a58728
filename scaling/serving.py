"""Serving throughput and latency, predicted by a roofline.

Every step of the engine is a sum over operations of max(FLOPs / peak, bytes / bandwidth) (`hwprofiles/roofline.py`).
With B sequences in the batch, w bytes an element, d hidden, f intermediate, A = heads · head_dim query width,
K = kv_heads · head_dim key width, L layers, V vocabulary and context c (tokens attended to), one decode step costs:

    operation    FLOPs                      bytes
    gemm p→q     2·B·p·q                    w·(p·q + B·(p + q))     p→q: d→A+2K, A→d, d→2f, f→d;  L times
    attention    4·A·B·c                    w·2·K·B·c               L times
    head d→V     2·B·d·V                    w·(d·V + B·(d + V))     once

Prefill runs the same matrices over B · input tokens in chunks, attention causally, the head once a sequence. Decode
is integrated over the context exactly: attention is proportional to c, so its mean is at c = input + output / 2.

What is *not* in it: efficiencies below one, the host's time for a step, scheduling, sampling. It orders shapes that
are bound by a device; absolute numbers are optimistic, and at the sizes of a laptop study (under a million
parameters) the host's time dominates and the order itself may be wrong. Measured numbers always win over these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import PositiveInt

from hwprofiles.profile import BYTES_PER_ELEMENT, HardwareProfile
from hwprofiles.roofline import least_seconds
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import NotMeasured, Predicted
from scaling.recipes import ServingRecipe, Workload

Floats = NDArray[np.float64]

MEMORY_FRACTION = 0.92
"""Share of a device's memory that an engine takes for everything (vLLM: `gpu_memory_utilization`)."""
GPU_RUNTIME_BYTES = 2.5e9
"""What a GPU engine keeps of that share besides weights and KV: activations of a full step, CUDA graphs, buffers.
An assumed constant that reproduces observed KV capacities of 1B to 8B models within 2 %; the engine's own figure
replaces it once it was measured."""
PREFILL_CHUNK_TOKENS = 8192
"""Tokens that an engine prefills in one step (vLLM's `max_num_batched_tokens` on an A100)."""
BASIS = "roofline, uncalibrated"
NO_INTERVAL = "an uncalibrated roofline is a bound; its error on this engine was not measured"


class Shapes(Protocol):
    """Architectures as arrays: the fields of config.json, each a number or an array; they broadcast together."""

    @property
    def hidden_size(self) -> ArrayLike: ...
    @property
    def intermediate_size(self) -> ArrayLike: ...
    @property
    def num_hidden_layers(self) -> ArrayLike: ...
    @property
    def num_attention_heads(self) -> ArrayLike: ...
    @property
    def num_key_value_heads(self) -> ArrayLike: ...
    @property
    def head_dim(self) -> ArrayLike: ...


class OperationPrediction(Value):
    """The share of one kind of operation in a whole request, prefill and decode, in seconds for the batch."""

    operation: Literal["gemm", "attention", "head"]
    prefill_seconds: float
    decode_seconds: float


class ServingPrediction(Value):
    """What the roofline says of one architecture under one workload. Predicted, never measured.

    Throughput is that of the steady state at the effective batch: where more is asked than fits, the rest waits
    and `num_waves` passes are made; the drain of the last one is left out. `ttft_seconds` is from admission to the
    first token of the whole effective batch, waiting in the queue excluded.
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
    architecture: Architecture, profile: HardwareProfile, recipe: ServingRecipe, workload: Workload
) -> ServingPrediction:
    """Predict throughput, latency and KV capacity of one architecture on one device.

    Raises:
        ValueError: the device's sheet has no peak for the recipe's dtype.
    """
    cost = _roofline(architecture, architecture.vocab_size, architecture.tie_word_embeddings, profile, recipe, workload)
    capacity = max(0, math.floor(float(cost.kv_capacity_tokens)))
    batch = float(cost.effective_batch)
    itl_seconds = float(cost.decode_seconds) / max(1, workload.output_tokens - 1)
    request_seconds = float(cost.prefill_seconds + cost.decode_seconds)
    fits = batch >= 1
    reason = "" if fits else _does_not_fit(architecture, profile, recipe, workload)

    def number(value: float, unit: str) -> Predicted | NotMeasured:
        if not fits:
            return NotMeasured(reason=reason)
        return Predicted(value=value, unit=unit, basis=BASIS, no_interval_because=NO_INTERVAL)

    requests_per_second = batch / request_seconds if fits else math.nan
    itl: Predicted | NotMeasured = number(itl_seconds, "s")
    if fits and workload.output_tokens == 1:
        itl = NotMeasured(reason="one output token has no inter-token latency")
    return ServingPrediction(
        architecture=architecture,
        hardware=profile.id,
        recipe=recipe,
        workload=workload,
        output_tokens_per_second=number(requests_per_second * workload.output_tokens, "tokens/s"),
        total_tokens_per_second=number(
            requests_per_second * (workload.input_tokens + workload.output_tokens), "tokens/s"
        ),
        requests_per_second=number(requests_per_second, "requests/s"),
        ttft_seconds=number(float(cost.prefill_seconds), "s"),
        itl_seconds=itl,
        kv_capacity_tokens=number(capacity, "tokens"),
        effective_batch=number(batch, "sequences"),
        num_waves=math.ceil(workload.batch_size / batch) if fits else None,
        operations=cost.operations() if fits else (),
    )


def predict_batches(
    architecture: Architecture,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    *,
    batch_sizes: Sequence[int] = (128, 256, 512, 1024, 2048, 4096),
    input_tokens: int = 1024,
    output_tokens: int = 1024,
) -> tuple[ServingPrediction, ...]:
    """One prediction a batch size: the rows of `archfleet predict CONFIG --hardware ID --batch 128..4096`."""
    workloads = (
        Workload(batch_size=batch_size, input_tokens=input_tokens, output_tokens=output_tokens)
        for batch_size in batch_sizes
    )
    return tuple(predict_serving(architecture, profile, recipe, workload) for workload in workloads)


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
) -> Floats:
    """Predicted output tokens/s of many architectures at once, for ranking; NaN where one does not fit.

    The same formulas as `predict_serving`. On `cpu-generic` it is a tie-breaker before anything was measured.

    Args:
        shapes: arrays of config.json fields; all of one shape, or broadcastable.
        vocab_size: V, common to all.
        tie_word_embeddings: whether head and embedding share their weights (memory only).
        profile: the device.
        recipe: dtype of weights and KV cache.
        workload: requested batch and lengths.

    Returns:
        float64 array of the broadcast shape, output tokens/s.
    """
    cost = _roofline(shapes, vocab_size, tie_word_embeddings, profile, recipe, workload)
    fits = cost.effective_batch >= 1
    seconds = np.where(fits, cost.prefill_seconds + cost.decode_seconds, np.nan)
    return np.asarray(cost.effective_batch * workload.output_tokens / seconds, dtype=float)


@dataclass(frozen=True)
class _Cost:
    """Seconds of one pass over the effective batch, by operation; arrays of the candidates' shape."""

    prefill_gemm: Floats
    prefill_attention: Floats
    prefill_head: Floats
    decode_gemm: Floats
    decode_attention: Floats
    decode_head: Floats
    kv_capacity_tokens: Floats
    effective_batch: Floats

    @property
    def prefill_seconds(self) -> Floats:
        return self.prefill_gemm + self.prefill_attention + self.prefill_head

    @property
    def decode_seconds(self) -> Floats:
        return self.decode_gemm + self.decode_attention + self.decode_head

    def operations(self) -> tuple[OperationPrediction, ...]:
        names: tuple[Literal["gemm", "attention", "head"], ...] = ("gemm", "attention", "head")
        return tuple(
            OperationPrediction(
                operation=name,
                prefill_seconds=float(getattr(self, f"prefill_{name}")),
                decode_seconds=float(getattr(self, f"decode_{name}")),
            )
            for name in names
        )


@dataclass(frozen=True)
class _Widths:
    """The symbols of the module's formulas, as arrays."""

    d: Floats
    f: Floats
    A: Floats
    K: Floats
    L: Floats
    V: float

    @classmethod
    def of(cls, shapes: Shapes, vocab_size: int) -> "_Widths":
        head_dim = np.asarray(shapes.head_dim, dtype=float)
        return cls(
            d=np.asarray(shapes.hidden_size, dtype=float),
            f=np.asarray(shapes.intermediate_size, dtype=float),
            A=np.asarray(shapes.num_attention_heads, dtype=float) * head_dim,
            K=np.asarray(shapes.num_key_value_heads, dtype=float) * head_dim,
            L=np.asarray(shapes.num_hidden_layers, dtype=float),
            V=float(vocab_size),
        )

    @property
    def matrices(self) -> tuple[tuple[Floats, Floats], ...]:
        """(p, q) of the four matrices of a layer, as an engine fuses them."""
        return (self.d, self.A + 2 * self.K), (self.A, self.d), (self.d, 2 * self.f), (self.f, self.d)

    def num_weights(self, *, tied: bool) -> Floats:
        """All weights that a device holds, embeddings and head included; norms are too few to count."""
        layer = 2 * self.d * (self.A + self.K) + 3 * self.d * self.f
        return self.L * layer + self.V * self.d * (1 if tied else 2)


def _roofline(
    shapes: Shapes,
    vocab_size: int,
    tied: bool,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    workload: Workload,
) -> _Cost:
    widths = _Widths.of(shapes, vocab_size)
    element_bytes = BYTES_PER_ELEMENT[recipe.dtype]
    tokens_per_sequence = workload.input_tokens + workload.output_tokens
    kv_bytes = element_bytes * 2 * widths.L * widths.K
    budget_bytes = _usable_bytes(profile) - element_bytes * widths.num_weights(tied=tied)
    capacity_tokens = budget_bytes / kv_bytes
    batch = np.minimum(workload.batch_size, np.floor(capacity_tokens / tokens_per_sequence))
    rows = np.maximum(batch, 1)  # what does not fit is masked by the callers

    def seconds(flops: Floats, elements: Floats) -> Floats:
        return least_seconds(flops, element_bytes * elements, profile, recipe.dtype)

    def gemm(num_rows: Floats, p: Floats, q: Floats) -> Floats:
        return seconds(2 * num_rows * p * q, p * q + num_rows * (p + q))

    def layers(num_rows: Floats) -> Floats:
        return widths.L * sum((gemm(num_rows, p, q) for p, q in widths.matrices), np.zeros(()))

    def attention(attended_tokens: Floats, read_tokens: Floats) -> Floats:
        return widths.L * seconds(4 * widths.A * attended_tokens, 2 * widths.K * read_tokens)

    prompt_tokens = rows * workload.input_tokens
    chunk_tokens = np.minimum(prompt_tokens, PREFILL_CHUNK_TOKENS)
    num_steps = workload.output_tokens - 1  # prefill yields the first token
    context_tokens = workload.input_tokens + workload.output_tokens / 2  # mean over t = 1 .. output - 1
    head = gemm(rows, widths.d, np.asarray(widths.V))
    return _Cost(
        prefill_gemm=layers(chunk_tokens) * prompt_tokens / chunk_tokens,
        prefill_attention=attention(prompt_tokens * (workload.input_tokens + 1) / 2, prompt_tokens),
        prefill_head=head,
        decode_gemm=num_steps * layers(rows),
        decode_attention=num_steps * attention(rows * context_tokens, rows * context_tokens),
        decode_head=num_steps * head,
        kv_capacity_tokens=capacity_tokens,
        effective_batch=batch,
    )


def _usable_bytes(profile: HardwareProfile) -> float:
    """Bytes that an engine has for weights and KV cache."""
    runtime_bytes = GPU_RUNTIME_BYTES if profile.kind == "gpu" else 0.0
    return MEMORY_FRACTION * profile.memory_bytes - runtime_bytes


def _does_not_fit(
    architecture: Architecture, profile: HardwareProfile, recipe: ServingRecipe, workload: Workload
) -> str:
    element_bytes = BYTES_PER_ELEMENT[recipe.dtype]
    weights = architecture.num_total_parameters * element_bytes
    tokens = workload.input_tokens + workload.output_tokens
    sequence = tokens * architecture.key_value_bytes_per_token(element_bytes)
    return (
        f"does not fit on {profile.id}: weights of {weights / 1e9:.2f} GB and one sequence of {tokens} tokens "
        f"({sequence / 1e9:.2f} GB of KV cache) need more than the {_usable_bytes(profile) / 1e9:.2f} GB available"
    )
