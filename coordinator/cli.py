"""The `archfleet` command: each sub-command a few lines over a library call.

People get sentences and tables; `--json` gives the same as JSON on standard output. A user's mistake ends with one
message and exit status 2; a run that was stopped by Ctrl-C ends with 130.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from coordinator.errors import UserError
from coordinator.runs import DEFAULT_RUNS, find_run
from coordinator.version import version

PIPED_WIDTH = 170
"""Columns where there is no terminal to ask: tables keep their words whole."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True, highlight=False)

_runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=DEFAULT_RUNS,
    show_default=True,
    help="Where run directories are.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _Command(click.Command):
    """A command whose examples are printed as they are written."""

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\nExamples:\n{self.epilog.rstrip()}\n")


class _Group(click.Group):
    command_class = _Command

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\nExamples:\n{self.epilog.rstrip()}\n")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            errors.print(f"archfleet: {error}", markup=False, soft_wrap=True)
            sys.exit(2)


_Group.group_class = _Group


@click.group(cls=_Group, epilog="  archfleet run\n  archfleet status\n  archfleet fit runs.csv --law chinchilla")
@click.version_option(version(), prog_name="archfleet")
def main() -> None:
    """Find language-model architectures that are as accurate as a baseline and faster to serve, on your hardware."""


@main.command(epilog="  archfleet run\n  archfleet run --quick\n  archfleet run my-study.toml --runs /data/runs")
@click.argument("study", default="laptop")
@click.option("--quick", is_flag=True, help="Run the two-minute smoke study instead.")
@click.option("--new", "start_new", is_flag=True, help="Start a new run, even if one is unfinished.")
@_runs_option
@click.option(
    "--metrics-port",
    default=9464,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Loopback port of /metrics; 0 takes a free one.",
)
@click.option("--agents", "num_agents", type=click.IntRange(min=1), help="Number of agents; default: one a CPU core.")
def run(study: str, quick: bool, start_new: bool, runs: Path, metrics_port: int, num_agents: int | None) -> None:
    """Run STUDY (a name or a TOML file; default: laptop), or go on with its last unfinished run."""
    from coordinator.run import RunOptions, run_study
    from coordinator.study import read_study

    options = RunOptions(runs=runs, start_new=start_new, metrics_port=metrics_port, num_agents=num_agents)
    outcome = run_study(read_study("quick" if quick else study), options, console=console)
    if not outcome.finished:
        console.print(f"stopped; `archfleet run` goes on with {outcome.run_directory}", markup=False, soft_wrap=True)
        sys.exit(130)
    from coordinator.outputs import closing_words

    console.print(closing_words(outcome.run_directory), markup=False, soft_wrap=True)


@main.command(epilog="  archfleet status\n  archfleet status laptop-20260101-120000 --json")
@click.argument("run", required=False)
@_runs_option
@_json_option
def status(run: str | None, runs: Path, as_json: bool) -> None:
    """Tell how a run is doing (default: the last one)."""
    from coordinator.status import describe_status, read_status

    found = read_status(find_run(run, runs))
    if as_json:
        _print_json(found)
    else:
        console.print(describe_status(found), markup=False, soft_wrap=True)


@main.command(epilog="  archfleet report\n  archfleet report runs/laptop-20260101-120000")
@click.argument("run", required=False)
@_runs_option
def report(run: str | None, runs: Path) -> None:
    """Write a run's report, recommendation and table anew from its store (default: the last run)."""
    from coordinator.outputs import write_outputs

    directory = find_run(run, runs)
    for path in write_outputs(directory):
        console.print(str(path), markup=False, soft_wrap=True)


