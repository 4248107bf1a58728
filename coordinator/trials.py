"""Trials: what the coordinator remembers of its trials, so that it need not read back what it wrote.

The rows are the store's own, moved on by the same rules (wall times included), so that a plan made of them is the plan
that the store's rows would give.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from coordinator.store import AttemptRow, TrialRow
from scaling.observations import FailureKind

UNFINISHED = ("queued", "running")


@dataclass
class Trials:
    """Rows in planned order, with counts that cost nothing to ask for."""

    rows: dict[str, TrialRow] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (phase, state)."""
    spent_seconds: float = 0.0
    last_position: int = 0

    def add(self, rows: Iterable[TrialRow]) -> None:
        """Take up new trials."""
        new = list(rows)
        self.rows.update((row.trial_id, row) for row in new)
        self.counts.update((row.phase, row.state) for row in new)
        self.spent_seconds += sum(row.spent_seconds for row in new)
        self.last_position = max((row.position for row in new), default=self.last_position)

    def unfinished(self, phase: str) -> int:
        """How many trials of a phase are queued or running."""
        return sum(self.counts[phase, state] for state in UNFINISHED)

    def num(self, *states: str) -> int:
        """How many trials are in one of these states."""
        return sum(count for (_, state), count in self.counts.items() if state in states)

    def lease(
        self, trial_id: str, *, agent: str, hardware: str, epoch: int, now_unix: float, ahead: bool = False
    ) -> None:
        """A trial was given to an agent; `ahead` where it waits there for others to end."""
        row = self.rows[trial_id]
        first = now_unix if row.first_leased_unix is None else row.first_leased_unix
        self._move(
            row,
            state="running",
            epoch=epoch,
            attempts=row.attempts + 1,
            agent=agent,
            hardware=hardware,
            first_leased_unix=first,
            leased_unix=None if ahead else now_unix,
        )

    def progress(self, trial_id: str, done_fraction: float) -> None:
        """A trial is this far on."""
        self.rows[trial_id] = self.rows[trial_id]._replace(done_fraction=done_fraction)

    def end(self, trial_id: str, state: str, *, now_unix: float, spent_seconds: float = 0.0) -> None:
        """An attempt ended; the trial's new state is queued, succeeded or failed.

        `spent_seconds` is what it took its agent, where it was handed ahead.
        """
        row = self.rows[trial_id]
        assert row.state == "running", f"{trial_id} ended without a lease"
        began = now_unix - spent_seconds if row.leased_unix is None else row.leased_unix
        spent = max(0.0, now_unix - began)
        self.spent_seconds += spent
        self._move(
            row,
            state=state,
            spent_seconds=row.spent_seconds + spent,
            agent=None if state == "queued" else row.agent,
            done_fraction=1.0 if state == "succeeded" else row.done_fraction,
            leased_unix=began,
            ended_unix=None if state == "queued" else now_unix,
        )

    def _move(self, row: TrialRow, **changes: Any) -> None:
        moved = row._replace(**changes)
        self.counts[row.phase, row.state] -= 1
        self.counts[moved.phase, moved.state] += 1
        self.rows[row.trial_id] = moved


def failure_counts(attempts: Iterable[AttemptRow]) -> dict[str, dict[FailureKind, int]]:
    """How often each trial failed in each way."""
    counts: dict[str, dict[FailureKind, int]] = {}
    for attempt in attempts:
        if attempt.failure_kind is not None:
            kind = cast("FailureKind", attempt.failure_kind)
            by_kind = counts.setdefault(attempt.trial_id, {})
            by_kind[kind] = by_kind.get(kind, 0) + 1
    return counts
