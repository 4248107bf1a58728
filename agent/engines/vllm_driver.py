"""The vLLM engine: whole batches through its offline interface. Run as a script by the engine's own interpreter.

    python vllm_driver.py REQUEST.json

Speaks the protocol of `base.py` on its standard output and imports nothing of archfleet. Weights are dummies, prompts
are random token ids, and every request ends after exactly `output_tokens` greedy tokens. After one warm-up pass at the
measured shape, whole batches are generated until `min_window_seconds` have gone by. Runs on vLLM's CPU build and on
CUDA; the engine lives in this process.

Pinned, because vLLM's defaults differ by GPU and would compare machines instead of architectures:

    sequences at once      the batch
    tokens a step          MAX_BATCHED_TOKENS, or the batch if that is more; prompts are prefilled in chunks of it
    prefix cache           off
    memory                 MEMORY_FRACTION of a GPU; on a CPU, room for the batch's keys and values, up to half of it
    CUDA graphs            up to the batch, also above vLLM's default of 512
    compilation            vLLM's default on a GPU; none on a CPU

The mean number of running sequences is the time integral over the window, from vLLM's own clocks (Little's law):

    mean running = sum over requests of (last token - scheduled) / window            [sequences]
"""

import json
import math
import os
import platform
import random
import signal
import sys
import threading
import time
from typing import Any, TextIO

# Run by path, this folder leads the import path; its modules must not shadow the engine's.
if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):  # noqa: PTH120
    del sys.path[0]

MAX_BATCHED_TOKENS = 8192
MEMORY_FRACTION = 0.92
KNOWN_VERSIONS = ((0, 20), (0, 33))
"""First and last version (major, minor) whose names are in `NAMES`."""
NAMES: dict[str, tuple[tuple[tuple[int, int], str], ...]] = {
    "preemptions": (((0, 20), "vllm:num_preemptions"),),
    "prefix_hits": (((0, 20), "vllm:prefix_cache_hits"),),
    "largest_graph": (((0, 20), "max_cudagraph_capture_size"),),
}
"""What vLLM calls things: our word → (since version, name), oldest first."""
BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}

MEMORY_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cache blocks",
    "free memory on device",
)
UNSUPPORTED_PHRASES = ("not supported", "unsupported", "does not support", "not implemented")
NO_TOKEN_TIMES = "vLLM's offline interface times requests, not single tokens"
NO_STATISTICS = "this version of vLLM gives no times of single requests"


def main(request_file: str) -> int:
    """Load, warm up, measure; tell every step. Returns the exit status."""
    messages = claim_stdout()
    threading.Thread(target=die_with_agent, daemon=True).start()
    try:
        with open(request_file, encoding="utf-8") as file:  # noqa: PTH123
            request = json.load(file)
        run(request, messages)
    except Exception as error:  # the one border of this process: every error becomes a message
        tell(messages, event="error", failure_kind=failure_kind(error), message=own_words(error))
        raise
    return 0


