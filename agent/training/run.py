"""One training run: corpus, stream, model, optimiser and checkpoint joined, reported about once a second.

A run is a generator: it yields `Progress` while it works and ends with one `TrainingObservation`, or with a
`Failure` when the loss diverges. Closing it (or killing the process) leaves a checkpoint from which the same
assignment goes on, on the CPU bit for bit as if it had never stopped. The caller discards the checkpoint, with
`discard_checkpoint(checkpoint_path(...))`, once the observation is safe.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.device import make_provenance
from agent.failures import CorpusError, DivergedError, failure_from
from agent.training.checkpoint import discard_checkpoint
from agent.training.corpus import load_corpus
from agent.training.data import TokenStream, held_out_windows
from agent.training.evaluate import token_losses, window_means
from agent.training.model import Decoder
from agent.training.shards import TokenShards, open_tokens
from agent.training.trainer import Trainer
from agent.training.trunk import TrunkStore
from scaling.observations import Failure, Progress, Provenance, TrainingObservation, TrainingPoint

__all__ = ["checkpoint_path", "discard_checkpoint", "train"]

Finished = Callable[[Decoder, NDArray[np.float32]], None]
"""Is given the trained model and its held-out token losses, nats, of shape (windows, T)."""

_REPORT_EVERY_SECONDS = 1.0


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
    trunks: TrunkStore | None = None,
    on_finished: Finished | None = None,
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
        trunks: where states are left for other runs, and taken up from them; without it every run is from scratch.
        on_finished: called after the evaluation and before the observation is given, for what only some keep.

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
    trainer = Trainer(assignment, data.stream, device=device, directory=directory, trunks=trunks)
    resumed = trainer.resume()
    yield Progress(assignment_id=assignment.id, done_fraction=trainer.done_fraction, message=resumed)
    try:
        yield from _train_steps(trainer, clock)
        batches: list[NDArray[np.float32]] = []
        yield from _evaluate(trainer, data, batches, clock)
    except DivergedError as error:
        yield failure_from(error, assignment_id=assignment.id, provenance=provenance())
        return
    losses = np.concatenate(batches)
    if on_finished is not None:
        on_finished(trainer.model, losses)
    yield trainer.observe(window_means(losses), provenance())


@dataclass(frozen=True)
class TrainingData:
    """What a run reads: the token stream and the held-out windows of one corpus."""

    stream: TokenStream
    validation: TokenShards
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
    tokens = open_tokens(manifest, "train", blobs)
    validation = open_tokens(manifest, "validation", blobs)
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


def _train_steps(trainer: Trainer, clock: Callable[[], float]) -> Iterator[Progress]:
    """Steps until done. Time is counted between reports only, so that a slow caller costs no tokens per second."""
    saved_at = resumed_at = clock()
    try:
        while not trainer.done:
            trainer.step()
            now = clock()
            if now - resumed_at < _REPORT_EVERY_SECONDS and not (trainer.done or trainer.at_branch):
                continue
            point = trainer.point()
            trainer.add_train_seconds(clock() - resumed_at)
            kept = f"; {trainer.leave_trunk()}" if trainer.at_branch else ""
            if now - saved_at >= trainer.assignment.checkpoint_every_seconds or trainer.done:
                trainer.save()
                saved_at = clock()
            yield _progress(trainer, f"loss {point.loss:.3f}{kept}", point)
            resumed_at = clock()
    except GeneratorExit:
        trainer.save()  # closed between reports: nothing is lost
        raise


def _evaluate(
    trainer: Trainer, data: TrainingData, batches: list[NDArray[np.float32]], clock: Callable[[], float]
) -> Iterator[Progress]:
    """Append the held-out losses of every token, some windows at a time, to `batches`."""
    reported_at, num_windows = clock(), 0
    length = trainer.recipe.sequence_length
    for batch in token_losses(trainer.model, data.validation, data.offsets, sequence_length=length):
        batches.append(batch)
        num_windows += len(batch)
        if not np.isfinite(batch).all():
            raise DivergedError("the held-out loss is not finite; a lower base_learning_rate may help")
        if clock() - reported_at >= _REPORT_EVERY_SECONDS:
            yield _progress(trainer, f"evaluating, window {num_windows} of {len(data.offsets)}", None)
            reported_at = clock()


def _progress(trainer: Trainer, message: str, point: TrainingPoint | None) -> Progress:
    return Progress(
        assignment_id=trainer.assignment.id, done_fraction=trainer.done_fraction, message=message, point=point
    )
