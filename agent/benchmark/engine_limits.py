"""What engines cannot run, known before one is started. What is not listed here, the engine itself refuses.

vLLM's limits were read in its source and tried on its CPU build, both version 0.32.0.
"""

from agent.benchmark.campaign import Candidate
from agent.benchmark.machine import Machine
from scaling.recipes import ServingRecipe
from scaling.serving_cost import splits

PRETENDS = "fake"
"""The engine that runs everything that its roofline can tell the time of."""
PLAIN_ENGINES = frozenset({"transformers"})
"""Engines whose driver has one device and neither quantised weights nor a KV cache of another dtype."""
VLLM_CPU_HEAD_SIZES: tuple[int, ...] = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention on a CPU."""
SGLANG_CPU_MULTIPLE = 32
"""SGLang (0.5.21) pads intermediate sizes on a CPU to multiples of this."""
VLLM_CPU_FP8_CACHE_MULTIPLE = 32
"""An fp8 KV cache on a CPU wants head sizes that are multiples of this."""
FP8_CACHE_CPU_FLAGS = frozenset({"avx512f", "amx_tile"})
"""One of these must a CPU have for an fp8 KV cache."""
NEEDS_A_CHECKPOINT = frozenset(
    {
        *("awq", "awq_marlin", "auto_awq", "gptq", "gptq_marlin", "auto_gptq", "compressed-tensors"),
        *("modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed", "quark", "w8a8_fp8", "w8a8_int8"),
    }
)
"""Quantisations that an engine reads off a quantised checkpoint's config.json; it does not make them at load."""
VLLM_CPU_LACKS = frozenset({"fp8", "fp8_per_tensor", "fp8_per_block", "mxfp8"})
"""Quantisations without a kernel in vLLM's CPU build; it has fp8_per_channel and int8_per_channel_weight_only."""
_VOCABULARY_PADDING = 64
"""vLLM and SGLang pad vocabularies to multiples of this before they share them."""


def check_recipe(recipe: ServingRecipe, machine: Machine) -> None:
    """Refuse a recipe that its engine or this machine cannot follow, whatever the architecture.

    Raises:
        ValueError: quantisation, KV cache or number of devices; the message says what to give instead.
    """
    if recipe.engine == PRETENDS:
        return
    if recipe.engine in PLAIN_ENGINES:
        _check_plain(recipe)
        return
    if recipe.tensor_parallel_size > machine.num_devices:
        found = f"{machine.num_devices} of {machine.place} visible" if machine.on_gpu else "this machine has no GPU"
        raise ValueError(
            f"--tensor-parallel-size {recipe.tensor_parallel_size} wants as many GPUs, but {found}; give "
            f"--tensor-parallel-size {machine.num_devices}"
        )
    _check_quantization(recipe, machine)
    on_vllm_cpu = recipe.engine == "vllm" and not machine.on_gpu
    if on_vllm_cpu and recipe.kv_cache_dtype.startswith("fp8") and not FP8_CACHE_CPU_FLAGS & machine.cpu_flags:
        raise ValueError(
            f"--kv-cache-dtype {recipe.kv_cache_dtype}: vLLM's fp8 KV cache wants a CPU with AVX-512 or AMX, and this "
            "one has neither; give --kv-cache-dtype auto"
        )


def check_shape(candidate: Candidate, recipe: ServingRecipe, machine: Machine) -> None:
    """Refuse an architecture that the engine cannot run, or not with so many devices.

    Raises:
        ValueError: the head size, or heads that cannot be shared; the message says what would be possible.
    """
    if recipe.engine == PRETENDS:
        return
    if recipe.engine == "vllm" and not machine.on_gpu:
        _check_cpu_head_size(candidate, recipe)
    if recipe.engine == "sglang" and not machine.on_gpu:
        _check_cpu_padding(candidate)
    if recipe.tensor_parallel_size > 1:
        _check_shares(candidate, recipe.tensor_parallel_size)


def _check_cpu_padding(candidate: Candidate) -> None:
    size = candidate.architecture.intermediate_size
    if size % SGLANG_CPU_MULTIPLE:
        padded = -(-size // SGLANG_CPU_MULTIPLE) * SGLANG_CPU_MULTIPLE
        raise ValueError(
            f"{candidate.name}: SGLang on a CPU pads intermediate_size {size} to {padded}, which is another "
            f"architecture; expected a multiple of {SGLANG_CPU_MULTIPLE}. Measure it with --engine vllm, or on a GPU"
        )


def _check_plain(recipe: ServingRecipe) -> None:
    wishes = {
        f"--quantization {recipe.quantization}": recipe.quantization is not None,
        f"--kv-cache-dtype {recipe.kv_cache_dtype}": recipe.kv_cache_dtype != "auto",
        f"--tensor-parallel-size {recipe.tensor_parallel_size}": recipe.tensor_parallel_size > 1,
    }
    asked = [option for option, is_asked in wishes.items() if is_asked]
    if asked:
        raise ValueError(
            f"{', '.join(asked)}: the engine {recipe.engine} runs here on one device, with unquantised weights and a "
            "KV cache of the same dtype; leave that out, or measure with --engine vllm"
        )


def _check_quantization(recipe: ServingRecipe, machine: Machine) -> None:
    name = recipe.quantization
    if name in NEEDS_A_CHECKPOINT:
        raise ValueError(
            f"--quantization {name} belongs to a quantised checkpoint, and architectures are measured with random "
            "weights; give one that the engine makes at load, such as fp8 (on a CPU fp8_per_channel)"
        )
    if recipe.engine == "vllm" and not machine.on_gpu and name in VLLM_CPU_LACKS:
        raise ValueError(
            f"--quantization {name}: vLLM's CPU build has no kernel for it (seen in 0.32.0); give fp8_per_channel or "
            "int8_per_channel_weight_only"
        )


def _check_cpu_head_size(candidate: Candidate, recipe: ServingRecipe) -> None:
    head_dim = candidate.architecture.head_dim
    fits, which = VLLM_CPU_HEAD_SIZES, ""
    if recipe.kv_cache_dtype.startswith("fp8"):
        fits = tuple(size for size in fits if size % VLLM_CPU_FP8_CACHE_MULTIPLE == 0)
        which = f" with --kv-cache-dtype {recipe.kv_cache_dtype}"
    if head_dim not in fits:
        raise ValueError(
            f"{candidate.name}: head_dim {head_dim} does not run in vLLM on a CPU{which}; expected one of "
            f"{', '.join(map(str, fits))}. Measure it with --engine transformers, or on a GPU"
        )


def _check_shares(candidate: Candidate, num_devices: int) -> None:
    shape = candidate.architecture
    padded = -(-shape.vocab_size // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    if bool(splits(shape, num_devices)) and padded % num_devices == 0:
        return
    possible = [size for size in range(1, num_devices) if bool(splits(shape, size)) and padded % size == 0]
    raise ValueError(
        f"{candidate.name}: {num_devices} devices cannot share {shape.num_attention_heads} heads, "
        f"{shape.num_key_value_heads} KV heads, an intermediate size of {shape.intermediate_size} and a vocabulary of "
        f"{padded}: each must be a multiple of the devices (KV heads may also divide them). Give "
        f"--tensor-parallel-size {' or '.join(map(str, possible))}"
    )
