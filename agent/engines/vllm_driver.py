"""The vLLM engine: whole batches through its offline interface. Run as a script by the engine's own interpreter.

    python vllm_driver.py REQUEST.json

Speaks the protocol of `base.py` on its standard output and imports nothing of archfleet but `driver_kit.py`, which
lies beside it. Weights are dummies, prompts are random token ids, and every request ends after exactly `output_tokens`
greedy tokens. After one warm-up pass at the measured shape, whole batches are generated until `min_window_seconds` have
gone by. Runs on vLLM's CPU build and on CUDA; the engine lives in this process.

Pinned, because vLLM's defaults differ by GPU and would compare machines instead of architectures:

    sequences at once      the batch
    tokens a step          MAX_BATCHED_TOKENS, or the batch if that is more; prompts are prefilled in chunks of it
    prefix cache           off
    memory                 MEMORY_FRACTION of a GPU; on a CPU, room for the batch's keys and values, up to half of it
    CUDA graphs            up to the batch, also above vLLM's default of 512
    compilation            vLLM's default on a GPU; none on a CPU

The mean number of running sequences is the time integral over the window, from vLLM's own clocks (Little's law):

    mean running = sum over requests of (last token - scheduled) / window            [sequences]

Inter-token latencies are those that vLLM takes for its own histogram, every one of them, by the engine core's clock.

Several devices: the engine core stays in this process and starts one worker a device, in this process group.
"""

import math
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

# Imported, or run by path in an interpreter that need not have archfleet: see driver_kit.py.
if TYPE_CHECKING or __package__:
    from agent.engines import driver_kit as kit
else:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    import driver_kit as kit

    kit.hide_drivers_folder()

MAX_BATCHED_TOKENS = 8192
MEMORY_FRACTION = 0.92
KNOWN_VERSIONS = ((0, 20), (0, 33))
"""First and last version (major, minor) whose names are in `NAMES`."""
NAMES: kit.Names = {
    "preemptions": (((0, 20), "vllm:num_preemptions"),),
    "prefix_hits": (((0, 20), "vllm:prefix_cache_hits"),),
    "largest_graph": (((0, 20), "max_cudagraph_capture_size"),),
    "token_gaps": (((0, 20), "inter_token_latencies_iter"),),
}
"""What vLLM calls things: our word → (since version, name), oldest first."""
NO_TOKEN_TIMES = "this version of vLLM gives no times of single tokens"
NO_STATISTICS = "this version of vLLM gives no times of single requests"


def run(request: dict[str, Any], messages: TextIO) -> None:
    """Build the engine and measure it."""
    config = kit.read_json(request["config_directory"], "config.json")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(cpu_cache_gibibytes(request, config))  # read by vLLM on a CPU only
    if request["tensor_parallel_size"] > 1:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # this process has threads: a fork of it could hang
    import vllm
    from vllm.platforms import current_platform

    on_gpu = current_platform.is_cuda_alike()
    llm = vllm.LLM(**engine_arguments(request, vllm.__version__, on_gpu=on_gpu))
    length = request["output_tokens"]
    sampling = vllm.SamplingParams(
        temperature=0, ignore_eos=True, min_tokens=length, max_tokens=length, detokenize=False
    )
    prompts = [{"prompt_token_ids": ids} for ids in kit.random_token_ids(request, config["vocab_size"])]
    kit.tell(
        messages,
        event="ready",
        versions=versions(llm),
        device=kit.describe_device(on_gpu=on_gpu),
        num_total_parameters=llm.apply_model(num_parameters)[0],
        kv_cache_tokens=kv_cache_tokens(llm),
        doubts=kit.version_doubts("vLLM", vllm.__version__, KNOWN_VERSIONS),
    )
    logits_finite = are_logits_finite(llm, prompts[0])
    llm.generate(prompts, sampling, use_tqdm=False)
    measure(llm, prompts, sampling, request, config["vocab_size"], messages, logits_finite)


