"""Overview: is the run well, how far is it, what has it spent, who works on it, and what happened last."""

from typing import Literal

from coordinator.dashboard.pages.page import Amount, Health, Page
from hwprofiles.value import Value

RunState = Literal["running", "finished", "interrupted", "killed", "unknown"]
"""Killed: the store says that it runs, but no living coordinator holds it."""
AgentState = Literal["idle", "busy", "draining", "quarantined", "canary", "lost", "stopped"]


class HealthLine(Value):
    """One thing that was looked at, how it is, and what to do about it where something is wrong."""

    name: str
    level: Health
    sentence: str
    what_to_do: str
    """Empty where nothing needs to be done."""


class TrialCounts(Value):
    """Trials by state."""

    queued: int
    running: int
    succeeded: int
    failed: int
    """Given up; a failed attempt alone leaves its trial in the queue."""
    total: int


class PhaseCounts(TrialCounts):
    """Trials of one phase by state."""

    phase: Literal["train", "bench"]


class StageProgress(Value):
    """One planned stage, in planned order."""

    stage: str
    num_trials: int
    num_ended: int


class Budget(Value):
    """What the run may use and has used; seconds of accelerators (or CPU slots) under lease, failed attempts too."""

    spent_seconds: float
    """Open leases included."""
    failed_seconds: float
    """Of those, what failed and interrupted attempts took."""
    granted_seconds: float | None
    """Null where only the wall clock limits the study."""
    wall_seconds: float | None
    """Wall time of all starts together, so far."""
    granted_wall_seconds: float
    seconds_left: Amount
    """Wall time to the end, as predicted from the agents' measured speed."""
    token_scale: float | None
    """Share of the wanted tokens that this machine's speed allows within the budget; null before it was measured."""


class HardwareFleet(Value):
    """The agents of one kind of hardware, and what was done on it."""

    hardware: str
    """Profile id."""
    name: str
    num_agents: int
    """All but the lost ones."""
    agents: dict[AgentState, int]
    num_succeeded: int
    """Trials that ended well there."""
    num_failed_attempts: int
    spent_seconds: float


class AgentLine(Value):
    """One agent as last heard of."""

    agent: str
    hardware: str
    node: str
    state: AgentState
    pid: int
    joined_unix: float
    heartbeat_unix: float
    clock_offset_seconds: float | None
    """Its wall clock minus the coordinator's; null where it was not asked."""
    trial_id: str | None
    """What it works on."""
    done_fraction: float | None
    trial: str
    """The same in a few words; empty where it does nothing."""
    canary_deviation: float | None
    """Newest canary over the baseline of its hardware, minus 1; null before there was one."""
    quarantine: str
    """Why it gets no work; empty where it may have some."""
    versions: dict[str, str]


class FailureCount(Value):
    """How many attempts failed in one way on one hardware."""

    kind: str
    phase: str
    hardware: str
    num: int
    spent_seconds: float


class EventLine(Value):
    """Something that happened, newest first."""

    seq: int
    unix: float
    kind: str
    """planned, leased, result, failure, refused, fit, recommendation or canary."""
    subject: str
    """Stage, trial id or agent."""
    trial_id: str | None
    sentence: str


class Overview(Page):
    """The run at a glance."""

    description: str
    engine: str
    state: RunState
    state_sentence: str
    level: Health
    """The worst of `health`."""
    health: tuple[HealthLine, ...]
    created_unix: float
    trials: TrialCounts
    by_phase: tuple[PhaseCounts, ...]
    num_expected: int | None
    """Trials that the study will have had, those not planned yet included; null before anything was planned."""
    stages: tuple[StageProgress, ...]
    budget: Budget
    fleet: tuple[HardwareFleet, ...]
    agents: tuple[AgentLine, ...]
    num_lost_agents: int
    """Lost ones are counted; the newest of them are among `agents`."""
    failures: tuple[FailureCount, ...]
    num_refused_reports: int
    law: str | None
    """The law in one line; null before there is one."""
    recommendation: tuple[str, ...]
    """One line for each hardware; empty before the end."""
    newest: tuple[EventLine, ...]
