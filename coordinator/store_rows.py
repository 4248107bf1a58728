"""Rows of the store as values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, cast

from pydantic_core import from_json

from coordinator.database import Row
from coordinator.plan import PlannedTrial, Role
from coordinator.sharing import NUM_SHARED, with_shared_parts
from scaling.architecture import Architecture

AttemptOutcome = Literal["succeeded", "failed", "retried", "interrupted"]
"""Its result counts; it was the last of its trial; the trial is queued again; the coordinator went away."""


class WorkTexts(Protocol):
    """Where the text of a trial's work is looked at, and found if need be."""

    def work_text(self, position: int, trial_id: str, row: Row | None) -> str:
        """The planned trial as JSON."""


class Brief(NamedTuple):
    """What lists and drawings of many trials tell of each: a fifth of the time of reading the whole of it."""

    role: Role
    reason: str
    architecture: Architecture
    num_tokens: int | None
    """Training tokens, D; null for benchmarks, as `seed`."""
    seed: int | None
    engine: str | None
    """Null for training."""
    hardware: str | None
    """What it asks for; null where any will do."""


_ROLE = re.compile(r'\{"role":"([a-z]+)"')


class Work:
    """A planned trial as it is stored; looked at and read only when somebody asks: a store may hold 100,000."""

    __slots__ = ("_brief", "_planned", "_position", "_role", "_row", "_texts", "_trial_id")

    def __init__(self, position: int, trial_id: str, row: Row | None, texts: WorkTexts) -> None:
        self._position, self._trial_id, self._row, self._texts = position, trial_id, row, texts
        self._planned: PlannedTrial | None = None
        self._brief: Brief | None = None
        self._role: Role | None = None

    @property
    def role(self) -> Role:
        """Its role alone, at once where the text begins with it, as it is written. Raises as `planned`."""
        if self._role is None:
            found = _ROLE.match(self._text()) if self._brief is None and self._planned is None else None
            self._role = cast("Role", found[1]) if found else self.brief.role
        return self._role

    @property
    def brief(self) -> Brief:
        """The assignment in short. Raises as `planned`."""
        if self._brief is None:
            self._brief = _brief_of(from_json(self._text()) if self._planned is None else self._planned.model_dump())
        return self._brief

    @property
    def planned(self) -> PlannedTrial:
        """The assignment with its role and reason.

        Raises:
            StoreError: it does not match its checksum, or is missing.
        """
        if self._planned is None:
            planned = PlannedTrial.model_validate_json(self._text())
            self._planned, self._row = with_shared_parts(planned), None
        return self._planned

    def _text(self) -> str:
        return self._texts.work_text(self._position, self._trial_id, self._row)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Work) and self.planned == other.planned

    def __hash__(self) -> int:
        return hash(self.planned)


def _brief_of(planned: Mapping[str, Any]) -> Brief:
    assignment = planned["assignment"]
    recipe = assignment["recipe"]
    return Brief(
        role=planned["role"],
        reason=planned["reason"],
        architecture=_architecture(tuple(assignment["architecture"].items())),
        num_tokens=recipe.get("num_tokens"),
        seed=recipe.get("seed"),
        engine=recipe.get("engine"),
        hardware=assignment.get("hardware"),
    )


@lru_cache(maxsize=NUM_SHARED)
def _architecture(fields: tuple[tuple[str, Any], ...]) -> Architecture:
    return Architecture(**dict(fields))


class TrialFields(NamedTuple):
    """The columns of `trials`, in their order."""

    position: int
    trial_id: str
    stage: str
    phase: str
    state: str
    epoch: int
    attempts: int
    agent: str | None
    hardware: str | None
    queued_unix: float
    first_leased_unix: float | None
    leased_unix: float | None
    lease_expires_unix: float | None
    ended_unix: float | None
    spent_seconds: float


class TrialRow(NamedTuple):
    """One trial as the store knows it: `TrialFields` without the lease's end, with its work and how far it is."""

    position: int
    trial_id: str
    stage: str
    phase: str
    state: str
    epoch: int
    attempts: int
    agent: str | None
    hardware: str | None
    """Profile id of where it was leased last; null before its first lease."""
    queued_unix: float
    first_leased_unix: float | None
    leased_unix: float | None
    ended_unix: float | None
    spent_seconds: float
    work: Work
    done_fraction: float

    @property
    def planned(self) -> PlannedTrial:
        """The assignment with its role and reason."""
        return self.work.planned

    @property
    def brief(self) -> Brief:
        """The same in short."""
        return self.work.brief


class AttemptRow(NamedTuple):
    """One lease and how it ended; `outcome` is null while it is held.

    `leased_unix` of one that was handed ahead is, once it has ended, when it was begun.
    """

    seq: int
    trial_id: str
    epoch: int
    agent: str
    hardware: str
    leased_unix: float
    ended_unix: float | None
    outcome: AttemptOutcome | None
    failure_kind: str | None
    spent_seconds: float


@dataclass(frozen=True, kw_only=True)
class AgentRow:
    """One agent as last heard of."""

    agent: str
    hardware: str
    state: str
    pid: int
    heartbeat_unix: float
    joined_unix: float
    node: str = ""
    clock_offset_seconds: float | None = None
    """Its wall clock minus the coordinator's; null where it was not asked."""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FitRow:
    """One fit: its record is LawFit's JSON with what else the coordinator derived from it."""

    num_points: int
    outcome: str
    seconds: float
    record: dict[str, Any]
    unix: float


@dataclass(frozen=True, kw_only=True)
class DecisionRow:
    """Something that was decided, with what it followed from. After a restart it is read, never decided again."""

    seq: int
    kind: str
    """"plan", or another name that the deciding module gives."""
    stage: str
    record: dict[str, Any]
    inputs: dict[str, Any]
    random_state: str | None
    unix: float


class CanaryRow(NamedTuple):
    """One canary: how fast an agent's machine was at a fixed task, in its own unit per second."""

    seq: int
    agent: str
    hardware: str
    kind: str
    rate: float
    deviation: float | None
    """Rate over the baseline of its hardware, minus 1; null where there was no baseline yet."""
    unix: float


class Count(NamedTuple):
    """How many trials of one stage, phase and hardware are in a state, and what they have spent."""

    stage: str
    phase: str
    hardware: str
    """Where they were leased last; empty before the first lease."""
    state: str
    num: int
    spent_seconds: float


class AttemptCount(NamedTuple):
    """How many attempts ended in one way on one kind of hardware, and what they spent. Never falls."""

    phase: str
    hardware: str
    outcome: str
    """succeeded, interrupted, or the kind of failure."""
    num: int
    spent_seconds: float


class Tallied(NamedTuple):
    """How often something was tallied, and the sum of what it took. Never falls."""

    phase: str
    hardware: str
    name: str
    num: int
    seconds: float
    """The sum; in another unit where the kind of the tally says so."""


class Histogram(NamedTuple):
    """Durations in buckets. `buckets` holds (upper bound in seconds, how many up to it and above the one before)."""

    phase: str
    hardware: str
    buckets: tuple[tuple[float, int], ...]
    sum_seconds: float
