"""How well predicted throughputs order shapes on this CPU, and how fast many are predicted.

    python tests/benchmarks/bench_predict.py [--json] [--smoke] [--engine vllm] [--record FILE]

Shapes of equal N (within 2 %) are measured one after the other under one engine, each repeat in a fresh process, in
rounds over all shapes in a shuffled order, reversed from round to round, so that the machine's drift hits them alike.
With --record every process's observation is kept in a file, and a second start measures only what is missing. vLLM is
found as by `archfleet bench` (ARCHFLEET_VLLM_PYTHON); its shapes are larger, for its steps cost more.

The profile is calibrated by microbenchmarks in the same run; host term and scale are fitted to six of the shapes; the
others are predicted and compared: Spearman's rank correlation (with a bootstrap interval over shapes) and errors,
beside those of the roofline alone, assumed and calibrated. The clock is processor time of one thread: other processes
on the machine hardly change it. Speed: 100,000 shapes at 6 batch sizes, processor seconds of one thread, best of a few
passes.
"""

import argparse
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from agent.assignment import BenchAssignment
from agent.benchmark.run import run_benchmark
from coordinator.hardware import calibrate_device
from hwprofiles.catalog import load_profile
from hwprofiles.profile import HardwareProfile
from scaling.architecture import Architecture
from scaling.observations import ServingObservation
from scaling.quantity import Predicted
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import predict_serving, predict_throughput_array
from scaling.throughput_fit import NoThroughputFit, ThroughputFit, fit_throughput

