"""RunRecord: all that a store knows about one run, as values. Status, report, figures and outputs are made from it."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from coordinator.analysis import Analysis
from coordinator.budget import Speed
from coordinator.course import Course, course_of
from coordinator.events import Fitted
from coordinator.plan import Plan
from coordinator.recommendation import Recommendation
from coordinator.store import AgentRow, AttemptRow, StoreReader, TrialRow
from coordinator.store_rows import CanaryRow, DecisionRow
from coordinator.study import StudySpec
from scaling.observations import Failure, Observation, ServingObservation, TrainingObservation


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as its store tells it."""

    run_directory: Path
    study: StudySpec
    state: str
    created_unix: float
    wall_seconds: float | None
    """Of all its starts together; null while the first is running."""
    token_scale: float | None
    speed: Speed | None
    """As probed on the agents at the start."""
    corpus_id: str | None
    corpus: dict[str, Any] | None
    trials: tuple[TrialRow, ...]
    observations: tuple[Observation, ...]
    planned: tuple[DecisionRow, ...]
    """The decisions that queued the trials, in order."""
    agents: tuple[AgentRow, ...]
    attempts: tuple[AttemptRow, ...]
    canaries: tuple[CanaryRow, ...]
    fits: tuple[Fitted, ...]
    """All fits in short, in order."""
    num_rejections: int
    analysis: Analysis | None
    """The newest stored fit."""
    recommendation: Recommendation | None
    is_simulated: bool
    """Whether the fleet was simulated: then nothing here was measured. The engine `fake` simulates rates alone."""
    read_course: Course | None = None
    """The run's course where it was read without trials and attempts."""

    @cached_property
    def course(self) -> Course:
        """Who worked on what and when."""
        return course_of(self.trials, self.attempts) if self.read_course is None else self.read_course

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """What was planned, in order; every trial's work is read for it."""
        by_id = {trial.trial_id: trial for trial in self.trials}
        return tuple(
            Plan(
                stage=decision.stage,
                trials=tuple(by_id[trial_id].planned for trial_id in decision.record["trial_ids"] if trial_id in by_id),
                notes=tuple(decision.record["notes"]),
            )
            for decision in self.planned
        )

    @cached_property
    def training(self) -> dict[str, TrainingObservation]:
        """Finished training runs by trial id."""
        return {o.assignment_id: o for o in self.observations if isinstance(o, TrainingObservation)}

    @cached_property
    def serving(self) -> dict[str, ServingObservation]:
        """Finished serving benchmarks by trial id."""
        return {o.assignment_id: o for o in self.observations if isinstance(o, ServingObservation)}

    @cached_property
    def failures(self) -> list[Failure]:
        """Every failed attempt."""
        return [o for o in self.observations if isinstance(o, Failure)]


def read_record(run_directory: Path) -> RunRecord:
    """Read a run from its store.

    Raises:
        StoreError: there is none, or a newer archfleet made it.
    """
    with StoreReader.open(run_directory) as store:
        store.check()
        return whole_of(store, trials=tuple(store.trials()), observations=tuple(store.observations()))


def whole_of(store: StoreReader, *, trials: tuple[TrialRow, ...], observations: tuple[Observation, ...]) -> RunRecord:
    """The whole record.

    Args:
        store: whose run it is.
        trials: all of them as they are now.
        observations: as somebody has read them already.
    """
    fit = store.last_fit()
    return replace(
        outline_of(store, observations=observations),
        trials=trials,
        attempts=tuple(store.attempts()),
        planned=tuple(store.decisions("plan")),
        fits=tuple(store.fits()),
        analysis=None if fit is None else Analysis.from_json(fit.record),
    )


def outline_of(store: StoreReader, *, observations: tuple[Observation, ...]) -> RunRecord:
    """The run without its trials, leases and fits: read at once, however many there are."""
    recommendation = store.recommendation()
    return RunRecord(
        run_directory=store.run_directory,
        study=store.study(),
        state=store.meta("state") or "unknown",
        created_unix=float(store.meta("created_unix") or 0),
        wall_seconds=_number(store.meta("wall_seconds")),
        token_scale=_number(store.meta("token_scale")),
        speed=None if (speed := store.meta("speed")) is None else Speed.model_validate_json(speed),
        corpus_id=store.meta("corpus_id"),
        corpus=store.corpus(),
        trials=(),
        observations=observations,
        planned=(),
        agents=tuple(store.agents()),
        attempts=(),
        canaries=tuple(store.canaries()),
        fits=(),
        num_rejections=sum(store.rejection_counts().values()),
        analysis=None,
        recommendation=None if recommendation is None else Recommendation.model_validate(recommendation),
        is_simulated=is_simulated(store),
    )


def is_simulated(store: StoreReader) -> bool:
    """Whether the run's fleet is a simulation, so that its losses are too. The engine `fake` simulates rates alone."""
    return store.meta("simulated") == "1"


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
