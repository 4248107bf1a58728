from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agent.training.checkpoint import (
    NoCheckpoint,
    RunState,
    discard_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from agent.training.model import Decoder, init_weights
from agent.training.optim import make_optimizer
from scaling.architecture import Architecture
from scaling.observations import TrainingPoint
from scaling.recipes import TrainingRecipe

STATE = RunState(
    step=3,
    train_seconds=1.5,
    curve=(TrainingPoint(num_tokens=512, loss=5.5, learning_rate=0.1, gradient_norm=1 / 3),),
    recent_loss_sum=10.1,
    recent_steps=2,
)


def _run(architecture: Architecture, *, seed: int = 0) -> tuple[Decoder, torch.optim.Optimizer]:
    model = Decoder(architecture, max_sequence_length=16)
    init_weights(model, seed=seed)
    return model, make_optimizer(model, TrainingRecipe(num_tokens=5120))


def _step(model: Decoder, optimizer: torch.optim.Optimizer) -> None:
    tokens = torch.arange(32).view(2, 16)
    model(tokens).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path: Path, small_architecture: Architecture) -> Path:
    model, optimizer = _run(small_architecture)
    for _ in range(3):
        _step(model, optimizer)
    save_checkpoint(tmp_path / "run", STATE, model, optimizer, assignment_hash="this")
    return tmp_path / "run"


def test_a_restored_run_steps_exactly_like_the_one_that_was_saved(
    tmp_path: Path, small_architecture: Architecture
) -> None:
    model, optimizer = _run(small_architecture)
    for _ in range(3):
        _step(model, optimizer)
    save_checkpoint(tmp_path, STATE, model, optimizer, assignment_hash="this")
    other, other_optimizer = _run(small_architecture, seed=9)
    assert restore_checkpoint(tmp_path, other, other_optimizer, assignment_hash="this") == STATE
    for _ in range(2):
        _step(model, optimizer)
        _step(other, other_optimizer)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_last_checkpoint_is_kept(saved: Path, small_architecture: Architecture) -> None:
    model, optimizer = _run(small_architecture)
    save_checkpoint(saved, STATE.model_copy(update={"step": 4}), model, optimizer, assignment_hash="this")
    assert sorted(path.name for path in saved.iterdir()) == ["checkpoint.json", "state-4.safetensors"]
    discard_checkpoint(saved)
    assert not saved.exists()
    discard_checkpoint(saved)


def _flip_a_byte(directory: Path) -> None:
    path = directory / "state-3.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))


def _truncate(directory: Path) -> None:
    path = directory / "state-3.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _cut_commit(directory: Path) -> None:
    path = directory / "checkpoint.json"
    path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip_a_byte, "is corrupt"),
        (_truncate, "is corrupt"),
        (_cut_commit, "checkpoint.json is corrupt"),
        (lambda directory: (directory / "state-3.safetensors").unlink(), "is missing"),
        (lambda directory: (directory / "checkpoint.json").unlink(), "no checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_not_used_and_says_why(
    saved: Path, small_architecture: Architecture, damage: Callable[[Path], None], reason: str
) -> None:
    damage(saved)
    model, optimizer = _run(small_architecture, seed=5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    restored = restore_checkpoint(saved, model, optimizer, assignment_hash="this")
    assert isinstance(restored, NoCheckpoint)
    assert reason in restored.reason
    assert all(torch.equal(ours, old) for ours, old in zip(model.parameters(), before, strict=True))
    assert not optimizer.state


def test_a_checkpoint_of_another_assignment_is_not_used(saved: Path, small_architecture: Architecture) -> None:
    restored = restore_checkpoint(saved, *_run(small_architecture), assignment_hash="that")
    assert isinstance(restored, NoCheckpoint)
    assert "another assignment" in restored.reason


def test_a_checkpoint_of_another_shape_is_not_used(saved: Path, small_architecture: Architecture) -> None:
    wider = small_architecture.model_copy(update={"intermediate_size": 48})
    restored = restore_checkpoint(saved, *_run(wider), assignment_hash="this")
    assert isinstance(restored, NoCheckpoint)
    assert "not those of this architecture" in restored.reason