def run(request: dict[str, Any], messages: TextIO) -> None:
    """Build the engine and measure it."""
    with open(os.path.join(request["config_directory"], "config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
        config = json.load(file)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(cpu_cache_gibibytes(request, config))  # read by vLLM on a CPU only
    import vllm
    from vllm.platforms import current_platform

    on_gpu = current_platform.is_cuda_alike()
    llm = vllm.LLM(**engine_arguments(request, vllm.__version__, on_gpu=on_gpu))
    length = request["output_tokens"]
    sampling = vllm.SamplingParams(
        temperature=0, ignore_eos=True, min_tokens=length, max_tokens=length, detokenize=False
    )
    prompts = random_prompts(request, config["vocab_size"])
    tell(
        messages,
        event="ready",
        versions=versions(llm),
        device=describe(on_gpu=on_gpu),
        num_total_parameters=llm.apply_model(num_parameters)[0],
        kv_cache_tokens=kv_cache_tokens(llm),
        doubts=version_doubts(vllm.__version__),
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
    num_batches = num_output_tokens = 0
    times: list[Any] = []
    counters = read_counters(llm)
    started, cpu_started = time.perf_counter(), time.process_time()
    window_seconds = 0.0
    while num_batches == 0 or window_seconds < request["min_window_seconds"]:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        num_batches += 1
        num_output_tokens += sum(num_legal(output.outputs[0].token_ids, vocab_size) for output in outputs)
        times += [output.metrics for output in outputs]
        window_seconds = time.perf_counter() - started
        tell(messages, event="progress", window_seconds=window_seconds)
    cpu_seconds = time.process_time() - cpu_started
    tell(
        messages,
        event="result",
        window_seconds=window_seconds,
        cpu_seconds=cpu_seconds,
        num_batches=num_batches,
        num_output_tokens=num_output_tokens,
        logits_finite=logits_finite,
        **{name: count - counters[name] for name, count in read_counters(llm).items()},
        **summarise_times(times, window_seconds),
    )


def engine_arguments(request: dict[str, Any], version: str, *, on_gpu: bool) -> dict[str, Any]:
    """What vLLM's `LLM` is built from: everything that could differ by default is given."""
    batch_size = request["batch_size"]
    arguments = {
        "model": request["config_directory"],
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": request["dtype"],
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
        arguments[name_in(version, "largest_graph")] = graph_size(batch_size)
    else:
        arguments["enforce_eager"] = True  # compiling a model of 12 M parameters took over two minutes of one core
    return arguments


def graph_size(batch_size: int) -> int:
    """The batch, rounded up to the sizes that vLLM captures: multiples of 8, above 256 of 16."""
    multiple = 8 if batch_size <= 256 else 16
    return math.ceil(batch_size / multiple) * multiple


def cpu_cache_gibibytes(request: dict[str, Any], config: dict[str, Any]) -> int:
    """Whole GiB for keys and values on a CPU: those of the full batch and a tenth more, at most half of the memory.

    bytes = batch · (input + output tokens) · 2 · layers · kv_heads · head_dim · bytes an element
    """
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    num_tokens = request["batch_size"] * (request["input_tokens"] + request["output_tokens"])
    wanted = 1.1 * num_tokens * per_token * BYTES_PER_ELEMENT[request["dtype"]]
    gibibytes: int = math.ceil(min(wanted, memory_bytes() / 2) / 2**30)
    return max(1, gibibytes)


def random_prompts(request: dict[str, Any], vocab_size: int) -> list[Any]:
    """The batch's prompts: uniform token ids, seeded."""
    source = random.Random(request["seed"])
    length = request["input_tokens"]
    return [
        {"prompt_token_ids": [source.randrange(vocab_size) for _ in range(length)]}
        for _ in range(request["batch_size"])
    ]


def are_logits_finite(llm: Any, prompt: Any) -> bool:
    """Whether the logarithmic probabilities of one prompt's first tokens are numbers."""
    import vllm

    sampling = vllm.SamplingParams(temperature=0, ignore_eos=True, max_tokens=1, logprobs=1, detokenize=False)
    (output,) = llm.generate([prompt], sampling, use_tqdm=False)
    return all(math.isfinite(entry.logprob) for step in output.outputs[0].logprobs for entry in step.values())


def num_legal(token_ids: Any, vocab_size: int) -> int:
    """How many of a request's tokens are of the vocabulary; the common case costs two passes in C."""
    if len(token_ids) and min(token_ids) >= 0 and max(token_ids) < vocab_size:
        return len(token_ids)
    return sum(0 <= token < vocab_size for token in token_ids)


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

    ours = {name_in(vllm.__version__, word): f"num_{word}" for word in ("preemptions", "prefix_hits")}
    counts: dict[str, int] = {}
    for metric in llm.get_metrics():
        if metric.name in ours:
            counts[ours[metric.name]] = counts.get(ours[metric.name], 0) + int(metric.value)
    return counts


def summarise_times(times: list[Any], window_seconds: float) -> dict[str, Any]:
    """Mean running sequences and percentiles of latencies, from vLLM's times of each request of the window.

    TTFT is from the request's arrival, so time in the queue counts; TPOT = (last - first token) / (tokens - 1).
    """
    if not times or any(getattr(each, "last_token_ts", None) is None for each in times):
        return {"not_measured": dict.fromkeys(("mean_running_sequences", "ttft", "tpot", "itl"), NO_STATISTICS)}
    latencies = {"ttft": percentiles([each.first_token_latency for each in times])}
    reasons = {"itl": NO_TOKEN_TIMES}
    paces = [
        (each.last_token_ts - each.first_token_ts) / (each.num_generation_tokens - 1)
        for each in times
        if each.num_generation_tokens > 1
    ]
    if paces:
        latencies["tpot"] = percentiles(paces)
    else:
        reasons["tpot"] = "a single output token has no time per further token"
    running_seconds = sum(each.last_token_ts - each.scheduled_ts for each in times)
    return {
        "mean_running_sequences": running_seconds / window_seconds,
        "latencies": latencies,
        "not_measured": reasons,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Linear between order statistics."""
    import numpy as np

    levels = (50, 90, 99)
    return {f"p{level}": float(value) for level, value in zip(levels, np.percentile(seconds, levels), strict=True)}


def name_in(version: str, word: str) -> str:
    """What a version calls something; the newest name where the version is unknown."""
    number = version_number(version)
    since = [name for first, name in NAMES[word] if number is None or first <= number]
    return since[-1] if since else NAMES[word][0][1]


def version_number(version: str) -> tuple[int, int] | None:
    """(major, minor) of a version; None for what is no release, such as a build from source."""
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])


def version_doubts(version: str) -> dict[str, str]:
    """A flag and its sentence where this driver was not written for the version."""
    number = version_number(version)
    first, last = KNOWN_VERSIONS
    if number is not None and first <= number <= last:
        return {}
    known = " to ".join(f"{major}.{minor}" for major, minor in KNOWN_VERSIONS)
    return {"unknown-engine-version": f"vLLM {version} is not among {known}, whose names are known; tried all the same"}


def versions(llm: Any) -> dict[str, str]:
    """Versions and sizes of all that the number depends on."""
    import torch
    import transformers
    import vllm

    cache = llm.llm_engine.vllm_config.cache_config
    found = {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "engine_python": platform.python_version(),
        "kv_blocks": f"{cache.num_gpu_blocks} x {cache.block_size} tokens",
        "max_num_batched_tokens": str(llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def describe(*, on_gpu: bool) -> dict[str, Any]:
    """What the device says of itself."""
    import torch

    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        return {"kind": "gpu", "name": properties.name, "memory_bytes": properties.total_memory}
    return {"kind": "cpu", "name": cpu_model(), "memory_bytes": memory_bytes()}


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_model() -> str:
    """The processor's name as the kernel knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def failure_kind(error: Exception) -> str:
    """The kind of failure in archfleet's words; what the engine does not support is a `validation` failure."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(phrase in text for phrase in MEMORY_PHRASES):
        return "out-of-memory"
    if "cuda error" in text:
        return "hardware"
    if isinstance(error, ImportError):
        return "engine-start"
    if isinstance(error, ValueError | NotImplementedError) or any(phrase in text for phrase in UNSUPPORTED_PHRASES):
        return "validation"
    return "unknown"


def own_words(error: Exception) -> str:
    """The engine's message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def claim_stdout() -> TextIO:
    """Keep standard output for messages alone: what libraries print goes to standard error."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return messages


def tell(messages: TextIO, **fields: Any) -> None:
    """Write one message; `event` is its first key."""
    messages.write(json.dumps(fields) + "\n")
    messages.flush()


def die_with_agent() -> None:
    """Wait until the agent closes our standard input, as it does in dying, and kill the whole group."""
    while os.read(0, 1024):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
