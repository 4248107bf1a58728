"""The writer of checkpoints: what a run waits for, what it does not, and what it is told of failures."""

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from agent.training.checkpoint import NoCheckpoint, RunState, restore_checkpoint
from agent.training.folder import LocalFolder
from agent.training.model import Decoder, init_weights
from agent.training.optim import make_optimizer
from agent.training.writer import DRAIN_SECONDS, CheckpointWriter
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe


class SlowFolder(LocalFolder):
    """A disk that writes nothing until it is told to go on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.may_write = threading.Event()
        self.error: OSError | None = None

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        assert self.may_write.wait(30)
        if self.error:
            raise self.error
        super().write(name, parts)


class Clock:
    """Time that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model(small_architecture: Architecture) -> Decoder:
    model = Decoder(small_architecture, max_sequence_length=16)
    init_weights(model, seed=0)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> SlowFolder:
    return SlowFolder(tmp_path / "run")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(model: Decoder, folder: SlowFolder, clock: Clock) -> CheckpointWriter:
    optimizer = make_optimizer(model, TrainingRecipe(num_tokens=5120))
    return CheckpointWriter(folder, model, optimizer, assignment_hash="this", at_once_bytes=0, clock=clock)


def _restored(model: Decoder, folder: LocalFolder) -> tuple[RunState | NoCheckpoint, Decoder]:
    other = Decoder(model.architecture, max_sequence_length=16)
    optimizer = make_optimizer(other, TrainingRecipe(num_tokens=5120))
    return restore_checkpoint(folder, other, optimizer, assignment_hash="this"), other


def test_the_run_goes_on_while_what_it_was_is_written(
    model: Decoder, folder: SlowFolder, writer: CheckpointWriter
) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert writer.save(RunState(step=3))
    writer.wait_copied()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    folder.may_write.set()
    writer.wait()
    state, restored = _restored(model, folder)
    assert state == RunState(step=3)
    assert all(torch.equal(ours, old) for ours, old in zip(restored.parameters(), before, strict=True))


def test_one_write_at_a_time(folder: SlowFolder, writer: CheckpointWriter) -> None:
    assert writer.save(RunState(step=3))
    assert not writer.save(RunState(step=4))
    folder.may_write.set()
    writer.wait()
    assert writer.save(RunState(step=5))
    writer.wait()
    assert writer.last_step == 5


def test_writing_takes_a_tenth_of_the_time_at_most(folder: SlowFolder, clock: Clock, writer: CheckpointWriter) -> None:
    writer.save(RunState(step=1))
    clock.now = 2.0
    folder.may_write.set()
    writer.wait()
    assert writer.write_seconds == 2.0
    clock.now = 2.0 + 17.9
    assert not writer.save(RunState(step=2))
    clock.now = 2.0 + 18.1
    assert writer.save(RunState(step=3))
    writer.wait()


def test_a_failed_write_is_raised_by_the_next_and_the_one_before_stays(
    model: Decoder, folder: SlowFolder, writer: CheckpointWriter
) -> None:
    folder.may_write.set()
    writer.save(RunState(step=1))
    writer.wait()
    folder.error = OSError(28, "No space left on device")
    writer.save(RunState(step=2))
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    assert "that of step 1" in writer.describe()
    assert _restored(model, folder)[0] == RunState(step=1)


def test_a_run_that_leaves_saves_its_last_step_after_the_write_under_way(
    model: Decoder, folder: SlowFolder, writer: CheckpointWriter
) -> None:
    writer.save(RunState(step=1))
    folder.may_write.set()
    assert writer.save_now(RunState(step=2))
    assert _restored(model, folder)[0] == RunState(step=2)


def test_a_run_that_leaves_does_not_begin_what_it_has_no_time_for(
    model: Decoder, folder: SlowFolder, clock: Clock, writer: CheckpointWriter
) -> None:
    writer.save(RunState(step=1))
    clock.now = 0.9 * DRAIN_SECONDS
    folder.may_write.set()
    writer.wait()
    assert not writer.save_now(RunState(step=2))
    assert _restored(model, folder)[0] == RunState(step=1)


def test_a_run_that_leaves_keeps_the_write_under_way_where_another_would_take_too_long(
    model: Decoder, folder: SlowFolder, clock: Clock, writer: CheckpointWriter
) -> None:
    writer.save(RunState(step=1))
    clock.now = 0.5 * DRAIN_SECONDS

    def finish() -> None:
        clock.now = DRAIN_SECONDS  # it took all the time that there was
        folder.may_write.set()

    timer = threading.Timer(0.2, finish)
    timer.start()
    assert not writer.save_now(RunState(step=2))
    timer.join()
    assert _restored(model, folder)[0] == RunState(step=1)


def test_a_small_checkpoint_is_there_when_save_returns(model: Decoder, tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "run")
    optimizer = make_optimizer(model, TrainingRecipe(num_tokens=5120))
    writer = CheckpointWriter(folder, model, optimizer, assignment_hash="this")
    assert writer.describe() == "no checkpoint was written"
    assert writer.save(RunState(step=1))
    assert folder.names() == ["checkpoint.json", "state-1.safetensors"]
