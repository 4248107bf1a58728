"""A run that is killed, drained or cannot write goes on, or ends, as promised."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, directory_fetcher
from agent.training.run import train
from agent.worker import Worker
from scaling.observations import Failure, Progress, TrainingObservation

_RUN = """
import itertools, sys
from pathlib import Path
from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, directory_fetcher
from agent.training.run import train
clock = itertools.count(0.0, 0.3).__next__  # reports and checkpoints every few steps, however fast the machine
assignment, blobs, work = TrainAssignment.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
cache = BlobCache(work / "cache", directory_fetcher(blobs))
for event in train(assignment, blobs=cache, checkpoint_directory=work / "checkpoints", agent="killed", device="cpu",
                   micro_batch=int(sys.argv[4]), clock=clock):
    print(event.model_dump_json(), flush=True)
"""


@pytest.fixture
def long_assignment(assignment: TrainAssignment) -> TrainAssignment:
    """Long enough to be killed in its first steps, saved all the time."""
    recipe = assignment.recipe.model_copy(update={"num_tokens": 256 * 200})
    return assignment.model_copy(update={"recipe": recipe, "checkpoint_every_seconds": 0.01})


def _last(events: Iterator[Progress | TrainingObservation | Failure]) -> TrainingObservation:
    *_, last = events
    assert isinstance(last, TrainingObservation)
    return last


@pytest.mark.parametrize("micro_batch", [8, 2], ids=["whole batches", "accumulated"])
def test_a_run_killed_with_signal_9_goes_on_bit_for_bit(
    long_assignment: TrainAssignment, blobs: BlobCache, blob_directory: Path, tmp_path: Path, micro_batch: int
) -> None:
    arguments = [long_assignment.model_dump_json(), str(blob_directory), str(tmp_path), str(micro_batch)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    commit = tmp_path / "checkpoints" / long_assignment.id / "checkpoint.json"
    for line in process.stdout:
        if commit.exists() and 0 < json.loads(line).get("done_fraction", 1) < 1:
            break
    time.sleep(0.02)  # amid a step, or amid a write
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed, not finished"
    process.stdout.close()

    def run(directory: str) -> TrainingObservation:
        return _last(
            train(
                long_assignment,
                blobs=blobs,
                checkpoint_directory=tmp_path / directory,
                agent="a",
                device="cpu",
                micro_batch=micro_batch,
            )
        )

    resumed, straight = run("checkpoints"), run("straight")
    assert (resumed.num_resumes, straight.num_resumes) == (1, 0)
    assert resumed.window_losses == straight.window_losses
    assert resumed.curve == straight.curve


class Clock:
    """A second passes whenever it is read."""

    def __init__(self) -> None:
        self._times = itertools.count()

    def __call__(self) -> float:
        return float(next(self._times))


def _start(
    assignment: TrainAssignment, blobs: BlobCache, place: Path | str
) -> Iterator[Progress | TrainingObservation | Failure]:
    return train(
        assignment,
        blobs=blobs,
        checkpoint_directory=place,
        agent="a",
        clock=Clock(),
        unix_time=lambda: 1000.0,
        device="cpu",
        micro_batch=2,
    )


def test_a_run_is_drained_between_the_micro_batches_of_a_long_step(
    assignment: TrainAssignment, blobs: BlobCache, tmp_path: Path
) -> None:
    straight = _last(_start(assignment, blobs, tmp_path / "straight"))
    events = _start(assignment, blobs, tmp_path / "drained")
    messages = []
    for event in events:
        assert isinstance(event, Progress)
        messages.append(event.message)
        if len(messages) > 12 and "sequences of a step" in event.message:
            break
    events.close()  # type: ignore[attr-defined]
    assert "6 of 8 sequences of a step" in messages
    resumed = _start(assignment, blobs, tmp_path / "drained")
    first = list(itertools.islice(resumed, 2))[-1]
    assert isinstance(first, Progress)
    assert first.message.startswith("resumed at step")
    again = _last(resumed)
    assert again.window_losses == straight.window_losses
    assert again.curve == straight.curve


def test_checkpoints_at_a_url_serve_another_machine(
    assignment: TrainAssignment, blobs: BlobCache, tmp_path: Path
) -> None:
    straight = _last(_start(assignment, blobs, tmp_path / "straight"))
    url = f"memory://{uuid.uuid4()}"
    events = _start(assignment, blobs, url)
    list(itertools.islice(events, 20))
    events.close()  # type: ignore[attr-defined]
    resumed = _last(_start(assignment, blobs, url))
    assert resumed.num_resumes == 1
    assert resumed.window_losses == straight.window_losses


def test_a_worker_keeps_checkpoints_where_the_environment_says_and_discards_them_there(
    assignment: TrainAssignment, blob_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHFLEET_CHECKPOINTS", f"file://{tmp_path}/shared")
    worker = Worker("node-0", tmp_path / "work", directory_fetcher(blob_directory))
    list(worker.run(assignment))
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [assignment.id]
    worker.discard(assignment)
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_ends_the_run_as_a_failure(
    assignment: TrainAssignment, blob_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ARCHFLEET_CHECKPOINTS", str(tmp_path / "file"))
    last = list(Worker("node-0", tmp_path / "work", directory_fetcher(blob_directory)).run(assignment))[-1]
    assert isinstance(last, Failure)
    assert "NotADirectoryError" in last.message


def test_points_that_are_told_carry_speed_and_memory_and_the_kept_curve_does_not(
    assignment: TrainAssignment, blobs: BlobCache, tmp_path: Path
) -> None:
    events = list(_start(assignment, blobs, tmp_path))
    points = [event.point for event in events if isinstance(event, Progress) and event.point]
    assert points
    for point in points:
        assert point.tokens_per_second is not None
        assert point.tokens_per_second > 0
        assert point.memory_bytes is not None
        assert point.mfu is None  # a CPU has no peak
    observation = events[-1]
    assert isinstance(observation, TrainingObservation)
    assert all(point.tokens_per_second is None and point.memory_bytes is None for point in observation.curve)
    assert observation.provenance.versions["layers"].startswith("plain: ")


def test_checkpoints_of_abandoned_runs_keep_a_budget(
    assignment: TrainAssignment, blobs: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, age_seconds in enumerate([9000, 8000, 100]):
        folder = tmp_path / f"train-{number}"
        folder.mkdir()
        (folder / "state-1.safetensors").write_bytes(b"x" * 1000)
        (folder / "checkpoint.json").write_text("{}")
        written = 1_000_000 - age_seconds
        os.utime(folder / "checkpoint.json", (written, written))
    monkeypatch.setattr("agent.training.run.MAX_CHECKPOINT_BYTES", 2500)
    events = train(
        assignment, blobs=blobs, checkpoint_directory=tmp_path, agent="a", unix_time=lambda: 1_000_000.0, device="cpu"
    )
    list(itertools.islice(events, 2))
    events.close()  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.glob("train-?")) == ["train-1", "train-2"]


def test_a_run_that_compiles_tells_that_it_lives_and_can_be_left(
    assignment: TrainAssignment, blobs: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    monkeypatch.setattr("agent.training.run._REPORT_EVERY_SECONDS", 0.01)
    monkeypatch.setattr("agent.training.trainer.compile_layers", lambda *_: str(done.wait(30)))

    def start() -> Iterator[Progress | TrainingObservation | Failure]:
        return train(assignment, blobs=blobs, checkpoint_directory=tmp_path, agent="a", device="cpu", compiled="on")

    left = start()
    messages = [event.message for event in itertools.islice(left, 5) if isinstance(event, Progress)]
    left.close()  # type: ignore[attr-defined]
    assert messages[2:] == ["compiling the layers"] * 3
    done.set()
    assert _last(start()).provenance.versions["layers"] == "plain: True"
