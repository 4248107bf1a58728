"""Bytes of weights and of cached keys and values, by the engines' own names of quantisations.

Quantised are the matrices of the blocks alone: embedding, head and norms keep the recipe's dtype
(https://docs.vllm.ai/en/v0.5.4/quantization/fp8.html: all linear modules except lm_head). Scales are not counted: one
to four bytes for 32 weights and more, at most 3 % of the format. A name whose bits a checkpoint decides has no entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hwprofiles.profile import BYTES_PER_ELEMENT, Dtype, HardwareProfile
from scaling.recipes import ServingRecipe


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How the matrices of the blocks are kept and multiplied."""

    bytes_per_weight: float
    product_dtype: Dtype | None
    """Activations are quantised too and products run at this dtype's peak, on devices that have one. Null, and on other
    devices: weights are unpacked and products run in the recipe's dtype, as in vLLM's Marlin kernels, which it uses for
    fp8 before Ada (https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/)."""


_FP8 = WeightFormat(bytes_per_weight=1, product_dtype="fp8")
_INT8_WEIGHTS = WeightFormat(bytes_per_weight=1, product_dtype=None)
_INT4_WEIGHTS = WeightFormat(bytes_per_weight=0.5, product_dtype=None)
WEIGHT_FORMATS: Mapping[str, WeightFormat] = {
    # vLLM: https://docs.vllm.ai/en/latest/features/quantization/online/ and its QuantizationMethods, version 0.32.
    "fp8": _FP8,
    "fp8_per_tensor": _FP8,
    "fp8_per_block": _FP8,
    "fp8_per_channel": _FP8,
    "mxfp8": _FP8,
    "int8_per_channel_weight_only": _INT8_WEIGHTS,
    # Four bits as in published checkpoints; vLLM knows no other AWQ, and of GPTQ also 2, 3 and 8 bits.
    "awq": _INT4_WEIGHTS,
    "awq_marlin": _INT4_WEIGHTS,
    "auto_awq": _INT4_WEIGHTS,
    "gptq": _INT4_WEIGHTS,
    "gptq_marlin": _INT4_WEIGHTS,
    "auto_gptq": _INT4_WEIGHTS,
    # SGLang: https://docs.sglang.io/advanced_features/quantization.html
    "w8a8_fp8": _FP8,
    "w8a8_int8": WeightFormat(bytes_per_weight=1, product_dtype="int8"),
}
"""Table: an engine's name of a quantisation → what is known of it."""


def bytes_per_weight(recipe: ServingRecipe) -> float:
    """Of a matrix of the blocks, in bytes.

    Raises:
        ValueError: the bits of the recipe's quantisation are not known.
    """
    if recipe.quantization is None:
        return BYTES_PER_ELEMENT[recipe.dtype]
    reason = why_unknown(recipe)
    if reason is not None:
        raise ValueError(reason)
    return WEIGHT_FORMATS[recipe.quantization].bytes_per_weight


def why_unknown(recipe: ServingRecipe) -> str | None:
    """Why nothing can be predicted with the recipe's quantisation; None where its bits are known."""
    if recipe.quantization is None or recipe.quantization in WEIGHT_FORMATS:
        return None
    return (
        f"no data: how many bits a weight has under quantization {recipe.quantization!r} is not known here, or its "
        f"checkpoint decides; known are {', '.join(WEIGHT_FORMATS)}"
    )


def product_dtype(recipe: ServingRecipe, profile: HardwareProfile) -> Dtype:
    """The dtype at whose peak the matrices of the blocks are multiplied on a device."""
    known = WEIGHT_FORMATS.get(recipe.quantization) if recipe.quantization is not None else None
    wanted = None if known is None else known.product_dtype
    return wanted if wanted is not None and wanted in profile.peak_flops_per_second else recipe.dtype


def cache_dtype(recipe: ServingRecipe) -> Dtype:
    """Of cached keys and values; both kinds of fp8 have one byte an element."""
    if recipe.kv_cache_dtype == "auto":
        return recipe.dtype
    return "fp8" if recipe.kv_cache_dtype.startswith("fp8") else "bfloat16"


class Numbers(Protocol):
    """In what an engine calculates: of a recipe, or of a fit to runs by one."""

    @property
    def dtype(self) -> str: ...
    @property
    def quantization(self) -> str | None: ...
    @property
    def kv_cache_dtype(self) -> str: ...
    @property
    def tensor_parallel_size(self) -> int: ...


def recipe_words(recipe: Numbers) -> str:
    """In what numbers, and on how many devices, an engine calculates: what is not the default is named."""
    words: list[str] = [recipe.dtype]
    if recipe.quantization is not None:
        words.append(f"weights in {recipe.quantization}")
    if recipe.kv_cache_dtype != "auto":
        words.append(f"KV cache in {recipe.kv_cache_dtype}")
    if recipe.tensor_parallel_size > 1:
        words.append(f"{recipe.tensor_parallel_size} devices in tensor parallel")
    return ", ".join(words)
