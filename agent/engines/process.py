"""An engine process: started in its own group, read line by line under deadlines, and surely ended.

Endings, all as values:

    result                              EngineResult
    no `ready` before the deadline      timeout
    no `result` before the deadline     timeout
    the driver's own error              as it says
    killed while the kernel was short   out-of-memory    (its counter of such kills rose)
    last lines speak of memory          out-of-memory
    crash before `ready`                engine-start      (within two ticks, also if a child holds its output open)
    crash after, or exit without result unknown
    a message that breaks the protocol  validation

Whatever the ending, and also when the generator is closed early, the whole group is terminated, after a grace
killed, and reaped; then whoever left the group is killed too (`descendants.py` says who is out of reach).
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from agent.engines.base import EngineError, EngineMessage, EngineReady, EngineResult, MessageAdapter
from agent.engines.descendants import (
    MARK_VARIABLE,
    Process,
    family_of,
    kill_all,
    running_members,
    wait_until_gone,
)
from agent.log_file import last_lines
from hwprofiles.value import Value
from scaling.observations import FailureKind

Clock = Callable[[], float]
TERMINATE_GRACE_SECONDS = 2.0
MAX_LINE_BYTES = 1 << 20
_MEMORY_PHRASES = ("MemoryError", "out of memory", "OutOfMemory", "can't allocate memory", "not enough memory")


class EngineFailure(Value):
    """An engine process that ended without a result."""

    failure_kind: FailureKind
    message: str
    detail: str = ""
    """The last lines of its log."""


class Tick(Value):
    """A sign of life, about once a tick: the process is within its deadline."""

    phase: str
    seconds: float
    """Since the process was started."""


def run_process(
    command: Sequence[str],
    *,
    log_file: Path,
    load_deadline_seconds: float,
    run_deadline_seconds: float,
    environment: Mapping[str, str] | None = None,
    tick_seconds: float = 1.0,
    clock: Clock = time.monotonic,
) -> Generator[EngineMessage | Tick | EngineFailure, None, None]:
    """Run an engine's driver; yield its messages, a `Tick` at least once a tick, and last a result or a failure."""
    kills_before = count_kernel_kills()
    mark = uuid.uuid4().hex
    try:
        process = start(command, log_file, {**(environment or {}), MARK_VARIABLE: mark})
    except OSError as error:
        yield EngineFailure(failure_kind="engine-start", message=f"cannot start {command[0]}: {error.strerror}")
        return
    lines = Lines(process, log_file)
    started = phase_started = last_tick = clock()
    phase, deadline_seconds, has_exited = "load", load_deadline_seconds, False
    try:
        while True:
            if clock() - last_tick >= tick_seconds:  # also between lines of noise: a tick is the agent's heartbeat
                last_tick = clock()
                yield Tick(phase=phase, seconds=last_tick - started)
            left_seconds = phase_started + deadline_seconds - clock()
            if left_seconds <= 0:
                message = f"no end of {phase} within {deadline_seconds:g} s; the engine was killed"
                yield EngineFailure(failure_kind="timeout", message=message, detail=last_lines(log_file))
                return
            line = lines.read(0 if has_exited else min(tick_seconds, left_seconds))
            if line is None and not has_exited:
                has_exited = exit_status(process) is not None  # a child that it left may hold its output open
                continue
            if not line:
                kernel_killed = count_kernel_kills() > kills_before
                yield _classify_exit(wait_exit(process), phase, log_file, kernel_killed=kernel_killed)
                return
            message_or_failure = _parse(line, log_file)
            if message_or_failure is None:
                continue
            yield message_or_failure
            if isinstance(message_or_failure, EngineReady):
                phase, phase_started, deadline_seconds = "run", clock(), run_deadline_seconds
            elif isinstance(message_or_failure, EngineResult | EngineFailure):
                return
    finally:
        stop_group(process, mark=mark)
        lines.close()


