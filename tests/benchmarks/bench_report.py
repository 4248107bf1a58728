"""How long the report of a large run takes: goal, 5 s for 1,000 trials.

    python tests/benchmarks/bench_report.py [--trials 1000] [--profile]

The run is synthetic: the study `laptop` on 16 pretended agents, trained over the whole space at its sizes, losses drawn
from the conditional law, fits and a recommendation by the real code, canaries, benchmarks and failures among the
trials. Parts are told one by one, the median over repeats with its least and greatest.
"""

import argparse
import cProfile
import math
import pstats
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator import planner
from coordinator.analysis import analyse
from coordinator.budget import Speed
from coordinator.figures.catalogue import figures_of
from coordinator.outputs import write_outputs
from coordinator.plan import Plan, PlannedTrial
from coordinator.planning import StudyState
from coordinator.recommendation import make_recommendation
from coordinator.record import read_record
from coordinator.report import FORMATS, render_as
from coordinator.report.canvas import paint
from coordinator.shapes import candidates_at
from coordinator.store import AgentRow, Store
from coordinator.study import StudySpec, read_study
from scaling.observations import (
    Failure,
    Observation,
    Provenance,
    ServingObservation,
    ServingRepeat,
    TrainingObservation,
    TrainingPoint,
)
from scaling.quantity import Interval, Measured, NotMeasured

NUM_REPEATS = 3
NUM_AGENTS = 16
CORPUS_ID = "c" * 64


