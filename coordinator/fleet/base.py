"""The Fleet protocol and the events a fleet tells the coordinator.

Agents have names that the fleet gives. Times in events are none: the coordinator's own monotonic clock decides.
"""

from dataclasses import dataclass, field
from typing import Protocol

from agent.assignment import BenchAssignment, TrainAssignment
from scaling.architecture import Architecture
from scaling.observations import Observation, Progress


@dataclass(frozen=True)
class AgentJoined:
    """An agent is up and idle."""

    agent: str
    hardware: str
    """Profile id of its accelerator, or of its CPU."""
    pid: int
    node: str = ""
    """Name of the machine it runs on, as the fleet knows it."""
    versions: dict[str, str] = field(default_factory=dict)
    """archfleet, python, torch, driver, cuda and engines, as the agent found them."""
    clock_offset_seconds: float | None = None
    """Its wall clock minus the coordinator's, half the round trip removed; null where it was not asked."""


@dataclass(frozen=True)
class AgentLost:
    """An agent died; the fleet is starting another in its place."""

    agent: str
    reason: str


@dataclass(frozen=True)
class AgentAlive:
    """An agent with nothing to tell has answered."""

    agent: str


@dataclass(frozen=True)
class AgentDraining:
    """The machine of an agent is about to be taken away: no new work; what runs is to save itself and go on elsewhere.

    The agent's trial ends as a `preempted` failure whose checkpoint is kept; `AgentLost` follows.
    """

    agent: str
    reason: str


@dataclass(frozen=True)
class CanaryMeasured:
    """The fixed canary benchmark on an agent, in its own unit per second; higher is faster."""

    agent: str
    kind: str
    """What was measured, e.g. "gemm"."""
    rate: float


@dataclass(frozen=True)
class Reported:
    """Progress or the end of a trial, under the epoch it was started with."""

    agent: str
    trial_id: str
    epoch: int
    item: Progress | Observation
    log: str = ""
    """What the attempt has said since the last report: whole lines, for people. No fact: it may be lost."""


FleetEvent = AgentJoined | AgentAlive | AgentLost | AgentDraining | CanaryMeasured | Reported


class Fleet(Protocol):
    """Agents that can be given assignments."""

    def start(self) -> None:
        """Bring the agents up; each announces itself as `AgentJoined` through `poll`."""

    def num_slots(self) -> int:
        """How many agents there is room for now, those that are not up yet included."""

    def probe(self, architecture: Architecture, *, seconds: float) -> list[float]:
        """Training tokens/s of this shape on every agent, all probed at the same time."""

    def canary(self, agent: str) -> None:
        """Run the canary on an idle agent; `CanaryMeasured` follows."""

    def assign(self, agent: str, trial_id: str, epoch: int, assignment: TrainAssignment | BenchAssignment) -> None:
        """Start an assignment on an agent, when those that it was given before have ended; `send` sends it there."""

    def send(self) -> None:
        """Send what was assigned since the last time, to each agent all at once."""

    def restart(self, agent: str) -> None:
        """End an agent that gives no sign of life; `AgentLost`, then `AgentJoined`, follow."""

    def poll(self, *, timeout_seconds: float) -> list[FleetEvent]:
        """What happened, waiting up to the time-out for something."""

    def clear(self) -> None:
        """The study is finished: have the machines remove what agents kept there to go on with."""

    def stop(self) -> None:
        """End all agents and whatever the fleet started."""
