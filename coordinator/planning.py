"""Planning: what the coordinator asks of the planner, what a trial needs of the fleet, and what a plan followed from.

A plan follows from the measurements so far and from how far the study is on its wall clock. The latter cannot be read
from the log of results, so it is written down with the plan: `coordinator/replay.py` makes the same plan of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.assignment import TrainAssignment
from coordinator import planner
from coordinator.analysis import Analysis, analyse
from coordinator.budget import Speed
from coordinator.dispatch import Needs
from coordinator.plan import Plan, PlannedTrial
from coordinator.planner import StudyState
from coordinator.recommendation import make_recommendation
from coordinator.study import StudySpec
from hwprofiles.value import Value
from scaling.observations import Observation


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many trials are unfinished, by phase; and the phases in which one ended since the planner was last asked."""

    ended: frozenset[str]
    """Empty only before the planner was asked for the first time."""
    unfinished: Mapping[str, int]
    num_agents: int


class Planner(Protocol):
    """Decides what is worth running. Everything that it goes by comes in as an argument."""

    def due(self, tally: Tally) -> bool:
        """Whether a plan, or the end, could follow. Asked after every end: cheap, and wrong only in saying yes."""

    def next_plan(self, state: StudyState) -> Plan | None:
        """The next plan, if its time has come."""

    def is_finished(self, state: StudyState) -> bool:
        """Whether nothing is left to plan or to run."""

    def fit(self, study: StudySpec, observations: Sequence[Observation]) -> Analysis | None:
        """What the losses say so far; null before there is anything to fit."""

    def conclude(self, state: StudyState, *, now_unix: float) -> dict[str, Any] | None:
        """The recommendation of a finished study, as JSON; null where none can be made."""


class StudyPlanner:
    """The planner of a study: the stages of `coordinator/planner.py`."""

    def due(self, tally: Tally) -> bool:
        """Every stage waits for its agents to run dry in the phase in which something ended, or for nothing."""
        return not tally.ended or any(tally.unfinished.get(phase, 0) < tally.num_agents for phase in tally.ended)

    def next_plan(self, state: StudyState) -> Plan | None:
        """The next stage, if its time has come."""
        return planner.next_plan(state)

    def is_finished(self, state: StudyState) -> bool:
        """Whether every stage was planned and every trial has ended."""
        return planner.is_finished(state)

    def fit(self, study: StudySpec, observations: Sequence[Observation]) -> Analysis | None:
        """The conditional law, at the fit's size and over all."""
        return analyse(study, observations)

    def conclude(self, state: StudyState, *, now_unix: float) -> dict[str, Any] | None:
        """Panda, Surefire and what was measured of them, for each hardware."""
        choices = planner.choices_of(state)
        if not choices or state.analysis is None:
            return None
        recommendation = make_recommendation(
            state.study, state.analysis, choices, state.observations, token_scale=state.token_scale, made_unix=now_unix
        )
        return recommendation.model_dump(mode="json")


class UnfinishedTrial(Value):
    """A queued or running trial at the moment of a decision. What ended trials took is in the store for good."""

    trial_id: str
    state: str
    done_fraction: float
    spent_seconds: float


class DecisionInputs(Value):
    """What a plan followed from beside the study, its speed and its earlier plans: see `coordinator/replay.py`."""

    corpus_id: str
    elapsed_seconds: float
    """Wall seconds that the study had run."""
    num_observations: int
    """How many observations, failures included, had been recorded."""
    bench_hardware: str | None = None
    """Profile id on which serving is measured where the study names none; null where that was not decided."""
    unfinished: tuple[UnfinishedTrial, ...]

    @classmethod
    def of(cls, state: StudyState) -> "DecisionInputs":
        """The inputs of a decision that is made of this state."""
        return cls(
            corpus_id=state.corpus_id,
            elapsed_seconds=state.elapsed_seconds,
            num_observations=len(state.observations),
            bench_hardware=state.bench_hardware,
            unfinished=tuple(
                UnfinishedTrial(
                    trial_id=row.trial_id,
                    state=row.state,
                    done_fraction=row.done_fraction,
                    spent_seconds=row.spent_seconds,
                )
                for row in state.unfinished("train", "bench")
            ),
        )


def needs_of(planned: PlannedTrial, study: StudySpec, speed: Speed, *, bench_hardware: str | None) -> Needs:
    """What a trial needs of the fleet, and its cost as probed (agent-seconds)."""
    seconds = speed.assignment_seconds(planned.assignment)
    if isinstance(planned.assignment, TrainAssignment):
        return Needs("train", study.budget.training_hardware or None, seconds)
    hardware = planned.assignment.hardware or bench_hardware
    return Needs("bench", None if hardware is None else (hardware,), seconds)
