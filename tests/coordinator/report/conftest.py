"""Runs made by the real planner, store, fit and recommendation, with losses drawn from a known law instead of training.

What is synthetic is said in every observation: the device is "synthetic", so a page made of them cannot be mistaken.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator import planner
from coordinator.budget import Speed
from coordinator.recommendation import make_recommendation
from coordinator.record import RunRecord, read_record
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

START_UNIX = 1_790_000_000.0
CORPUS_ID = "c" * 64
CORPUS = {
    "schema_version": 1,
    "dtype": "uint16",
    "vocab_size": 1024,
    "end_of_text_id": 0,
    "tokenizer_sha256": "0" * 64,
    "shards": [{"role": "train", "sha256": "1" * 64, "num_tokens": 2_700_000, "num_documents": 357}],
    "description": "synthetic corpus <no text at all>",
}
SCIENCE = {
    "reference": (
        {"num_parameters": 50e3, "tokens_per_parameter": 5},
        {"num_parameters": 50e3, "tokens_per_parameter": 10, "num_shapes": 7},
        {"num_parameters": 50e3, "tokens_per_parameter": 20},
        {"num_parameters": 100e3, "tokens_per_parameter": 5},
    ),
    "fit": {"num_parameters": 100e3, "tokens_per_parameter": 10, "num_centre_replicates": 3},
    "target": {"num_parameters": 200e3, "tokens_per_parameter": 10},
}
"""The study's sizes are pinned here: the shipped studies are tuned to machines, and these pages are not about them."""
SPEED = Speed(seconds_per_token=1e-5, seconds_per_token_parameter=1e-10, num_agents=2)
NOISE_SD = 0.010


class Simulation:
    """Carries out a study's plans one trial after another on two pretended agents, without training anything."""

    def __init__(self, run_directory: Path, study: StudySpec, *, token_scale: float = 1.0) -> None:
        self.study = study
        self.store = Store.create(run_directory, study, now_unix=START_UNIX)
        self.generator = np.random.default_rng(0)
        self.clocks = {"agent-0": START_UNIX + 20, "agent-1": START_UNIX + 20}
        for key, value in (
            ("speed", SPEED.model_dump_json()),
            ("token_scale", repr(token_scale)),
            ("corpus_id", CORPUS_ID),
        ):
            self.store.set_meta(key, value)
        for agent in self.clocks:
            self.store.upsert_agent(
                AgentRow(
                    agent=agent,
                    hardware="cpu-generic",
                    state="idle",
                    pid=1,
                    heartbeat_unix=START_UNIX + 20,
                    joined_unix=START_UNIX + 20,
                )
            )

    def state(self) -> planner.StudyState:
        return planner.state_of(self.store, corpus_id=CORPUS_ID)

    def plan(self) -> bool:
        """Queue the next plan, if one is due."""
        plan = planner.next_plan(self.state())
        if plan is None:
            return False
        self.store.add_plan(plan, now_unix=max(self.clocks.values()))
        return True

    def work(self, num_trials: int | None = None) -> None:
        """Finish queued trials."""
        queued = [trial for trial in self.store.trials() if trial.state == "queued"]
        for trial in queued[:num_trials]:
            agent, now = self.lease(trial.trial_id, epoch=trial.epoch + 1)
            assignment = trial.planned.assignment
            seconds = SPEED.assignment_seconds(assignment)
            provenance = _provenance(agent, now, seconds)
            if isinstance(assignment, TrainAssignment):
                observation: Observation = self.train(assignment, provenance)
            else:
                observation = self.bench(assignment, provenance)
            self.clocks[agent] = now + seconds
            self.store.record_result(trial.trial_id, trial.epoch + 1, observation, now_unix=now + seconds)

    def lease(self, trial_id: str, *, epoch: int) -> tuple[str, float]:
        """The agent that is free first takes the trial."""
        agent, now = min(self.clocks.items(), key=lambda item: item[1])
        self.store.lease(
            trial_id, agent=agent, hardware="cpu-generic", epoch=epoch, now_unix=now, expires_unix=now + 60
        )
        return agent, now

    def fail(self, trial_id: str, message: str) -> None:
        """One failed attempt; the trial is queued again."""
        agent, now = self.lease(trial_id, epoch=1)
        failure = Failure(
            assignment_id=trial_id,
            failure_kind="agent-lost",
            message=message,
            provenance=_provenance(agent, now, 2.0),
        )
        self.clocks[agent] = now + 2
        self.store.record_failure(trial_id, 1, failure, final=False, now_unix=now + 2)

    def train(self, assignment: TrainAssignment, provenance: Provenance) -> TrainingObservation:
        shape, recipe = assignment.architecture, assignment.recipe
        loss = true_loss(shape.width_ratio, shape.mlp_attention_ratio, shape.num_parameters, recipe.num_tokens)
        loss += float(self.generator.normal(0, NOISE_SD))
        windows = loss + 0.4 * np.sin(np.arange(64))
        windows += loss - windows.mean()
        point = TrainingPoint(num_tokens=recipe.num_tokens, loss=loss, learning_rate=1e-3, gradient_norm=1.0)
        return TrainingObservation(
            assignment_id=assignment.id,
            architecture=shape,
            recipe=recipe,
            corpus_id=CORPUS_ID,
            loss=loss,
            loss_standard_error=float(windows.std() / 8),
            window_losses=tuple(windows.tolist()),
            num_tokens=recipe.num_tokens,
            tokens_per_second=recipe.num_tokens / provenance.seconds,
            train_seconds=provenance.seconds,
            curve=(point,),
            provenance=provenance,
        )

    def bench(self, assignment: BenchAssignment, provenance: Provenance) -> ServingObservation:
        shape = assignment.architecture
        rate = 4000 * math.exp(-2.0 * shape.width_ratio - 0.15 / shape.mlp_attention_ratio)
        rates = rate * (1 + 0.02 * self.generator.normal(size=assignment.num_repeats))
        mean = float(rates.mean())
        interval = Interval(low=0.95 * mean, high=1.05 * mean, level=0.95, method="t over repeats")
        measured = Measured(value=mean, unit="tokens/s", interval=interval, num_samples=len(rates))
        return ServingObservation(
            assignment_id=assignment.id,
            architecture=shape,
            recipe=assignment.recipe,
            workload=assignment.workload,
            engine_version="synthetic",
            repeats=tuple(
                ServingRepeat(output_tokens_per_second=rate, seconds=2.0, num_output_tokens=round(2 * rate))
                for rate in rates
            ),
            output_tokens_per_second=measured,
            total_tokens_per_second=measured,
            coefficient_of_variation=float(rates.std(ddof=1) / mean),
            mean_running_sequences=NotMeasured(reason="synthetic"),
            joules_per_output_token=NotMeasured(reason="no power sensor"),
            flags=("busy-cpu",),
            provenance=provenance,
        )

    def refit(self) -> None:
        """Store the fit of what there is."""
        analysis = self.state().analysis
        assert analysis is not None
        self.store.add_fit(
            num_points=analysis.num_points,
            outcome="converged",
            seconds=0.1,
            record=analysis.to_json(),
            now_unix=max(self.clocks.values()),
        )

    def conclude(self) -> None:
        """Store the recommendation, as the coordinator does at the end."""
        state = self.state()
        choices = planner.choices_of(state)
        now = max(self.clocks.values())
        if choices and state.analysis is not None:
            recommendation = make_recommendation(
                self.study, state.analysis, choices, state.observations, token_scale=state.token_scale, made_unix=now
            )
            self.store.add_recommendation(recommendation.model_dump(mode="json"), now_unix=now)
        self.store.set_meta("state", "finished")
        self.store.set_meta("wall_seconds", repr(now - START_UNIX))

    def record(self) -> RunRecord:
        return read_record(self.store.run_directory)


