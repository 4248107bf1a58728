"""Extra run: the one training run beyond a study that would most likely change its answer for a hardware.

`scaling/decisive_run.py` tells which of many; here they are the legal shapes at the fit's own cell, which the study
could run as they are, priced by the speed that was probed on its agents. All of it is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from coordinator.analysis import Analysis
from coordinator.budget import Speed
from coordinator.choice import choose
from coordinator.forecast import slowdown
from coordinator.recommendation import HardwareAnswer
from coordinator.record import RunRecord
from coordinator.shapes import baseline_at, candidates_at
from coordinator.study import StudySpec
from coordinator.target_runs import target_runs, verdicts
from scaling.architecture import Architecture
from scaling.decisive_run import UNLIKELY, DecisiveRun, PossibleRuns, decisive_run
from scaling.observations import Observation
from scaling.quantity import NotMeasured, Predicted

MAX_SHAPES = 300
"""Spread evenly over those that are legal."""
NUM_TIMED = 100
"""Of the finished trainings the last planned so many tell how slow the agents are."""


@dataclass(frozen=True, kw_only=True)
class ExtraRun:
    """What to train, what it may do, and what it costs in accelerator-seconds."""

    architecture: Architecture
    run: DecisiveRun
    seconds: Predicted

    def sentence(self) -> str:
        """The same in words."""
        return (
            f"Train {self.architecture.label} (x {self.run.x:.3g}, r {self.run.r:.3g}) once on "
            f"{self.run.num_tokens:,.0f} tokens: with probability {self.run.probability_of_change:.0%} the answer is "
            f"another one afterwards. It takes about {self.seconds.value:,.0f} accelerator-seconds (both predicted)."
        )


def extra_run_of(record: RunRecord, answer: HardwareAnswer) -> ExtraRun | NotMeasured:
    """The decisive run for one answer of a run, or why none can be told."""
    if record.analysis is None:
        return NotMeasured(reason="nothing was fitted")
    trained = [trial for trial in record.trials if trial.state == "succeeded" and trial.phase == "train"]
    return extra_run(
        record.study,
        record.analysis,
        answer,
        record.observations,
        speed=record.speed,
        token_scale=record.token_scale or 1.0,
        slowdown=1.0 if record.speed is None else slowdown(trained[-NUM_TIMED:], record.speed),
    )


def extra_run(
    study: StudySpec,
    analysis: Analysis,
    answer: HardwareAnswer,
    observations: Sequence[Observation],
    *,
    speed: Speed | None,
    token_scale: float,
    slowdown: float,
) -> ExtraRun | NotMeasured:
    """The decisive run for one answer, or why none can be told.

    Args:
        study: whose answer it is.
        analysis: the fit that the answer followed from.
        answer: for one hardware.
        observations: the benchmarks and the runs at the target at least.
        speed: as probed on the agents.
        token_scale: by which D was scaled.
        slowdown: what finished trials took over what the speed said.
    """
    fit = analysis.law_fit
    if not answer.stands:
        return NotMeasured(
            reason="the law's own proposal failed its check at the target: what it says of one more run cannot be "
            "trusted. Add sizes to the fit, or data, before another run of this kind."
        )
    if fit.law is None:
        return NotMeasured(reason="no law was fitted")
    if speed is None:
        return NotMeasured(reason="the agents' speed was not probed, so that no run has a price")
    candidates, baseline = candidates_at(study, study.target.num_parameters), baseline_at(study)
    chosen = choose(
        study,
        analysis,
        candidates,
        baseline,
        observations,
        hardware=answer.hardware,
        token_scale=token_scale,
        checked=verdicts(analysis, baseline, target_runs(study, observations, token_scale=token_scale)),
    )
    if chosen.recommended != answer.recommended:
        return NotMeasured(
            reason=f"the law by itself would choose {chosen.recommended.label}, which is not the answer: a check at "
            "the target or later runs came between, and what the law says of one more run cannot be trusted."
        )
    shapes, runs = _possible(study, analysis, speed, slowdown)
    # Where Panda is proposed, for its loss and not for its throughput, another Panda is another answer.
    shortlist = chosen.shortlist if chosen.role == "surefire" else replace(chosen.shortlist, throughput=None)
    found = decisive_run(fit, shortlist, runs, reference=analysis.reference)
    if found is None:
        return NotMeasured(reason="the noise of one run is not known: the fit has no residual degrees of freedom")
    if found.probability_of_change < UNLIKELY:
        return NotMeasured(reason=found.sentence())
    seconds = Predicted(
        value=found.seconds,
        unit="accelerator-seconds",
        no_interval_because="one speed was probed, at the start",
        basis=f"speed probed on the agents, and trials that took {slowdown:.2f} times as long",
    )
    return ExtraRun(architecture=shapes[found.index], run=found, seconds=seconds)


def _possible(
    study: StudySpec, analysis: Analysis, speed: Speed, slowdown: float
) -> tuple[list[Architecture], PossibleRuns]:
    """Legal shapes of the fit's size within the law's range of r, each on the D of every fitted cell."""
    fit = analysis.law_fit
    candidates = candidates_at(study, study.fit.num_parameters)
    inside = np.flatnonzero((candidates.r >= study.space.r_min) & (candidates.r <= study.space.r_max))
    spread = inside[np.linspace(0, len(inside) - 1, min(MAX_SHAPES, len(inside))).astype(int)]
    cells = [(cell.num_parameters, cell.num_tokens) for cell in fit.cells]
    places = [(int(index), cell) for cell in cells for index in spread]
    N, D = np.array([cell for _, cell in places], dtype=float).T
    index = [place for place, _ in places]
    runs = PossibleRuns(
        x=candidates.x[index],
        r=candidates.r[index],
        num_parameters=N,
        num_tokens=D,
        seconds=slowdown * D * (speed.seconds_per_token + speed.seconds_per_token_parameter * N),
    )
    return [candidates.architecture(place) for place in index], runs
