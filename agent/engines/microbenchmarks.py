"""Microbenchmarks: how fast this device does the operations of a decoder, one size after the other.

    operation           what is timed                                                        sizes
    gemm                (rows × k) · (k × n), k · n = weights, two aspect ratios             rows, weights
    decode_attention    one query a sequence against a filled KV cache, grouped queries      heads per KV head, head_dim
    prefill_attention   causal self-attention of whole prompts                               heads per KV head, head_dim
    copy                one tensor onto another, bytes read + written                        bytes
    launch              the host's time to start an addition of one element                  none

Attention is torch's own (`scaled_dot_product_attention`): an engine's kernels differ, which a fit on its throughputs
takes up (`scaling/throughput_fit.py`). On a CPU the matrices stay in the cache between calls where they fit, as those
of a small model do; on a GPU calls go round enough copies to overflow the cache, as layers do, and are replayed as
one CUDA graph, so that the time to launch them is not in it. torch is imported when something is timed.
"""

import functools
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from hwprofiles.calibrate import TimedOperation
from hwprofiles.profile import BYTES_PER_ELEMENT

Dtype = Literal["float32", "bfloat16", "float16"]
Call = Callable[[], object]
Timer = Callable[[list[Call]], tuple[float, ...]]
"""Seconds of one call, one figure a repeat; calls of the list are made in turn."""

MIN_REPEATS = 3
GPU_CACHE_BYTES = 256e6
"""More than any second-level cache: copies of operands that calls go round."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which sizes are timed."""

    rows: tuple[int, ...]
    weights: tuple[int, ...]
    aspect_ratios: tuple[float, ...]
    """n / k of the matrices."""
    max_gemm_flops: float
    """Costlier cells are left out."""
    query_group_sizes: tuple[int, ...]
    head_dims: tuple[int, ...]
    key_value_width: int
    """KV heads · head_dim, as nearly as whole heads allow."""
    decode_batch: int
    decode_context_tokens: int
    prefill_batch: int
    prefill_tokens: int
    copy_bytes: tuple[int, ...]


CPU_PLAN = Plan(
    rows=(1, 4, 16, 64, 128, 192, 256, 512, 1024, 4096),
    weights=(2**10, 2**12, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24),
    aspect_ratios=(0.25, 4),
    max_gemm_flops=2**35,
    query_group_sizes=(1, 2, 4, 8, 16),
    head_dims=(8, 16, 32, 64, 128),
    key_value_width=64,
    decode_batch=64,
    decode_context_tokens=96,
    prefill_batch=16,
    prefill_tokens=64,
    copy_bytes=(2**16, 2**20, 2**24, 2**27),
)
GPU_PLAN = Plan(
    rows=(1, 8, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192),
    weights=(2**18, 2**20, 2**22, 2**24, 2**26, 2**28, 2**30),
    aspect_ratios=(0.25, 4),
    max_gemm_flops=2e13,
    query_group_sizes=(1, 2, 4, 8, 16, 32),
    head_dims=(64, 128),
    key_value_width=1024,
    decode_batch=128,
    decode_context_tokens=1536,
    prefill_batch=8,
    prefill_tokens=1024,
    copy_bytes=(2**20, 2**24, 2**28, 2**31),
)


@dataclass(frozen=True)
class _Cell:
    """One shape to time: how to make its calls, and its work."""

    operation: Literal["gemm", "decode_attention", "prefill_attention", "copy"]
    size: tuple[float, ...]
    flops: float
    num_bytes: float
    make_calls: Callable[[Any], list[Call]]
    """Takes the torch device."""


def num_timings(plan: Plan, dtype: Dtype) -> int:
    """How many results `run_microbenchmarks` yields."""
    return len(_cells(plan, dtype)) + 1