RECIPE = ServingRecipe(engine="transformers", dtype="float32")
WORKLOAD = Workload(batch_size=64, input_tokens=64, output_tokens=64)
BATCHES = (128, 256, 512, 1024, 2048, 4096)
NUM_CALIBRATION = 6
GOAL_SPEARMAN, GOAL_SECONDS = 0.8, 2.0
NUM_BOOTSTRAP, LEVEL = 2000, 0.9


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured of an engine by default."""

    recipe: ServingRecipe
    num_parameters: int
    num_repeats: int
    widths: tuple[int, int, int]
    head_dim: int


SETTINGS = {
    "transformers": Setting(recipe=RECIPE, num_parameters=400_000, num_repeats=2, widths=(64, 96, 160), head_dim=16),
    "vllm": Setting(
        recipe=ServingRecipe(engine="vllm", dtype="float32"),
        num_parameters=6_000_000,
        num_repeats=1,
        widths=(192, 320, 512),
        head_dim=64,
    ),
}


def shapes(num_parameters: int, *, smoke: bool, setting: Setting = SETTINGS["transformers"]) -> list[Architecture]:
    """Shapes of equal N: three widths times six pairs of (r, g), two layers, heads of one size.

    The first six are to calibrate on: each pair once, the widths in turn. The others follow in a fixed random order.
    """
    widths, pairs = setting.widths, ((0.5, 1), (0.5, 4), (1.5, 1), (1.5, 2), (4.0, 1), (4.0, 4))
    size = setting.head_dim
    first = [shape_near(num_parameters, d=widths[i % 3], r=r, g=g, head_dim=size) for i, (r, g) in enumerate(pairs)]
    found = [shape_near(num_parameters, d=d, r=r, g=g, head_dim=size) for d in widths for r, g in pairs]
    others = [shape for shape in found if shape not in first]
    random.Random(0).shuffle(others)
    return [*first, *(others[:2] if smoke else others)]


def shape_near(num_parameters: int, *, d: int, r: float, g: int, head_dim: int) -> Architecture:
    """The shape of this width and grouping whose r is nearest, its MLP filling up what attention leaves of N."""
    layers = 2
    attention = num_parameters / layers / (1 + r)
    kv_heads = max(1, round(attention / (2 * d * head_dim * (1 + g))))
    left = num_parameters / layers - 2 * d * head_dim * kv_heads * (1 + g)
    shape = Architecture(
        hidden_size=d,
        intermediate_size=round(left / (3 * d)),
        num_hidden_layers=layers,
        num_attention_heads=g * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=1024,
    )
    assert abs(shape.num_parameters / num_parameters - 1) < 0.02
    return shape


def measure(
    candidates: list[Architecture],
    recipe: ServingRecipe,
    *,
    num_repeats: int,
    window_seconds: float,
    record: dict[str, Any],
    save: Callable[[], None],
) -> list[ServingObservation]:
    """One observation a shape; its repeats come from as many rounds over all shapes. Goes on where `record` ends."""
    order = list(candidates)
    random.Random(1).shuffle(order)
    rounds = []
    for number in range(num_repeats):
        found = {}
        for shape in order if number % 2 == 0 else order[::-1]:
            name = f"{number} {recipe.engine} {shape.content_hash()} {window_seconds:g} s"
            if name not in record:
                with tempfile.TemporaryDirectory() as directory:
                    observation = measure_once(shape, recipe, Path(directory), window_seconds)
                record[name] = observation.model_dump(mode="json")
                save()
            found[shape] = ServingObservation.model_validate(record[name])
        rounds.append([found[shape] for shape in candidates])
    return [
        first.model_copy(update={"repeats": tuple(one.repeats[0] for one in (first, *rest))})
        for first, *rest in zip(*rounds, strict=True)
    ]


def measure_once(
    shape: Architecture, recipe: ServingRecipe, directory: Path, window_seconds: float
) -> ServingObservation:
    """One engine process."""
    assignment = BenchAssignment(
        architecture=shape,
        recipe=recipe,
        workload=WORKLOAD,
        num_repeats=1,
        min_window_seconds=window_seconds,
    )
    *_, last = run_benchmark(assignment, agent="bench-predict", work_directory=directory / shape.label)
    assert isinstance(last, ServingObservation), last
    return last


def processor_rate(observation: ServingObservation) -> float:
    """Output tokens per processor second, mean over repeats."""
    return float(np.mean([one.num_output_tokens / (one.processor_seconds or math.nan) for one in observation.repeats]))


def compare(measured: list[float], predicted: list[float]) -> dict[str, Any]:
    """Rank correlation, and errors of ln(predicted / measured) as factors minus one."""
    logs = np.log(np.array(predicted) / np.array(measured))
    return {
        "spearman": float(stats.spearmanr(measured, predicted).statistic),
        "spearman_interval": spearman_interval(measured, predicted),
        "mean_error": float(np.expm1(np.abs(logs).mean())),
        "worst_error": float(np.expm1(np.abs(logs).max())),
    }


def spearman_interval(measured: list[float], predicted: list[float]) -> list[float] | None:
    """Bootstrap over shapes, LEVEL of it; null for fewer than five, whose resamples are mostly ties."""
    if len(measured) < 5:
        return None
    generator, pairs = np.random.default_rng(0), np.array([measured, predicted])
    draws = (pairs[:, generator.integers(0, len(measured), len(measured))] for _ in range(NUM_BOOTSTRAP))
    values = [float(stats.spearmanr(*draw).statistic) for draw in draws if np.ptp(draw, axis=1).min() > 0]
    return [float(end) for end in np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def rank(observations: list[ServingObservation], measured_profile: HardwareProfile) -> dict[str, Any]:
    """Fit on the first shapes, predict the others in three ways."""
    fitted_runs, others = observations[:NUM_CALIBRATION], observations[NUM_CALIBRATION:]
    fit = fit_throughput(fitted_runs, measured_profile, clock="processor")
    if isinstance(fit, NoThroughputFit):
        raise SystemExit(fit.reason)
    ways: dict[str, tuple[HardwareProfile, ThroughputFit | None]] = {
        "assumed sheet, roofline alone": (load_profile("cpu-generic"), None),
        "measured profile, roofline alone": (measured_profile, None),
        f"measured profile + fit on {NUM_CALIBRATION} shapes": (measured_profile, fit),
    }
    recipe = observations[0].recipe
    measured = [processor_rate(one) for one in others]
    predicted = {
        way: [told(predict_serving(one.architecture, profile, recipe, one.workload, fit=used)) for one in others]
        for way, (profile, used) in ways.items()
    }
    intervals = [prediction.interval for prediction in predicted[list(ways)[-1]]]
    held = [i is not None and i.low <= rate <= i.high for i, rate in zip(intervals, measured, strict=True)]
    return {
        "fit": fit.model_dump(mode="json"),
        "spread_of_measured": max(measured) / min(measured),
        "median_variation_of_repeats": float(np.median([variation(one) for one in observations])),
        "ways": {way: compare(measured, [one.value for one in values]) for way, values in predicted.items()},
        "intervals_that_hold_the_measured_rate": f"{sum(held)} of {len(held)}",
        "shapes": [
            {
                "shape": one.architecture.label,
                "measured": rate,
                **{way: values[index].value for way, values in predicted.items()},
            }
            for index, (one, rate) in enumerate(zip(others, measured, strict=True))
        ],
    }


def told(prediction: Any) -> Predicted:
    """The predicted output tokens/s."""
    rate = prediction.output_tokens_per_second
    assert isinstance(rate, Predicted), rate
    return rate


def variation(observation: ServingObservation) -> float:
    """Coefficient of variation of tokens per processor second over repeats; NaN for one."""
    rates = [one.num_output_tokens / (one.processor_seconds or math.nan) for one in observation.repeats]
    return float(np.std(rates, ddof=1) / np.mean(rates)) if len(rates) > 1 else math.nan


def speed(
    profile: HardwareProfile,
    fit: ThroughputFit | None,
    *,
    dtype: Any,
    num_shapes: int,
    laptop: bool,
    engine: Any = "transformers",
) -> float:
    """Least processor seconds of a few passes over all shapes and six batch sizes."""
    generator = np.random.default_rng(0)
    unit, head_dim = (8, 16) if laptop else (64, 64)
    candidates = SimpleNamespace(
        hidden_size=unit * generator.integers(6, 20 if laptop else 64, num_shapes),
        intermediate_size=unit * generator.integers(8, 64 if laptop else 256, num_shapes),
        num_hidden_layers=generator.integers(2, 5 if laptop else 40, num_shapes),
        num_key_value_heads=generator.integers(1, 9, num_shapes),
        head_dim=np.full(num_shapes, head_dim),
    )
    candidates.num_attention_heads = candidates.num_key_value_heads * generator.integers(1, 9, num_shapes)
    recipe = ServingRecipe(engine=engine, dtype=dtype)
    tokens = 64 if laptop else 1024
    seconds = []
    for _ in range(3):
        started = time.process_time()
        for batch_size in BATCHES:
            rates = predict_throughput_array(
                candidates,
                vocab_size=1024 if laptop else 128_256,
                tie_word_embeddings=True,
                profile=profile,
                recipe=recipe,
                workload=Workload(batch_size=batch_size, input_tokens=tokens, output_tokens=tokens),
                fit=fit,
            )
        seconds.append(time.process_time() - started)
        assert rates.shape == (num_shapes,)
    return min(seconds)


def run(
    *, engine: str, smoke: bool, num_parameters: int, num_repeats: int, window_seconds: float, file: Path | None
) -> dict[str, Any]:
    """Calibrate, measure, rank, time."""
    setting, started = SETTINGS[engine], time.monotonic()
    record: dict[str, Any] = json.loads(file.read_text()) if file is not None and file.exists() else {}

    def save() -> None:
        if file is not None:
            part = file.with_name(file.name + ".part")
            part.write_text(json.dumps(record))
            part.replace(file)

    if "profile" not in record:
        profile = calibrate_device(hardware=None, seconds=2 if smoke else 30, on_gpu=False)
        record["profile"] = profile.model_dump(mode="json")
        save()
    profile = HardwareProfile.model_validate(record["profile"])
    candidates = shapes(num_parameters, smoke=smoke, setting=setting)
    observations = measure(
        candidates,
        setting.recipe,
        num_repeats=num_repeats,
        window_seconds=window_seconds,
        record=record,
        save=save,
    )
    result = rank(observations, profile)
    num_shapes = 1000 if smoke else 100_000
    fit = ThroughputFit.model_validate(result["fit"])
    result["speed"] = {
        "num_shapes": num_shapes,
        "num_batches": len(BATCHES),
        "sheet_seconds": speed(load_profile("h200"), None, dtype="bfloat16", num_shapes=num_shapes, laptop=False),
        "measured_and_fitted_seconds": speed(
            profile, fit, dtype="float32", num_shapes=num_shapes, laptop=True, engine=engine
        ),
    }
    seconds = time.monotonic() - started
    return {
        "device": profile.name,
        "engine": f"{engine} {observations[0].engine_version}",
        "num_parameters": num_parameters,
        "seconds_of_this_start": seconds,
        **result,
    }


def print_result(result: dict[str, Any], console: Console) -> None:
    """Tables for people."""
    num_others = len(result["shapes"])
    table = Table(
        "prediction", "Spearman", f"{LEVEL:.0%} interval", "mean error", "worst error",
        title=f"{num_others} shapes of N = {result['num_parameters']:,} on {result['device']}, {result['engine']}, "
        f"batch {WORKLOAD.batch_size}, {WORKLOAD.input_tokens} + {WORKLOAD.output_tokens} tokens, one thread",
    )  # fmt: skip
    for way, row in result["ways"].items():
        ends = row["spearman_interval"]
        between = f"{ends[0]:.2f} to {ends[1]:.2f}" if ends else "too few shapes"
        table.add_row(way, f"{row['spearman']:.2f}", between, f"{row['mean_error']:.1%}", f"{row['worst_error']:.1%}")
    reached = list(result["ways"].values())[-1]["spearman"] >= GOAL_SPEARMAN
    table.caption = (
        f"fastest / slowest measured {result['spread_of_measured']:.2f}; {_repeats(result)}; "
        f"intervals hold {result['intervals_that_hold_the_measured_rate']}"
        f"; goal Spearman >= {GOAL_SPEARMAN}: {'reached' if reached else 'NOT reached'}"
    )
    console.print(table)
    terms = ", ".join(f"{term['term']} {term['value']:.3g}" for term in result["fit"]["terms"])
    console.print(f"fit: {terms}; error on shapes left out {result['fit']['left_out_error']:.1%}")
    console.print(f"took {result['seconds_of_this_start'] / 60:.1f} min in this start")
    timing = result["speed"]
    for name in ("sheet_seconds", "measured_and_fitted_seconds"):
        reached = timing[name] <= GOAL_SECONDS
        console.print(
            f"{timing['num_shapes']:,} shapes x {timing['num_batches']} batches, {name[:-8].replace('_', ' ')}: "
            f"{timing[name]:.2f} s (goal {GOAL_SECONDS:.0f} s for 100,000: {'reached' if reached else 'NOT reached'})"
        )


def _repeats(result: dict[str, Any]) -> str:
    spread = result["median_variation_of_repeats"]
    return "one repeat a shape" if math.isnan(spread) else f"repeats vary by {spread:.1%}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--smoke", action="store_true", help="eight shapes, short windows, in about two minutes")
    parser.add_argument("--engine", choices=sorted(SETTINGS), default="transformers", help="whose runs are predicted")
    parser.add_argument("--record", type=Path, help="a file that keeps what was measured; go on from it if it exists")
    parser.add_argument("--n", type=int, help="non-embedding parameters; default 400,000, for vllm 6,000,000")
    parser.add_argument("--repeats", type=int, help="engine processes a shape; default 2, for vllm 1")
    parser.add_argument("--window-seconds", type=float, default=1.0, help="least window of a repeat")
    arguments = parser.parse_args()
    chosen = SETTINGS[arguments.engine]
    measured_result = run(
        engine=arguments.engine,
        file=arguments.record,
        smoke=arguments.smoke,
        num_parameters=arguments.n or chosen.num_parameters,
        num_repeats=1 if arguments.smoke else arguments.repeats or chosen.num_repeats,
        window_seconds=0.1 if arguments.smoke else arguments.window_seconds,
    )
    if arguments.json:
        print(json.dumps(measured_result, indent=2))
    else:
        print_result(measured_result, Console())
