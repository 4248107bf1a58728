"""A Ray cluster for each module, workers that keep time instead of training, and runs of given trials on a real fleet.

What is tested here is who works, not what is learned: a paced worker needs no torch and no processor, so that leases
can be short and a loaded machine changes little.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from agent.corpus.manifest import build_stdlib_corpus
from agent.device import make_provenance
from agent.worker import Worker
from coordinator.budget import Speed
from coordinator.fleet.base import Fleet
from coordinator.fleet.ray_fleet import RayFleet
from coordinator.fleet.ray_session import ClusterSession
from coordinator.history import Verdict, check_history, history_of
from coordinator.loop import Coordinator
from coordinator.plan import Plan, PlannedTrial
from coordinator.planning import StudyPlanner, Tally
from coordinator.snapshot import Snapshot
from coordinator.store import AgentRow, AttemptRow, Store
from coordinator.study import read_study
from scaling.architecture import Architecture
from scaling.observations import Observation, Progress, TrainingObservation
from scaling.recipes import FanIns, TrainingRecipe

VOCAB_SIZE = 300
NODE_SIZE = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
PACED_TOKENS_PER_SECOND = 100_000
PACED_LEASE_SECONDS = 10.0
"""A hundred times the pace of a paced worker's reports."""


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token that only this user can read, and Ray told to ask for it."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.touch(mode=0o600)
    file.write_text("0123456789abcdef" * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield file


@pytest.fixture(scope="module")
def cluster(token: Path, start_ray: Callable[..., Any]) -> Iterator[Any]:
    """A head without room for agents; tests bring their own nodes."""
    from ray.cluster_utils import Cluster  # Ray reads its mode when it is imported

    made = start_ray(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE_SIZE}))
    yield made
    made.shutdown()


@pytest.fixture
def add_node(cluster: Any, start_ray: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A function that adds a node with so many CPUs, and variables for its agents; it leaves with the test."""
    made: list[Any] = []

    def add(num_cpus: int = 1, **variables: str) -> Any:
        size = {"num_cpus": num_cpus, **NODE_SIZE}
        made.append(start_ray(lambda: cluster.add_node(env_vars={**os.environ, **variables}, **size)))
        return made[-1]

    yield add
    for node in made:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


@pytest.fixture
def make_fleet(
    cluster: Any, tmp_path: Path, blob_directory: Path, paced_worker: type[Worker]
) -> Iterator[Callable[..., RayFleet]]:
    """A function that makes a fleet on the module's cluster; paced workers, unless others are given."""
    made: list[RayFleet] = []

    def make(kind: type[RayFleet] = RayFleet, *, worker: type[Worker] = paced_worker) -> RayFleet:
        made.append(
            kind(
                ClusterSession(cluster.address),
                max_agents=8,
                blob_directory=blob_directory,
                work_directory=tmp_path / "agents",
                worker=worker,
            )
        )
        return made[-1]

    yield make
    for fleet in made:
        fleet.stop()


@pytest.fixture(scope="session")
def paced_worker() -> type[Worker]:
    """A worker that trains `PACED_TOKENS_PER_SECOND` by the clock alone, and reports ten times a second."""

    class PacedWorker(Worker):  # local, so that it travels to the agents by value
        def run(self, assignment: TrainAssignment | BenchAssignment) -> Generator[Progress | Observation, None, None]:
            assert isinstance(assignment, TrainAssignment)
            began_unix, began = time.time(), time.monotonic()
            seconds = assignment.recipe.num_tokens / PACED_TOKENS_PER_SECOND
            while (done := (time.monotonic() - began) / seconds) < 1:
                yield Progress(assignment_id=assignment.id, done_fraction=done, message="keeping time")
                time.sleep(0.1)
            yield TrainingObservation(
                assignment_id=assignment.id,
                architecture=assignment.architecture,
                recipe=assignment.recipe,
                corpus_id=assignment.corpus_id,
                loss=1.0,
                loss_standard_error=0.0,
                window_losses=(),
                num_tokens=assignment.recipe.num_tokens,
                tokens_per_second=PACED_TOKENS_PER_SECOND,
                train_seconds=seconds,
                curve=(),
                provenance=make_provenance(agent=self.agent_name, started_at_unix=began_unix, seconds=seconds),
            )

    return PacedWorker


@pytest.fixture(scope="session")
def blob_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="session")
def corpus_id(tmp_path_factory: pytest.TempPathFactory, blob_directory: Path) -> str:
    texts = tmp_path_factory.mktemp("texts")
    for number in range(40):
        (texts / f"{number}.txt").write_text("\n".join(f"def value_{k}(self): return {k * number}" for k in range(100)))
    return build_stdlib_corpus(blob_directory, vocab_size=VOCAB_SIZE, source=texts).id


