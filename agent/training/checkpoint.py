"""Checkpoints: the whole state of a run, written so that a crash at any moment leaves the old one or the new one.

A run's directory holds `state-<step>.safetensors` (weights and Adam's moments) and `checkpoint.json`, which names
that file and its SHA-256. The JSON is renamed into place last: it is the commit point. Only the last checkpoint is
kept. A checkpoint that is corrupt or belongs to another assignment is left unused, for a stated reason.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from agent.blobs import write_atomically
from agent.training.model import Decoder
from hwprofiles.value import Value
from scaling.observations import TrainingPoint

_COMMIT = "checkpoint.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class RunState(Value):
    """Where a run stands besides its tensors: `step` optimiser steps are done."""

    step: NonNegativeInt = 0
    inherited_steps: NonNegativeInt = 0
    """Of these, how many another run's trunk had done."""
    train_seconds: NonNegativeFloat = 0.0
    num_resumes: NonNegativeInt = 0
    curve: tuple[TrainingPoint, ...] = ()
    recent_loss_sum: float = 0.0
    """Sum of the training losses of the steps since the curve's last point."""
    recent_steps: NonNegativeInt = 0


class _Commit(Value):
    schema_version: Literal[1] = 1
    assignment_hash: str
    state: RunState
    tensors_file: str
    tensors_sha256: str


@dataclass(frozen=True)
class NoCheckpoint:
    """There is nothing to resume from, and why."""

    reason: str


def save_checkpoint(
    directory: Path, state: RunState, model: Decoder, optimizer: torch.optim.Optimizer, *, assignment_hash: str
) -> None:
    """Write a checkpoint and drop the one before."""
    content = save(_tensors(model, optimizer))
    name = f"state-{state.step}.safetensors"
    write_atomically(directory / name, content)
    commit = _Commit(
        assignment_hash=assignment_hash,
        state=state,
        tensors_file=name,
        tensors_sha256=hashlib.sha256(content).hexdigest(),
    )
    write_atomically(directory / _COMMIT, commit.model_dump_json(indent=1).encode())
    for old in directory.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def restore_checkpoint(
    directory: Path, model: Decoder, optimizer: torch.optim.Optimizer, *, assignment_hash: str
) -> RunState | NoCheckpoint:
    """Load the last checkpoint into the model and the optimiser, or say why there is none to use.

    Nothing is changed unless everything about the checkpoint is right.
    """
    if not (directory / _COMMIT).is_file():
        return NoCheckpoint("no checkpoint was written yet")
    try:
        commit = _Commit.model_validate_json((directory / _COMMIT).read_bytes())
    except ValidationError as error:
        return NoCheckpoint(f"{_COMMIT} is corrupt or of another version: {error.error_count()} wrong fields")
    if commit.assignment_hash != assignment_hash:
        return NoCheckpoint(f"the checkpoint in {directory} belongs to another assignment")
    path = directory / Path(commit.tensors_file).name
    if not path.is_file():
        return NoCheckpoint(f"{path.name} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != commit.tensors_sha256:
        return NoCheckpoint(f"{path.name} is corrupt: its hash is not the one in {_COMMIT}")
    return _load(content, commit.state, model, optimizer)


def discard_checkpoint(directory: Path) -> None:
    """Delete a run's checkpoint once its observation is safe."""
    shutil.rmtree(directory, ignore_errors=True)


def _tensors(model: Decoder, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            value = optimizer.state[parameter].get(moment) if optimizer.state[parameter] else None
            tensors[f"{moment}.{name}"] = torch.zeros_like(parameter) if value is None else value
    return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}


def _load(content: bytes, state: RunState, model: Decoder, optimizer: torch.optim.Optimizer) -> RunState | NoCheckpoint:
    try:
        tensors = load(content)
    except SafetensorError as error:
        return NoCheckpoint(f"the checkpoint's tensors cannot be read: {error}")
    parameters = dict(model.named_parameters())
    expected = {
        f"{part}.{name}": parameter.shape for name, parameter in parameters.items() for part in ("weight", *_MOMENTS)
    }
    if {key: tensor.shape for key, tensor in tensors.items()} != expected:
        return NoCheckpoint("the checkpoint's tensors are not those of this architecture")
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors[f"weight.{name}"])
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
        # A fused AdamW keeps its step count as a float tensor beside the parameter.
        step = torch.tensor(float(state.step), device=parameter.device)
        optimizer.state[parameter] = {"step": step, **moments}
    return state
