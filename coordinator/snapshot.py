"""What a person watching a run sees, and the View protocol that shows it."""

from dataclasses import dataclass
from typing import Protocol

from scaling.observations import Progress


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """One trial in an agent's hands."""

    agent: str
    description: str
    done_fraction: float = 0.0
    message: str = ""

    def at(self, progress: Progress) -> "RunningTrial":
        """The same trial, further on."""
        # Not `dataclasses.replace`, which takes twice as long: this follows every report.
        return RunningTrial(
            agent=self.agent,
            description=self.description,
            done_fraction=progress.done_fraction,
            message=progress.message,
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment. Times in seconds; `seconds_left` is an estimate from measured speed."""

    num_done: int
    num_failed: int
    num_expected: int
    elapsed_seconds: float
    budget_seconds: float
    seconds_left: float
    spent_agent_seconds: float
    law: str
    running: tuple[RunningTrial, ...]


class View(Protocol):
    """Shows a run while it runs."""

    def note(self, sentence: str) -> None:
        """Something worth a line happened."""

    def update(self, snapshot: Snapshot) -> None:
        """The run moved on."""
