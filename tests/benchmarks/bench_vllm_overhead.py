"""What archfleet's vLLM driver costs, beside a bare loop of `LLM.generate` and beside vLLM's own throughput benchmark.

    .engines/vllm/bin/python tests/benchmarks/bench_vllm_overhead.py [--rounds 4]

One engine, 9 M parameters and embeddings, 64 sequences of 64 + 64 tokens, one thread, bfloat16. Three loops take turns
in it, one batch each, in an order that is reversed from round to round so that a drift of the machine's speed cancels:

    driver        the driver's own window, with its latencies, counters and checks of tokens
    bare          `LLM.generate` between two looks at the clock, tokens counted
    benchmark     `run_vllm` of vllm.benchmarks.throughput (what `vllm bench throughput` times), on the same requests

All of them share the engine, so the benchmark runs with our options, also without the prefix cache that is its default.
Not ours to set: it samples at temperature 1 where the others are greedy, and shows a progress bar. Printed: rates, and
the driver's ratio to each of the others with Student's 95 % interval over rounds, in wall time and in processor time,
which others on the machine disturb less.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

DRIVER = Path(__file__).parents[2] / "agent" / "engines" / "vllm_driver.py"
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's 97.5 % quantile by number of rounds."""
Rates = tuple[float, float]
"""Output tokens per second of wall time and of processor time."""
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "sliding_window": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, choices=sorted(T_QUANTILE), default=4)
    rounds = parser.parse_args().rounds
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(CONFIG))
        measure(directory, rounds)


def measure(directory: str, rounds: int) -> None:
    """Let the loops take turns in one engine and print what came of it."""
    import vllm

    driver = load_driver()
    request = {
        "config_directory": directory,
        "dtype": "bfloat16",
        "quantization": None,
        "kv_cache_dtype": "auto",
        "tensor_parallel_size": 1,
        "batch_size": 64,
        "input_tokens": 64,
        "output_tokens": 64,
        "min_window_seconds": 0.0,
        "seed": 0,
    }
    llm = vllm.LLM(**driver.engine_arguments(request, vllm.__version__, on_gpu=False))
    sampling = vllm.SamplingParams(temperature=0, ignore_eos=True, min_tokens=64, max_tokens=64, detokenize=False)
    ids = driver.kit.random_token_ids(request, CONFIG["vocab_size"])
    prompts = [{"prompt_token_ids": each} for each in ids]

    def driven() -> Rates:
        messages = io.StringIO()
        driver.measure(llm, prompts, sampling, request, CONFIG["vocab_size"], messages, True)
        result = json.loads(messages.getvalue().splitlines()[-1])
        num_tokens = result["num_output_tokens"]
        return num_tokens / result["window_seconds"], num_tokens / result["cpu_seconds"]

    def bare() -> Rates:
        started, cpu_started = time.perf_counter(), time.process_time()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return num_tokens / seconds, num_tokens / cpu_seconds

    def benchmark() -> Rates:
        return run_vllms_benchmark(llm, prompts, request)

    loops = {"driver": driven, "bare": bare, "benchmark": benchmark}
    for loop in loops.values():  # warm-up
        loop()
    found = take_turns(loops, rounds)
    for position, clock in enumerate(("wall time", "processor time")):
        rates = {name: [each[position] for each in values] for name, values in found.items()}
        print(f"{clock}:", ", ".join(f"{name} {statistics.mean(values):,.0f}" for name, values in rates.items()))
        for other in ("bare", "benchmark"):
            report(f"  driver / {other}", [a / b for a, b in zip(rates["driver"], rates[other], strict=True)])


def take_turns(loops: dict[str, Callable[[], Rates]], rounds: int) -> dict[str, list[Rates]]:
    """Every loop once a round, in an order that is reversed in every second."""
    found: dict[str, list[Rates]] = {name: [] for name in loops}
    for number in range(rounds):
        for name in list(loops) if number % 2 == 0 else reversed(loops):
            found[name].append(loops[name]())
    return found


def run_vllms_benchmark(llm: Any, prompts: list[Any], request: dict[str, Any]) -> Rates:
    """The function that vLLM's throughput benchmark times its requests with, in an engine that is there already."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.throughput import run_vllm

    length = request["output_tokens"]
    requests = [
        SampleRequest(prompt=prompt, prompt_len=request["input_tokens"], expected_output_len=length)
        for prompt in prompts
    ]
    cpu_started = time.process_time()
    with (
        mock.patch("vllm.LLM.from_engine_args", return_value=llm),
        contextlib.redirect_stderr(io.StringIO()),  # its progress bar
    ):
        seconds, outputs = run_vllm(requests, 1, SimpleNamespace(enable_lora=False), False, disable_detokenize=True)
    cpu_seconds = time.process_time() - cpu_started
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    if num_tokens != length * len(prompts):
        raise SystemExit(f"vLLM's benchmark made {num_tokens} tokens; expected {length * len(prompts)}")
    return num_tokens / seconds, num_tokens / cpu_seconds


def report(what: str, ratios: list[float]) -> None:
    """A ratio with its t-interval over rounds."""
    half_width = T_QUANTILE[len(ratios)] * statistics.stdev(ratios) / len(ratios) ** 0.5
    print(f"{what}: {statistics.mean(ratios):.4f} ± {half_width:.4f} (95 %, {len(ratios)} rounds)")


def load_driver() -> Any:
    """The driver as a module."""
    spec = importlib.util.spec_from_file_location("vllm_driver", DRIVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