@main.command(epilog="  archfleet fit runs.csv\n  archfleet fit runs.csv --law conditional --json")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--law", type=click.Choice(["chinchilla", "conditional"]), default="chinchilla", show_default=True)
@_json_option
def fit(table: Path, law: str, as_json: bool) -> None:
    """Fit a scaling law to a TABLE of runs (CSV).

    Columns: n_params (or n_params_non_embed, n_params_total), n_tokens and loss in nats per token; for the conditional
    law also x and r, or hidden_size (d_model), intermediate_size (d_ff), n_heads, n_kv_heads, head_dim and n_layers.
    Lines that begin with # are comments.
    """
    from coordinator.runs_table import describe_fit, fit_table, read_runs_table

    try:
        result = fit_table(read_runs_table(table), law=law)
    except ValueError as error:
        raise UserError(str(error)) from None
    if as_json:
        _print_json(result)
    else:
        console.print(describe_fit(result), markup=False, soft_wrap=True)


@main.command(
    epilog="  archfleet recommend --runs runs.csv --n 1e9 --tokens 100e9 --baseline llama-3.2-1b --hardware h200\n"
    "  archfleet recommend --runs runs.csv --n 3e9 --tokens 100e9 --baseline llama-3.2-3b --hardware a100-80gb --json"
)
@click.option("--runs", "table", type=click.Path(path_type=Path), required=True, help="CSV of runs with their shapes.")
@click.option("--n", "n", type=click.FloatRange(min=0, min_open=True), required=True, help="Non-embedding parameters.")
@click.option("--tokens", type=click.FloatRange(min=0, min_open=True), required=True, help="Training tokens.")
@click.option("--baseline", default="llama-3.2-1b", show_default=True, help="A named architecture or a config.json.")
@click.option("--hardware", default="h200", show_default=True, help="A profile of `archfleet hw list`.")
@click.option("--layers", "num_layers", type=click.IntRange(min=1), help="Layers; default: the baseline's.")
@click.option("--probability", default=0.8, show_default=True, type=click.FloatRange(0.5, 1, True, True))
@_json_option
def recommend(table: Path, as_json: bool, **settings: Any) -> None:
    """Recommend shapes from your own table of runs: Panda, Surefire and the front; every number is predicted."""
    from coordinator.recommend_from_runs import recommend_from_runs, recommendation_table
    from coordinator.runs_table import read_runs_table

    try:
        result = recommend_from_runs(read_runs_table(table), **settings)
    except ValueError as error:
        raise UserError(str(error)) from None
    if as_json:
        _print_json(result)
        return
    console.print(recommendation_table(result))
    for sentence in result["reasons"]:
        console.print(f"- {sentence}", markup=False, soft_wrap=True)


@main.group(epilog="  archfleet simulate coverage --studies 200\n  archfleet simulate search --seeds 5")
def simulate() -> None:
    """Test the science on simulated truths: nothing is trained, every number comes from a known law plus noise."""


