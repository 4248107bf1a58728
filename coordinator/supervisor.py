"""Supervisor: what the coordinator tells systemd of itself, where systemd has started it (sd_notify).

    READY=1      the run is taken up, at the latest when the loop first turns: a unit of Type=notify counts as started
    WATCHDOG=1   the loop turns: without it for WatchdogSec the unit is killed and started again
    STOPPING=1   the loop has ended

Elsewhere there is no NOTIFY_SOCKET, and nothing is told.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

EVERY_SECONDS = 5.0
"""Between two signs of life."""


@dataclass
class Supervisor:
    """Whoever started this process, and wants to know how it is."""

    address: str | None
    """Of a datagram socket: a path, or a name after @ in Linux' abstract space."""
    monotonic: Callable[[], float] = time.monotonic
    _is_ready: bool = False
    _told: float = float("-inf")

    @classmethod
    def of_environment(cls) -> "Supervisor":
        """The one that NOTIFY_SOCKET names. Children of this process are not to speak for it."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def ready(self) -> None:
        """The run is taken up; told once."""
        if not self._is_ready:
            self._is_ready = True
            self._tell("READY=1")

    def alive(self) -> None:
        """The loop turns; told now and then. Who lives is ready."""
        self.ready()
        if self.monotonic() - self._told >= EVERY_SECONDS:
            self._told = self.monotonic()
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The loop has ended."""
        self._tell("STOPPING=1")

    def _tell(self, words: str) -> None:
        if not self.address:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as found:
            found.sendto(words.encode(), address)