def main() -> None:
    """Make a run, write its report part by part, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--profile", action="store_true", help="print where the time of the HTML goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        began = time.perf_counter()
        make_run(run, options.trials)
        print(f"made a run of {options.trials:,} trials in {time.perf_counter() - began:.1f} s", flush=True)
        record = read_record(run)
        figures = figures_of(record)
        points = sum(len(series.x) for figure in figures for series in figure.series)
        tell("reading the record", lambda: read_record(run))
        tell(f"{len(figures)} figures as values, {points:,} points", lambda: figures_of(read_record(run)))
        tell("painting them", lambda: [paint(figure) for figure in figures])
        for form in FORMATS:
            size = len(render_as(record, form)) / 1e6
            tell(f"report as {form} from the record, {size:.1f} MB", lambda form=form: render_as(record, form))
        tell("archfleet report: everything that a run leaves behind (goal 5 s)", lambda: write_outputs(run))
        if options.profile:
            with cProfile.Profile() as profile:
                render_as(read_record(run), "html")
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


def tell(what: str, act: Callable[[], object]) -> None:
    """Print the median of repeats with its spread."""
    values = []
    for _ in range(NUM_REPEATS):
        began = time.perf_counter()
        act()
        values.append(time.perf_counter() - began)
    values.sort()
    print(f"{what}: {statistics.median(values):.2f} s [{values[0]:.2f}, {values[-1]:.2f}]", flush=True)


def make_run(directory: Path, num_trials: int) -> None:
    """A finished study with about `num_trials` trials."""
    study = read_study("laptop")
    with Store.create(directory, study, now_unix=0) as store:
        for key, value in (
            ("speed", Speed(seconds_per_token=1e-5, seconds_per_token_parameter=1e-10, num_agents=2).model_dump_json()),
            ("token_scale", "1.0"),
            ("corpus_id", CORPUS_ID),
        ):
            store.set_meta(key, value)
        for number in range(NUM_AGENTS):
            _join(store, f"agent-{number}")
        stages = _Stages(store, study)
        first = stages.add_planned()
        stages.add(list(_further(first, study, num_trials - 60)))
        while stages.add_planned():
            pass
        stages.conclude()


def _join(store: Store, agent: str) -> None:
    seen = {"heartbeat_unix": 0.0, "joined_unix": 0.0}
    store.upsert_agent(AgentRow(agent=agent, hardware="cpu-generic", state="idle", pid=1, **seen))
    for number in range(50):
        deviation = 0.01 * math.sin(number)
        moment = 60.0 * number
        store.add_canary(
            agent=agent, hardware="cpu-generic", kind="gemm", rate=1 + deviation, deviation=deviation, now_unix=moment
        )


class _Stages:
    """Runs plans in zero time on agents that are always free."""

    def __init__(self, store: Store, study: StudySpec) -> None:
        self.store, self.study, self.now, self.number = store, study, 1.0, 0

    def state(self) -> StudyState:
        return planner.state_of(self.store, corpus_id=CORPUS_ID)

    def add_planned(self) -> tuple[PlannedTrial, ...]:
        """Run the planner's next plan; empty when there is none."""
        plan = planner.next_plan(self.state())
        if plan is None:
            return ()
        self.store.add_plan(plan, now_unix=self.now)
        self._run(plan.trials)
        self._fit()
        return plan.trials

    def add(self, trials: list[PlannedTrial]) -> None:
        """Run further trials, with a fit after every fourth of them."""
        self.store.add_plan(Plan(stage="further", trials=tuple(trials)), now_unix=self.now)
        step = max(1, len(trials) // 4)
        for start in range(0, len(trials), step):
            self._run(trials[start : start + step])
            self._fit()

    def _run(self, trials: list[PlannedTrial] | tuple[PlannedTrial, ...]) -> None:
        with self.store.transaction():
            for trial in trials:
                self._run_one(trial)

    def _run_one(self, trial: PlannedTrial) -> None:
        self.number += 1
        agent = f"agent-{self.number % NUM_AGENTS}"
        lease = {"agent": agent, "hardware": "cpu-generic"}
        self.now += 1
        epoch = 1
        if self.number % 20 == 0:
            self.store.lease(trial.trial_id, **lease, epoch=1, now_unix=self.now, expires_unix=self.now + 60)
            failure = Failure(
                assignment_id=trial.trial_id,
                failure_kind="agent-lost",
                message="the process ended",
                detail="a line of a log\n" * 20,
                provenance=_provenance(agent, self.now),
            )
            self.store.record_failure(trial.trial_id, 1, failure, final=False, now_unix=self.now + 5)
            self.now, epoch = self.now + 5, 2
        self.store.lease(trial.trial_id, **lease, epoch=epoch, now_unix=self.now, expires_unix=self.now + 60)
        self.store.record_result(
            trial.trial_id, epoch, _observe(trial, agent, self.now), now_unix=self.now + 12 * NUM_AGENTS / 13
        )

    def _fit(self) -> None:
        analysis = analyse(self.study, self.store.observations())
        if analysis is not None:
            self.store.add_fit(
                num_points=analysis.num_points,
                outcome="converged",
                seconds=0.1,
                record=analysis.to_json(),
                now_unix=self.now,
            )

    def conclude(self) -> None:
        """Store the recommendation."""
        state = self.state()
        analysis, choices = analyse(self.study, state.observations), planner.choices_of(state)
        assert analysis is not None
        recommendation = make_recommendation(
            self.study, analysis, choices, state.observations, token_scale=1.0, made_unix=self.now
        )
        self.store.add_recommendation(recommendation.model_dump(mode="json"), now_unix=self.now)
        self.store.set_meta("wall_seconds", repr(self.now))
        self.store.set_meta("state", "finished")


def _further(first: tuple[PlannedTrial, ...], study: StudySpec, number: int) -> Iterator[PlannedTrial]:
    """Shapes all over the space at the fit's size, each with several seeds, like the first training run planned."""
    assignment = next(trial.assignment for trial in first if isinstance(trial.assignment, TrainAssignment))
    tokens = round(study.fit.num_parameters * study.fit.tokens_per_parameter)
    candidates = candidates_at(study, study.fit.num_parameters)
    for place in range(number):
        shape = candidates.architecture(place * 7 % len(candidates))
        recipe = assignment.recipe.model_copy(update={"seed": 1_000 + place, "num_tokens": tokens})
        work = assignment.model_copy(update={"architecture": shape, "recipe": recipe})
        yield PlannedTrial(role="proposed", reason="to fill the report", assignment=work)


def _observe(trial: PlannedTrial, agent: str, now: float) -> Observation:
    assignment = trial.assignment
    if isinstance(assignment, BenchAssignment):
        return _bench(assignment, _provenance(agent, now))
    shape, tokens = assignment.architecture, assignment.recipe.num_tokens
    x, r = shape.width_ratio / 0.27, shape.mlp_attention_ratio / 1.4
    level = 1.6 + 40 / shape.num_parameters**0.34 + 180 / tokens**0.38
    loss = level * (1 + 0.08 * (math.log(x) + 1 / x - 1)) * (1 + 0.05 * (math.log(r) + 1 / r - 1))
    loss += random.Random(trial.trial_id).gauss(0, 0.01)
    windows = loss + np.random.default_rng(0).normal(0, 0.3, assignment.num_eval_windows)
    points = tuple(
        TrainingPoint(num_tokens=tokens * step // 50, loss=loss, learning_rate=0.008, gradient_norm=1)
        for step in range(1, 51)
    )
    return TrainingObservation(
        assignment_id=trial.trial_id,
        architecture=shape,
        recipe=assignment.recipe,
        corpus_id=CORPUS_ID,
        loss=loss,
        loss_standard_error=0.01,
        window_losses=tuple(windows.tolist()),
        num_tokens=tokens,
        tokens_per_second=30_000,
        train_seconds=12,
        curve=points,
        provenance=_provenance(agent, now),
    )


def _bench(assignment: BenchAssignment, provenance: Provenance) -> ServingObservation:
    shape = assignment.architecture
    rate = 1e9 / (shape.num_parameters + 40 * shape.key_value_elements_per_token)
    interval = Interval(low=0.97 * rate, high=1.03 * rate, level=0.95, method="t")
    measured = Measured(value=rate, unit="tokens/s", interval=interval, num_samples=3)
    return ServingObservation(
        assignment_id=assignment.id,
        architecture=shape,
        recipe=assignment.recipe,
        workload=assignment.workload,
        engine_version="synthetic",
        repeats=tuple(
            ServingRepeat(output_tokens_per_second=rate * factor, seconds=1, num_output_tokens=round(rate))
            for factor in (0.99, 1.0, 1.01)
        ),
        output_tokens_per_second=measured,
        total_tokens_per_second=measured,
        coefficient_of_variation=0.01,
        mean_running_sequences=NotMeasured(reason="synthetic"),
        joules_per_output_token=NotMeasured(reason="synthetic"),
        provenance=provenance,
    )


def _provenance(agent: str, now: float) -> Provenance:
    return Provenance(
        agent=agent,
        hostname="here",
        device="synthetic",
        hardware="cpu-generic",
        started_at_unix=now,
        seconds=5.0,
        versions={"archfleet": "0"},
    )


if __name__ == "__main__":
    main()