@simulate.command(epilog="  archfleet simulate coverage --studies 200\n  archfleet simulate coverage --json")
@click.option("--studies", "num_studies", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--truth", default="paper", show_default=True, help="The simulated law.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@_json_option
def coverage(num_studies: int, truth: str, seed: int, as_json: bool) -> None:
    """How often nominal 90 % intervals hold the truth, over simulated studies of 16 runs."""
    from rich.progress import Progress

    from coordinator.simulate_coverage import coverage_table, run_coverage

    with Progress(console=errors, transient=True) as bars:
        task = bars.add_task("simulated studies", total=num_studies)
        try:
            result = run_coverage(
                num_studies, seed, truth=truth, progress=lambda done: bars.update(task, completed=done)
            )
        except ValueError as error:
            raise UserError(str(error)) from None
    if as_json:
        _print_json(result)
    else:
        console.print(coverage_table(result))


@simulate.command(
    epilog="  archfleet simulate search --seeds 5\n  archfleet simulate search --truth paper --figure regret.svg --json"
)
@click.option("--seeds", "num_seeds", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--truth", "truths", multiple=True, help="A simulated law; may be repeated. Default: all.")
@click.option("--figure", type=click.Path(path_type=Path), help="Write the curves to this SVG or PNG file.")
@_json_option
def search(num_seeds: int, truths: tuple[str, ...], figure: Path | None, as_json: bool) -> None:
    """Regret of the recommended shape against GPU-seconds spent, for every way of choosing runs."""
    from coordinator.report.search_figure import write_search_figure
    from coordinator.simulate_search import run_search_simulation, search_table

    settings: dict[str, Any] = {"truths": truths} if truths else {}
    with errors.status("simulating") as line:
        try:
            result = run_search_simulation(num_seeds=num_seeds, on_progress=line.update, **settings)
        except ValueError as error:
            raise UserError(str(error)) from None
    if figure is not None:
        write_search_figure(result, figure)
    if as_json:
        _print_json(result)
    else:
        console.print(search_table(result))


@main.command(
    epilog="  archfleet bench runs/LAST/architectures/*/config.json\n"
    "  archfleet bench a/config.json b/config.json --batch 16 --input-tokens 32 --output-tokens 32"
)
@click.argument("configs", nargs=-1, required=True)
@click.option("--engine", default="transformers", show_default=True, help="transformers or fake.")
@click.option("--batch", "batch_size", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--input-tokens", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--output-tokens", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=2))
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@_json_option
def bench(configs: tuple[str, ...], engine: str, as_json: bool, **settings: Any) -> None:
    """Measure the serving throughput of CONFIGS here (config.json files or named architectures), dummy weights."""
    from coordinator.bench import bench_table, run_benches

    result = run_benches(configs, engine=engine, console=errors, **settings)
    if as_json:
        _print_json(result)
    else:
        console.print(bench_table(result))


@main.command(
    epilog="  archfleet predict llama-3.2-1b --hardware h200\n"
    "  archfleet predict config.json --hardware a100-80gb --batch 128..4096 --json"
)
@click.argument("config")
@click.option("--hardware", default="h200", show_default=True, help="A profile of `archfleet hw list`.")
@click.option("--batch", "batches", default="128..4096", show_default=True, help="One, a list a,b, or doubling a..b.")
@click.option("--input-tokens", default=1024, show_default=True, type=click.IntRange(min=1))
@click.option("--output-tokens", default=1024, show_default=True, type=click.IntRange(min=1))
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@_json_option
def predict(config: str, hardware: str, as_json: bool, **settings: Any) -> None:
    """Predict serving throughput of CONFIG by an uncalibrated roofline: a bound from peaks, not a measurement."""
    from coordinator.predict import predict_table, run_prediction

    result = run_prediction(config, hardware=hardware, **settings)
    if as_json:
        _print_json(result)
    else:
        console.print(predict_table(result))


@main.group(epilog="  archfleet hw list")
def hw() -> None:
    """Hardware profiles."""


@hw.command("list", epilog="  archfleet hw list\n  archfleet hw list --json")
@_json_option
def hw_list(as_json: bool) -> None:
    """List the data sheets that ship with archfleet."""
    from hwprofiles.catalog import all_profiles

    profiles = all_profiles()
    if as_json:
        _print_json([profile.model_dump(mode="json") for profile in profiles])
        return
    table = Table("id", "name", "bf16 TFLOP/s (dense)", "memory GiB", "bandwidth GB/s", "power W")
    for profile in profiles:
        peak = profile.peak_flops_per_second.get("bfloat16")
        table.add_row(
            profile.id,
            profile.name,
            "-" if peak is None else f"{peak / 1e12:.4g}",
            f"{profile.memory_bytes / 2**30:.1f}",
            f"{profile.memory_bandwidth_bytes_per_second / 1e9:.4g}",
            "-" if profile.power_watts is None else f"{profile.power_watts:.0f}",
        )
    console.print(table)
    console.print("Data-sheet peaks, not attainable rates; `--json` gives the source of every figure.")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
