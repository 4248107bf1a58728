"""How good the answers of whole studies are: simulated studies in worlds where the law holds, and where it does not.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_choice.py [--studies 40] [--jobs 2] [--worlds cliff ...] [--json]

Every study is decided by the real planner, stage by stage, without a fleet or a store. The worlds are the law that the
study `laptop` fitted on a real machine, times 1 + misfit(x, r):

    separable  0: the law holds
    tilted     c ln(x/x*) ln(r/r*), c = 0.6 of the tilt at which the optimum would be a saddle: wide shapes with little
               attention are worse than any product of two brackets can say
    falling    the same with -c: they are better
    cliff      nothing but in the corner of large x and large r, where no first round has a run: 3.4 % at x 0.41, r 4.6,
               as was measured on that machine

Each is played in three ways: "extended" takes the law at its word everywhere, as earlier versions did; "near runs"
chooses only where runs support the law; "checked" is the planner as it is: it also looks for an answer where no run is,
by a run in the loop, or by one at the target before it is recommended.

Told over studies: how often something else than the baseline was proposed, how often the check refuted it, how often
what is built in the end is truly worse than the baseline and by how much at most; the throughput of what is built (the
baseline, where the check refuted the proposal) over the baseline's, and of the fastest shape that is truly no worse;
how often the interval of the proposal's loss against the baseline's held the truth. All of it is simulated.
"""

import argparse
import functools
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agent.assignment import Assignment, TrainAssignment
from coordinator import choice, planner
from coordinator.analysis import Analysis, analyse
from coordinator.budget import Speed
from coordinator.plan import Plan, PlannedTrial
from coordinator.planner import StudyState
from coordinator.recommendation import make_recommendation
from coordinator.shapes import baseline_at, candidates_at
from coordinator.store import TrialRow
from coordinator.study import StudySpec, read_study
from scaling.architecture import Architecture
from scaling.observations import Observation, Provenance, ServingObservation, ServingRepeat, TrainingObservation
from scaling.quantity import Interval, Measured, NotMeasured
from scaling.recommend import recommend
from scaling.space import Candidates
from scaling.support import MARGIN

Floats = NDArray[np.float64]

X_OPT, R_OPT, X_CURVATURE, R_CURVATURE = 0.294, 1.65, 0.0505, 0.0146
"""Of the law that a real run of the study `laptop` fitted."""
NOISE_SD_NATS = 0.009
"""Over seeds, as that run measured it."""
RATE_NOISE = 0.02
_TILT = 0.6 * math.sqrt(X_CURVATURE * R_CURVATURE)
_SPEED = Speed(seconds_per_token=2e-6, seconds_per_token_parameter=1e-11, num_agents=2)
_PROVENANCE = Provenance(
    agent="simulated",
    hostname="simulated",
    device="simulated",
    hardware="cpu-generic",
    started_at_unix=0,
    seconds=1,
    versions={},
)
_DIFFICULTY = np.random.default_rng(0).normal(0, 0.3, 64)

Misfit = Callable[[Floats, Floats], Floats]
WORLDS: Mapping[str, Misfit] = {
    "separable": lambda x, r: 0.0 * x,
    "tilted": lambda x, r: _TILT * np.log(x / X_OPT) * np.log(r / R_OPT),
    "falling": lambda x, r: -_TILT * np.log(x / X_OPT) * np.log(r / R_OPT),
    "cliff": lambda x, r: 0.17 * np.maximum(0.0, np.log(x / 0.3)) * np.maximum(0.0, np.log(r / 2.5)),
}


@dataclass(frozen=True)
class Way:
    """How a study chooses: how far beyond its runs, and whether it trains where the law would be extended."""

    margin: float
    looks_beyond: bool


WAYS: Mapping[str, Way] = {
    "extended": Way(math.inf, False),
    "near runs": Way(MARGIN, False),
    "checked": Way(MARGIN, True),
}


def true_losses(world: str, shapes: Candidates | Architecture, num_tokens: float) -> Floats:
    """Expected loss in nats per token, of every shape."""
    if isinstance(shapes, Architecture):
        x, r = np.array([shapes.width_ratio]), np.array([shapes.mlp_attention_ratio])
    else:
        x, r = shapes.x, shapes.r
    level = 1.6 + 40 / np.asarray(shapes.num_parameters, dtype=float) ** 0.34 + 180 / num_tokens**0.38
    x_part, r_part = 1 + X_CURVATURE * _excess(x / X_OPT), 1 + R_CURVATURE * _excess(r / R_OPT)
    return np.asarray(level * x_part * r_part * (1 + WORLDS[world](x, r)), dtype=float)


def _excess(ratio: Floats) -> Floats:
    return np.asarray(np.log(ratio) + 1 / ratio - 1, dtype=float)


