"""A synthetic world whose losses obey the conditional law, and runs made in it through the real planner and store."""

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from agent.benchmark.campaign import AGAIN, Campaign, Candidate, SlotResult
from agent.benchmark.run import Restart
from agent.engines.base import EngineDevice, EngineReady, EngineResult
from coordinator import planner
from coordinator.analysis import analyse
from coordinator.bench_record import BenchRecord, make_record
from coordinator.budget import Speed
from coordinator.outputs import write_outputs
from coordinator.recommendation import make_recommendation
from coordinator.store import AgentRow, Store
from coordinator.study import StudySpec, read_study
from scaling.architecture import Architecture
from scaling.observations import (
    Failure,
    FailureKind,
    Observation,
    Provenance,
    ServingObservation,
    ServingRepeat,
    TrainingObservation,
    TrainingPoint,
)
from scaling.quantity import Interval, Measured, NotMeasured
from scaling.recipes import ServingRecipe, Workload

CORPUS_ID = "c" * 64
EPOCH_UNIX = 1_700_000_000.0
PROVENANCE = Provenance(
    agent="agent-0",
    hostname="here",
    device="a CPU",
    hardware="cpu-generic",
    started_at_unix=EPOCH_UNIX,
    seconds=3.0,
    versions={"archfleet": "0"},
)


@dataclass(frozen=True, kw_only=True)
class World:
    """Losses in nats per token: L = L_opt(N, D) (1 + a u(x, x*)) (1 + b u(r, r*)), u(z, z*) = ln(z/z*) + z*/z - 1.

    u is the law's own term, zero at its optimum. Noise is drawn from each assignment's content, so that a repeated
    run repeats its loss, and so does a resumed study.
    """

    x_opt: float = 0.27
    r_opt: float = 1.4
    x_curvature: float = 0.08
    r_curvature: float = 0.05
    noise_sd: float = 0.002

    def loss(self, architecture: Architecture, num_tokens: float) -> float:
        level = 1.6 + 40 / architecture.num_parameters**0.34 + 180 / num_tokens**0.38
        x, r = architecture.width_ratio, architecture.mlp_attention_ratio
        return (
            level * (1 + self.x_curvature * _excess(x / self.x_opt)) * (1 + self.r_curvature * _excess(r / self.r_opt))
        )

    def train(self, assignment: TrainAssignment) -> TrainingObservation:
        source = random.Random(assignment.id)
        loss = self.loss(assignment.architecture, assignment.recipe.num_tokens) + source.gauss(0, self.noise_sd)
        difficulty = np.random.default_rng(0).normal(0, 0.3, assignment.num_eval_windows)  # paired: the same for all
        windows = loss + difficulty - difficulty.mean()
        tokens = assignment.recipe.num_tokens
        return TrainingObservation(
            assignment_id=assignment.id,
            architecture=assignment.architecture,
            recipe=assignment.recipe,
            corpus_id=assignment.corpus_id,
            loss=loss,
            loss_standard_error=float(windows.std() / math.sqrt(len(windows))),
            window_losses=tuple(windows.tolist()),
            num_tokens=tokens,
            tokens_per_second=30_000,
            train_seconds=tokens / 30_000,
            curve=(TrainingPoint(num_tokens=tokens, loss=loss, learning_rate=0.008, gradient_norm=1),),
            provenance=PROVENANCE,
        )

    def bench(self, assignment: BenchAssignment) -> ServingObservation:
        shape = assignment.architecture
        rate = 1e9 / (shape.num_parameters + 40 * shape.key_value_elements_per_token)
        rates = [rate * factor for factor in (0.99, 1.0, 1.01)]
        return ServingObservation(
            assignment_id=assignment.id,
            architecture=shape,
            recipe=assignment.recipe,
            workload=assignment.workload,
            engine_version="synthetic",
            repeats=tuple(
                ServingRepeat(output_tokens_per_second=one, seconds=1, num_output_tokens=round(one)) for one in rates
            ),
            output_tokens_per_second=_measured(rate),
            total_tokens_per_second=_measured(2 * rate),
            coefficient_of_variation=0.01,
            mean_running_sequences=NotMeasured(reason="synthetic"),
            joules_per_output_token=NotMeasured(reason="synthetic"),
            provenance=PROVENANCE,
        )

    def observe(self, assignment: TrainAssignment | BenchAssignment) -> Observation:
        return self.train(assignment) if isinstance(assignment, TrainAssignment) else self.bench(assignment)

    def failure(self, trial_id: str, kind: FailureKind = "unknown") -> Failure:
        return Failure(assignment_id=trial_id, failure_kind=kind, message="it broke", provenance=PROVENANCE)


