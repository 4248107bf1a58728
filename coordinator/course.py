"""Course: who worked on what and when, and what it took, as drawings of time need it: much less than a record holds."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from coordinator.plan import Role
from coordinator.store_rows import AttemptOutcome, AttemptRow, TrialRow, Work


class Stint(NamedTuple):
    """An attempt that was begun."""

    seq: int
    trial_id: str
    agent: str
    start_unix: float
    end_unix: float | None
    """Null while it is held."""
    outcome: AttemptOutcome | None
    failure_kind: str | None
    role: Role
    work: Work


class Spent(NamedTuple):
    """What a trial that has ended took, all its attempts together."""

    ended_unix: float
    phase: str
    seconds: float
    """Accelerator-seconds."""


class Course(NamedTuple):
    """The course of a run so far."""

    stints: Sequence[Stint]
    """In the order of leasing."""
    spent: Sequence[Spent]
    """In the order of ending."""
    latest_unix: float
    """When a trial was begun or ended last; 0 where none was."""


def course_of(trials: Iterable[TrialRow], attempts: Iterable[AttemptRow]) -> Course:
    """The course that a run's trials and attempts tell.

    Args:
        trials: in planned order.
        attempts: in the order of leasing.
    """
    by_id = {trial.trial_id: trial for trial in trials}
    spent = [
        Spent(trial.ended_unix, trial.phase, trial.spent_seconds)
        for trial in by_id.values()
        if trial.ended_unix is not None
    ]
    moments = (moment for trial in by_id.values() for moment in (trial.leased_unix, trial.ended_unix) if moment)
    return Course(list(_stints(by_id, attempts)), in_order(spent), max(moments, default=0.0))


def in_order(spent: Sequence[Spent]) -> Sequence[Spent]:
    """The same in the order of ending; of one moment in the order they have."""
    return sorted(spent, key=lambda one: one.ended_unix)


def _stints(trials: dict[str, TrialRow], attempts: Iterable[AttemptRow]) -> Iterator[Stint]:
    for attempt in attempts:
        trial = trials.get(attempt.trial_id)
        if trial is None:
            continue
        start = trial.leased_unix if attempt.ended_unix is None else attempt.leased_unix
        if start is None:
            continue  # handed ahead: its agent has not begun it
        yield Stint(
            attempt.seq,
            attempt.trial_id,
            attempt.agent,
            start,
            attempt.ended_unix,
            attempt.outcome,
            attempt.failure_kind,
            trial.work.role,
            trial.work,
        )
