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

Quantised weights have bytes of their own in p·q, activations stay at w, and products run at the peak of the dtype that
they are multiplied in (`scaling/weight_formats.py`); cached keys and values have their own bytes in 2·K·B·c.

With t devices in tensor parallel, the formulas hold for one device with A/t, f/t, V/t and max(1, kv_heads/t) key heads
(fewer key heads than devices are kept more than once); all devices do the same at the same time. Besides, with m the
bytes of B rows of hidden vectors (w·B·d) and s those of B rows of logits (w·B·V), they exchange

    all-reduce    2·(t-1)/t · m / bandwidth    after attention, after the MLP (L times), after the embedding
    all-gather      (t-1)/t · s / bandwidth    of the logits, once

at the link's bandwidth in one direction, half of the sheet's: the least time of these collectives on large sizes
(NVIDIA, nccl-tests, doc/PERFORMANCE.md, "bus bandwidth"); their latency, which small batches pay, is left out.
Splitting after Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, as vLLM and SGLang do it.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwprofiles.profile import BYTES_PER_ELEMENT, Dtype, HardwareProfile, Operation
from hwprofiles.roofline import attained_seconds
from scaling.architecture import Architecture
from scaling.recipes import ServingRecipe, Workload
from scaling.weight_formats import bytes_per_weight, cache_dtype, product_dtype, why_unknown

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
    prefill_exchange: Floats
    """Collectives between the devices of a tensor-parallel group; zero on one device."""
    decode_exchange: Floats
    kv_capacity_tokens: Floats
    effective_batch: Floats

    @property
    def prefill_seconds(self) -> Floats:
        """Of the whole effective batch, up to its first tokens."""
        return self.prefill_gemm + self.prefill_attention + self.prefill_head + self.prefill_exchange

    @property
    def decode_seconds(self) -> Floats:
        """Of all steps after the first token."""
        return self.decode_gemm + self.decode_attention + self.decode_head + self.decode_exchange

    @property
    def matrix_seconds(self) -> Floats:
        """Of all matrix products, the head and the exchange of their results included."""
        products = self.prefill_gemm + self.prefill_head + self.decode_gemm + self.decode_head
        return products + self.prefill_exchange + self.decode_exchange

    @property
    def attention_seconds(self) -> Floats:
        """Of all attention."""
        return self.prefill_attention + self.decode_attention


@dataclass(frozen=True)
class _Widths:
    """The symbols of the module's formulas for one of t devices, as arrays."""

    d: Floats
    f: Floats
    A: Floats
    K: Floats
    L: Floats
    V: Floats

    @classmethod
    def of(cls, shapes: Shapes, vocab_size: int, num_devices: int) -> "_Widths":
        head_dim = np.asarray(shapes.head_dim, dtype=float)
        heads = np.asarray(shapes.num_attention_heads, dtype=float)
        kv_heads = np.asarray(shapes.num_key_value_heads, dtype=float)
        f = np.asarray(shapes.intermediate_size, dtype=float)
        if num_devices > 1:
            heads, f, kv_heads = heads / num_devices, f / num_devices, np.maximum(kv_heads / num_devices, 1)
            heads = np.where(splits(shapes, num_devices), heads, np.nan)
        return cls(
            d=np.asarray(shapes.hidden_size, dtype=float),
            f=f,
            A=heads * head_dim,
            K=kv_heads * head_dim,
            L=np.asarray(shapes.num_hidden_layers, dtype=float),
            V=np.asarray(vocab_size / num_devices),
        )

    @property
    def matrices(self) -> tuple[tuple[Floats, Floats], ...]:
        """(p, q) of the four matrices of a layer, as an engine fuses them."""
        return (self.d, self.A + 2 * self.K), (self.A, self.d), (self.d, 2 * self.f), (self.f, self.d)

    @property
    def num_block_weights(self) -> Floats:
        """Weights of all layers; norms are too few to count."""
        return self.L * (2 * self.d * (self.A + self.K) + 3 * self.d * self.f)

    def num_embedding_weights(self, *, tied: bool) -> Floats:
        """Of embedding and head."""
        return self.V * self.d * (1 if tied else 2)


def splits(shapes: Shapes, num_devices: int) -> NDArray[np.bool_]:
    """Whether heads, key heads and the MLP can be shared evenly among devices, as vLLM and SGLang want it.

    Key heads are a multiple of the devices, or the devices of the key heads, which are then kept more than once.
    """
    heads, kv_heads = np.asarray(shapes.num_attention_heads), np.asarray(shapes.num_key_value_heads)
    whole = (heads % num_devices == 0) & (np.asarray(shapes.intermediate_size) % num_devices == 0)
    return np.asarray(whole & ((kv_heads % num_devices == 0) | (num_devices % kv_heads == 0)), dtype=bool)