def measure(
    llm: Any,
    prompts: list[Any],
    sampling: Any,
    request: dict[str, Any],
    vocab_size: int,
    messages: TextIO,
    logits_finite: bool,
) -> None:
    """Whole batches until the window is long enough."""
    times: list[Any] = []
    counters = read_counters(llm)

    def one_batch() -> int:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        times.extend(output.metrics for output in outputs)
        return sum(kit.num_legal(output.outputs[0].token_ids, vocab_size) for output in outputs)

    with token_gaps(llm) as gaps:
        window = kit.measure_window(request, messages, one_batch)
    kit.tell(
        messages,
        event="result",
        **window,
        logits_finite=logits_finite,
        **{name: count - counters[name] for name, count in read_counters(llm).items()},
        **summarise_times(times, gaps, window["window_seconds"]),
    )


class TokenGaps:
    """Keeps the times between tokens that vLLM hands to its statistics' loggers, one call a step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = array("d")  # 8 bytes a token: a minute at 30,000 tokens/s is 14 MB

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """As every logger of vLLM's is told of a step; a step without output has no statistics."""
        if iteration_stats is not None:
            self.seconds.extend(getattr(iteration_stats, self.name, ()))

    def log(self) -> None:
        """Nothing: what was kept is told with the result."""


@contextmanager
def token_gaps(llm: Any) -> Iterator[Sequence[float] | None]:
    """Seconds between the tokens of each request, growing while they are generated; None where vLLM shows none."""
    import vllm

    loggers = getattr(getattr(llm.llm_engine, "logger_manager", None), "stat_loggers", None)
    if not isinstance(loggers, list):
        yield None
        return
    gaps = TokenGaps(kit.name_in(NAMES, vllm.__version__, "token_gaps"))
    loggers.append(gaps)
    try:
        yield gaps.seconds
    finally:
        loggers.remove(gaps)


def engine_arguments(request: dict[str, Any], version: str, *, on_gpu: bool) -> dict[str, Any]:
    """What vLLM's `LLM` is built from: everything that could differ by default is given.

    Raises:
        RefusedError: several devices are asked for where there is a CPU.
    """
    batch_size, num_devices = request["batch_size"], request["tensor_parallel_size"]
    if num_devices > 1 and not on_gpu:
        raise kit.RefusedError(
            f"tensor_parallel_size {num_devices} was asked for, and on a CPU vLLM is measured in one process; "
            "expected tensor_parallel_size 1, or a machine with as many GPUs"
        )
    arguments = {
        "model": request["config_directory"],
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": request["dtype"],
        "quantization": request["quantization"],
        "kv_cache_dtype": request["kv_cache_dtype"],
        "tensor_parallel_size": num_devices,
        "seed": request["seed"],
        "max_model_len": request["input_tokens"] + request["output_tokens"],
        "max_num_seqs": batch_size,
        "max_num_batched_tokens": max(MAX_BATCHED_TOKENS, batch_size),
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "disable_log_stats": False,  # else neither preemptions nor the times of requests are told
    }
    if on_gpu:
        arguments["gpu_memory_utilization"] = MEMORY_FRACTION
        arguments[kit.name_in(NAMES, version, "largest_graph")] = graph_size(batch_size)
    else:
        arguments["enforce_eager"] = True  # compiling a model of 12 M parameters took over two minutes of one core
    if num_devices > 1:
        arguments["distributed_executor_backend"] = "mp"  # else Ray's where vLLM finds it, with other processes
    return arguments


def graph_size(batch_size: int) -> int:
    """The batch, rounded up to the sizes that vLLM captures: multiples of 8, above 256 of 16."""
    multiple = 8 if batch_size <= 256 else 16
    return math.ceil(batch_size / multiple) * multiple


def cpu_cache_gibibytes(request: dict[str, Any], config: dict[str, Any]) -> int:
    """Whole GiB for keys and values on a CPU: those of the full batch and a tenth more, at most half of the memory.

    bytes = batch · (input + output tokens) · 2 · layers · kv_heads · head_dim · bytes an element (fp8: 1)
    """
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    num_tokens = request["batch_size"] * (request["input_tokens"] + request["output_tokens"])
    cached = request["dtype"] if request["kv_cache_dtype"] == "auto" else request["kv_cache_dtype"]
    wanted = 1.1 * num_tokens * per_token * kit.BYTES_PER_ELEMENT.get(cached, 1)
    gibibytes: int = math.ceil(min(wanted, kit.memory_bytes() / 2) / 2**30)
    return max(1, gibibytes)


