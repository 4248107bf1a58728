"""The trainer: model, optimiser and state of one run, and one optimiser step of it.

A step forms the gradients of its batch a micro-batch at a time, sums them, clips and updates. Nothing in it waits for
the device; `point`, `save` and `leave_trunk` do. Weights, gradients and moments are fp32; on a GPU matrices multiply in
bf16. `run.py` drives it and reports.

`parallel_trainer.py` trains on several devices by overriding how state is loaded and kept, gradients are summed and
clipped, and held-out losses are formed.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.assignment import TrainAssignment
from agent.corpus.shards import Tokens
from agent.failures import DivergedError, classify
from agent.training.checkpoint import NoCheckpoint, RunState, restore_checkpoint
from agent.training.compiling import Choice, compile_layers, should_compile
from agent.training.curve import Curve
from agent.training.evaluate import summarise, token_losses
from agent.training.feed import Feed, Stream
from agent.training.folder import Folder, open_folder
from agent.training.loss import SummedLoss
from agent.training.micro_batch import fitting_sequences, halved, swift_sequences
from agent.training.model import Decoder, init_weights
from agent.training.optim import clip_gradients, make_optimizer, schedule, set_rates
from agent.training.trunk import TrunkStore, trunk_key
from agent.training.writer import CheckpointWriter, Writer
from scaling.observations import Provenance, TrainingObservation, TrainingPoint

Load = Callable[[Decoder, torch.optim.Optimizer], RunState | NoCheckpoint]
Keep = Callable[[Decoder, torch.optim.Optimizer], str]


class Trainer:
    """The moving parts of one run. `state.step` steps are done; everything else follows from the step.

    Args:
        assignment: what to train.
        stream: batches by step.
        device: "cpu", "cuda" or "cuda:1".
        directory: of the checkpoint, a path or a URL of fsspec's.
        trunks: where states are left for other runs, and taken up from them.
        micro_batch: sequences whose gradients are formed at once, a divisor of the batch's; by default what fits.
        wrap: given the module of the summed loss, returns what is called in its place.
    """

    def __init__(
        self,
        assignment: TrainAssignment,
        stream: Stream,
        *,
        device: str,
        directory: Path | str,
        trunks: TrunkStore | None = None,
        micro_batch: int | None = None,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        if device == "cpu":
            torch.set_num_threads(1)  # two threads are up to 8 times slower on a busy machine (measured)
        self.assignment = assignment
        self.recipe = assignment.recipe
        self.device = torch.device(device)
        self.micro_batch = micro_batch or self._choose_micro_batch()
        self.model = Decoder(assignment.architecture, max_sequence_length=self.recipe.sequence_length)
        init_weights(self.model, seed=self.recipe.seed)
        self.model.to(self.device)
        self.loss = SummedLoss(self.model, z_loss_weight=self.recipe.z_loss_weight, autocast=self.device.type == "cuda")
        self.network: nn.Module = wrap(self.loss) if wrap else self.loss
        self.parameters = list(self.model.parameters())  # after `wrap`, which may have put shards in their places
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.curve = Curve(self.recipe, vocab_size=assignment.architecture.vocab_size)
        self.state = RunState()
        self.layers = "plain"
        """How the layers run: compiled, or plain and why."""
        self.notes: list[str] = []
        """What people should be told with the next report."""
        self.writer = self._make_writer(open_folder(directory))
        self._feed = Feed(stream, self.device)
        self._directory = directory
        self._trunks = trunks
        self._branch_steps = frozenset(assignment.branch_steps)
        self._was_out_of_memory = False
        self._step = 0

    num_devices = 1

    @property
    def num_sequences(self) -> int:
        """Of a batch, those that are trained here."""
        return self.recipe.batch_tokens // self.recipe.sequence_length

    def _make_writer(self, folder: Folder) -> Writer:
        return CheckpointWriter(folder, self.model, self.optimizer, assignment_hash=self.assignment.content_hash())

    def _load_state(self, load: Load) -> RunState | NoCheckpoint:
        """Fill weights and moments by `load`."""
        return load(self.model, self.optimizer)

    def _keep_state(self, keep: Keep) -> str:
        """Give weights and moments to `keep`, which says how that went."""
        return keep(self.model, self.optimizer)

    def _choose_micro_batch(self) -> int:
        batch, length = self.num_sequences, self.recipe.sequence_length
        if self.device.type != "cuda":
            return swift_sequences(self.assignment.architecture, num_sequences=batch, sequence_length=length)
        return fitting_sequences(
            self.assignment.architecture,
            num_sequences=batch,
            sequence_length=length,
            memory_bytes=free_bytes(self.device),
            bytes_per_activation=2,
        )

    def agreed(self, done: bool) -> bool:
        """Whether all who train this run have done what this process has, or has not."""
        return done

    @property
    def done(self) -> bool:
        """Whether every step is done."""
        return self._step >= self.recipe.num_steps

    @property
    def done_fraction(self) -> float:
        """Share of this run's own steps that are done."""
        inherited = self.state.inherited_steps
        return (self._step - inherited) / max(1, self.recipe.num_steps - inherited)

    @property
    def num_steps_done(self) -> int:
        """Steps done, inherited ones included."""
        return self._step

    def resume(self) -> str:
        """Go on from the last checkpoint if there is a usable one; returns a sentence saying which."""
        folder, name = open_folder(self._directory), self.assignment.content_hash()
        restored = self._load_state(
            lambda model, optimizer: restore_checkpoint(folder, model, optimizer, assignment_hash=name)
        )
        if isinstance(restored, NoCheckpoint):
            return self._inherit(restored.reason)
        self._take_up(restored.model_copy(update={"num_resumes": restored.num_resumes + 1}))
        self.writer.last_step = restored.step
        return f"resumed at step {restored.step} of {self.recipe.num_steps}"

    def _inherit(self, why_not_resumed: str) -> str:
        """Go on from the furthest state of this run's trunk, if one is kept."""
        trunks = self._trunks
        if trunks is None:
            return f"starting afresh: {why_not_resumed}"
        key, last = self._trunk_key, self.recipe.first_decaying_step
        found = self._load_state(lambda model, optimizer: trunks.take_up(key, model, optimizer, max_step=last))
        if isinstance(found, NoCheckpoint):
            return f"starting afresh: {why_not_resumed}; {found.reason}"
        self._take_up(
            found.model_copy(update={"inherited_steps": found.step, "train_seconds": 0.0, "num_resumes": 0}),
        )
        return f"branched off a trunk at step {found.step} of {self.recipe.num_steps}"

    def _take_up(self, state: RunState) -> None:
        self.state = state
        self._step = state.step
        self.curve.go_on(
            step=state.step,
            points=state.curve,
            recent_loss_sum=state.recent_loss_sum,
            recent_steps=state.recent_steps,
        )
        if state.micro_batch_sequences:  # the same rounding as before, unless this device holds less
            self.micro_batch = min(self.micro_batch, state.micro_batch_sequences)

    def compile(self, choice: Choice = "auto") -> str:
        """Compile the layers where that is asked for or pays; returns how they run. May be called on another thread."""
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # a thread has a number of its own, and compiled code is made for one number
        why_not = should_compile(self.assignment.architecture, self.recipe, device=self.device.type, choice=choice)
        if why_not is None:
            shape = (self.micro_batch, self.recipe.sequence_length)
            why_not = compile_layers(self.loss, torch.zeros(shape, dtype=torch.int64, device=self.device))
        self.layers = "compiled" if why_not is None else f"plain: {why_not}"
        return self.layers

    @property
    def at_branch(self) -> bool:
        """Whether another run is to branch off here."""
        return self._trunks is not None and self._step in self._branch_steps

    def leave_trunk(self) -> str:
        """Keep the state for the runs that branch off here; returns a sentence on how that went."""
        trunks, key, state = self._trunks, self._trunk_key, self._now()
        assert trunks is not None, "asked for at a branch alone"
        return self._keep_state(lambda model, optimizer: trunks.leave(key, state, model, optimizer))

    @property
    def _trunk_key(self) -> str:
        return trunk_key(self.assignment, device=self.device.type)

    def step(self) -> None:
        """One optimiser step, without waiting for the device."""
        for _ in self.micro_steps():
            pass

    def micro_steps(self) -> Generator[int, None, None]:
        """One optimiser step; yields how many sequences are done after every micro-batch but the last.

        Whoever stops in between has changed nothing: the same step begins again. A first lack of memory halves the
        micro-batch and begins the step again.

        Raises:
            RuntimeError: out of memory a second time, or at a single sequence, or of another kind.
        """
        set_rates(self.optimizer, schedule(self._step, self.recipe))
        batch = self._feed.batch(self._step, last_step=self.recipe.num_steps - 1)
        loss = None
        while loss is None:
            try:
                loss = yield from self._form_gradients(*batch)
            except (RuntimeError, MemoryError) as error:
                self._halve_micro_batch(error)
        gradient_norm = self._clip_gradients()
        self.writer.wait_copied()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.curve.add(loss, gradient_norm)
        self._step += 1

    def _form_gradients(self, inputs_BT: Tensor, targets_BT: Tensor) -> Generator[int, None, Tensor]:
        """Sum the gradients of the batch's mean loss; the loss itself is the generator's result."""
        losses = []
        try:
            for first in range(0, self.num_sequences, self.micro_batch):
                if first:
                    yield first
                part = slice(first, first + self.micro_batch)
                with self._accumulating(part.stop < self.num_sequences):
                    loss = self.network(inputs_BT[part], targets_BT[part]) / self.recipe.batch_tokens
                    loss.backward()
                losses.append(loss.detach())
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)
            raise
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Around a micro-batch; `more` of them follow in this step."""
        return nullcontext()

    def _clip_gradients(self) -> Tensor:
        """Clip the joint norm of all gradients; returns what it was, on the device."""
        return clip_gradients(self.parameters, self.recipe.gradient_clip_norm)

    def held_out_losses(self, tokens: Tokens, offsets: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """Losses of every target token of the windows at these offsets, (windows, T), some windows at a time."""
        return token_losses(self.model, tokens, offsets, sequence_length=self.recipe.sequence_length)

    def _halve_micro_batch(self, error: Exception) -> None:
        """After a first lack of memory; raises the error after a second, or one of another kind."""
        if classify(error) != "out-of-memory" or self._was_out_of_memory or self.micro_batch == 1:
            raise error
        self._was_out_of_memory = True
        self.micro_batch = halved(self.num_sequences, self.micro_batch)
        self.notes.append(f"out of memory at step {self._step}: going on with {self.micro_batch} sequences at once")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def point(self) -> TrainingPoint | None:
        """Where the run stands: the mean training loss since the curve's last point. Waits for the device.

        Raises:
            DivergedError: a loss is not finite or above twice that of guessing, or a gradient is not finite.
        """
        try:
            return self.curve.latest()
        except DivergedError as error:
            raise DivergedError(f"{error}; {self.writer.describe()}") from None

    def save(self) -> bool:
        """Begin a checkpoint, unless the run has diverged: a NaN must not be what is resumed from.

        False, and nothing is done, while the one before is still being written.
        """
        self.state = self._now()
        return self.writer.save(self.state)

    def save_last(self) -> None:
        """Begin the checkpoint of a run whose steps are done."""
        self.state = self._now()
        self.writer.begin(self.state)

    def save_now(self) -> None:
        """Leave a checkpoint behind before this returns: this step's, if there is the time."""
        self.state = self._now()
        self.writer.save_now(self.state)

    def _now(self) -> RunState:
        """The state at this step, if the run has not diverged. Waits for the device."""
        self.point()
        return self.state.model_copy(
            update={
                "step": self._step,
                "curve": self.curve.points,
                "recent_loss_sum": self.curve.recent_loss_sum,
                "recent_steps": self.curve.recent_steps,
                "micro_batch_sequences": self.micro_batch,
            }
        )

    def add_train_seconds(self, seconds: float) -> None:
        """Count time spent on steps; loading, evaluation, checkpoints and pauses of the caller are not."""
        self.state = self.state.model_copy(update={"train_seconds": self.state.train_seconds + max(0.0, seconds)})

    def observe(self, losses: list[float], provenance: Provenance) -> TrainingObservation:
        """The result of a finished run."""
        held_out = summarise(losses)
        num_tokens = self.recipe.num_steps * self.recipe.batch_tokens
        inherited_tokens = self.state.inherited_steps * self.recipe.batch_tokens
        return TrainingObservation(
            assignment_id=self.assignment.id,
            architecture=self.assignment.architecture,
            recipe=self.recipe,
            corpus_id=self.assignment.corpus_id,
            loss=held_out.mean,
            loss_standard_error=held_out.standard_error,
            window_losses=held_out.window_losses,
            num_tokens=num_tokens,
            inherited_tokens=inherited_tokens,
            tokens_per_second=(num_tokens - inherited_tokens) / max(self.state.train_seconds, 1e-9),
            train_seconds=self.state.train_seconds,
            num_resumes=self.state.num_resumes,
            curve=self.curve.points,
            provenance=provenance.model_copy(update={"versions": provenance.versions | {"layers": self.layers}}),
        )

    def close(self) -> None:
        """End the threads; a write under way is waited for."""
        self._feed.close()
        self.writer.wait()


def free_bytes(device: torch.device) -> float:
    """Memory that a run may have: what nobody uses, and what torch keeps from runs before."""
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
