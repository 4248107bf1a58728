"""One training run: corpus, stream, model, optimiser and checkpoint joined, reported about once a second.

A run is a generator: it yields `Progress` while it works and ends with one `TrainingObservation`, or with a
`Failure` when the loss diverges. Closing it (or killing the process) leaves a checkpoint from which the same
assignment goes on, on the CPU bit for bit as if it had never stopped. The caller discards the checkpoint, with
`discard_checkpoint(checkpoint_path(...))`, once the observation is safe.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.corpus.manifest import load_corpus
from agent.corpus.shards import TokenShards, open_tokens
from agent.device import describe_device, make_provenance
from agent.failures import CorpusError, DivergedError, failure_from
from agent.training.checkpoint import discard_checkpoint, trim_checkpoints
from agent.training.compiling import Choice, compile_choice
from agent.training.data import TokenStream, held_out_windows
from agent.training.evaluate import window_means
from agent.training.folder import below
from agent.training.micro_batch import train_flops_per_token
from agent.training.model import Decoder
from agent.training.telemetry import PowerMeter, memory_bytes, open_power_meter, peak_flops_per_second
from agent.training.trainer import Trainer
from agent.training.trunk import TrunkStore
from agent.training.where import training_device
from scaling.observations import Failure, Progress, Provenance, TrainingObservation, TrainingPoint

__all__ = ["checkpoint_path", "discard_checkpoint", "train"]

Finished = Callable[[Decoder, NDArray[np.float32]], None]
"""Is given the trained model and its held-out token losses, nats, of shape (windows, T)."""

MAX_CHECKPOINT_BYTES = 20 * 10**9
"""Of all runs below one directory; those of abandoned runs go first. A checkpoint is 12 bytes a parameter."""
_REPORT_EVERY_SECONDS = 1.0


def checkpoint_path(checkpoint_directory: Path | str, assignment: TrainAssignment) -> Path | str:
    """Where the checkpoint of an assignment lies, a path or a URL as its parent is."""
    return below(checkpoint_directory, assignment.id)


def train(
    assignment: TrainAssignment,
    *,
    blobs: BlobCache,
    checkpoint_directory: Path | str,
    agent: str,
    clock: Callable[[], float] = time.monotonic,
    unix_time: Callable[[], float] = time.time,
    device: str | None = None,
    micro_batch: int | None = None,
    compiled: Choice | None = None,
    trunks: TrunkStore | None = None,
    on_finished: Finished | None = None,
    make_trainer: Callable[..., Trainer] = Trainer,
) -> Iterator[Progress | TrainingObservation | Failure]:
    """Train and evaluate, or resume; the last item is the observation or a `nan-loss` failure.

    Args:
        assignment: what to train.
        blobs: where the corpus is fetched from.
        checkpoint_directory: checkpoints lie below it, one folder an assignment; a path or a URL of fsspec's.
        agent: name of the agent, for the provenance.
        clock: monotonic seconds, for durations and the pace of reports and checkpoints.
        unix_time: seconds since the epoch, for the provenance.
        device: "cpu" or "cuda"; by default cuda where there is one.
        micro_batch: sequences whose gradients are formed at once, a divisor of the batch's; by default what fits.
        compiled: whether layers are compiled; by default what the environment says (`compiling.py`).
        trunks: where states are left for other runs, and taken up from them; without it every run is from scratch.
        on_finished: called after the evaluation and before the observation is given, for what only some keep.
        make_trainer: makes the trainer; several processes that train together have one of their own.

    Raises:
        InvalidInputError: the corpus cannot be had or does not fit the assignment, or there is no such device here.
    """
    started_at, started = unix_time(), clock()
    device = training_device(device)

    def provenance() -> Provenance:
        return make_provenance(
            agent=agent, started_at_unix=started_at, seconds=clock() - started, on_gpu=device == "cuda"
        )

    yield Progress(assignment_id=assignment.id, done_fraction=0.0, message="loading")
    data = load_data(assignment, blobs)
    if isinstance(checkpoint_directory, Path):
        trim_checkpoints(
            checkpoint_directory, max_bytes=MAX_CHECKPOINT_BYTES, spare=assignment.id, now_unix=unix_time()
        )
    trainer = make_trainer(
        assignment,
        data.stream,
        device=device,
        directory=checkpoint_path(checkpoint_directory, assignment),
        trunks=trunks,
        micro_batch=micro_batch,
    )
    resumed = trainer.resume()
    yield Progress(assignment_id=assignment.id, done_fraction=trainer.done_fraction, message=resumed)
    power = open_power_meter(trainer.device, num_devices=trainer.num_devices)
    batches: list[NDArray[np.float32]] = []
    try:
        if not trainer.done:
            choice = compiled or compile_choice()
            sign = _progress(trainer, "compiling the layers", None)
            yield from _beside(lambda: trainer.compile(choice), sign, trainer.agreed)
        peak = peak_flops_per_second(describe_device(on_gpu=device == "cuda").hardware)
        peak = peak and peak * trainer.num_devices
        yield from _train_steps(trainer, clock, Telemetry(trainer, power, peak))
        yield from _evaluate(trainer, data, batches, clock)
    except DivergedError as error:
        yield failure_from(error, assignment_id=assignment.id, provenance=provenance())
        return
    finally:
        power.close()
        trainer.close()
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


def _beside(work: Callable[[], object], sign: Progress, agreed: Callable[[bool], bool]) -> Iterator[Progress]:
    """Do a long work on a thread, with a sign of life about every second; whoever closes does not wait for it.

    `agreed` says whether everybody who trains has done it.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="archfleet-compile")
    future = pool.submit(work)
    pool.shutdown(wait=False)
    while not agreed(bool(wait([future], timeout=_REPORT_EVERY_SECONDS).done)):
        yield sign
    future.result()


