"""Evidence: what the coordinator keeps in mind of its observations, and the law that follows from their losses.

The store has every observation in full. Kept in mind is what plans and fits are made of: a run's curve, the losses of
its windows where no other run is paired with it, and a failure's log lines stay behind.
"""

from dataclasses import dataclass, field

from coordinator.analysis import Analysis, same_size
from coordinator.planning import Planner
from coordinator.sharing import lean, shared
from coordinator.store import Store
from coordinator.study import StudySpec
from scaling.observations import Failure, Observation, TrainingObservation

NUM_FITTED = "num_losses_fitted"
"""The fact of a run that says how many losses its newest fit is made of."""


@dataclass
class Evidence:
    """Of one run. Observations are read when somebody asks for them first."""

    store: Store
    planner: Planner
    study: StudySpec
    analysis: Analysis | None = None
    num_fitted: int = -1
    """Losses that `analysis` follows from; negative before the first fit."""
    sentence: str = ""
    """The law in one line."""
    _observations: list[Observation] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Take up the newest fit of the store: the same losses would give the same again."""
        if (fit := self.store.last_fit()) is None:
            return
        analysis = Analysis.from_json(fit.record)
        self.sentence = analysis.sentence()
        if (num_fitted := self.store.meta(NUM_FITTED)) is not None:
            self.analysis, self.num_fitted = analysis, int(num_fitted)

    @property
    def observations(self) -> list[Observation]:
        """All so far, in the order of the store; failures of single attempts included."""
        if self._observations is None:
            self._observations = [self._kept(one) for one in self.store.each_observation()]
        return self._observations

    def add(self, observation: Observation) -> None:
        """One more was written down."""
        if self._observations is not None:
            self._observations.append(self._kept(observation))

    def is_stale(self, num_losses: int, *, share: float) -> bool:
        """Whether so many losses are new to the last fit, as a share of those it knew, that it is worth another."""
        return num_losses > 0 and num_losses - max(self.num_fitted, 0) >= max(1, share * self.num_fitted)

    def fit(self, num_losses: int) -> Analysis | None:
        """The law from all so far, of which so many are losses; null before there is anything to fit."""
        self.analysis, self.num_fitted = self.planner.fit(self.study, self.observations), num_losses
        if self.analysis is not None:
            self.sentence = self.analysis.sentence()
        return self.analysis

    def _kept(self, observation: Observation) -> Observation:
        match observation:
            case TrainingObservation(architecture=architecture, recipe=recipe):
                lean(observation.provenance)
                kept = {"architecture": shared(architecture), "recipe": shared(recipe), "curve": ()}
                if not same_size(architecture.num_parameters, self.study.target.num_parameters):
                    kept["window_losses"] = ()
                return lean(observation.model_copy(update=kept))
            case Failure():
                return lean(observation.model_copy(update={"detail": ""}))
            case _:
                return observation
