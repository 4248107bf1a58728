"""The Fleet protocol and the events a fleet tells the coordinator."""

from dataclasses import dataclass
from typing import Protocol

from agent.assignment import BenchAssignment, TrainAssignment
from scaling.architecture import Architecture
from scaling.observations import Observation, Progress


@dataclass(frozen=True)
class AgentJoined:
    """An agent is up and idle."""

    agent: str
    hardware: str
    pid: int


@dataclass(frozen=True)
class AgentLost:
    """An agent died; the fleet is starting another in its place."""

    agent: str
    reason: str


@dataclass(frozen=True)
class Reported:
    """Progress or the end of a trial, under the epoch it was started with."""

    agent: str
    trial_id: str
    epoch: int
    item: Progress | Observation


FleetEvent = AgentJoined | AgentLost | Reported


class Fleet(Protocol):
    """Agents that can be given assignments."""

    def start(self) -> None:
        """Bring the agents up; each announces itself as `AgentJoined` through `poll`."""

    def probe(self, architecture: Architecture, *, seconds: float) -> list[float]:
        """Training tokens/s of this shape on every agent, all probed at the same time."""

    def assign(self, agent: str, trial_id: str, epoch: int, assignment: TrainAssignment | BenchAssignment) -> None:
        """Start an assignment on an idle agent."""

    def restart(self, agent: str) -> None:
        """End an agent that gives no sign of life; `AgentLost`, then `AgentJoined`, follow."""

    def poll(self, *, timeout_seconds: float) -> list[FleetEvent]:
        """What happened, waiting up to the time-out for something."""

    def stop(self) -> None:
        """End all agents and whatever the fleet started."""
