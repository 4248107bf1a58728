import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, directory_fetcher
from agent.corpus.manifest import Corpus
from agent.scoring import harness
from agent.scoring.harness import (
    HarnessMissingError,
    Scoring,
    ScoringDone,
    ScoringError,
    ScoringRequest,
    TaskScore,
    find_harness,
    score,
)
from agent.training.export import export_checkpoint
from agent.training.run import train
from scaling.architecture import Architecture
from scaling.observations import TrainingObservation
from scaling.recipes import FanIns, TrainingRecipe

ROOT = Path(__file__).parents[3]
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def lm_eval_python() -> str:
    """An interpreter that has the harness, as `make harness` makes one."""
    own = ROOT / ".engines" / "lm-eval" / "bin" / "python"
    environment = (
        {**os.environ} if os.environ.get(harness.VARIABLE) or not own.exists() else {harness.VARIABLE: str(own)}
    )
    try:
        return find_harness(environment)
    except HarnessMissingError as error:
        pytest.skip(f"{error} (`make harness` makes one)")


@pytest.fixture(scope="module")
def exported(
    corpus: Corpus, blob_directory: Path, small_architecture: Architecture, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    recipe = TrainingRecipe(
        num_tokens=25_600, sequence_length=32, batch_tokens=256, base_fan_ins=FanIns(hidden=32, attention=32, mlp=40)
    )
    assignment = TrainAssignment(
        architecture=small_architecture, recipe=recipe, corpus_id=corpus.id, num_eval_windows=24
    )
    directory = tmp_path_factory.mktemp("trained")
    blobs, kept = BlobCache(directory / "cache", directory_fetcher(blob_directory)), list[Any]()
    *_, observation = train(
        assignment,
        blobs=blobs,
        checkpoint_directory=directory,
        agent="tester",
        device="cpu",
        on_finished=lambda model, _: kept.append(model),
    )
    assert isinstance(observation, TrainingObservation)
    export_checkpoint(kept[0], observation, directory / "model", blobs=blobs)
    return directory / "model"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """The task with its data set, and one whose data set is not there."""
    definition = (DATA / "archfleet_tiny.yaml").read_text()
    place = tmp_path / "tasks"
    place.mkdir()
    (place / "tiny.yaml").write_text(definition.replace("DATA_FILE", str(DATA / "archfleet_tiny.jsonl")))
    lost = definition.replace("archfleet_tiny", "archfleet_lost").replace("DATA_FILE", str(tmp_path / "nowhere.jsonl"))
    (place / "lost.yaml").write_text(lost)
    return place


def request(model: Path, tasks: Path, *names: str, **changes: Any) -> ScoringRequest:
    return ScoringRequest(model_directory=str(model), tasks=names, task_directory=str(tasks), device="cpu", **changes)


@pytest.mark.slow
def test_the_real_harness_scores_a_trained_model_on_a_local_task(
    lm_eval_python: str, exported: Path, tasks: Path
) -> None:
    messages = list(score(request(exported, tasks, "archfleet_tiny"), python=lm_eval_python))
    assert messages[:2] == [
        Scoring(doing="loading", task="archfleet_tiny"),
        Scoring(doing="scoring", task="archfleet_tiny"),
    ]
    scored, done = messages[2:]
    assert isinstance(scored, TaskScore)
    assert scored.num_samples == 16
    assert scored.version == "1.0"
    # Words of the corpus against words that never occur in it: whoever reads the weights rightly tells them apart.
    assert scored.metrics["acc_norm"].value >= 0.9
    share = scored.metrics["acc"].value
    assert scored.metrics["acc"].standard_error == pytest.approx((share * (1 - share) / 15) ** 0.5, abs=1e-6)
    assert isinstance(done, ScoringDone)
    assert done.versions["lm_eval"].startswith("0.4")


@pytest.mark.slow
def test_a_data_set_that_cannot_be_had_is_told_before_anything_is_scored(
    lm_eval_python: str, exported: Path, tasks: Path
) -> None:
    messages = score(request(exported, tasks, "archfleet_tiny", "archfleet_lost"), python=lm_eval_python)
    assert [next(messages), next(messages)] == [
        Scoring(doing="loading", task="archfleet_tiny"),
        Scoring(doing="loading", task="archfleet_lost"),
    ]
    with pytest.raises(ScoringError, match="the data set of task 'archfleet_lost' cannot be had") as raised:
        next(messages)
    assert "nowhere.jsonl" in str(raised.value)


def test_an_interpreter_without_the_harness_is_named_with_the_cure(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(HarnessMissingError, match=r"it lacks lm_eval, .*pip install 'archfleet\[eval\]'"):
        find_harness({harness.VARIABLE: str(bare)})
    with pytest.raises(HarnessMissingError, match="does not run"):
        find_harness({harness.VARIABLE: str(tmp_path / "nowhere")})


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces the driver by a script that says these lines and ends."""

    def answer(*messages: dict[str, Any], status: int = 0) -> list[Any]:
        driver = tmp_path / "driver.py"
        lines = "\n".join(json.dumps(message) for message in messages)
        driver.write_text(f"import sys\nprint('a log line', file=sys.stderr)\nprint({lines!r})\nsys.exit({status})\n")
        monkeypatch.setattr(harness, "DRIVER", driver)
        return list(score(ScoringRequest(model_directory="model", tasks=("a",)), python=sys.executable))

    return answer


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unknown-task", "unknown task 'a'; expected names that `lm_eval ls tasks` lists"),
        ("missing-data", "the data set of task 'a' cannot be had .told.; nothing was scored. Fetch it once"),
        ("no-device", "^told$"),
        ("harness", "lm-evaluation-harness failed: told\na log line"),
    ],
)
def test_every_error_of_the_driver_is_one_message(answer: Any, kind: str, words: str) -> None:
    with pytest.raises(ScoringError, match=words):
        answer({"event": "error", "kind": kind, "task": "a", "message": "told"}, status=1)


def test_a_harness_that_ends_without_a_word_is_told_with_its_log(answer: Any) -> None:
    with pytest.raises(ScoringError, match="ended with status 3 and no result:\na log line"):
        answer({"event": "loading", "task": "a"}, status=3)


def test_the_drivers_scores_keep_their_errors_and_filters() -> None:
    from agent.scoring.lm_eval_driver import scores_of

    results = {
        "results": {
            "piqa": {
                "alias": "piqa",
                "acc,none": 0.5,
                "acc_stderr,none": 0.1,
                "em,strict": 0.25,
                "em_stderr,strict": "N/A",
            },
            "a-group": {"acc,none": 0.4},
        },
        "n-samples": {"piqa": {"original": 30, "effective": 20}},
        "versions": {"piqa": 1.0},
    }
    assert scores_of(results) == [
        {
            "task": "piqa",
            "metrics": {
                "acc": {"value": 0.5, "standard_error": 0.1},
                "em (strict)": {"value": 0.25, "standard_error": None},
            },
            "num_samples": 20,
            "version": "1.0",
        }
    ]
