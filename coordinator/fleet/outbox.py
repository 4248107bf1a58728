"""Outbox: what an agent has to tell, kept until the coordinator fetches it; the one channel between the two.

Batched: one fetch takes all there is. Bounded: a trial's progress is only ever its newest, which takes over what the
one before adds to the log, and a result that finds the outbox full waits for room, so that a slow coordinator slows its
agents down instead of filling their memory.
"""

import threading
from collections import deque
from dataclasses import dataclass, replace

from agent.log import ending

MAX_RESULTS = 64


@dataclass(frozen=True)
class Message:
    """One report of an agent, as JSON text of a `Progress` or an observation."""

    trial_id: str
    epoch: int
    item: str
    is_final: bool
    checkpoint: bytes | None = None
    """Of an interrupted training, packed: whoever goes on with the trial starts from it."""
    log: str = ""
    """What it adds to the attempt's log: whole lines."""


class Outbox:
    """Written by the thread that works, emptied by the one that talks."""

    def __init__(self, max_results: int = MAX_RESULTS) -> None:
        self._max_results = max_results
        self._messages: deque[Message] = deque()
        self._num_results = 0
        self._changed = threading.Condition()

    def put(self, message: Message) -> None:
        """Add a message; progress replaces the attempt's older progress, a result waits while there is no room."""
        with self._changed:
            if not message.is_final:
                message = self._in_place_of_older(message)
            else:
                self._changed.wait_for(lambda: self._num_results < self._max_results)
                self._num_results += 1
            self._messages.append(message)
            self._changed.notify_all()

    def take(self, timeout_seconds: float) -> list[Message]:
        """All there is, in order; waits up to the time-out for a first message."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._messages), timeout_seconds)
            messages = list(self._messages)
            self._messages.clear()
            self._num_results = 0
            self._changed.notify_all()
            return messages

    def _in_place_of_older(self, newer: Message) -> Message:
        """Drop the attempt's older progress, if it waits; the newer one with its part of the log."""
        last = self._messages[-1] if self._messages else None
        if last is None or last.is_final or (last.trial_id, last.epoch) != (newer.trial_id, newer.epoch):
            return newer
        self._messages.pop()
        return replace(newer, log=ending(last.log + newer.log)) if last.log else newer