def _excess(ratio: float) -> float:
    return math.log(ratio) + 1 / ratio - 1


def _measured(rate: float) -> Measured:
    interval = Interval(low=0.97 * rate, high=1.03 * rate, level=0.95, method="t")
    return Measured(value=rate, unit="tokens/s", interval=interval, num_samples=3)


class Driver:
    """Takes a stored run through its stages, one trial at a time, by the real planner and store."""

    def __init__(self, store: Store, world: World) -> None:
        self.store = store
        self.world = world
        self.now = EPOCH_UNIX
        if store.meta("speed") is None:
            speed = Speed(seconds_per_token=2e-5, seconds_per_token_parameter=1e-10, num_agents=2)
            store.set_meta("speed", speed.model_dump_json())
            store.set_meta("token_scale", "1.0")
            store.set_meta("corpus_id", CORPUS_ID)
            store.upsert_agent(
                AgentRow(
                    agent="agent-0",
                    hardware="cpu-generic",
                    state="idle",
                    pid=1,
                    heartbeat_unix=self.now,
                    joined_unix=self.now,
                )
            )

    def state(self) -> planner.StudyState:
        return planner.state_of(self.store, corpus_id=CORPUS_ID)

    def plan(self) -> list[str]:
        """Add every plan that is due; their stages."""
        stages = []
        while (plan := planner.next_plan(self.state())) is not None:
            self.store.add_plan(plan, now_unix=self.now)
            stages.append(plan.stage)
        return stages

    def lease(self, trial_id: str) -> int:
        row = next(row for row in self.store.trials() if row.trial_id == trial_id)
        self.now += 1
        self.store.lease(
            trial_id,
            agent="agent-0",
            hardware="cpu-generic",
            epoch=row.epoch + 1,
            now_unix=self.now,
            expires_unix=self.now + 60,
        )
        return row.epoch + 1

    def run_trial(self, trial_id: str) -> None:
        epoch = self.lease(trial_id)
        planned = next(row.planned for row in self.store.trials() if row.trial_id == trial_id)
        self.now += 2
        self.store.record_result(trial_id, epoch, self.world.observe(planned.assignment), now_unix=self.now)

    def fail_trial(self, trial_id: str, kind: FailureKind = "nan-loss", *, final: bool = True) -> None:
        epoch = self.lease(trial_id)
        self.now += 2
        self.store.record_failure(trial_id, epoch, self.world.failure(trial_id, kind), final=final, now_unix=self.now)

    def queued(self) -> list[str]:
        return [row.trial_id for row in self.store.trials() if row.state == "queued"]

    def run_queue(self) -> None:
        for trial_id in self.queued():
            self.run_trial(trial_id)

    def finish(self) -> list[str]:
        """Run to the end, with fit and recommendation as the loop stores them; the stages in order."""
        stages = self.plan()
        while not planner.is_finished(self.state()):
            self.run_queue()
            stages += self.plan()
        self.conclude()
        return stages

    def conclude(self) -> None:
        state = self.state()
        analysis, choices = analyse(state.study, state.observations), planner.choices_of(state)
        if analysis is not None:
            self.store.add_fit(
                num_points=analysis.num_points, outcome="ok", seconds=0.2, record=analysis.to_json(), now_unix=self.now
            )
        if analysis is not None and choices:
            recommendation = make_recommendation(
                state.study, analysis, choices, state.observations, token_scale=1.0, made_unix=self.now
            )
            self.store.add_recommendation(recommendation.model_dump(mode="json"), now_unix=self.now)
        self.store.set_meta("wall_seconds", "100.0")
        self.store.set_meta("state", "finished")


