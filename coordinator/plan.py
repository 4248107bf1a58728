"""Plan: an ordered list of assignments, each with its role in the study and its reason in a sentence."""

from typing import Literal

from agent.assignment import Assignment
from hwprofiles.value import Value

Role = Literal["space", "replicate", "reference", "proposed", "validation", "serving"]
"""Why a trial exists: spread over the space, noise, reference law, proposed by the fit, held-out check, serving."""


class PlannedTrial(Value):
    """One assignment with its role and reason. Its id is its assignment's: work done twice is recognised."""

    role: Role
    reason: str
    assignment: Assignment

    @property
    def trial_id(self) -> str:
        """The content address of the assignment."""
        return self.assignment.id


class Plan(Value):
    """What one stage of a study adds to the queue."""

    stage: str
    trials: tuple[PlannedTrial, ...]
    notes: tuple[str, ...] = ()
    """Sentences a reader of the report should know about this stage."""
