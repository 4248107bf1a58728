"""What one pass of an engine costs by the roofline: seconds of each kind of operation, and what fits in memory.

Every step of the engine is a sum over operations of max(FLOPs / peak, bytes / bandwidth), divided by a measured
efficiency where the profile has them (`hwprofiles/roofline.py`). With B sequences in the batch, w bytes an element,
d hidden, f intermediate, A = heads · head_dim query width, K = kv_heads · head_dim key width, L layers, V vocabulary
and context c (tokens attended to), one decode step costs:

    operation    FLOPs                      bytes                   efficiency at
    gemm p→q     2·B·p·q                    w·(p·q + B·(p + q))     B rows, p·q weights     L times
    attention    4·A·B·c                    w·2·K·B·c               A/K, head_dim           L times
    head d→V     2·B·d·V                    w·(d·V + B·(d + V))     B rows, d·V weights     once

with p→q: d→A+2K, A→d, d→2f, f→d. Prefill runs the same matrices over B · input tokens in chunks, attention causally,
the head once a sequence. Decode is integrated over the context exactly: attention is proportional to c, so its mean
is at c = input + output / 2.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwprofiles.profile import BYTES_PER_ELEMENT, HardwareProfile, Operation
from hwprofiles.roofline import attained_seconds
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


@dataclass(frozen=True)
class PassCost:
    """Seconds of one pass over the effective batch, by operation; arrays of the candidates' shape.

    NaN where the profile has measured efficiencies, but none near this operation and size.
    """

    prefill_gemm: Floats
    prefill_attention: Floats
    prefill_head: Floats
    decode_gemm: Floats
    decode_attention: Floats
    decode_head: Floats
    cache_copy: Floats
    """One copy of the whole KV cache a decode step, at the bandwidth: what an engine does whose cache grows by
    concatenation (transformers). Part of no sum here; a fitted engine may have it (`scaling/throughput_fit.py`)."""
    kv_capacity_tokens: Floats
    effective_batch: Floats

    @property
    def prefill_seconds(self) -> Floats:
        """Of the whole effective batch, up to its first tokens."""
        return self.prefill_gemm + self.prefill_attention + self.prefill_head

    @property
    def decode_seconds(self) -> Floats:
        """Of all steps after the first token."""
        return self.decode_gemm + self.decode_attention + self.decode_head

    @property
    def matrix_seconds(self) -> Floats:
        """Of all matrix products, the head included."""
        return self.prefill_gemm + self.prefill_head + self.decode_gemm + self.decode_head

    @property
    def attention_seconds(self) -> Floats:
        """Of all attention."""
        return self.prefill_attention + self.decode_attention


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


def pass_cost(
    shapes: Shapes,
    vocab_size: int,
    tied: bool,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    workload: Workload,
) -> PassCost:
    """Cost of one pass of each shape; what does not fit costs as a batch of one and is masked by the callers.

    Raises:
        ValueError: the profile has no memory, or no peak for the recipe's dtype.
    """
    widths = _Widths.of(shapes, vocab_size)
    element_bytes = BYTES_PER_ELEMENT[recipe.dtype]
    tokens_per_sequence = workload.input_tokens + workload.output_tokens
    kv_bytes = element_bytes * 2 * widths.L * widths.K
    budget_bytes = usable_bytes(profile) - element_bytes * widths.num_weights(tied=tied)
    capacity_tokens = budget_bytes / kv_bytes
    batch = np.minimum(workload.batch_size, np.floor(capacity_tokens / tokens_per_sequence))
    rows = np.maximum(batch, 1)

    def gemm(num_rows: Floats, p: Floats, q: Floats) -> Floats:
        flops, num_bytes = 2 * num_rows * p * q, element_bytes * (p * q + num_rows * (p + q))
        return attained_seconds(
            "gemm", (num_rows, p * q), flops=flops, num_bytes=num_bytes, profile=profile, dtype=recipe.dtype
        )

    def layers(num_rows: Floats) -> Floats:
        return widths.L * sum((gemm(num_rows, p, q) for p, q in widths.matrices), np.zeros(()))

    def attention(operation: Operation, attended_tokens: Floats, read_tokens: Floats) -> Floats:
        seconds = attained_seconds(
            operation,
            (widths.A / widths.K, shapes.head_dim),
            flops=4 * widths.A * attended_tokens,
            num_bytes=element_bytes * (2 * widths.K * read_tokens),
            profile=profile,
            dtype=recipe.dtype,
        )
        return np.asarray(widths.L * seconds, dtype=float)

    prompt_tokens = rows * workload.input_tokens
    chunk_tokens = np.minimum(prompt_tokens, PREFILL_CHUNK_TOKENS)
    num_steps = workload.output_tokens - 1  # prefill yields the first token
    context_tokens = workload.input_tokens + workload.output_tokens / 2  # mean over t = 1 .. output - 1
    attended_tokens = prompt_tokens * (workload.input_tokens + 1) / 2
    head = gemm(rows, widths.d, np.asarray(widths.V))
    return PassCost(
        prefill_gemm=layers(chunk_tokens) * prompt_tokens / chunk_tokens,
        prefill_attention=attention("prefill_attention", attended_tokens, prompt_tokens),
        prefill_head=head,
        decode_gemm=num_steps * layers(rows),
        decode_attention=num_steps * attention("decode_attention", rows * context_tokens, rows * context_tokens),
        decode_head=num_steps * head,
        cache_copy=num_steps * 2 * kv_bytes * rows * context_tokens / profile.memory_bandwidth_bytes_per_second,
        kv_capacity_tokens=capacity_tokens,
        effective_batch=batch,
    )


def usable_bytes(profile: HardwareProfile) -> float:
    """Bytes that an engine has for weights and KV cache.

    Raises:
        ValueError: the profile does not know what memory the driver reports.
    """
    if profile.memory_bytes is None:
        raise ValueError(
            f"the sheet of {profile.id} does not know what memory its driver reports, so what fits cannot be told; "
            f"run `archfleet hw calibrate --hardware {profile.id} --out measured.toml` on such a board and give "
            "--profile measured.toml"
        )
    runtime_bytes = GPU_RUNTIME_BYTES if profile.kind == "gpu" else 0.0
    return MEMORY_FRACTION * profile.memory_bytes - runtime_bytes