def run_microbenchmarks(
    plan: Plan,
    *,
    dtype: Dtype,
    on_gpu: bool,
    seconds: float,
    num_threads: int = 1,
    num_repeats: int = 5,
) -> Generator[TimedOperation, None, None]:
    """Time every cell of the plan; yield each result as it is known.

    Args:
        plan: which sizes.
        dtype: of all operands.
        on_gpu: the first visible GPU, or the CPU.
        seconds: about how long all of it may take; cells of which three repeats take longer than their share get three.
        num_threads: CPU threads. With one, processor time is taken, which other processes hardly change.
        num_repeats: repeats of a cell.

    Raises:
        ValueError: torch is not installed, too old, or sees no GPU though one was asked for.
    """
    torch = _import_torch(on_gpu)
    cells = _cells(plan, dtype)
    slot_seconds = seconds / (len(cells) + 1)
    clock = time.process_time if num_threads == 1 else time.perf_counter
    on_host: Timer = functools.partial(_time_on_host, slot_seconds=slot_seconds, num_repeats=num_repeats, clock=clock)
    on_device: Timer = functools.partial(_time_on_gpu, slot_seconds=slot_seconds, num_repeats=num_repeats)
    device = torch.device("cuda" if on_gpu else "cpu")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.inference_mode():
            yield TimedOperation(
                operation="launch",
                dtype=dtype,
                size=(),
                flops=0,
                num_bytes=0,
                seconds=on_host([_launch(device, dtype)]),
            )
            for cell in cells:
                timer = on_device if on_gpu else on_host
                yield TimedOperation(
                    operation=cell.operation,
                    dtype=dtype,
                    size=cell.size,
                    flops=cell.flops,
                    num_bytes=cell.num_bytes,
                    seconds=timer(cell.make_calls(device)),
                )
    finally:
        torch.set_num_threads(threads_before)


def _import_torch(on_gpu: bool) -> Any:
    try:
        import torch
    except ImportError:
        raise ValueError("microbenchmarks need torch: pip install 'archfleet[train]'") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
        raise ValueError(f"microbenchmarks need torch 2.5 or newer (grouped-query attention), got {torch.__version__}")
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} sees no GPU; install a CUDA build of it, or calibrate the CPU")
    return torch


def _cells(plan: Plan, dtype: Dtype) -> list[_Cell]:
    """Every shape to time, cheap ones of each operation first."""
    element_bytes = BYTES_PER_ELEMENT[dtype]
    cells = [
        _Cell("copy", (float(size),), 0.0, 2.0 * size, functools.partial(_copy_calls, size)) for size in plan.copy_bytes
    ]
    for rows in plan.rows:
        for weights in plan.weights:
            if 2 * rows * weights > plan.max_gemm_flops:
                continue
            for ratio in plan.aspect_ratios:
                k, n = _sides(weights, ratio)
                num_bytes = element_bytes * (k * n + rows * (k + n))
                make = functools.partial(_gemm_calls, rows, k, n, dtype)
                cells.append(_Cell("gemm", (rows, weights), 2.0 * rows * k * n, num_bytes, make))
    for group in plan.query_group_sizes:
        for head_dim in plan.head_dims:
            cells += [_attention_cell(plan, group, head_dim, dtype, decode=decode) for decode in (True, False)]
    return cells


def _sides(weights: int, ratio: float) -> tuple[int, int]:
    """k and n with k · n = weights and n / k = ratio, for powers of two."""
    k = 2 ** round(math.log2(weights / ratio) / 2)
    return k, weights // k