@pytest.fixture(scope="session")
def study() -> StudySpec:
    return read_study("quick")


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture
def store(tmp_path: Path, study: StudySpec):
    with Store.create(tmp_path / "quick-20260101-000000", study, now_unix=EPOCH_UNIX) as opened:
        yield opened


@pytest.fixture
def driver(store: Store, world: World) -> Driver:
    return Driver(store, world)


@pytest.fixture(scope="session")
def make_driver():
    """Drivers over other stores or worlds than the fixtures'."""
    return Driver


@pytest.fixture(scope="session")
def make_world():
    return World


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, study: StudySpec, world: World) -> Path:
    """A whole study in the synthetic world. Shared: copy it before writing to it."""
    directory = tmp_path_factory.mktemp("runs") / "quick-20260101-000000"
    with Store.create(directory, study, now_unix=EPOCH_UNIX) as store:
        Driver(store, world).finish()
    return directory


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """The finished run, to write to."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / finished_run.name))


@pytest.fixture(scope="session")
def written_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with its outputs. Shared: copy it before writing to it."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("written") / finished_run.name))
    write_outputs(run)
    return run


Rates = Mapping[str, Sequence[float] | FailureKind]
"""Output tokens/s of every restart by the name of a row, or how its first restart failed."""


def bench_campaign(names: str, *batch_sizes: int, num_repeats: int = 3) -> Campaign:
    """A campaign of small architectures with one-letter names."""
    shapes = {
        name: Architecture(
            hidden_size=32 + 8 * place,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=128,
        )
        for place, name in enumerate(names)
    }
    return Campaign(
        candidates=tuple(Candidate(name=name, architecture=shape) for name, shape in shapes.items()),
        recipe=ServingRecipe(engine="transformers", dtype="float32"),
        workloads=tuple(Workload(batch_size=size, input_tokens=8, output_tokens=8) for size in batch_sizes),
        num_repeats=num_repeats,
    )


def bench_restart(rate: float, campaign: Campaign, workload: int, **result: object) -> Restart:
    """A window of two seconds at a rate, on a device that calls itself synthetic."""
    load = campaign.workloads[workload]
    num_batches = 1000
    num_tokens = num_batches * load.batch_size * load.output_tokens
    fields = {"cpu_seconds": num_tokens / rate, "num_output_tokens": num_tokens, "logits_finite": True} | result
    return Restart(
        ready=EngineReady(
            event="ready",
            versions={"transformers": "0"},
            device=EngineDevice(kind="cpu", name="synthetic", memory_bytes=1),
            num_total_parameters=1,
        ),
        result=EngineResult(event="result", window_seconds=num_tokens / rate, num_batches=num_batches, **fields),
        provenance=PROVENANCE,
    )


@pytest.fixture
def make_bench() -> Callable[..., BenchRecord]:
    """A function of rates by name, one mapping a batch size 1, 2, 4 ...; "a'" is the first, measured again."""

    def make(*by_batch: Rates, results: Mapping[str, Mapping[str, object]] | None = None) -> BenchRecord:
        names = [name for name in by_batch[0] if name != "a'"]
        repeats = max(len(rates) for rates in by_batch[0].values() if not isinstance(rates, str))
        campaign = bench_campaign("".join(names), *(2**place for place in range(len(by_batch))), num_repeats=repeats)
        restarts = []
        for slot in campaign.order():
            name = campaign.rows[slot.row].name.replace(AGAIN, "'")
            rates = by_batch[slot.workload].get(name, ())
            if isinstance(rates, str):
                if slot.repeat == 0:
                    failure = Failure(assignment_id="b", failure_kind=rates, message="it broke", provenance=PROVENANCE)
                    restarts.append(SlotResult(slot=slot, outcome=failure))
            elif slot.repeat < len(rates):
                changes = (results or {}).get(name, {})
                outcome = bench_restart(rates[slot.repeat], campaign, slot.workload, **changes)
                restarts.append(SlotResult(slot=slot, outcome=outcome))
        return make_record(campaign, restarts)

    return make
