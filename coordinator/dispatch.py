"""Dispatch: events in, instructions out. Leases, epochs, retries. No input or output, no clock of its own.

The coordinator's loop tells it what happened and when (`now`, monotonic seconds) and carries out what it answers.

    queued --Start--> running --result--> succeeded
      ^                  |
      +----failure, lost agent, expired lease (attempts left) ---- else --> failed
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from scaling.observations import Failure, FailureKind, Observation, Progress


@dataclass(frozen=True)
class Start:
    """Give a trial to an agent under a new epoch."""

    agent: str
    trial_id: str
    epoch: int


@dataclass(frozen=True)
class Renew:
    """A sign of life: record progress and renew the lease."""

    trial_id: str
    progress: Progress


@dataclass(frozen=True)
class Accept:
    """A trial's result counts."""

    trial_id: str
    epoch: int
    observation: Observation


@dataclass(frozen=True)
class Fail:
    """An attempt failed; `final` when no attempt is left."""

    trial_id: str
    epoch: int
    kind: FailureKind
    message: str
    final: bool
    failure: Failure | None = None
    """The agent's own report; null where the agent could not give one."""


@dataclass(frozen=True)
class Reject:
    """A report of an old epoch, or of a trial nobody leased: refused and recorded."""

    trial_id: str
    epoch: int
    agent: str
    reason: str


@dataclass(frozen=True)
class Restart:
    """The agent gave no sign of life within its lease: end it and start it anew."""

    agent: str


Instruction = Start | Renew | Accept | Fail | Reject | Restart

# How often each kind of failure may be tried again. A diverged loss or an impossible input fails the same way
# every time; a lost agent says nothing about the trial.
RETRIES: dict[FailureKind, int] = {
    "nan-loss": 0,
    "validation": 0,
    "out-of-memory": 1,
    "engine-start": 1,
    "timeout": 1,
    "unknown": 1,
    "hardware": 2,
    "preempted": 10,
    "agent-lost": 5,
}


@dataclass(frozen=True)
class Lease:
    """Who holds a trial, under which epoch, until when (monotonic seconds)."""

    agent: str
    epoch: int
    expires: float


@dataclass
class Dispatch:
    """The queue and the leases of one run."""

    lease_seconds: float
    queue: deque[str] = field(default_factory=deque)
    leases: dict[str, Lease] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    failures: dict[str, dict[FailureKind, int]] = field(default_factory=dict)
    idle: dict[str, None] = field(default_factory=dict)
    """Idle agents in the order they became idle."""

    def enqueue(self, trial_ids: Iterable[str], *, front: bool = False) -> None:
        """Add trials to the queue, in order; `front` for those that were interrupted."""
        if front:
            self.queue.extendleft(reversed(list(trial_ids)))
        else:
            self.queue.extend(trial_ids)

    def agent_joined(self, agent: str, *, now: float) -> list[Instruction]:
        """An agent is ready for work. One that joins anew has lost whatever it held."""
        failed = self._fail_held(agent, "it was started anew")
        self.idle[agent] = None
        return [*failed, *self.assign(now=now)]

    def agent_lost(self, agent: str, reason: str, *, now: float) -> list[Instruction]:
        """An agent is gone; what it held is tried elsewhere."""
        self.idle.pop(agent, None)
        failed = self._fail_held(agent, reason)
        return [*failed, *self.assign(now=now)]

    def _fail_held(self, agent: str, reason: str) -> list[Instruction]:
        held = [(trial, lease) for trial, lease in self.leases.items() if lease.agent == agent]
        return [
            self._fail(trial, lease.epoch, "agent-lost", f"agent {agent} was lost: {reason}") for trial, lease in held
        ]

    def reported(
        self, agent: str, trial_id: str, epoch: int, item: Progress | Observation, *, now: float
    ) -> list[Instruction]:
        """An agent reports on a trial it was given."""
        lease = self.leases.get(trial_id)
        if lease is None or (lease.agent, lease.epoch) != (agent, epoch):
            return [Reject(trial_id, epoch, agent, "fenced" if trial_id in self.epochs else "unknown_trial")]
        if isinstance(item, Progress):
            self.leases[trial_id] = replace(lease, expires=now + self.lease_seconds)
            return [Renew(trial_id, item)]
        self.idle[agent] = None
        if isinstance(item, Failure):
            ending: Instruction = self._fail(trial_id, epoch, item.failure_kind, item.message, failure=item)
        else:
            del self.leases[trial_id]
            ending = Accept(trial_id, epoch, item)
        return [ending, *self.assign(now=now)]

    def tick(self, *, now: float) -> list[Instruction]:
        """Time has passed: end expired leases."""
        instructions: list[Instruction] = []
        for trial_id, lease in [(trial, lease) for trial, lease in self.leases.items() if lease.expires < now]:
            silence = f"no sign of life from agent {lease.agent} for {self.lease_seconds:.0f} s"
            instructions += [self._fail(trial_id, lease.epoch, "timeout", silence), Restart(lease.agent)]
        return [*instructions, *self.assign(now=now)]

    def assign(self, *, now: float) -> list[Instruction]:
        """Give queued trials to idle agents, first come first served."""
        started: list[Instruction] = []
        while self.queue and self.idle:
            trial_id, agent = self.queue.popleft(), next(iter(self.idle))
            del self.idle[agent]
            epoch = self.epochs.get(trial_id, 0) + 1
            self.epochs[trial_id] = epoch
            self.leases[trial_id] = Lease(agent, epoch, now + self.lease_seconds)
            started.append(Start(agent, trial_id, epoch))
        return started

    def _fail(
        self, trial_id: str, epoch: int, kind: FailureKind, message: str, *, failure: Failure | None = None
    ) -> Fail:
        del self.leases[trial_id]
        counts = self.failures.setdefault(trial_id, {})
        counts[kind] = counts.get(kind, 0) + 1
        final = counts[kind] > RETRIES[kind]
        if not final:
            self.queue.appendleft(trial_id)
        return Fail(trial_id, epoch, kind, message, final, failure)
