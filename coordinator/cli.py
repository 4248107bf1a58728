"""The `archfleet` command: each sub-command a few lines over a library call.

People get sentences and tables; `--json` gives the same as JSON on standard output. A user's mistake ends with one
message and exit status 2; a run that was stopped by Ctrl-C ends with 130.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from coordinator.data import add_data_commands
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


@main.command(
    epilog="  archfleet run\n  archfleet run --quick\n  archfleet run my-study.toml --runs /data/runs\n"
    "  archfleet run my-study.toml --address head.example:6379"
)
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
@click.option(
    "--address", metavar="HOST:PORT", help="Use the Ray cluster at this address; default: start one on this machine."
)
@click.option("--insecure", is_flag=True, help="Use a cluster that takes connections without a token.")
def run(study: str, quick: bool, **settings: Any) -> None:
    """Run STUDY (a name or a TOML file; default: laptop), or go on with its last unfinished run."""
    from coordinator.run import RunOptions, run_study
    from coordinator.study import read_study

    outcome = run_study(read_study("quick" if quick else study), RunOptions(**settings), console=console)
    if not outcome.finished:
        console.print(f"stopped; the same command goes on with {outcome.run_directory}", markup=False, soft_wrap=True)
        sys.exit(130)
    from coordinator.outputs import closing_words

    console.print(closing_words(outcome.run_directory), markup=False, soft_wrap=True)


@main.command(
    epilog="  archfleet guard\n  archfleet guard my-study.toml --kind hidden --seeds 4\n"
    "  archfleet guard quick --seeds 1 --json > guard.json"
)
@click.argument("study", default="laptop")
@click.option("--seeds", "num_seeds", default=2, show_default=True, type=click.IntRange(min=1), help="Runs of each.")
@click.option(
    "--token-scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the study's D; a rate belongs to its D.",
)
@click.option(
    "--kind",
    type=click.Choice(["all", "hidden", "attention", "mlp"]),
    default="all",
    show_default=True,
    help="Whose rates the factors multiply: those of one kind of matrix tell which of them is off.",
)
@click.option("--jobs", "num_jobs", type=click.IntRange(min=1), help="Runs at a time; default: one a CPU core.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for finished runs; default: by name."
)
@_json_option
def guard(study: str, out: Path | None, num_jobs: int | None, as_json: bool, **settings: Any) -> None:
    """Test whether STUDY's learning rate suits its extreme shapes (default: laptop), at its smallest size.

    The centre and the shapes with the smallest and largest fan-ins train at 0.7, 1 and 1.4 times the rate. A shape that
    would gain more than 0.003 nats/token is off: what it loses would be fitted as an effect of its shape. Study laptop
    takes about four minutes on one quiet core a seed. The same command goes on after Ctrl-C; exit status 1 if a shape
    is off.
    """
    from rich.progress import Progress

    from coordinator.guard import (
        Processes,
        default_jobs,
        guard_directory,
        guard_sentences,
        guard_table,
        is_kept,
        plan_guard,
        run_guard,
    )
    from coordinator.stopping import signals_ask_to_stop
    from coordinator.study import read_study

    what = plan_guard(read_study(study), **settings)
    directory = out or guard_directory(what.study)
    with signals_ask_to_stop() as stop_requested, Progress(console=errors, transient=True) as bars:
        task = bars.add_task("training", total=None)
        result = run_guard(
            what,
            directory,
            run=Processes(directory, num_jobs or default_jobs()),
            say=lambda sentence: bars.update(task, description=sentence),
            progress=lambda done, total: bars.update(task, completed=done, total=total, description="training"),
            stop_requested=stop_requested,
        )
    if result is None:
        errors.print(f"stopped; the same command goes on with {directory}", markup=False, soft_wrap=True)
        sys.exit(130)
    if as_json:
        _print_json(result)
    else:
        console.print(guard_table(result))
        for sentence in guard_sentences(result):
            console.print(f"- {sentence}", markup=False, soft_wrap=True)
    if not is_kept(result):
        sys.exit(1)


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


@main.command(epilog="  archfleet backup\n  archfleet backup laptop-20260101-120000 /mnt/backups")
@click.argument("run", required=False)
@click.argument("destination", type=click.Path(path_type=Path), required=False)
@_runs_option
def backup(run: str | None, destination: Path | None, runs: Path) -> None:
    """Copy a run's store while it runs (default: the last run, into its backups/), and check the copy."""
    from time import time

    from coordinator.backup import back_up

    made = back_up(find_run(run, runs), destination, now_unix=time())
    console.print(
        f"{made.path}: {made.num_bytes:,} bytes, {made.num_trials} trials, {made.num_observations} observations, "
        "opened and checked",
        markup=False,
        soft_wrap=True,
    )


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


