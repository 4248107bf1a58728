"""`archfleet bench`, `predict`: serving throughput, measured here and by a roofline."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import command, json_option
from coordinator.cli.console import console, errors, print_json


def _recipe_options(command: Any) -> Any:
    """Options of how an engine holds and shares a model, alike for measuring and predicting."""
    quantization = click.option(
        "--quantization", metavar="NAME", help="Of the weights, by the engine's own name, e.g. fp8.  [default: none]"
    )
    cache = click.option(
        "--kv-cache-dtype",
        type=click.Choice(["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"]),
        default="auto",
        show_default=True,
        help="Of cached keys and values; auto is --dtype.",
    )
    devices = click.option(
        "--tensor-parallel-size",
        default=1,
        show_default=True,
        type=click.IntRange(min=1),
        help="Devices that share every matrix.",
    )
    return quantization(cache(devices(command)))


@command(
    epilog="  archfleet bench runs/LAST/architectures/*/config.json\n"
    "  archfleet bench a/config.json b/config.json --batch 16,32 --input-tokens 32 --output-tokens 32 --out campaign\n"
    "  archfleet bench llama-3.2-1b panda-1b surefire-1b --engine vllm      # 1024/1024 on a GPU, an hour or more\n"
    "  archfleet bench a.json b.json --engine vllm --quantization fp8 --kv-cache-dtype fp8 --tensor-parallel-size 2"
)
@click.argument("configs", nargs=-1, required=True)
@click.option("--engine", default="transformers", show_default=True, help="transformers, vllm, sglang or fake.")
@click.option("--batch", "batches", help="One, a list a,b, or doubling a..b.  [default: GPU 128..4096, CPU 16]")
@click.option("--input-tokens", type=click.IntRange(min=1), help="[default: GPU 1024, CPU 32]")
@click.option("--output-tokens", type=click.IntRange(min=1), help="[default: GPU 1024, CPU 32]")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=2), help="Engine restarts of each.")
@click.option(
    "--window-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Least time that each restart measures.  [default: GPU 60, CPU 2]",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: GPU bfloat16, CPU float32]"
)
@_recipe_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results go, default bench-YYYYMMDD-HHMMSS; a campaign that was stopped there goes on.",
)
@json_option
def bench(configs: tuple[str, ...], out: Path | None, as_json: bool, **settings: Any) -> None:
    """Measure and compare the serving throughput of CONFIGS (config.json files or names) here, with dummy weights.

    At each batch size the engines' restarts are interleaved: A B A', A' B A, A B A' ... where A' is the first again:
    the noise floor. Ratios to the first have intervals, corrected for the number of comparisons.

    What is not given follows the device: 1024 input and output tokens at batch 128 to 4096 on a GPU; on a CPU, which
    would take days for that, 32 and 32 at batch 16. The workload that is taken is printed. Exit status 1 if nothing
    could be measured.
    """
    from coordinator.bench import (
        BenchOptions,
        default_directory,
        plan_campaign,
        report_bench,
        run_bench,
        workload_words,
    )

    options = BenchOptions(**settings)
    campaign = plan_campaign(configs, options)
    errors.print(workload_words(campaign, options), markup=False, highlight=False, soft_wrap=True)
    directory = out or default_directory(datetime.now(UTC))
    try:
        record = run_bench(campaign, directory, console=errors)
    except KeyboardInterrupt:
        words = f"stopped; the same command with --out {directory} goes on"
        errors.print(words, markup=False, soft_wrap=True)
        sys.exit(130)
    if as_json:
        print_json(record.to_json())
    report_bench(record, directory, console=errors if as_json else console)
    if not record.observations():
        sys.exit(1)


@command(
    epilog="  archfleet predict llama-3.2-1b --hardware h200\n"
    "  archfleet predict config.json --hardware a100-80gb --batch 128..4096 --json\n"
    "  archfleet predict panda-1b --quantization fp8 --kv-cache-dtype fp8 --tensor-parallel-size 2\n"
    "  archfleet predict config.json --profile measured.toml --observations bench/bench.json --batch 16..64"
)
@click.argument("config")
@click.option("--hardware", help="A sheet of `archfleet hw list`.  [default: the profile's, or h200]")
@click.option("--batch", "batches", default="128..4096", show_default=True, help="One, a list a,b, or doubling a..b.")
@click.option("--input-tokens", default=1024, show_default=True, type=click.IntRange(min=1))
@click.option("--output-tokens", default=1024, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="[default: the observations', or bfloat16]",
)
@_recipe_options
@click.option(
    "--profile", type=click.Path(path_type=Path), help="A measured profile: what `archfleet hw calibrate --out` wrote."
)
@click.option(
    "--observations",
    type=click.Path(path_type=Path),
    help="A bench.json; the engine's host term and scale are fitted to its runs.",
)
@click.option("--engine", help="Which engine's observations, where the file holds several.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "processor"]),
    default="wall",
    show_default=True,
    help="Of the observations; processor time for a CPU that others kept busy.",
)
@json_option
def predict(config: str, as_json: bool, **settings: Any) -> None:
    """Predict serving throughput of CONFIG by a roofline: never a measurement.

    Alone it is an uncalibrated bound from a data sheet's peaks; --profile gives it the efficiencies of this device,
    --observations the host's time and a scale fitted to an engine's own runs, and intervals.
    """
    from coordinator.predict import predict_table, run_prediction

    result = run_prediction(config, **settings)
    if as_json:
        print_json(result)
    else:
        console.print(predict_table(result))
