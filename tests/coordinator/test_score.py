"""`archfleet score`: which model and tasks are meant, what the mean is, and mistakes told once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.scoring import harness
from agent.scoring.harness import Metric, TaskScore
from coordinator.cli import main
from coordinator.score import NINE_TASKS, chosen_tasks, mean_accuracy, model_directory

# Says what the real driver would, with the tasks that it was asked for.
DRIVER = """
import json, sys
request = json.loads(open(sys.argv[1]).read())
for number, task in enumerate(request["tasks"]):
    metrics = {"acc": {"value": 0.25 * (number + 1), "standard_error": 0.03}}
    metrics["acc_norm"] = {"value": 0.5, "standard_error": None}
    print(json.dumps({"event": "loading", "task": task}))
    print(json.dumps({"event": "scoring", "task": task}))
    print(json.dumps({"event": "score", "task": task, "metrics": metrics, "num_samples": 1234, "version": "1.0"}))
print(json.dumps({"event": "done", "versions": {"lm_eval": "0.4.13"}}))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "mine" / "seed-0" / "model")


def make_model(place: Path) -> Path:
    place.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (place / name).write_text("{}")
    return place


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    monkeypatch.setattr(harness, "DRIVER", driver)
    monkeypatch.setattr("coordinator.score.find_harness", lambda: sys.executable)


def archfleet(*words: object) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, words)])


@pytest.mark.usefixtures("installed")
def test_scores_come_with_errors_as_a_table_and_as_json(model: Path, tmp_path: Path) -> None:
    shown = archfleet(model, "--tasks", "piqa,sciq")
    assert shown.exit_code == 0, shown.output
    assert "0.2500 ± 0.0300" in shown.stdout
    assert "mean accuracy over 2 tasks: 0.3750 ± 0.0212; lm-evaluation-harness 0.4.13" in shown.stdout
    told = json.loads(archfleet(model, "--tasks", "piqa,sciq", "--json", "--out", tmp_path / "scores.json").stdout)
    assert told["tasks"][1]["metrics"]["acc"] == {"value": 0.5, "standard_error": 0.03}
    assert told["mean_accuracy"]["of"] == {"piqa": "acc", "sciq": "acc"}
    assert json.loads((tmp_path / "scores.json").read_text()) == told


@pytest.mark.usefixtures("installed")
def test_a_look_at_a_few_examples_says_so(model: Path) -> None:
    looked = archfleet(model, "--tasks", "piqa", "--limit", 10)
    assert "only the first 10 examples of each: not the benchmark" in " ".join(looked.stdout.split())
    assert "no mean accuracy: one task is no mean" in looked.stdout


def test_without_tasks_the_papers_nine_are_taken() -> None:
    assert chosen_tasks(None) == NINE_TASKS
    assert len(set(NINE_TASKS)) == 9
    assert chosen_tasks(" piqa, sciq,piqa,") == ("piqa", "sciq")


def test_a_training_with_one_model_is_enough_to_name_it(model: Path, tmp_path: Path) -> None:
    for place in (model, model.parent, tmp_path / "mine"):
        assert model_directory(place) == model


def score(task: str, **metrics: float | None) -> TaskScore:
    found = {name: Metric(value=0.5, standard_error=error) for name, error in metrics.items()}
    return TaskScore(task=task, metrics=found, num_samples=10, version="1.0")


def test_the_mean_takes_one_accuracy_a_task_and_says_why_there_is_none() -> None:
    mean, _ = mean_accuracy([score("piqa", acc=0.03, acc_norm=0.02), score("coqa", em=0.04, f1=0.02)])
    assert mean is not None
    assert mean.of == {"piqa": "acc", "coqa": "em"}
    assert mean.standard_error == pytest.approx(0.025)
    assert mean_accuracy([score("piqa", acc=0.03), score("wikitext", perplexity=None)])[1] == (
        "no accuracy among the metrics of wikitext"
    )
    assert mean_accuracy([score("a", acc=None), score("b", acc=0.1)])[1] == "a task has no standard error"


def mistake(*words: object) -> str:
    done = archfleet(*words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_mistakes_are_one_message(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "holds no trained model" in mistake(tmp_path / "nowhere")
    assert "--tasks ',' names no task" in mistake(model, "--tasks", ",")
    assert "--task-path nowhere is not a folder" in mistake(model, "--task-path", "nowhere")
    monkeypatch.setenv(harness.VARIABLE, str(tmp_path / "no-python"))
    assert "does not run" in mistake(model, "--tasks", "piqa")
    make_model(tmp_path / "mine" / "seed-1" / "model")
    assert "holds 2 models; name one of them" in mistake(tmp_path / "mine")
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer.json: its corpus came without one" in mistake(model)


@pytest.mark.usefixtures("installed")
def test_an_error_of_the_harness_is_one_message(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing: dict[str, Any] = {"event": "error", "kind": "missing-data", "task": "piqa", "message": "ConnectionError"}
    driver = tmp_path / "failing.py"
    driver.write_text(f"print({json.dumps(failing)!r})")
    monkeypatch.setattr(harness, "DRIVER", driver)
    assert "the data set of task 'piqa' cannot be had (ConnectionError); nothing was scored" in mistake(
        model, "--tasks", "piqa"
    )