@main.group(
    epilog="  archfleet simulate coverage --studies 200\n  archfleet simulate search --seeds 5\n"
    "  archfleet simulate fleet --trials 1000 --faults"
)
def simulate() -> None:
    """Test the science on simulated truths, and the coordinator on a simulated fleet: nothing is trained."""


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


@simulate.command(
    epilog="  archfleet simulate fleet --agents 64 --trials 10000 --faults\n"
    "  archfleet simulate fleet --agents 16 --trials 300 --fault partition --fault crash --seed 7 --json"
)
@click.option("--agents", "num_agents", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--trials", "num_trials", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--faults", "all_faults", is_flag=True, help="All faults, each at its rate.")
@click.option("--fault", "names", multiple=True, help="One fault; may be repeated.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@_json_option
def fleet(num_agents: int, num_trials: int, all_faults: bool, names: tuple[str, ...], seed: int, as_json: bool) -> None:
    """A study on a simulated fleet under a virtual clock, and whether the coordinator kept its promises.

    The planner, the dispatch, the store and the loop are the real ones; agents and their faults are SIMULATED. Exit
    status 1 if a promise was broken.
    """
    from rich.progress import Progress

    from coordinator.simulate_fleet import FleetSimulation, chosen_faults, fleet_table, simulate_fleet

    what = FleetSimulation(
        num_agents=num_agents, num_trials=num_trials, faults=chosen_faults(names, every=all_faults), seed=seed
    )
    with Progress(console=errors, transient=True) as bars:
        task = bars.add_task("simulated trials", total=num_trials)
        result = simulate_fleet(
            what, progress=lambda done, expected: bars.update(task, completed=done, total=max(done, expected))
        )
    if as_json:
        _print_json(result)
    else:
        console.print(fleet_table(result))
    if not result["kept"]:
        sys.exit(1)


@main.command(
    epilog="  archfleet train config.json --tokens 1e6\n"
    "  archfleet train config.json --tokens 1e6 --seeds 4 --out centre\n"
    "  archfleet train config.json --tokens 20e6 --corpus prepared --rate 0.004 --json"
)
@click.argument("config")
@click.option("--tokens", required=True, type=click.FloatRange(min=1), help="Training tokens, e.g. 1e6.")
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    help="A folder that `archfleet data prepare` or `python -m agent corpus` wrote.  [default: Python's own library]",
)
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.  [default: the recipe's]"
)
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens a step.  [default: the recipe's]")
@click.option("--sequence-length", type=click.IntRange(min=1), help="Tokens a sequence.  [default: the recipe's]")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="May be repeated.  [default: 0]")
@click.option("--seeds", "num_seeds", type=click.IntRange(min=1), metavar="K", help="Seeds 0 to K - 1 instead.")
@click.option(
    "--max-epochs", default=4.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Of the corpus."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where there is one]")