def true_rates(shapes: Candidates | Architecture) -> Floats:
    """Output tokens/s: mostly bound by the cache of keys and values."""
    return np.asarray(1e9 / (0.2 * shapes.num_parameters + 120 * shapes.key_value_elements_per_token), dtype=float)


def observe(world: str, seed: int, assignment: Assignment) -> Observation:
    """What an assignment would report; its noise follows from the study's seed and what is asked."""
    source = random.Random(f"{seed} {assignment.id}")
    shape = assignment.architecture
    if isinstance(assignment, TrainAssignment):
        tokens = assignment.recipe.num_tokens
        loss = float(true_losses(world, shape, tokens)[0]) + source.gauss(0, NOISE_SD_NATS)
        return TrainingObservation(
            assignment_id=assignment.id,
            architecture=shape,
            recipe=assignment.recipe,
            corpus_id=assignment.corpus_id,
            loss=loss,
            loss_standard_error=0.03,
            window_losses=tuple((loss + _DIFFICULTY - _DIFFICULTY.mean()).tolist()),
            num_tokens=tokens,
            tokens_per_second=1,
            train_seconds=1,
            curve=(),
            provenance=_PROVENANCE,
        )
    rate = float(true_rates(shape)) * (1 + source.gauss(0, RATE_NOISE))
    unknown = NotMeasured(reason="simulated")
    return ServingObservation(
        assignment_id=assignment.id,
        architecture=shape,
        recipe=assignment.recipe,
        workload=assignment.workload,
        engine_version="simulated",
        repeats=tuple(
            ServingRepeat(output_tokens_per_second=share * rate, seconds=1, num_output_tokens=round(share * rate))
            for share in (0.99, 1.0, 1.01)
        ),
        output_tokens_per_second=_rate(rate),
        total_tokens_per_second=_rate(2 * rate),
        coefficient_of_variation=RATE_NOISE,
        mean_running_sequences=unknown,
        joules_per_output_token=unknown,
        provenance=_PROVENANCE,
    )


def _rate(value: float) -> Measured:
    interval = Interval(low=0.95 * value, high=1.05 * value, level=0.95, method="t")
    return Measured(value=value, unit="tokens/s", interval=interval, num_samples=3)


@dataclass
class _Work:
    """What a trial of the store would read from its row."""

    planned: PlannedTrial


class SimulatedStudy:
    """One study in memory: the planner decides, the world answers at once."""

    def __init__(self, study: StudySpec, world: str, seed: int) -> None:
        self.study, self.world, self.seed = study, world, seed
        self.trials: list[TrialRow] = []
        self.observations: list[Observation] = []
        self.stages: list[str] = []
        self._fitted: tuple[int, Analysis | None] = (-1, None)

    def state(self) -> StudyState:
        """What the planner is given."""
        return StudyState(
            study=self.study,
            corpus_id="c" * 64,
            token_scale=1.0,
            speed=_SPEED,
            stages=tuple(self.stages),
            trials=tuple(self.trials),
            observations=tuple(self.observations),
            elapsed_seconds=0.0,
            fit=self._fit,
        )

    def play(self) -> StudyState:
        """To the end; the last state."""
        while not planner.is_finished(self.state()):
            while (plan := planner.next_plan(self.state())) is not None:
                self._add(plan)
            self._answer_all()
        return self.state()

    def _fit(self) -> Analysis | None:
        number = sum(isinstance(one, TrainingObservation) for one in self.observations)
        if self._fitted[0] != number:
            self._fitted = number, analyse(self.study, self.observations)
        return self._fitted[1]

    def _add(self, plan: Plan) -> None:
        self.stages.append(plan.stage)
        known = {row.trial_id for row in self.trials}
        for planned in plan.trials:
            if planned.trial_id not in known:
                phase = "train" if isinstance(planned.assignment, TrainAssignment) else "bench"
                self.trials.append(_queued(len(self.trials), plan.stage, phase, planned))

    def _answer_all(self) -> None:
        for place, row in enumerate(self.trials):
            if row.state == "queued":
                assignment = row.planned.assignment
                self.observations.append(observe(self.world, self.seed, assignment))
                spent = _SPEED.assignment_seconds(assignment)
                self.trials[place] = row._replace(
                    state="succeeded", done_fraction=1.0, spent_seconds=spent, ended_unix=0
                )


def _queued(position: int, stage: str, phase: str, planned: PlannedTrial) -> TrialRow:
    return TrialRow(
        position=position,
        trial_id=planned.trial_id,
        stage=stage,
        phase=phase,
        state="queued",
        epoch=0,
        attempts=0,
        agent=None,
        hardware=None,
        queued_unix=0.0,
        first_leased_unix=None,
        leased_unix=None,
        ended_unix=None,
        spent_seconds=0.0,
        work=_Work(planned),  # type: ignore[arg-type]
        done_fraction=0.0,
    )


