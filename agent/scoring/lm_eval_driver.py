"""Scores a model with lm-evaluation-harness. Run as a script by an interpreter that has the harness.

    python lm_eval_driver.py REQUEST.json

Writes one JSON object a line to standard output and imports nothing of archfleet:

    {"event": "loading", "task": ...}     before each data set is fetched; if one is missing, none is scored
    {"event": "scoring", "task": ...}
    {"event": "score", "task": ..., "metrics": {name: {"value", "standard_error"}}, "num_samples": ..., "version": ...}
    {"event": "done", "versions": {...}}
    {"event": "error", "kind": "missing-data" | "unknown-task" | "no-device" | "harness", "task": ..., "message": ...}
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("lm_eval", "torch", "transformers", "datasets")


class RefusedError(Exception):
    """What ends the scoring: an error event."""

    def __init__(self, kind: str, message: str, task: str | None = None) -> None:
        super().__init__(message)
        self.event = {"event": "error", "kind": kind, "task": task, "message": message}


def run(request: dict[str, Any], messages: TextIO) -> None:
    """Load every task, then score the model on each."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    device = chosen_device(request["device"])
    manager = TaskManager(include_path=request["task_directory"])
    known = set(manager.all_tasks)
    for name in request["tasks"]:
        if name not in known:
            raise RefusedError("unknown-task", f"{name!r} is none of its {len(known)} tasks", name)
    for name in request["tasks"]:
        tell(messages, event="loading", task=name)
        load(name, manager)
    model = HFLM(
        pretrained=request["model_directory"],
        dtype=request["dtype"],
        device=device,
        batch_size=request["batch_size"],
    )
    for name in request["tasks"]:
        tell(messages, event="scoring", task=name)
        results = simple_evaluate(
            model=model,
            tasks=[name],
            num_fewshot=0,
            limit=request["limit"],
            task_manager=manager,
            log_samples=False,
        )
        for scored in scores_of(results):
            tell(messages, event="score", **scored)
    tell(messages, event="done", versions={package: version(package) for package in PACKAGES})


def chosen_device(asked: str | None) -> str:
    """The device that was asked for, by default cuda where there is one: the harness would fall back in silence."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise RefusedError("no-device", f"torch {torch.__version__} sees no CUDA device here; expected --device cpu")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def load(name: str, manager: Any) -> None:
    """Fetch a task's data set, so that a missing one is told before hours are spent on the others."""
    from lm_eval.tasks import get_task_dict

    try:
        get_task_dict([name], manager)
    except (OSError, LookupError, ValueError) as error:  # the hub's and the data sets' errors are OSErrors or these
        raise RefusedError("missing-data", f"{type(error).__name__}: {error}", name) from error


def scores_of(results: Any) -> list[dict[str, Any]]:
    """The harness's results as score events; a group's parts are one each, its mean is left to the reader."""
    return [
        {
            "task": task,
            "metrics": metrics_of(found),
            "num_samples": results["n-samples"][task]["effective"],
            "version": str(results["versions"].get(task)),
        }
        for task, found in results["results"].items()
        if task in results["n-samples"]
    ]


def metrics_of(found: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Keys such as "acc,none" and "acc_stderr,none" as one metric; a filter other than none is part of its name."""
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in found.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found.get(f"{name}_stderr,{filtered}")
        shown = name if filtered == "none" else f"{name} ({filtered})"
        metrics[shown] = {"value": value, "standard_error": error if isinstance(error, int | float) else None}
    return metrics


def tell(messages: TextIO, **message: Any) -> None:
    """Write one message at once."""
    messages.write(json.dumps(message) + "\n")
    messages.flush()


def main(arguments: list[str]) -> int:
    """Run one request; the harness's own prints go to standard error."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(Path(arguments[0]).read_text("utf-8"))
    try:
        run(request, messages)
    except RefusedError as refused:
        tell(messages, **refused.event)
        return 1
    except Exception as error:
        tell(messages, event="error", kind="harness", task=None, message=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
