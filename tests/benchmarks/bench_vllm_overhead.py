"""What archfleet's vLLM driver costs: its reported throughput beside a bare loop of `LLM.generate`, in the same engine.

    .engines/vllm/bin/python tests/benchmarks/bench_vllm_overhead.py [--rounds 4]

One engine, 9 M parameters and embeddings, 64 sequences of 64 + 64 tokens, one thread, bfloat16. Windows of one batch
alternate D B B D (driver, bare), so that a drift of the machine's speed cancels. Printed: both rates and the ratio with
Student's 95 % interval over rounds, in wall time and in processor time, which others on the machine disturb less.
"""

import argparse
import importlib.util
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).parents[2] / "agent" / "engines" / "vllm_driver.py"
T_QUANTILE = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's 97.5 % quantile by number of rounds."""
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
    """Alternate the two loops in one engine and print what came of it."""
    import vllm

    driver = load_driver()
    request = {
        "config_directory": directory,
        "dtype": "bfloat16",
        "batch_size": 64,
        "input_tokens": 64,
        "output_tokens": 64,
        "min_window_seconds": 0.0,
        "seed": 0,
    }
    llm = vllm.LLM(**driver.engine_arguments(request, vllm.__version__, on_gpu=False))
    sampling = vllm.SamplingParams(temperature=0, ignore_eos=True, min_tokens=64, max_tokens=64, detokenize=False)
    prompts = driver.random_prompts(request, CONFIG["vocab_size"])

    def driven() -> tuple[float, float]:
        messages = io.StringIO()
        driver.measure(llm, prompts, sampling, request, CONFIG["vocab_size"], messages, True)
        result = json.loads(messages.getvalue().splitlines()[-1])
        return result["num_output_tokens"] / result["window_seconds"], result["num_output_tokens"] / result[
            "cpu_seconds"
        ]

    def bare() -> tuple[float, float]:
        started, cpu_started = time.perf_counter(), time.process_time()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return num_tokens / seconds, num_tokens / cpu_seconds

    bare()  # warm-up
    pairs = []
    for number in range(rounds):
        pairs += [(driven(), bare())] if number % 2 == 0 else [tuple(reversed((bare(), driven())))]
    for position, clock in enumerate(("wall time", "processor time")):
        report(clock, [(ours[position], theirs[position]) for ours, theirs in pairs])


def report(clock: str, pairs: list[tuple[float, float]]) -> None:
    """Rates and their ratio, with a t-interval over rounds."""
    ratios = [ours / theirs for ours, theirs in pairs]
    half_width = T_QUANTILE[len(ratios)] * statistics.stdev(ratios) / len(ratios) ** 0.5
    ours, theirs = (statistics.mean(pair[side] for pair in pairs) for side in (0, 1))
    print(
        f"{clock}: driver {ours:,.0f}, bare generate {theirs:,.0f} output tokens/s; "
        f"ratio {statistics.mean(ratios):.4f} ± {half_width:.4f} (95 %, {len(ratios)} rounds)"
    )


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