@pytest.fixture
def long_training(corpus_id: str) -> TrainAssignment:
    """Minutes of training, or of a paced worker's time: whatever a test does meanwhile, it still runs."""
    architecture = Architecture(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB_SIZE,
    )
    recipe = TrainingRecipe(
        num_tokens=51_200_000,
        sequence_length=32,
        batch_tokens=256,
        base_fan_ins=FanIns(hidden=32, attention=32, mlp=40),
    )
    return TrainAssignment(architecture=architecture, recipe=recipe, corpus_id=corpus_id, num_eval_windows=24)


@pytest.fixture
def make_training(long_training: TrainAssignment) -> Callable[..., TrainAssignment]:
    """Trainings by seed; ten seconds of a paced worker's time each, so that nobody overlooks that they run."""

    def make(seed: int, *, num_tokens: int = 1_024_000, checkpoint_every_seconds: float = 0.5) -> TrainAssignment:
        recipe = long_training.recipe.model_copy(update={"seed": seed, "num_tokens": num_tokens})
        return long_training.model_copy(update={"recipe": recipe, "checkpoint_every_seconds": checkpoint_every_seconds})

    return make


class GivenTrials(StudyPlanner):
    """Plans what it is given. Finished when that has ended and nobody listens for more."""

    def __init__(self) -> None:
        super().__init__()
        self.listening = False
        self.given: list[Plan] = []
        self.is_ready: Callable[[], bool] = lambda: True

    def due(self, tally: Tally) -> bool:
        return not any(tally.unfinished.values())

    def next_plan(self, state: object) -> Plan | None:
        return self.given.pop() if self.given and self.is_ready() else None

    def is_finished(self, state: object) -> bool:
        return not (self.listening or self.given)

    def fit(self, study: object, observations: object) -> None:
        pass

    def conclude(self, state: object, *, now_unix: float) -> None:
        pass


class GivenRun:
    """A run of given trials: real coordinator and store, the fleet as the test makes it; moved on turn by turn."""

    def __init__(self, directory: Path, fleet: Fleet, lease_seconds: float) -> None:
        self.store = Store.create(directory, read_study("quick"), now_unix=0.0)
        self.notes: list[str] = []
        self.planner = GivenTrials()
        self.coordinator = Coordinator(
            store=self.store,
            fleet=fleet,
            view=self,
            num_agents=2,
            corpus_id="unused",
            started_monotonic=time.monotonic(),
            planner=self.planner,
            lease_seconds=lease_seconds,
        )

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def update(self, snapshot: Snapshot) -> None:
        pass

    def begin(self, assignments: Sequence[TrainAssignment | BenchAssignment], *, num_agents: int = 1) -> None:
        """Begin with these trials, planned when so many agents are there."""
        speed = Speed(seconds_per_token=0, seconds_per_token_parameter=0, num_agents=2)
        self.store.set_meta("speed", speed.model_dump_json())
        self.store.set_meta("token_scale", "1.0")
        trials = tuple(PlannedTrial(role="space", reason="a test", assignment=one) for one in assignments)
        self.planner.given = [Plan(stage="given", trials=trials)]
        self.planner.is_ready = lambda: sum(row.state == "idle" for row in self.store.agents()) >= num_agents
        self.coordinator.begin()

    def until(self, condition: Callable[[], Any], *, max_seconds: float = 420.0) -> None:
        """Turn until the condition holds."""
        self.planner.listening = True  # also for what comes after the last trial's end
        deadline = time.monotonic() + max_seconds
        while time.monotonic() < deadline:
            if condition():
                return
            self.coordinator.turn()
        raise AssertionError("waited in vain:\n" + "\n".join(self.notes))

    def finish(self) -> Verdict:
        """Turn to the end; what the history says."""
        self.until(lambda: (found := {row.state for row in self.store.trials()}) and found <= {"succeeded", "failed"})
        return check_history(history_of(self.store))

    def attempts_of(self, trial_id: str) -> list[AttemptRow]:
        """Attempts of one trial, first to last."""
        return [attempt for attempt in self.store.attempts() if attempt.trial_id == trial_id]

    def agent(self, name: str) -> AgentRow:
        return next(row for row in self.store.agents() if row.agent == name)

    def is_training(self, trial_id: str, *, epoch: int = 1, least_done: float = 0.0) -> bool:
        """Whether a trial is on its way under this epoch."""
        return any(
            (row.trial_id, row.state, row.epoch) == (trial_id, "running", epoch) and row.done_fraction > least_done
            for row in self.store.trials()
        )


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., GivenRun]]:
    """A function of a fleet and a lease in seconds."""
    made: list[GivenRun] = []

    def make(fleet: Fleet, *, lease_seconds: float = PACED_LEASE_SECONDS) -> GivenRun:
        made.append(GivenRun(tmp_path / f"run-{len(made)}", fleet, lease_seconds))
        return made[-1]

    yield make
    for run in made:
        run.coordinator.end()
        run.store.close()