def _attention_cell(plan: Plan, group: int, head_dim: int, dtype: Dtype, *, decode: bool) -> _Cell:
    """Work as `scaling/serving.py` counts it: 4 · A FLOPs a query and attended token, keys and values read once."""
    kv_heads = max(1, plan.key_value_width // head_dim)
    batch = plan.decode_batch if decode else plan.prefill_batch
    tokens = plan.decode_context_tokens if decode else plan.prefill_tokens
    attended = tokens if decode else tokens * (tokens + 1) / 2
    return _Cell(
        "decode_attention" if decode else "prefill_attention",
        (group, head_dim),
        4.0 * group * kv_heads * head_dim * batch * attended,
        BYTES_PER_ELEMENT[dtype] * 2 * kv_heads * head_dim * batch * tokens,
        functools.partial(_attention_calls, (batch, group * kv_heads, kv_heads, tokens, head_dim), dtype, decode),
    )


def _launch(device: Any, dtype: Dtype) -> Call:
    import torch

    one = torch.ones(1, device=device, dtype=getattr(torch, dtype))
    return functools.partial(torch.add, one, one)


def _copy_calls(size: int, device: Any) -> list[Call]:
    import torch

    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return [functools.partial(target.copy_, source)]


def _gemm_calls(rows: int, k: int, n: int, dtype: Dtype, device: Any) -> list[Call]:
    import torch
    from torch.nn.functional import linear

    options = {"dtype": getattr(torch, dtype), "device": device}
    tokens = torch.randn(rows, k, **options)
    copies = _num_copies(device, BYTES_PER_ELEMENT[dtype] * k * n)
    # As engines keep them: a matrix of n rows, applied transposed.
    return [functools.partial(linear, tokens, torch.randn(n, k, **options)) for _ in range(copies)]


def _attention_calls(shape: tuple[int, int, int, int, int], dtype: Dtype, decode: bool, device: Any) -> list[Call]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    batch, heads, kv_heads, tokens, head_dim = shape
    options = {"dtype": getattr(torch, dtype), "device": device}
    copies = _num_copies(device, BYTES_PER_ELEMENT[dtype] * 2 * batch * kv_heads * tokens * head_dim)
    calls: list[Call] = []
    for _ in range(copies):
        query = torch.randn(batch, heads, 1 if decode else tokens, head_dim, **options)
        key, value = (torch.randn(batch, kv_heads, tokens, head_dim, **options) for _ in range(2))
        calls.append(
            functools.partial(
                scaled_dot_product_attention, query, key, value, is_causal=not decode, enable_gqa=heads != kv_heads
            )
        )
    return calls


def _num_copies(device: Any, num_bytes: float) -> int:
    return 1 if device.type == "cpu" else max(1, min(64, math.ceil(GPU_CACHE_BYTES / num_bytes)))


def _time_on_host(
    calls: list[Call], *, slot_seconds: float, num_repeats: int, clock: Callable[[], float]
) -> tuple[float, ...]:
    (call,) = calls
    call()  # the first call allocates and chooses a kernel
    started = clock()
    call()
    once = max(clock() - started, 1e-7)
    calls_per_repeat = max(1, int(slot_seconds / num_repeats / once))
    seconds = []
    for _ in range(num_repeats if once * num_repeats <= slot_seconds else MIN_REPEATS):
        started = clock()
        for _ in range(calls_per_repeat):
            call()
        seconds.append(max(clock() - started, 1e-9) / calls_per_repeat)
    return tuple(seconds)


def _time_on_gpu(calls: list[Call], *, slot_seconds: float, num_repeats: int) -> tuple[float, ...]:
    """One CUDA graph of all calls, replayed between two events."""
    import torch

    make_stream: Callable[[], Any] = torch.cuda.Stream
    side = make_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capture needs a warm-up on a stream of its own
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    once = _replay_seconds(graph, 1)
    num_replays = max(1, int(slot_seconds / num_repeats / max(once, 1e-6)))
    return tuple(_replay_seconds(graph, num_replays) / num_replays / len(calls) for _ in range(num_repeats))


def _replay_seconds(graph: Any, num_replays: int) -> float:
    import torch

    make_event: Callable[..., Any] = torch.cuda.Event
    begin, end = (make_event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(num_replays):
        graph.replay()
    end.record()
    end.synchronize()
    return max(float(begin.elapsed_time(end)) / 1e3, 1e-9)
