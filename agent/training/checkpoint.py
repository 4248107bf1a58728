"""Checkpoints: the whole state of a run, written so that a crash at any moment leaves the old one or the new one.

A run's folder (`folder.py`) holds `state-<step>.safetensors` (weights and Adam's moments) and `checkpoint.json`, which
names that file and its SHA-256. The JSON is put in place last: it is the commit point. Only the last checkpoint is
kept. A checkpoint that is corrupt or belongs to another assignment is left unused, for a stated reason.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from agent.training.folder import Folder, LocalFolder
from agent.training.model import Decoder
from hwprofiles.value import Value
from scaling.observations import TrainingPoint

ABANDONED_SECONDS = 3600.0
"""A checkpoint that was written longer ago belongs to no run that goes on."""
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
    micro_batch_sequences: NonNegativeInt = Field(0, exclude_if=lambda sequences: sequences == 0)
    """Sequences whose gradients are formed at once; 0 where it was not chosen yet. Kept, as it decides the rounding."""


class _Commit(Value):
    schema_version: Literal[1] = 1
    assignment_hash: str
    state: RunState
    state_sha256: str | None = None
    """Content hash of `state`; null in a checkpoint of a version that did not write it."""
    tensors_file: str
    tensors_sha256: str


@dataclass(frozen=True)
class NoCheckpoint:
    """There is nothing to resume from, and why."""

    reason: str


class Snapshot:
    """Host copies of a model's weights and Adam's moments, taken again and again into the same memory.

    `take` is all that an update of the weights waits for: a copy in memory, not a hash and a disk. On a GPU it only
    queues the copies, before whatever is queued later.
    """

    def __init__(self, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
        self._sources = {name: tensor.detach() for name, tensor in model.named_parameters()}
        self._parameters = dict(model.named_parameters())
        self._optimizer = optimizer
        self._device = next(model.parameters()).device
        pinned = self._device.type == "cuda"
        self._tensors = {
            f"{part}.{name}": torch.zeros_like(tensor, device="cpu", pin_memory=pinned)  # zeros: its pages exist then
            for name, tensor in self._sources.items()
            for part in ("weight", *_MOMENTS)
        }
        self._copied = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    @property
    def num_bytes(self) -> int:
        """Of all tensors: 12 bytes a parameter."""
        return num_checkpoint_bytes(self._parameters.values())

    def take(self) -> None:
        """Copy the state as it is now."""
        for name, weight in self._sources.items():
            state = self._optimizer.state.get(self._parameters[name]) or {}
            for part, source in (("weight", weight), *((moment, state.get(moment)) for moment in _MOMENTS)):
                target = self._tensors[f"{part}.{name}"]
                if source is None:
                    target.zero_()
                else:
                    target.copy_(source, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device))

    def tensors(self) -> dict[str, Tensor]:
        """What was taken last; waits for the copies."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors


def num_checkpoint_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of a checkpoint's tensors: weights and two moments, 12 a parameter in fp32."""
    return sum(3 * parameter.numel() * parameter.element_size() for parameter in parameters)


def save_checkpoint(
    place: Path | Folder, state: RunState, model: Decoder, optimizer: torch.optim.Optimizer, *, assignment_hash: str
) -> None:
    """Write a checkpoint and drop the one before."""
    write_checkpoint(place, state, _tensors(model, optimizer), assignment_hash=assignment_hash)


def write_checkpoint(
    place: Path | Folder, state: RunState, tensors: Mapping[str, Tensor], *, assignment_hash: str
) -> None:
    """Write host tensors as a checkpoint and drop the one before."""
    folder = _folder(place)
    name = f"state-{state.step}.safetensors"
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes | memoryview]:
        for part in _serialised(tensors):
            digest.update(part)
            yield part

    folder.write(name, hashed())
    commit = _Commit(
        assignment_hash=assignment_hash,
        state=state,
        state_sha256=state.content_hash(),
        tensors_file=name,
        tensors_sha256=digest.hexdigest(),
    )
    folder.write(_COMMIT, [commit.model_dump_json(indent=1).encode()])
    for old in folder.names():
        if old.startswith("state-") and old != name:
            folder.remove(old)


def restore_checkpoint(
    place: Path | Folder, model: Decoder, optimizer: torch.optim.Optimizer, *, assignment_hash: str
) -> RunState | NoCheckpoint:
    """Load the last checkpoint into the model and the optimiser, or say why there is none to use.

    Nothing is changed unless everything about the checkpoint is right.
    """
    folder = _folder(place)
    written = folder.read(_COMMIT)
    if written is None:
        return NoCheckpoint("no checkpoint was written yet")
    try:
        commit = _Commit.model_validate_json(written)
    except ValidationError as error:
        return NoCheckpoint(f"{_COMMIT} is corrupt or of another version: {error.error_count()} wrong fields")
    if commit.assignment_hash != assignment_hash:
        return NoCheckpoint(f"the checkpoint in {folder} belongs to another assignment")
    if commit.state_sha256 not in (None, commit.state.content_hash()):
        return NoCheckpoint(f"{_COMMIT} is corrupt: what it says of the run is not what was written")
    name = Path(commit.tensors_file).name
    content = folder.read(name)
    if content is None:
        return NoCheckpoint(f"{name} is missing")
    if hashlib.sha256(content).hexdigest() != commit.tensors_sha256:
        return NoCheckpoint(f"{name} is corrupt: its hash is not the one in {_COMMIT}")
    return _load(content, commit.state, model, optimizer)


def discard_checkpoint(place: Path | Folder) -> None:
    """Delete a run's checkpoint once its observation is safe."""
    _folder(place).discard()


def trim_checkpoints(directory: Path, *, max_bytes: int, spare: str, now_unix: float) -> list[str]:
    """Drop checkpoints of other runs, the oldest first, until all below a directory keep a budget.

    A run that was killed and never came back leaves its checkpoint behind. One written within `ABANDONED_SECONDS` may
    belong to a run that goes on beside this one, and stays.

    Args:
        directory: holds one folder a run.
        max_bytes: of all of them.
        spare: the folder that stays.
        now_unix: seconds since the epoch.

    Returns:
        The folders dropped.
    """
    found = []
    for commit in directory.glob(f"*/{_COMMIT}"):
        with contextlib.suppress(FileNotFoundError):  # another agent has just dropped it
            num_bytes = sum(file.stat().st_size for file in commit.parent.iterdir())
            found.append((commit.stat().st_mtime, num_bytes, commit.parent))
    excess = sum(num_bytes for _, num_bytes, _ in found) - max_bytes
    dropped = []
    for written_unix, num_bytes, folder in sorted(found):
        if excess > 0 and folder.name != spare and now_unix - written_unix > ABANDONED_SECONDS:
            (folder / _COMMIT).unlink(missing_ok=True)  # first of all: without it nothing else is read
            discard_checkpoint(folder)
            dropped.append(folder.name)
            excess -= num_bytes
    return dropped


def _folder(place: Path | Folder) -> Folder:
    return LocalFolder(place) if isinstance(place, Path) else place


def _tensors(model: Decoder, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
    snapshot = Snapshot(model, optimizer)
    snapshot.take()
    return snapshot.tensors()


def _serialised(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors format, a tensor at a time: length of the header, header, fp32 little-endian data."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, "weights and moments are kept in single precision"
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)  # the data begin at a multiple of 8
    yield len(described).to_bytes(8, "little") + described
    for tensor in tensors.values():
        yield tensor.contiguous().numpy().astype("<f4", copy=False).data.cast("B")


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
