"""The trainer of one rank: its share of every batch, sums over all ranks, and state that rank 0 reads and writes.

The mathematics is that of one device: the same batches in the same order, of which rank r takes the r-th part; losses
and gradients are those of the whole batch, and the gradient's norm is that of all parameters. Results differ from one
device's by the rounding of sums alone.

    ddp     every rank holds the whole model; gradients are summed while the last micro-batch is propagated back
    fsdp    layers, moments and gradients lie in shards; a layer is gathered when it is needed (FSDP2)

Weights are gathered, and gradients summed, in fp32; on a GPU matrices multiply in bf16, as on one device: gathering
bf16 would halve the traffic and round the gains of norms, which a single device does not.

A checkpoint is that of one device: rank 0 gathers whole tensors, one at a time, and writes them, so that a run may go
on with another number of devices. Memory that runs out ends the run: ranks that halve their micro-batches alone would
wait for each other (`run.py` begins again with smaller ones).
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from agent.assignment import TrainAssignment
from agent.corpus.shards import Tokens
from agent.failures import InvalidInputError
from agent.training.checkpoint import NoCheckpoint, RunState, Snapshot
from agent.training.compiling import Choice
from agent.training.evaluate import losses_of_tokens, token_losses, windows_per_batch
from agent.training.feed import Batch, Stream
from agent.training.folder import Folder
from agent.training.loss import SummedLoss
from agent.training.micro_batch import fitting_sequences, training_bytes
from agent.training.model import Decoder
from agent.training.optim import clip_gradients, make_optimizer
from agent.training.parallel.group import Group
from agent.training.parallel.strategy import Strategy, choose_strategy, fsdp_bytes, share_of
from agent.training.trainer import Keep, Load, Trainer, free_bytes
from agent.training.writer import CheckpointWriter, Writer
from scaling.observations import Provenance, TrainingObservation

_MOMENTS = ("exp_avg", "exp_avg_sq")
_NO, _YES, _GATHER = 0.0, 1.0, 2.0


class ParallelTrainer(Trainer):
    """One rank's trainer. Every rank calls the same methods in the same order.

    Args:
        assignment: what to train.
        stream: whole batches by step, the same on every rank.
        group: the ranks.
        device: "cpu" or "cuda".
        strategy: how they share; by default what the estimate of memory says.
        options: as `Trainer`'s; `micro_batch` divides a rank's share.
    """

    def __init__(
        self,
        assignment: TrainAssignment,
        stream: Stream,
        *,
        group: Group,
        device: str,
        strategy: Strategy | None = None,
        **options: Any,
    ) -> None:
        share = share_of(assignment.recipe, group.size)
        self.group = group
        self.num_devices = group.size
        self._memory_bytes = group.smallest(_memory_bytes(torch.device(device), group.size))
        self.strategy: Strategy = strategy or choose_strategy(
            assignment.architecture,
            assignment.recipe,
            num_devices=group.size,
            memory_bytes=self._memory_bytes,
            bytes_per_activation=2 if device == "cuda" else 4,
        )
        own = slice(group.rank * share, (group.rank + 1) * share)
        super().__init__(assignment, _Share(stream, own), device=device, wrap=self._wrapped, **options)

    @property
    def num_sequences(self) -> int:
        """Of a batch, those that this rank trains."""
        return super().num_sequences // self.group.size

    def _choose_micro_batch(self) -> int:
        if self.device.type != "cuda":
            return super()._choose_micro_batch()
        architecture, memory = self.assignment.architecture, self._memory_bytes
        if self.strategy == "fsdp":  # as if the device had what the shards spare it
            whole = training_bytes(architecture, 1, bytes_per_activation=2)
            memory += whole - fsdp_bytes(architecture, 1, num_devices=self.group.size, bytes_per_activation=2)
        return fitting_sequences(
            architecture,
            num_sequences=self.num_sequences,
            sequence_length=self.recipe.sequence_length,
            memory_bytes=memory,
            bytes_per_activation=2,
        )

    def _wrapped(self, loss: nn.Module) -> nn.Module:
        assert isinstance(loss, SummedLoss)
        root = _Root(loss, scale=self.group.size)
        if self.strategy == "ddp":
            return DistributedDataParallel(root, gradient_as_bucket_view=True, broadcast_buffers=False)
        return _sharded(root, self.device, self.group.size)

    def compile(self, choice: Choice = "auto") -> str:
        """As `Trainer`'s; layers in shards run as they are."""
        if self.strategy == "fsdp":
            self.layers = "plain: layers in shards are not compiled"
            return self.layers
        return super().compile(choice)

    def agreed(self, done: bool) -> bool:
        """Whether all ranks have done it."""
        return bool(self.group.smallest(done))

    def _accumulating(self, more: bool) -> AbstractContextManager[None]:
        if more and isinstance(self.network, DistributedDataParallel):
            waiting: AbstractContextManager[None] = self.network.no_sync()
            return waiting
        return nullcontext()

    def _form_gradients(self, inputs_BT: Tensor, targets_BT: Tensor) -> Generator[int, None, Tensor]:
        loss = yield from super()._form_gradients(inputs_BT, targets_BT)
        distributed.all_reduce(loss)
        return loss / self.group.size

    def _clip_gradients(self) -> Tensor:
        norm = clip_gradients(self.parameters, self.recipe.gradient_clip_norm)
        return _whole(norm)

    def _halve_micro_batch(self, error: Exception) -> None:
        raise error

    def held_out_losses(self, tokens: Tokens, offsets: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """Losses of every target token of the windows at these offsets: each rank forms its share, all get all."""
        length, size = self.recipe.sequence_length, self.group.size
        num_own = min(windows_per_batch(self.model, length), -(-len(offsets) // size))
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network

        def losses_of(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
            losses: Tensor = network(inputs_BT, targets_BT, of_tokens=True)
            return losses

        for first in range(0, len(offsets), size * num_own):
            # Beyond the end the last window stands in: every rank calls the network as often as the others do.
            numbers = np.minimum(first + self.group.rank * num_own + np.arange(num_own), len(offsets) - 1)
            (own,) = token_losses(self.model, tokens, offsets[numbers], sequence_length=length, through=losses_of)
            parts = [torch.empty(own.shape) for _ in range(size)]
            distributed.all_gather(parts, torch.from_numpy(own))
            yield torch.cat(parts).numpy()[: len(offsets) - first]

    def _make_writer(self, folder: Folder) -> Writer:
        self._host = _HostCopy(self) if self.strategy == "fsdp" and self.group.leads else None
        name = self.assignment.content_hash()
        writer = None
        if self.group.leads and self._host is None:
            writer = CheckpointWriter(folder, self.model, self.optimizer, assignment_hash=name)
        elif self._host is not None:
            snapshot = _GatheredSnapshot(self._host.model, self._host.optimizer)
            writer = _GatheringWriter(
                folder, self._host.model, self._host.optimizer, assignment_hash=name, snapshot=snapshot
            )
            writer.before_copying = self._lead_gathering
        return _LockstepWriter(self.group, writer, self._gather)

    def _lead_gathering(self) -> None:
        self.group.tell(_GATHER)
        self._gather()

    def _gather(self) -> None:
        """Fill rank 0's host copy with whole tensors, one at a time."""
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter) or {}
            weight, moments = _whole(parameter.detach()), [_whole(state[moment]) for moment in _MOMENTS if state]
            if self._host is not None:
                self._host.put(name, weight, moments)

    def _keep_state(self, keep: Keep) -> str:
        if self.strategy == "fsdp":
            self.writer.wait()  # on rank 0 it may be reading the copy
            self._gather()
        return self.group.tell_text(keep(*self._whole_state()) if self.group.leads else "")

    def _load_state(self, load: Load) -> RunState | NoCheckpoint:
        told = ""
        if self.group.leads:
            found = load(*self._whole_state())
            told = found.model_dump_json() if isinstance(found, RunState) else f"!{found.reason}"
        told = self.group.tell_text(told)
        if told.startswith("!"):
            return NoCheckpoint(told[1:])
        restored = RunState.model_validate_json(told)
        self._spread(restored.step)
        return restored

    def _whole_state(self) -> tuple[Decoder, torch.optim.Optimizer]:
        """Where rank 0 has whole tensors."""
        return (self._host.model, self._host.optimizer) if self._host is not None else (self.model, self.optimizer)

    def _spread(self, step: int) -> None:
        """Give every rank its part of rank 0's whole weights and moments."""
        model, optimizer = self._whole_state()
        whole = dict(model.named_parameters())
        for name, parameter in self.model.named_parameters():
            state = optimizer.state.get(whole[name]) or {}
            moments = {moment: self._part(parameter, state.get(moment)) for moment in _MOMENTS}
            with torch.no_grad():
                parameter.copy_(self._part(parameter, whole[name].detach() if self.group.leads else None))
            count = torch.tensor(float(step), device=self.device)
            self.optimizer.state[parameter] = {"step": count, **moments}

    def _part(self, parameter: Tensor, whole: Tensor | None) -> Tensor:
        """What this rank holds of a tensor that rank 0 has whole, laid out as a parameter is."""
        told = torch.empty(parameter.shape, device=self.device) if whole is None else whole.to(self.device)
        if self.strategy == "ddp":
            distributed.broadcast(told, 0)
            return told
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        return distribute_tensor(told, parameter.device_mesh, parameter.placements)

    def observe(self, losses: list[float], provenance: Provenance) -> TrainingObservation:
        """The result of a finished run, with how many devices shared it and how."""
        observation = super().observe(losses, provenance)
        return observation.model_copy(update={"num_devices": self.group.size, "strategy": self.strategy})


class _Share:
    """One rank's part of every batch."""

    def __init__(self, stream: Stream, own: slice) -> None:
        self._stream = stream
        self._own = own

    def batch(self, step: int) -> Batch:
        inputs_BT, targets_BT = self._stream.batch(step)
        return inputs_BT[self._own], targets_BT[self._own]


class _Root(nn.Module):
    """What the ranks call: a summed loss times their number, as both strategies give the mean of the ranks' gradients.

    Held-out losses go through it too: where layers lie in shards, a call of the root is what gathers them.
    """

    def __init__(self, loss: SummedLoss, *, scale: int) -> None:
        super().__init__()
        self.loss = loss
        self._scale = scale

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor, *, of_tokens: bool = False) -> Tensor:
        if of_tokens:
            return losses_of_tokens(self.loss.decoder, inputs_BT, targets_BT)
        summed: Tensor = self.loss(inputs_BT, targets_BT)
        return summed * self._scale


class _HostCopy:
    """Rank 0's whole weights and moments in host memory, 12 bytes a parameter."""

    def __init__(self, trainer: Trainer) -> None:
        self.model = Decoder(trainer.assignment.architecture, max_sequence_length=trainer.recipe.sequence_length)
        self.optimizer = make_optimizer(self.model, trainer.recipe)
        self._parameters = dict(self.model.named_parameters())

    def put(self, name: str, weight: Tensor, moments: list[Tensor]) -> None:
        parameter = self._parameters[name]
        with torch.no_grad():
            parameter.copy_(weight)
        state = self.optimizer.state[parameter]
        for moment, tensor in zip(_MOMENTS, moments, strict=False):  # none before the first step
            if moment not in state:
                state[moment] = torch.empty(tensor.shape)
            state[moment].copy_(tensor)


class _GatheredSnapshot(Snapshot):
    """Of a host copy, which nobody changes while it is written: nothing is copied once more."""

    def __init__(self, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
        self._named = dict(model.named_parameters())
        self._state = optimizer.state

    def take(self) -> None:
        pass

    def tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in self._named.items():
            state = self._state.get(parameter) or {}
            tensors[f"weight.{name}"] = parameter.detach()
            tensors |= {f"{moment}.{name}": state.get(moment, torch.zeros(parameter.shape)) for moment in _MOMENTS}
        return tensors


class _GatheringWriter(CheckpointWriter):
    """Has the state gathered, by all ranks, before every checkpoint."""

    before_copying: Callable[[], None]

    def begin(self, state: RunState) -> None:
        self.wait()
        self.before_copying()
        super().begin(state)


class _LockstepWriter:
    """The writer as all ranks see it: rank 0 writes, and tells what it does; the others gather when they are told."""

    def __init__(self, group: Group, writer: CheckpointWriter | None, gather: Callable[[], None]) -> None:
        self._group = group
        self._writer = writer
        self._gather = gather
        self._last_step: int | None = None

    @property
    def last_step(self) -> int | None:
        return self._writer.last_step if self._writer else self._last_step

    @last_step.setter
    def last_step(self, step: int | None) -> None:
        self._last_step = step
        if self._writer:
            self._writer.last_step = step

    def save(self, state: RunState) -> bool:
        return self._together(lambda writer: writer.save(state))

    def begin(self, state: RunState) -> None:
        self._together(lambda writer: writer.begin(state))

    def save_now(self, state: RunState) -> bool:
        return self._together(lambda writer: writer.save_now(state))

    def wait_copied(self) -> None:
        if self._writer:
            self._writer.wait_copied()

    def wait(self) -> None:
        if self._writer:
            self._writer.wait()

    def describe(self) -> str:
        return self._writer.describe() if self._writer else "rank 0 knows of the checkpoint"

    def _together(self, act: Callable[[CheckpointWriter], bool | None]) -> bool:
        if self._writer is None:
            while (told := self._group.tell()) == _GATHER:
                self._gather()
            return told == _YES
        answer = _NO
        try:
            answer = _YES if act(self._writer) else _NO
        finally:
            self._group.tell(answer)
        return answer == _YES


def _sharded(root: nn.Module, device: torch.device, num_devices: int) -> nn.Module:
    """Shard each layer, and what is left, over all devices.

    Raises:
        InvalidInputError: this torch has no FSDP2.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError:
        raise InvalidInputError(
            f"torch {torch.__version__} has no torch.distributed.fsdp.fully_shard; expected torch 2.6 or newer to "
            "share a model that does not fit one device"
        ) from None
    mesh = init_device_mesh(device.type, (num_devices,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    assert isinstance(root, _Root)
    for block in root.loss.decoder.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)
    return root


def _whole(tensor: Tensor) -> Tensor:
    """A tensor of which every rank may hold a shard, whole on every rank."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return full_tensor() if full_tensor else tensor


def _memory_bytes(device: torch.device, num_processes: int) -> float:
    """What a rank may have: a GPU's free memory, or its share of a host's."""
    if device.type == "cuda":
        return free_bytes(device)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / num_processes