def are_logits_finite(llm: Any, prompt: Any) -> bool:
    """Whether the logarithmic probabilities of one prompt's first tokens are numbers."""
    import vllm

    sampling = vllm.SamplingParams(temperature=0, ignore_eos=True, max_tokens=1, logprobs=1, detokenize=False)
    (output,) = llm.generate([prompt], sampling, use_tqdm=False)
    return all(math.isfinite(entry.logprob) for step in output.outputs[0].logprobs for entry in step.values())


def num_parameters(model: Any) -> int:
    """Weights of the architecture as vLLM built it.

    Counted from the layers' sizes: vLLM merges matrices, pads vocabularies to multiples of 64, and its CPU build packs
    weights into a layout of its own and drops the originals.
    """
    counted: dict[int, int] = {}
    vocabularies: list[int] = []
    for module in model.modules():
        if hasattr(module, "org_vocab_size") and hasattr(module, "embedding_dim"):
            vocabularies.append(module.org_vocab_size * module.embedding_dim)
        elif hasattr(module, "input_size") and hasattr(module, "output_size"):
            counted[id(module)] = module.input_size * module.output_size
        elif not any(True for _ in module.children()):
            counted.update((id(p), p.numel()) for p in module.parameters(recurse=False))
    # Packing gives a tied head a tensor of its own, so identity does not tell that it is tied.
    tied = model.config.tie_word_embeddings
    return sum(counted.values()) + (vocabularies[0] if tied else sum(vocabularies))


def kv_cache_tokens(llm: Any) -> int:
    """Tokens that fit into the cache: blocks times their size, both as the engine decided."""
    cache = llm.llm_engine.vllm_config.cache_config
    return int(cache.num_gpu_blocks * cache.block_size)


def read_counters(llm: Any) -> dict[str, int]:
    """Counters since the engine's start, under the protocol's names; without those that vLLM does not have."""
    import vllm

    ours = {kit.name_in(NAMES, vllm.__version__, word): f"num_{word}" for word in ("preemptions", "prefix_hits")}
    counts: dict[str, int] = {}
    for metric in llm.get_metrics():
        if metric.name in ours:
            counts[ours[metric.name]] = counts.get(ours[metric.name], 0) + int(metric.value)
    return counts


def summarise_times(times: list[Any], gaps: Sequence[float] | None, window_seconds: float) -> dict[str, Any]:
    """Mean running sequences and percentiles of latencies, from vLLM's times of each request of the window.

    TTFT is from the request's arrival, so time in the queue counts; TPOT = (last - first token) / (tokens - 1), one
    value a request; ITL is the time between two tokens, one value a token after the first.
    """
    if not times or any(getattr(each, "last_token_ts", None) is None for each in times):
        return {"not_measured": dict.fromkeys(("mean_running_sequences", "ttft", "tpot", "itl"), NO_STATISTICS)}
    paces = [
        (each.last_token_ts - each.first_token_ts) / (each.num_generation_tokens - 1)
        for each in times
        if each.num_generation_tokens > 1
    ]
    running_seconds = sum(each.last_token_ts - each.scheduled_ts for each in times)
    return {
        "mean_running_sequences": running_seconds / window_seconds,
        **kit.latency_fields(
            ttft=[each.first_token_latency for each in times],
            tpot=paces,
            itl=NO_TOKEN_TIMES if gaps is None or (paces and not len(gaps)) else gaps,
        ),
    }


def versions(llm: Any) -> dict[str, str]:
    """Versions and sizes of all that the number depends on."""
    import vllm

    cache = llm.llm_engine.vllm_config.cache_config
    return {
        "vllm": vllm.__version__,
        **kit.common_versions(),
        "kv_blocks": f"{cache.num_gpu_blocks} x {cache.block_size} tokens",
        "max_num_batched_tokens": str(llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens),
    }


if __name__ == "__main__":
    sys.exit(kit.serve(sys.argv[1], run))