class Telemetry:
    """Adds to a point what the machine did since the one before."""

    def __init__(self, trainer: Trainer, power: PowerMeter, peak_flops_per_second: float | None) -> None:
        self._trainer = trainer
        self._power = power
        self._peak = peak_flops_per_second
        self._flops_per_token = train_flops_per_token(trainer.assignment.architecture, trainer.recipe.sequence_length)
        self._step = trainer.num_steps_done

    def add_to(self, point: TrainingPoint, seconds: float) -> TrainingPoint:
        """The point with speed, MFU, memory and power; `seconds` were spent on steps since the last."""
        num_steps = self._trainer.num_steps_done - self._step
        self._step += num_steps
        rate = num_steps * self._trainer.recipe.batch_tokens / seconds if num_steps and seconds > 0 else None
        return point.model_copy(
            update={
                "tokens_per_second": rate,
                "mfu": rate * self._flops_per_token / self._peak if rate and self._peak else None,
                "memory_bytes": memory_bytes(self._trainer.device),
                "power_watts": self._power.watts(),
            }
        )


def _train_steps(trainer: Trainer, clock: Callable[[], float], telemetry: Telemetry) -> Iterator[Progress]:
    """Steps until done. Time is counted between reports only, so that a slow caller costs no tokens per second.

    A long step is reported between its micro-batches too, where it can be given up: a run that is closed leaves a
    checkpoint within `DRAIN_SECONDS`.
    """
    saved_at = resumed_at = clock()
    try:
        unreported_seconds = 0.0
        while trainer.num_steps_done < trainer.recipe.num_steps:
            with closing(trainer.micro_steps()) as micro_steps:
                for num_sequences in micro_steps:
                    if clock() - resumed_at >= _REPORT_EVERY_SECONDS:
                        unreported_seconds += _count_seconds(trainer, clock() - resumed_at)
                        yield _progress(
                            trainer, f"{num_sequences} of {trainer.num_sequences} sequences of a step", None
                        )
                        resumed_at = clock()
            now = clock()
            if now - resumed_at < _REPORT_EVERY_SECONDS and not (trainer.done or trainer.at_branch):
                continue
            point = trainer.point()
            assert point is not None, "a step was done"
            unreported_seconds += _count_seconds(trainer, clock() - resumed_at)
            point, unreported_seconds = telemetry.add_to(point, unreported_seconds), 0.0
            remarks = [f"loss {point.loss:.3f}", *trainer.notes]
            trainer.notes.clear()
            if trainer.at_branch:
                remarks.append(trainer.leave_trunk())
            if trainer.done:
                trainer.save_last()
            elif now - saved_at >= trainer.assignment.checkpoint_every_seconds and trainer.save():
                saved_at = clock()
            yield _progress(trainer, "; ".join(remarks), point)
            resumed_at = clock()
    except GeneratorExit:
        # Closed between reports: nothing is lost. Whoever closes hears nothing more, so a state that cannot be kept
        # leaves the checkpoint before.
        with suppress(DivergedError, OSError):
            trainer.save_now()
        raise


def _count_seconds(trainer: Trainer, seconds: float) -> float:
    trainer.add_train_seconds(seconds)
    return seconds


def _evaluate(
    trainer: Trainer, data: TrainingData, batches: list[NDArray[np.float32]], clock: Callable[[], float]
) -> Iterator[Progress]:
    """Append the held-out losses of every token, some windows at a time, to `batches`."""
    reported_at, num_windows = clock(), 0
    for batch in trainer.held_out_losses(data.validation, data.offsets):
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