def start(command: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its log in a file, its input and output held by pipes."""
    log_file.write_bytes(b"")
    with log_file.open("ab") as log:  # appending: what its output adds to the log is not to be overwritten
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # held open: its end tells the driver that the agent is gone
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **environment},
        )


class Lines:
    """Lines of a process's standard output, with a timeout; what is no message goes to the log."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path) -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        self._pipes: tuple[IO[bytes], IO[bytes]] = (process.stdout, process.stdin)
        self._descriptor = process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._descriptor, selectors.EVENT_READ)
        self._buffer = b""
        self._log_file = log_file

    def read(self, timeout_seconds: float) -> bytes | None:
        """One line; b"" at the end of the stream; None when the time is over."""
        if b"\n" not in self._buffer:
            if not self._selector.select(timeout_seconds):
                return None
            chunk = os.read(self._descriptor, 1 << 16)
            if not chunk:
                self._keep_last_words()
                return b""
            self._buffer = (self._buffer + chunk)[-MAX_LINE_BYTES:]
            if b"\n" not in self._buffer:
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def _keep_last_words(self) -> None:
        with self._log_file.open("ab") as log:
            log.write(self._buffer)
        self._buffer = b""

    def close(self) -> None:
        self._selector.close()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()


def _parse(line: bytes, log_file: Path) -> EngineMessage | EngineFailure | None:
    """A message; its failure, if it is an error or breaks the protocol; None for noise, which joins the log."""
    if not line.startswith(b'{"event"'):
        with log_file.open("ab") as log:
            log.write(line)
        return None
    try:
        message = MessageAdapter.validate_json(line)
    except ValidationError as error:
        text = f"the driver broke the protocol: {error.errors()[0]['msg']} in {line[:200]!r}"
        return EngineFailure(failure_kind="validation", message=text, detail=last_lines(log_file))
    if isinstance(message, EngineError):
        return EngineFailure(failure_kind=message.failure_kind, message=message.message, detail=last_lines(log_file))
    return message


def _classify_exit(exit_code: int | None, phase: str, log_file: Path, *, kernel_killed: bool) -> EngineFailure:
    detail = last_lines(log_file)
    kind: FailureKind = "engine-start" if phase == "load" else "unknown"
    if exit_code is None:
        ending = "closed its output and went on"
    elif exit_code < 0:
        ending = f"was killed by signal {-exit_code}"
    else:
        ending = f"exited with status {exit_code}"
    if (exit_code == -signal.SIGKILL and kernel_killed) or any(phrase in detail for phrase in _MEMORY_PHRASES):
        kind = "out-of-memory"
    last_line = detail.rsplit("\n", 1)[-1]
    message = f"the engine {ending} in its {phase} phase without a result" + (f": {last_line}" if last_line else "")
    return EngineFailure(failure_kind=kind, message=message, detail=detail)


def count_kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory, since boot (Linux; 0 elsewhere)."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def wait_exit(process: subprocess.Popen[bytes], timeout_seconds: float = 1.0) -> int | None:
    """The exit status, left unreaped, once it has ended; None if it goes on when the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while (status := exit_status(process)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return status


def exit_status(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status, left unreaped so that the group's number cannot be given to others; None if it goes on."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def stop_group(process: subprocess.Popen[bytes], *, mark: str, grace_seconds: float = TERMINATE_GRACE_SECONDS) -> None:
    """TERM the process's group, after a grace KILL it and all who left it, reap the process, wait until none runs."""
    if process.returncode is None:
        family = family_of(process.pid, mark)  # before parents end, and with them what leads to their children
        _signal_group(process.pid, signal.SIGTERM)
        _wait_until_empty(process.pid, grace_seconds)
        _signal_group(process.pid, signal.SIGKILL)
        _wait_until_empty(process.pid, grace_seconds)
        _kill_family(family, process.pid, mark, grace_seconds)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in its driver: nothing more can be done
            process.wait(grace_seconds)


def _kill_family(family: set[Process], pid: int, mark: str, timeout_seconds: float) -> None:
    """Until a look finds no more of them: who is killed may have been starting another."""
    deadline = time.monotonic() + timeout_seconds
    while (family := family | family_of(pid, mark)) and time.monotonic() < deadline:
        kill_all(family)
        if not wait_until_gone(family, timeout_seconds):
            family = set()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _wait_until_empty(group: int, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while running_members(group) and time.monotonic() < deadline:
        time.sleep(0.02)
