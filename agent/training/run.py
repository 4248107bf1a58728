"""One training run: corpus, stream, model, optimiser and checkpoint joined, reported about once a second.

A run is a generator: it yields `Progress` while it works and ends with one `TrainingObservation`, or with a
`Failure` when the loss diverges. Closing it (or killing the process) leaves a checkpoint from which the same
assignment goes on, on the CPU bit for bit as if it had never stopped. The caller discards the checkpoint, with
`discard_checkpoint(checkpoint_path(...))`, once the observation is safe.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.device import make_provenance
from agent.failures import CorpusError, DivergedError, failure_from
from agent.training.checkpoint import NoCheckpoint, RunState, discard_checkpoint, restore_checkpoint, save_checkpoint
from agent.training.corpus import load_corpus
from agent.training.data import TokenStream, held_out_windows, open_shard
from agent.training.evaluate import summarise, window_losses
from agent.training.model import Decoder, init_weights
from agent.training.optim import clip_gradients, make_optimizer, schedule, set_rates
from scaling.observations import Failure, Progress, Provenance, TrainingObservation, TrainingPoint

__all__ = ["Trainer", "checkpoint_path", "discard_checkpoint", "train"]

_REPORT_EVERY_SECONDS = 1.0
_CURVE_POINTS = 64


def checkpoint_path(checkpoint_directory: Path, assignment: TrainAssignment) -> Path:
    """Where the checkpoint of an assignment lies."""
    return checkpoint_directory / assignment.id


def train(
    assignment: TrainAssignment,
    *,
    blobs: BlobCache,
    checkpoint_directory: Path,
    agent: str,
    clock: Callable[[], float] = time.monotonic,
    unix_time: Callable[[], float] = time.time,
    device: str | None = None,
) -> Iterator[Progress | TrainingObservation | Failure]:
    """Train and evaluate, or resume; the last item is the observation or a `nan-loss` failure.

    Args:
        assignment: what to train.
        blobs: where the corpus is fetched from.
        checkpoint_directory: checkpoints lie below it, one folder an assignment.
        agent: name of the agent, for the provenance.
        clock: monotonic seconds, for durations and the pace of reports and checkpoints.
        unix_time: seconds since the epoch, for the provenance.
        device: "cpu" or "cuda"; by default cuda where there is one.

    Raises:
        InvalidInputError: the corpus cannot be had or does not fit the assignment.
    """
    started_at, started = unix_time(), clock()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def provenance() -> Provenance:
        return make_provenance(
            agent=agent, started_at_unix=started_at, seconds=clock() - started, on_gpu=device == "cuda"
        )

    yield Progress(assignment_id=assignment.id, done_fraction=0.0, message="loading")
    data = load_data(assignment, blobs)
    directory = checkpoint_path(checkpoint_directory, assignment)
    trainer = Trainer(assignment, data.stream, device=device, directory=directory)
    resumed = trainer.resume()
    yield Progress(assignment_id=assignment.id, done_fraction=trainer.done_fraction, message=resumed)
    try:
        yield from _train_steps(trainer, clock)
        losses: list[float] = []
        yield from _evaluate(trainer, data, losses, clock)
    except DivergedError as error:
        yield failure_from(error, assignment_id=assignment.id, provenance=provenance())
        return
    yield trainer.observe(losses, provenance())


@dataclass(frozen=True)
class TrainingData:
    """What a run reads: the token stream and the held-out windows of one corpus."""

    stream: TokenStream
    validation: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]


def load_data(assignment: TrainAssignment, blobs: BlobCache) -> TrainingData:
    """Fetch and check everything that a run reads, before any time is spent on training."""
    recipe = assignment.recipe
    manifest = load_corpus(blobs, assignment.corpus_id).manifest
    if manifest.vocab_size > assignment.architecture.vocab_size:
        raise CorpusError(
            f"the corpus has a vocabulary of {manifest.vocab_size}, the architecture's vocab_size is "
            f"{assignment.architecture.vocab_size}; expected at least as many: raise vocab_size"
        )
    tokens = open_shard(blobs.get(manifest.shard("train").sha256), manifest, "train")
    validation = open_shard(blobs.get(manifest.shard("validation").sha256), manifest, "validation")
    stream = TokenStream(
        tokens,
        sequence_length=recipe.sequence_length,
        batch_tokens=recipe.batch_tokens,
        order_seed=recipe.order_seed,
    )
    offsets = held_out_windows(
        validation, sequence_length=recipe.sequence_length, num_windows=assignment.num_eval_windows
    )
    return TrainingData(stream, validation, offsets)


class Trainer:
    """The moving parts of one run. `state.step` steps are done; everything else follows from the step."""

    def __init__(self, assignment: TrainAssignment, stream: TokenStream, *, device: str, directory: Path) -> None:
        if device == "cpu":
            torch.set_num_threads(1)  # two threads are up to 8 times slower on a busy machine (measured)
        self.assignment = assignment
        self.recipe = assignment.recipe
        self.stream = stream
        self.device = torch.device(device)
        self.model = Decoder(assignment.architecture, max_sequence_length=self.recipe.sequence_length)
        init_weights(self.model, seed=self.recipe.seed)
        self.model.to(self.device)
        self.parameters = list(self.model.parameters())
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.state = RunState()
        self._directory = directory
        self._recent_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._recent_steps = 0
        self._gradient_norm = torch.zeros((), device=self.device)
        self._step = 0

    @property
    def done(self) -> bool:
        """Whether every step is done."""
        return self._step >= self.recipe.num_steps

    @property
    def done_fraction(self) -> float:
        """Share of the steps that are done."""
        return self._step / self.recipe.num_steps

    def resume(self) -> str:
        """Go on from the last checkpoint if there is a usable one; returns a sentence saying which."""
        restored = restore_checkpoint(
            self._directory, self.model, self.optimizer, assignment_hash=self.assignment.content_hash()
        )
        if isinstance(restored, NoCheckpoint):
            return f"starting afresh: {restored.reason}"
        self.state = restored.model_copy(update={"num_resumes": restored.num_resumes + 1})
        self._step, self._recent_steps = restored.step, restored.recent_steps
        self._recent_loss.fill_(restored.recent_loss_sum)
        return f"resumed at step {restored.step} of {self.recipe.num_steps}"

    def step(self) -> None:
        """One optimiser step, without waiting for the device."""
        set_rates(self.optimizer, schedule(self._step, self.recipe))
        inputs, targets = self.stream.batch(self._step)
        loss = self._loss(inputs.to(self.device), targets.to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        self._gradient_norm = clip_gradients(self.parameters, self.recipe.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._recent_loss += loss.detach()
        self._recent_steps += 1
        self._step += 1
        if self._step * _CURVE_POINTS % self.recipe.num_steps < _CURVE_POINTS:
            self._add_curve_point()

    def _loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(inputs_BT)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten())

    def _add_curve_point(self) -> None:
        self.state = self.state.model_copy(update={"curve": (*self.state.curve, self.point())})
        self._recent_loss.zero_()
        self._recent_steps = 0

    def point(self) -> TrainingPoint:
        """Where the run stands: the mean training loss since the curve's last point. Waits for the device.

        Raises:
            DivergedError: the loss is not finite or above twice that of guessing, or the gradient is not finite.
        """
        if not self._recent_steps and self.state.curve:
            return self.state.curve[-1]
        loss = float(self._recent_loss) / max(1, self._recent_steps)
        gradient_norm = float(self._gradient_norm)
        limit = 2 * math.log(self.assignment.architecture.vocab_size)
        if not (loss <= limit and math.isfinite(gradient_norm)):
            raise DivergedError(
                f"training diverged by step {self._step}: loss {loss:.4g} nats (limit {limit:.3g}), gradient norm "
                f"{gradient_norm:.4g}; a lower base_learning_rate or a longer warm-up may help"
            )
        return TrainingPoint(
            num_tokens=max(1, self._step) * self.recipe.batch_tokens,
            loss=loss,
            learning_rate=self.recipe.base_learning_rate * schedule(max(0, self._step - 1), self.recipe),
            gradient_norm=gradient_norm,
        )

    def save(self) -> None:
        """Write a checkpoint, unless the run has diverged: a NaN must not be what is resumed from."""
        if self._recent_steps:
            self.point()
        self.state = self.state.model_copy(
            update={
                "step": self._step,
                "recent_loss_sum": float(self._recent_loss),
                "recent_steps": self._recent_steps,
            }
        )
        save_checkpoint(
            self._directory, self.state, self.model, self.optimizer, assignment_hash=self.assignment.content_hash()
        )

    def add_train_seconds(self, seconds: float) -> None:
        """Count time spent on steps; loading, evaluation, checkpoints and pauses of the caller are not."""
        self.state = self.state.model_copy(update={"train_seconds": self.state.train_seconds + max(0.0, seconds)})

    def observe(self, losses: list[float], provenance: Provenance) -> TrainingObservation:
        """The result of a finished run."""
        held_out = summarise(losses)
        num_tokens = self.recipe.num_steps * self.recipe.batch_tokens
        return TrainingObservation(
            assignment_id=self.assignment.id,
            architecture=self.assignment.architecture,
            recipe=self.recipe,
            corpus_id=self.assignment.corpus_id,
            loss=held_out.mean,
            loss_standard_error=held_out.standard_error,
            window_losses=held_out.window_losses,
            num_tokens=num_tokens,
            tokens_per_second=num_tokens / max(self.state.train_seconds, 1e-9),
            train_seconds=self.state.train_seconds,
            num_resumes=self.state.num_resumes,
            curve=self.state.curve,
            provenance=provenance,
        )


def _train_steps(trainer: Trainer, clock: Callable[[], float]) -> Iterator[Progress]:
    """Steps until done. Time is counted between reports only, so that a slow caller costs no tokens per second."""
    saved_at = resumed_at = clock()
    try:
        while not trainer.done:
            trainer.step()
            now = clock()
            if now - resumed_at < _REPORT_EVERY_SECONDS and not trainer.done:
                continue
            point = trainer.point()
            trainer.add_train_seconds(clock() - resumed_at)
            if now - saved_at >= trainer.assignment.checkpoint_every_seconds or trainer.done:
                trainer.save()
                saved_at = clock()
            yield _progress(trainer, f"loss {point.loss:.3f}", point)
            resumed_at = clock()
    except GeneratorExit:
        trainer.save()  # closed between reports: nothing is lost
        raise


def _evaluate(
    trainer: Trainer, data: TrainingData, losses: list[float], clock: Callable[[], float]
) -> Iterator[Progress]:
    """Append the held-out loss of every window to `losses`."""
    reported_at = clock()
    length = trainer.recipe.sequence_length
    for batch in window_losses(trainer.model, data.validation, data.offsets, sequence_length=length):
        losses += batch
        if not math.isfinite(sum(batch)):
            raise DivergedError("the held-out loss is not finite; a lower base_learning_rate may help")
        if clock() - reported_at >= _REPORT_EVERY_SECONDS:
            yield _progress(trainer, f"evaluating, window {len(losses)} of {len(data.offsets)}", None)
            reported_at = clock()


def _progress(trainer: Trainer, message: str, point: TrainingPoint | None) -> Progress:
    return Progress(
        assignment_id=trainer.assignment.id, done_fraction=trainer.done_fraction, message=message, point=point
    )