def pass_cost(
    shapes: Shapes,
    vocab_size: int,
    tied: bool,
    profile: HardwareProfile,
    recipe: ServingRecipe,
    workload: Workload,
    *,
    told_capacity_tokens: float | None = None,
) -> PassCost:
    """Cost of one pass of each shape; what does not fit costs as a batch of one and is masked by the callers.

    NaN throughout where the recipe's quantisation is not known or a shape cannot be shared among its devices. Where the
    engine told what its KV cache holds, `told_capacity_tokens` replaces the estimate.

    Raises:
        ValueError: the profile has no memory, or no peak for the recipe's dtype.
    """
    num_devices = recipe.tensor_parallel_size
    widths = _Widths.of(shapes, vocab_size, num_devices)
    element_bytes, cache = BYTES_PER_ELEMENT[recipe.dtype], cache_dtype(recipe)
    weight_bytes = np.nan if why_unknown(recipe) else bytes_per_weight(recipe)
    tokens_per_sequence = workload.input_tokens + workload.output_tokens
    kv_bytes = BYTES_PER_ELEMENT[cache] * 2 * widths.L * widths.K
    held_bytes = weight_bytes * widths.num_block_weights + element_bytes * widths.num_embedding_weights(tied=tied)
    capacity_tokens = (usable_bytes(profile) - held_bytes) / kv_bytes
    if told_capacity_tokens is not None:
        capacity_tokens = np.full_like(capacity_tokens, told_capacity_tokens)
    batch = np.minimum(workload.batch_size, np.floor(capacity_tokens / tokens_per_sequence))
    rows = np.maximum(batch, 1)
    multiplied = product_dtype(recipe, profile)
    unpacking = None if recipe.quantization is None or multiplied != recipe.dtype else recipe.quantization

    def gemm(num_rows: Floats, p: Floats, q: Floats, bytes_each: float, dtype: Dtype, kernel: str | None) -> Floats:
        num_bytes = bytes_each * (p * q) + element_bytes * (num_rows * (p + q))
        sizes, flops = (num_rows, p * q), 2 * num_rows * p * q
        return attained_seconds(
            "gemm", sizes, flops=flops, num_bytes=num_bytes, profile=profile, dtype=dtype, kernel=kernel
        )

    def layers(num_rows: Floats) -> Floats:
        products = (gemm(num_rows, p, q, weight_bytes, multiplied, unpacking) for p, q in widths.matrices)
        return widths.L * sum(products, np.zeros(()))

    def attention(operation: Operation, attended_tokens: Floats, read_tokens: Floats) -> Floats:
        seconds = attained_seconds(
            operation,
            (widths.A / widths.K, shapes.head_dim),
            flops=4 * widths.A * attended_tokens,
            num_bytes=BYTES_PER_ELEMENT[cache] * (2 * widths.K * read_tokens),
            profile=profile,
            dtype=recipe.dtype,
            kernel=cache,
        )
        return np.asarray(widths.L * seconds, dtype=float)

    def exchange(num_rows: Floats, num_logit_rows: Floats) -> Floats:
        if num_devices == 1:
            return np.zeros(())
        share = (num_devices - 1) / num_devices
        reduced = (2 * widths.L + 1) * 2 * num_rows * widths.d
        gathered = num_logit_rows * widths.V * num_devices
        return np.asarray(share * element_bytes * (reduced + gathered) / _link_bytes_per_second(profile), dtype=float)

    prompt_tokens = rows * workload.input_tokens
    chunk_tokens = np.minimum(prompt_tokens, PREFILL_CHUNK_TOKENS)
    num_steps = workload.output_tokens - 1  # prefill yields the first token
    context_tokens = workload.input_tokens + workload.output_tokens / 2  # mean over t = 1 .. output - 1
    attended_tokens = prompt_tokens * (workload.input_tokens + 1) / 2
    head = gemm(rows, widths.d, widths.V, element_bytes, recipe.dtype, None)
    return PassCost(
        prefill_gemm=layers(chunk_tokens) * prompt_tokens / chunk_tokens,
        prefill_attention=attention("prefill_attention", attended_tokens, prompt_tokens),
        prefill_head=head,
        decode_gemm=num_steps * layers(rows),
        decode_attention=num_steps * attention("decode_attention", rows * context_tokens, rows * context_tokens),
        decode_head=num_steps * head,
        cache_copy=num_steps * 2 * kv_bytes * rows * context_tokens / profile.memory_bandwidth_bytes_per_second,
        prefill_exchange=exchange(prompt_tokens, rows),
        decode_exchange=num_steps * exchange(rows, rows),
        kv_capacity_tokens=capacity_tokens,
        effective_batch=batch,
    )


def _link_bytes_per_second(profile: HardwareProfile) -> float:
    """In one direction; NaN where the profile does not tell, or was measured and its links were not."""
    if profile.link_bytes_per_second is None or profile.efficiencies:
        return float("nan")
    return profile.link_bytes_per_second / 2


@dataclass(frozen=True)
class DeviceShare:
    """What one device of a tensor-parallel group holds of a model, in bytes."""

    weight_bytes: float
    """Norms included, which every device has."""
    key_value_bytes_per_token: float


def device_share(architecture: Architecture, recipe: ServingRecipe) -> DeviceShare:
    """What one device holds; devices that cannot share a shape evenly are not asked about here.

    Raises:
        ValueError: the bits of the recipe's quantisation are not known.
    """
    widths = _Widths.of(architecture, architecture.vocab_size, recipe.tensor_parallel_size)
    other = widths.num_embedding_weights(tied=architecture.tie_word_embeddings) + architecture.num_norm_parameters
    return DeviceShare(
        weight_bytes=float(
            bytes_per_weight(recipe) * widths.num_block_weights + BYTES_PER_ELEMENT[recipe.dtype] * other
        ),
        key_value_bytes_per_token=float(2 * widths.L * widths.K) * BYTES_PER_ELEMENT[cache_dtype(recipe)],
    )


def usable_bytes(profile: HardwareProfile) -> float:
    """Bytes that an engine has for weights and KV cache on one device.

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