@dataclass(frozen=True)
class Outcome:
    """How one study ended. Losses in nats against the baseline's true one, throughputs over the baseline's true one."""

    world: str
    way: str
    seed: int
    proposed: str
    is_baseline: bool
    true_difference: float
    """Of the proposal."""
    predicted: tuple[float, float]
    is_refuted: bool
    built_difference: float
    built_gain: float
    best_gain: float
    num_trainings: int


def play(asked: tuple[str, str, str, int]) -> Outcome:
    """One study (its name, world, way, seed) from its first round to its answer."""
    name, world, way, seed = asked
    # The switches that a user has no use for, in a process of this study's own.
    choice.recommend = functools.partial(recommend, support_margin=WAYS[way].margin)  # type: ignore[assignment]
    corner, fits = planner._corner, planner._fits_at_target
    if not WAYS[way].looks_beyond:
        planner._corner = lambda *_, **__: None  # type: ignore[assignment]
        planner._fits_at_target = lambda *_, **__: False  # type: ignore[assignment]
    try:
        return _judged(read_study(name), world, way, seed)
    finally:
        planner._corner, planner._fits_at_target, choice.recommend = corner, fits, recommend


def _judged(study: StudySpec, world: str, way: str, seed: int) -> Outcome:
    state = SimulatedStudy(study, world, seed).play()
    choices = planner.choices_of(state)
    assert state.analysis is not None
    answer = make_recommendation(
        study, state.analysis, choices, state.observations, token_scale=1.0, made_unix=0
    ).answers[0]
    N = study.target.num_parameters
    shapes, baseline = candidates_at(study, N).including(baseline_at(study))
    losses, rates = true_losses(world, shapes, N * study.target.tokens_per_parameter), true_rates(shapes)
    losses, rates = losses - losses[baseline], rates / rates[baseline]
    proposed = shapes.index_of(answer.recommended)
    assert proposed is not None
    built = proposed if answer.stands else baseline
    compared = choices[0].shortlist.compare(proposed, baseline)
    return Outcome(
        world=world,
        way=way,
        seed=seed,
        proposed=answer.recommended.label,
        is_baseline=proposed == baseline,
        true_difference=float(losses[proposed]),
        predicted=(compared.low, compared.high),
        is_refuted=not answer.stands,
        built_difference=float(losses[built]),
        built_gain=float(rates[built]),
        best_gain=float(rates[losses <= 1e-9].max()),
        num_trainings=sum(isinstance(one, TrainingObservation) for one in state.observations),
    )


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Of the studies of one world and way."""
    rows = list(outcomes)
    held = [low <= row.true_difference <= high for row in rows for low, high in (row.predicted,)]
    return {
        "studies": len(rows),
        "proposed": np.mean([not row.is_baseline for row in rows]),
        "refuted": np.mean([row.is_refuted for row in rows]),
        "built_worse": np.mean([row.built_difference > 1e-9 for row in rows]),
        "worst_built": max(row.built_difference for row in rows),
        "gain": np.mean([row.built_gain for row in rows]),
        "best_gain": rows[0].best_gain,
        "regret": np.mean([1 - row.built_gain / row.best_gain for row in rows]),
        "coverage": np.mean(held),
        "trainings": np.mean([row.num_trainings for row in rows]),
    }


def main() -> None:
    """Play all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40, help="for each world and way; their noise differs")
    parser.add_argument("--study", default="laptop")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    pairs = [(world, way) for world in asked.worlds for way in asked.ways]
    each = [(asked.study, world, way, seed) for world, way in pairs for seed in range(asked.studies)]
    with ProcessPoolExecutor(asked.jobs) as pool:
        outcomes = list(pool.map(play, each))
    if asked.json:
        print(json.dumps([asdict(one) for one in outcomes]))
        return
    table = Table(title=f"Simulated studies {asked.study!r}, {asked.studies} for each world and way, the same seeds")
    for column in (
        "world",
        "way",
        "proposed",
        "refuted",
        "built worse",
        "at most (nats)",
        "throughput",
        "best",
        "regret",
    ):
        table.add_column(column)
    table.add_column("coverage (90 %)")
    table.add_column("trainings")
    for world, way in pairs:
        told = summary(one for one in outcomes if (one.world, one.way) == (world, way))
        table.add_row(
            world,
            way,
            *(f"{told[name]:.0%}" for name in ("proposed", "refuted", "built_worse")),
            f"{told['worst_built']:+.3f}",
            *(f"{told[name]:.3f}" for name in ("gain", "best_gain")),
            f"{told['regret']:.1%}",
            f"{told['coverage']:.0%}",
            f"{told['trainings']:.1f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
