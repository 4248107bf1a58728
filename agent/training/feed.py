"""The feed: batches on the device, on a GPU prepared one step ahead and copied while the device computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64 (B, T)."""


class Stream(Protocol):
    """Batches by step, as `agent.training.data.TokenStream` gives them."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, in host memory."""


class Feed:
    """Batches of a stream on a device.

    On a CPU a batch is gathered when it is asked for: a thread beside the one that trains would only take its core.
    Elsewhere the next one is gathered into page-locked memory by a thread, and copied without waiting.
    """

    def __init__(self, stream: Stream, device: torch.device, *, ahead: bool | None = None) -> None:
        self._stream = stream
        self._device = device
        self._pinned = device.type == "cuda"
        ahead = self._pinned if ahead is None else ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="archfleet-feed") if ahead else None
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int, *, last_step: int | None = None) -> Batch:
        """The batch of a step; that of the next, up to `last_step`, is begun."""
        if self._pool is None:
            inputs, targets = self._gather(step)
        else:
            future = self._next[1] if self._next and self._next[0] == step else self._pool.submit(self._gather, step)
            inputs, targets = future.result()
            more = last_step is None or step < last_step
            self._next = (step + 1, self._pool.submit(self._gather, step + 1)) if more else None
        return inputs.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, step: int) -> Batch:
        inputs, targets = self._stream.batch(step)
        return (inputs.pin_memory(), targets.pin_memory()) if self._pinned else (inputs, targets)
