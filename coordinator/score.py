"""`archfleet score`: zero-shot accuracy of a trained model on downstream tasks, by lm-evaluation-harness."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from agent.failures import InvalidInputError
from agent.scoring.harness import Scoring, ScoringDone, ScoringRequest, TaskScore, find_harness, score
from coordinator.bars import told
from coordinator.errors import UserError
from coordinator.training_folder import MODEL_NAME
from hwprofiles.value import Value

NINE_TASKS = (
    "arc_easy",
    "arc_challenge",
    "lambada_openai",
    "hellaswag",
    "openbookqa",
    "piqa",
    "sciq",
    "winogrande",
    "coqa",
)
"""On which arXiv 2510.18245 compares architectures, zero-shot (section 4), by the harness's names."""
ACCURACIES = ("acc", "exact_match", "em")
"""Metrics that are shares of examples, the first of which a task has is its accuracy; coqa's is em."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What `archfleet score` was asked for."""

    tasks: str | None = None
    task_path: Path | None = None
    limit: int | None = None
    batch_size: int = 16
    device: str | None = None


class Accuracy(Value):
    """Mean over tasks of their accuracies. Standard error over examples, tasks taken as independent."""

    value: float
    standard_error: float
    of: dict[str, str]
    """Task → metric that was taken for its accuracy."""


class Scores(Value):
    """Scores of one model."""

    schema_version: Literal[1] = 1
    model: str
    limit: int | None
    """Only so many examples of each task, where it was asked for: not the benchmark."""
    tasks: tuple[TaskScore, ...]
    mean_accuracy: Accuracy | None
    no_mean_because: str | None
    versions: dict[str, str]


def run_scoring(directory: Path, options: ScoreOptions, *, console: Console) -> Scores:
    """Score a model on the tasks.

    Args:
        directory: a checkpoint folder, or a folder of `archfleet train` with one seed.
        options: what to score it on.
        console: for the progress.

    Raises:
        UserError: the model, the harness, a task or its data cannot be had.
    """
    model = model_directory(directory)
    tasks = chosen_tasks(options.tasks)
    if options.task_path is not None and not options.task_path.is_dir():
        raise UserError(f"--task-path {options.task_path} is not a folder; expected one with task files of the harness")
    try:
        python = find_harness()
        request = ScoringRequest.model_validate(
            {
                "model_directory": str(model.resolve()),
                "tasks": tasks,
                "task_directory": None if options.task_path is None else str(options.task_path.resolve()),
                "limit": options.limit,
                "batch_size": options.batch_size,
                "device": options.device,
            }
        )
        found, versions = _scored(request, python, console)
    except InvalidInputError as error:
        raise UserError(str(error)) from None
    mean, reason = mean_accuracy(found)
    return Scores(
        model=str(directory),
        limit=options.limit,
        tasks=found,
        mean_accuracy=mean,
        no_mean_because=reason,
        versions=versions,
    )


def model_directory(directory: Path) -> Path:
    """The checkpoint folder that is meant.

    Raises:
        UserError: there is none, there are several, or it has no tokenizer.
    """
    places = [directory, directory / MODEL_NAME]
    found = [place for place in places if (place / "config.json").is_file()][:1]
    found = found or sorted(place.parent for place in directory.glob(f"seed-*/{MODEL_NAME}/config.json"))
    if not found:
        raise UserError(
            f"{directory} holds no trained model (config.json, model.safetensors); expected a folder that archfleet "
            "train --out wrote, finished"
        )
    if len(found) > 1:
        names = ", ".join(str(place) for place in found)
        raise UserError(f"{directory} holds {len(found)} models; name one of them: {names}")
    if not (found[0] / "tokenizer.json").is_file():
        raise UserError(
            f"{found[0]} has no tokenizer.json: its corpus came without one, and tasks are text. Prepare the corpus "
            "with its tokenizer and train again"
        )
    return found[0]


def chosen_tasks(tasks: str | None) -> tuple[str, ...]:
    """The tasks of a comma-separated list, or the nine.

    Raises:
        UserError: the list is empty.
    """
    if tasks is None:
        return NINE_TASKS
    chosen = tuple(dict.fromkeys(task.strip() for task in tasks.split(",") if task.strip()))
    if not chosen:
        raise UserError(f"--tasks {tasks!r} names no task; expected names such as piqa,sciq")
    return chosen


def _scored(request: ScoringRequest, python: str, console: Console) -> tuple[tuple[TaskScore, ...], dict[str, str]]:
    found: list[TaskScore] = []
    run: Any = score(request, python=python)
    starting = told(console, "starting lm-evaluation-harness", 2 * len(request.tasks))
    with starting as progress, closing(run) as messages:
        for message in messages:
            if isinstance(message, Scoring):
                progress.now(f"{message.doing} {message.task}")
                progress.advance(1)
            elif isinstance(message, ScoringDone):
                return tuple(found), message.versions
            else:
                found.append(message)
    raise AssertionError("the harness ends with what it did, or an error")


def mean_accuracy(scores: Sequence[TaskScore]) -> tuple[Accuracy | None, str | None]:
    """The mean over tasks with its standard error, or why there is none."""
    taken = {each.task: next((name for name in ACCURACIES if name in each.metrics), None) for each in scores}
    without = [task for task, metric in taken.items() if metric is None]
    if without:
        return None, f"no accuracy among the metrics of {', '.join(without)}"
    if len(scores) < 2:
        return None, "one task is no mean"
    of = {task: metric for task, metric in taken.items() if metric is not None}
    metrics = [each.metrics[of[each.task]] for each in scores]
    errors = [metric.standard_error for metric in metrics]
    if None in errors:
        return None, "a task has no standard error"
    return (
        Accuracy(
            value=sum(metric.value for metric in metrics) / len(metrics),
            standard_error=math.hypot(*(error for error in errors if error is not None)) / len(metrics),
            of=of,
        ),
        None,
    )


def scores_table(scores: Scores) -> Table:
    """Every metric of every task with its standard error over examples."""
    looked = "" if scores.limit is None else f", only the first {scores.limit} examples of each: not the benchmark"
    table = Table(title=f"MEASURED {scores.model}: zero-shot{looked}; ± is a standard error over examples")
    for head in ("task", "metric", "value", "examples"):
        table.add_column(head, justify="left" if head in ("task", "metric") else "right", overflow="fold")
    for each in scores.tasks:
        for place, (name, metric) in enumerate(each.metrics.items()):
            error = "" if metric.standard_error is None else f" ± {metric.standard_error:.4f}"
            task, count = (each.task, f"{each.num_samples:,}") if place == 0 else ("", "")
            table.add_row(task, name, f"{metric.value:.4f}{error}", count)
    return table


def closing_words(scores: Scores) -> str:
    """The mean accuracy and what scored."""
    mean = scores.mean_accuracy
    told = (
        f"no mean accuracy: {scores.no_mean_because}"
        if mean is None
        else f"mean accuracy over {len(mean.of)} tasks: {mean.value:.4f} ± {mean.standard_error:.4f}"
    )
    return f"{told}; lm-evaluation-harness {scores.versions.get('lm_eval', '')}"
