"""The writer of a run's checkpoints: copied in memory, hashed and written by a thread beside the run.

The run goes on with the next gradients at once: only before it changes the weights does it wait for the copy. One
write at a time; a write that failed is raised by the next call. Small checkpoints are written at once. The time spent
on writing is bounded: after a write of t seconds, the next begins no sooner than `REST_FACTOR` · t later.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch

from agent.training.checkpoint import RunState, Snapshot, num_checkpoint_bytes, save_checkpoint, write_checkpoint
from agent.training.folder import Folder
from agent.training.model import Decoder

DRAIN_SECONDS = 30.0
"""Within which a run that is asked to leave has saved itself."""
AT_ONCE_BYTES = 32 * 2**20
REST_FACTOR = 9.0
_RESERVE = 0.8
"""Share of `DRAIN_SECONDS` that an expected write may take."""


class Writer(Protocol):
    """What a trainer asks of its writer."""

    last_step: int | None

    def save(self, state: RunState) -> bool:
        """Begin a checkpoint unless it is too soon; whether it was begun."""

    def begin(self, state: RunState) -> None:
        """Begin a checkpoint."""

    def save_now(self, state: RunState) -> bool:
        """Leave a checkpoint behind before this returns, if there is the time."""

    def wait_copied(self) -> None:
        """Until weights and moments may change."""

    def wait(self) -> None:
        """Until nothing is being written."""

    def describe(self) -> str:
        """What there is to go on from."""


class CheckpointWriter:
    """Writes one run's checkpoints.

    Args:
        folder: where to.
        model: whose weights, and
        optimizer: whose moments are kept.
        assignment_hash: stands in every checkpoint.
        at_once_bytes: checkpoints up to this size are written while the run waits.
        snapshot: of both, by default one of its own.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: Folder,
        model: Decoder,
        optimizer: torch.optim.Optimizer,
        *,
        assignment_hash: str,
        at_once_bytes: int = AT_ONCE_BYTES,
        snapshot: Snapshot | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._model = model
        self._optimizer = optimizer
        self._assignment_hash = assignment_hash
        self._clock = clock
        in_background = num_checkpoint_bytes(model.parameters()) > at_once_bytes
        self._snapshot = (snapshot or Snapshot(model, optimizer)) if in_background else None
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._error: Exception | None = None
        self._rested_at = -float("inf")
        self.last_step: int | None = None
        """Of the last checkpoint that was written whole; None while there is none."""
        self.write_seconds = 0.0
        """What the last write took."""

    def save(self, state: RunState) -> bool:
        """Begin a checkpoint; False, and nothing is done, while the one before is being written or is too recent.

        Raises:
            Exception: what the write before failed with.
        """
        self._raise_error()
        if self._busy or self._clock() < self._rested_at:
            return False
        self.begin(state)
        return True

    def begin(self, state: RunState) -> None:
        """Begin a checkpoint, once the one before is written.

        Raises:
            Exception: what the write before failed with.
        """
        self.wait()
        started = self._clock()
        if self._snapshot is None:
            save_checkpoint(self._folder, state, self._model, self._optimizer, assignment_hash=self._assignment_hash)
            self._written(state, started)
            return
        self._copied.clear()
        self._thread = threading.Thread(
            target=self._write, args=(self._snapshot, state, started), name="archfleet-checkpoint"
        )
        self._thread.start()

    def wait_copied(self) -> None:
        """Until the state to be written is copied: called before weights or moments change."""
        self._copied.wait()

    def save_now(self, state: RunState) -> bool:
        """Leave a checkpoint behind within `DRAIN_SECONDS`, this one if there is the time; False if an earlier one.

        A write under way is waited for. Where one as long as the last would take too long, the last is what stays; a
        run that has none yet takes the time that it takes.

        Raises:
            Exception: what a write failed with.
        """
        asked_at = self._clock()
        self.wait()
        if self.last_step == state.step:
            return True
        expected = self._clock() - asked_at + self.write_seconds
        if self.last_step is not None and expected > _RESERVE * DRAIN_SECONDS:
            return False
        self.begin(state)
        self.wait()
        return True

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            Exception: what the write failed with.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_error()

    def describe(self) -> str:
        """What there is to go on from, for messages."""
        if self.last_step is None:
            return "no checkpoint was written"
        return f"the last good checkpoint is that of step {self.last_step} in {self._folder}"

    @property
    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _write(self, snapshot: Snapshot, state: RunState, started: float) -> None:
        try:
            try:
                snapshot.take()
            finally:
                self._copied.set()
            write_checkpoint(self._folder, state, snapshot.tensors(), assignment_hash=self._assignment_hash)
            self._written(state, started)
        except Exception as error:
            self._error = error

    def _written(self, state: RunState, started: float) -> None:
        ended = self._clock()
        self.last_step, self.write_seconds = state.step, ended - started
        self._rested_at = ended + REST_FACTOR * self.write_seconds

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