@click.option(
    "--devices",
    "num_devices",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="K",
    help="Devices of this machine that share every batch; on a CPU, processes. Must divide the batch.",
)
@click.option(
    "--checkpoint-seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="At most so much is lost to a kill.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results go.  [default: train-SHAPE-HASH, so that the same command goes on with it]",
)
@_json_option
def train(
    config: str,
    seeds: tuple[int, ...],
    num_seeds: int | None,
    device: str | None,
    num_devices: int,
    out: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train the architecture CONFIG (config.json, its folder, or a name) here, alone, and tell its held-out loss.

    Rate and batch follow the step law at the sizes it was fitted to, elsewhere the study laptop; which is printed. The
    trained model is written for transformers, vLLM and `archfleet score`. A training that was stopped or killed
    goes on by the same command; a seed that is finished is not trained again.
    """
    from coordinator.train import (
        RunFailedError,
        TrainOptions,
        chosen_seeds,
        closing_words,
        default_directory,
        plan_training,
        plan_words,
        result_table,
        run_training,
    )
    from coordinator.training_corpus import user_cache

    def say(words: str) -> None:
        errors.print(words, markup=False, soft_wrap=True)

    wanted = chosen_seeds(seeds, num_seeds)
    plan = plan_training(config, TrainOptions(**settings), cache=user_cache(), say=say)
    directory = out or default_directory(plan.training)
    say(plan_words(plan, wanted))
    try:
        result = run_training(plan, wanted, directory, console=errors, device=device, num_devices=num_devices)
    except RunFailedError as error:
        say(f"archfleet: {error}")
        sys.exit(1)
    if result is None:
        say(f"stopped; the same command goes on with {directory}")
        sys.exit(130)
    if as_json:
        _print_json(result.model_dump(mode="json"))
        return
    console.print(result_table(result))
    for words in closing_words(result, directory):
        console.print(words, markup=False, soft_wrap=True)


@main.command(
    epilog="  archfleet compare centre wide\n  archfleet compare centre wide narrow --json\n"
    "  archfleet compare a/seed-0/observation.json b.json --noise-sd 0.011"
)
@click.argument("trainings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--noise-sd",
    type=click.FloatRange(min=0, min_open=True),
    help="Scatter of one run's loss over seeds, nats per token.  [default: from the seeds given]",
)
@_json_option
def compare(trainings: tuple[Path, ...], noise_sd: float | None, as_json: bool) -> None:
    """Compare TRAININGS (folders of `archfleet train`, or observations) with the first, window by window.

    What is hard for all cancels. Two errors remain, windows and seeds, and the interval of a difference holds both;
    with one seed each the second is not known, and no difference counts as shown.
    """
    from coordinator.compare import closing_words, comparison_table
    from coordinator.compare import compare as compare_trainings

    comparison = compare_trainings(trainings, noise_sd=noise_sd)
    if as_json:
        _print_json(comparison.model_dump(mode="json"))
        return
    console.print(comparison_table(comparison))
    for words in closing_words(comparison):
        console.print(words, markup=False, soft_wrap=True)


@main.command(
    epilog="  archfleet score mine/seed-0/model\n  archfleet score mine/seed-0/model --tasks piqa,sciq --json\n"
    "  archfleet score mine/seed-0/model --tasks my_task --task-path my-tasks"
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--tasks", help="Names of the harness, a,b.  [default: the nine of arXiv 2510.18245]")
@click.option("--task-path", type=click.Path(path_type=Path), help="A folder with task files beside the harness's own.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many examples of each task: a look.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where there is one]")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the scores here too (JSON).")
@_json_option
def score(model: Path, out: Path | None, as_json: bool, **settings: Any) -> None:
    """Score a trained MODEL (a folder of `archfleet train`) on downstream tasks, zero-shot, by lm-evaluation-harness.

    The harness is an extra (`pip install 'archfleet[eval]'`), or lives in an interpreter of its own, which
    ARCHFLEET_LM_EVAL_PYTHON names. Data sets come from its cache or the internet; all are fetched before any is scored.
    """
    from coordinator.score import ScoreOptions, closing_words, run_scoring, scores_table
    from coordinator.training_folder import write_json

    scores = run_scoring(model, ScoreOptions(**settings), console=errors)
    if out is not None:
        write_json(out, scores)
    if as_json:
        _print_json(scores.model_dump(mode="json"))
        return
    console.print(scores_table(scores))
    console.print(closing_words(scores), markup=False, soft_wrap=True)


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


@main.command(
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
@_json_option
def bench(configs: tuple[str, ...], out: Path | None, as_json: bool, **settings: Any) -> None:
    """Measure and compare the serving throughput of CONFIGS (config.json files or names) here, with dummy weights.

    At each batch size the engines' restarts are interleaved: A B A', A' B A, A B A' ... where A' is the first again:
    the noise floor. Ratios to the first have intervals, corrected for the number of comparisons.

    What is not given follows the device: 1024 input and output tokens at batch 128 to 4096 on a GPU; on a CPU, which
    would take days for that, 32 and 32 at batch 16. The workload that is taken is printed.
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
        _print_json(record.to_json())
    report_bench(record, directory, console=errors if as_json else console)
    if not record.observations():
        sys.exit(1)


@main.command(
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
@_json_option
def predict(config: str, as_json: bool, **settings: Any) -> None:
    """Predict serving throughput of CONFIG by a roofline: never a measurement.

    Alone it is an uncalibrated bound from a data sheet's peaks; --profile gives it the efficiencies of this device,
    --observations the host's time and a scale fitted to an engine's own runs, and intervals.
    """
    from coordinator.predict import predict_table, run_prediction

    result = run_prediction(config, **settings)
    if as_json:
        _print_json(result)
    else:
        console.print(predict_table(result))


@main.group(
    epilog="  archfleet hw list\n  archfleet hw detect\n  archfleet hw calibrate --seconds 60 --out measured.toml"
)
def hw() -> None:
    """Hardware profiles: data sheets, which of them this device is, and what is measured on it."""


@hw.command("list", epilog="  archfleet hw list\n  archfleet hw list --json")
@_json_option
def hw_list(as_json: bool) -> None:
    """List the data sheets that ship with archfleet."""
    from coordinator.hardware import sheets_table
    from hwprofiles.catalog import all_profiles

    if as_json:
        _print_json([profile.model_dump(mode="json") for profile in all_profiles()])
        return
    console.print(sheets_table())
    console.print("Data-sheet peaks, not attainable rates; `--json` gives the source of every figure.")


@hw.command("detect", epilog="  archfleet hw detect\n  archfleet hw detect --json")
@_json_option
def hw_detect(as_json: bool) -> None:
    """Tell what this machine's device is, and which data sheet is certainly its own."""
    from coordinator.hardware import describe_detected, detect_device

    found = detect_device()
    if as_json:
        _print_json(found)
    else:
        console.print(describe_detected(found), markup=False, soft_wrap=True)


@hw.command(
    "calibrate",
    epilog="  archfleet hw calibrate --out measured.toml\n"
    "  archfleet hw calibrate --hardware h100-pcie-80gb --seconds 120 --out measured.toml\n"
    "  archfleet predict config.json --profile measured.toml",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the measured profile here (TOML).")
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(1, 170),
    help="About how long; a busy or slow machine takes longer.",
)
@click.option("--hardware", help="The sheet whose peaks to keep.  [default: the detected one]")
@click.option("--cpu", "on_cpu", is_flag=True, help="Calibrate the CPU of a machine that has a GPU.")
@click.option("--threads", "num_threads", default=1, show_default=True, type=click.IntRange(min=1), help="CPU threads.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: float32 on a CPU, else bfloat16]"
)
@_json_option
def hw_calibrate(out: Path | None, on_cpu: bool, as_json: bool, **settings: Any) -> None:
    """Measure this device by microbenchmarks: matrix products, copies, attention, launches, each by size."""
    from rich.progress import Progress

    from coordinator.hardware import calibrate_device, calibration_table, require_folder, write_profile

    if out is not None:
        require_folder(out)
    with Progress(console=errors, transient=True) as bars:
        task = bars.add_task("microbenchmarks")
        profile = calibrate_device(
            on_gpu=False if on_cpu else None,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
            **settings,
        )
    if out is not None:
        write_profile(profile, out)
    if as_json:
        _print_json(profile.model_dump(mode="json"))
        return
    console.print(calibration_table(profile))
    console.print(
        f"written to {out}; `archfleet predict CONFIG --profile {out}` uses it"
        if out is not None
        else "not kept: --out FILE writes a profile that `archfleet predict --profile FILE` uses",
        markup=False,
        soft_wrap=True,
    )


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))


add_data_commands(main, console=console, errors=errors, show_json=_print_json)


if __name__ == "__main__":
    main()