def true_loss(x: float, r: float, N: float, D: float) -> float:
    """The law the synthetic losses follow, in nats/token: optimum at x 0.27, r 1.3."""
    x_part = 1 + 0.10 * (math.log(x / 0.27) + 0.27 / x - 1)
    r_part = 1 + 0.03 * (math.log(r / 1.3) + 1.3 / r - 1)
    return (1.9 + 60 / N**0.4 + 120 / D**0.4) * x_part * r_part


def _provenance(agent: str, started_at_unix: float, seconds: float) -> Provenance:
    return Provenance(
        agent=agent,
        hostname="synthetic-host",
        device="synthetic",
        hardware="cpu-generic",
        started_at_unix=started_at_unix,
        seconds=seconds,
        versions={"archfleet": "0.1.0", "python": "3.11", "torch": "synthetic"},
    )


Simulate = Callable[..., Simulation]


@pytest.fixture
def simulate(tmp_path: Path) -> Iterator[Simulate]:
    """Start simulated runs; their stores are closed at the end."""
    simulations: list[Simulation] = []

    def start(study: str = "quick", *, token_scale: float = 1.0, **changes: object) -> Simulation:
        spec = StudySpec.model_validate(read_study(study).model_dump() | changes)
        simulations.append(Simulation(tmp_path / f"run-{len(simulations)}", spec, token_scale=token_scale))
        return simulations[-1]

    yield start
    for simulation in simulations:
        simulation.store.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A finished run of two sizes and a target: two failed attempts, a reduced token scale, every stage."""
    study = StudySpec.model_validate(read_study("laptop").model_dump() | SCIENCE)
    simulation = Simulation(tmp_path_factory.mktemp("report") / "laptop", study, token_scale=0.8)
    simulation.store.set_meta("corpus", json.dumps(CORPUS))
    simulation.plan()
    for trial in simulation.store.trials()[:2]:
        simulation.fail(trial.trial_id, "the process of <b>agent-0</b> ended")
    while True:
        simulation.work()
        if not simulation.plan():
            break
    simulation.work()
    simulation.refit()
    simulation.conclude()
    record = simulation.record()
    simulation.store.close()
    return record
