"""The agent's actor: a plain Worker on a thread of its own, spoken to in JSON. Imports no Ray.

    start        give it trials, to be done one after the other; returns at once
    fetch        what it has to tell, waiting a while for something; `start_and_fetch` is both in one call
    preempt      stop what runs; a training saves its checkpoint and sends it along
    clear        remove its files: the study is finished

A machine that is about to be taken away says so by a file: where `ARCHFLEET_DRAIN_FILE` names one and it exists,
every agent of that machine drains. A batch system's signal handler or a cloud's preemption hook has only to touch it.
"""

import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from agent.archive import pack, unpack
from agent.assignment import AssignmentAdapter
from agent.blobs import Fetch
from agent.device import describe_device, make_provenance, pretended_hardware, versions
from agent.engines.canary import measure_canary
from agent.log import AttemptLog
from agent.log_file import follow_own_errors
from agent.worker import Worker
from coordinator.fleet.outbox import Message, Outbox
from coordinator.version import code_digest
from scaling.architecture import Architecture
from scaling.observations import Failure, Observation, Progress

DRAIN_VARIABLE = "ARCHFLEET_DRAIN_FILE"

Work = tuple[str, int, str]
"""A trial's id, its epoch, and its assignment as JSON."""


class AgentActor:
    """One agent. `fetch_blob` gives a blob by its SHA-256; `worker` does the work."""

    def __init__(self, agent: str, work_directory: str, fetch_blob: Fetch, worker: type[Worker] = Worker) -> None:
        self._agent = agent
        self._work_directory = Path(work_directory)
        self._worker = worker(agent, self._work_directory, fetch_blob)
        self._outbox = Outbox()
        self._waiting: SimpleQueue[tuple[Work, bytes | None]] = SimpleQueue()
        self._preempted = threading.Event()
        self._reason = ""
        threading.Thread(target=self._work, name="trials", daemon=True).start()

    def describe(self) -> dict[str, Any]:
        """Which hardware this is, the process that serves it, its code, and the time of its wall clock.

        What its work needs is imported from now on, beside whatever else is asked.
        """
        facts = {
            "hardware": pretended_hardware() or describe_device().hardware,
            "pid": os.getpid(),
            "versions": dict(versions()),
            "code": code_digest(),
            "unix": time.time(),
        }
        threading.Thread(target=self._worker.prepare, name="prepare", daemon=True).start()
        return facts

    def probe(self, architecture: str, seconds: float) -> float:
        """Training tokens/s of a shape on this agent."""
        return float(self._worker.probe(Architecture.model_validate_json(architecture), seconds))

    def canary(self) -> float:
        """The canary's rate on this agent, in FLOP/s."""
        return measure_canary()

    def start(self, work: Sequence[Work], *checkpoints: bytes | None) -> None:
        """Begin trials, one after the other, when those that were given before have ended.

        Args:
            work: the trials.
            checkpoints: of the first of them, packed; null for one that begins afresh. Each is an argument by itself:
                the fleet passes references to them, which only then are resolved.
        """
        for one, checkpoint in zip_longest(work, checkpoints):
            self._waiting.put((one, checkpoint))

    def fetch(self, timeout_seconds: float) -> tuple[list[Message], str]:
        """What there is to tell, and why this agent drains ("" while it does not)."""
        if not self._preempted.is_set() and (reason := drain_reason()):
            self.preempt(reason)
        return self._outbox.take(timeout_seconds), self._reason

    def start_and_fetch(
        self, timeout_seconds: float, work: Sequence[Work], *checkpoints: bytes | None
    ) -> tuple[list[Message], str]:
        """Begin trials, and tell what there is to tell: one call where nobody waits in `fetch`."""
        self.start(work, *checkpoints)
        return self.fetch(timeout_seconds)

    def preempt(self, reason: str) -> None:
        """Ask the running trial to save itself and stop; it, and all that wait, end as `preempted` failures."""
        self._reason = reason
        self._preempted.set()

    def clear(self) -> None:
        """Remove what the agents of this machine have kept for the run: checkpoints, trunks and blobs."""
        shutil.rmtree(self._work_directory, ignore_errors=True)

    def _work(self) -> None:
        while True:
            work, checkpoint = self._waiting.get()
            try:
                self._do(*work, checkpoint)
            except Exception:  # its lease will end; what waits behind it must not wait for ever
                traceback.print_exc()

    def _do(self, trial_id: str, epoch: int, assignment: str, checkpoint: bytes | None) -> None:
        task = AssignmentAdapter.validate_json(assignment)
        directory = self._work_directory / "checkpoints" / task.id
        started_at, started = time.time(), time.monotonic()
        log, errors = AttemptLog(f"{self._agent} on {socket.gethostname()}, epoch {epoch}"), follow_own_errors()

        def tell(item: Progress | Observation, packed: bytes | None = None) -> bool:
            is_final = not isinstance(item, Progress)
            added = log.of(item, errors.new_lines(is_over=is_final) if errors is not None else ())
            text = item.model_dump_json(exclude={"lines"})  # those are in the log
            self._outbox.put(Message(trial_id, epoch, text, is_final, packed, added))
            return is_final

        if checkpoint is not None and not directory.exists():
            tell(Progress(assignment_id=trial_id, done_fraction=0.0, message=take_up(checkpoint, directory)))
        with closing(self._worker.run(task)) as items:
            while not self._preempted.is_set():
                if tell(next(items)):
                    return
        provenance = make_provenance(agent=self._agent, started_at_unix=started_at, seconds=time.monotonic() - started)
        message = f"agent {self._agent} was asked to leave: {self._reason}"
        failure = Failure(assignment_id=trial_id, failure_kind="preempted", message=message, provenance=provenance)
        tell(failure, pack(directory))


def take_up(checkpoint: bytes, directory: Path) -> str:
    """Unpack the checkpoint that an interrupted attempt sent along; returns a sentence on how that went."""
    try:
        unpack(checkpoint, directory)
    except (ValueError, OSError) as error:
        return f"starting afresh: the checkpoint that was sent along is unusable: {error}"
    return "the checkpoint of the interrupted attempt has arrived"


def drain_reason() -> str:
    """Why this machine is about to be taken away; "" while it is not."""
    file = os.environ.get(DRAIN_VARIABLE, "")
    return f"{DRAIN_VARIABLE} {file} exists" if file and Path(file).exists() else ""
