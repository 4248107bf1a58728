"""`archfleet train`, `compare`, `score`: one architecture trained here, beside others, on downstream tasks."""

import sys
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import NewFile, command, json_option
from coordinator.cli.console import console, errors, print_json


@command(
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
@json_option
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
    goes on by the same command; a seed that is finished is not trained again. Exit status 1 if a training fails: it
    runs out of memory, or its loss is not a number any more.
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
        print_json(result.model_dump(mode="json"))
        return
    console.print(result_table(result))
    for words in closing_words(result, directory):
        console.print(words, markup=False, soft_wrap=True)


@command(
    epilog="  archfleet compare centre wide\n  archfleet compare centre wide narrow --json\n"
    "  archfleet compare a/seed-0/observation.json b.json --noise-sd 0.011"
)
@click.argument("trainings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--noise-sd",
    type=click.FloatRange(min=0, min_open=True),
    help="Scatter of one run's loss over seeds, nats per token.  [default: from the seeds given]",
)
@json_option
def compare(trainings: tuple[Path, ...], noise_sd: float | None, as_json: bool) -> None:
    """Compare TRAININGS (folders of `archfleet train`, or observations) with the first, window by window.

    What is hard for all cancels. Two errors remain, windows and seeds, and the interval of a difference holds both;
    with one seed each the second is not known, and no difference counts as shown.
    """
    from coordinator.compare import closing_words, comparison_table
    from coordinator.compare import compare as compare_trainings

    comparison = compare_trainings(trainings, noise_sd=noise_sd)
    if as_json:
        print_json(comparison.model_dump(mode="json"))
        return
    console.print(comparison_table(comparison))
    for words in closing_words(comparison):
        console.print(words, markup=False, soft_wrap=True)


@command(
    epilog="  archfleet score mine/seed-0/model\n  archfleet score mine/seed-0/model --tasks piqa,sciq --json\n"
    "  archfleet score mine/seed-0/model --tasks my_task --task-path my-tasks"
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--tasks", help="Names of the harness, a,b.  [default: the nine of arXiv 2510.18245]")
@click.option("--task-path", type=click.Path(path_type=Path), help="A folder with task files beside the harness's own.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many examples of each task: a look.")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where there is one]")
@click.option("--out", type=NewFile(), help="Write the scores here too (JSON).")
@json_option
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
        print_json(scores.model_dump(mode="json"))
        return
    console.print(scores_table(scores))
    console.print(closing_words(scores), markup=False, soft_wrap=True)
