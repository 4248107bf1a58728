"""A small corpus, trainings on it that are long enough to be interrupted, and runs of given trials on a real fleet."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from agent.training.corpus import build_stdlib_corpus
from coordinator.budget import Speed
from coordinator.fleet.base import Fleet
from coordinator.history import Verdict, check_history, history_of
from coordinator.loop import Coordinator
from coordinator.plan import Plan, PlannedTrial
from coordinator.planning import StudyPlanner, Tally
from coordinator.snapshot import Snapshot
from coordinator.store import AgentRow, Store
from coordinator.study import read_study
from scaling.architecture import Architecture
from scaling.recipes import FanIns, TrainingRecipe

VOCAB_SIZE = 300


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token that only this user can read, and Ray told to ask for it."""
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("0123456789abcdef" * 4)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return file


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
    """About half a minute of training."""
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
        num_tokens=5_120_000,
        sequence_length=32,
        batch_tokens=256,
        base_fan_ins=FanIns(hidden=32, attention=32, mlp=40),
    )
    return TrainAssignment(architecture=architecture, recipe=recipe, corpus_id=corpus_id, num_eval_windows=24)


@pytest.fixture
def make_training(long_training: TrainAssignment) -> Callable[..., TrainAssignment]:
    """Trainings of some seconds each, by seed."""

    def make(seed: int, *, num_tokens: int = 512_000, checkpoint_every_seconds: float = 0.5) -> TrainAssignment:
        recipe = long_training.recipe.model_copy(update={"seed": seed, "num_tokens": num_tokens})
        return long_training.model_copy(update={"recipe": recipe, "checkpoint_every_seconds": checkpoint_every_seconds})

    return make


class GivenTrials(StudyPlanner):
    """Plans nothing: the trials are in the store. Finished when they have ended."""

    def due(self, tally: Tally) -> bool:
        return not any(tally.unfinished.values())

    def next_plan(self, state: object) -> Plan | None:
        return None

    def is_finished(self, state: object) -> bool:
        return True

    def fit(self, study: object, observations: object) -> None:
        pass

    def conclude(self, state: object, *, now_unix: float) -> None:
        pass


class GivenRun:
    """A run of given trials: real coordinator and store, the fleet as the test makes it; moved on turn by turn."""

    def __init__(self, directory: Path, fleet: Fleet, lease_seconds: float) -> None:
        self.store = Store.create(directory, read_study("quick"), now_unix=0.0)
        self.notes: list[str] = []
        self.coordinator = Coordinator(
            store=self.store,
            fleet=fleet,
            view=self,
            num_agents=2,
            corpus_id="unused",
            started_monotonic=time.monotonic(),
            planner=GivenTrials(),
            lease_seconds=lease_seconds,
        )

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def update(self, snapshot: Snapshot) -> None:
        pass

    def begin(self, assignments: Sequence[TrainAssignment | BenchAssignment]) -> None:
        speed = Speed(seconds_per_token=0, seconds_per_token_parameter=0, num_agents=2)
        self.store.set_meta("speed", speed.model_dump_json())
        self.store.set_meta("token_scale", "1.0")
        trials = tuple(PlannedTrial(role="space", reason="a test", assignment=one) for one in assignments)
        self.store.add_plan(Plan(stage="given", trials=trials), now_unix=0.0)
        self.coordinator.begin()

    def until(self, condition: Callable[[], Any], *, max_turns: int = 400) -> None:
        """Turn until the condition holds; a turn is half a second, or less where something happens."""
        for _ in range(max_turns):
            if condition():
                return
            self.coordinator.turn()
        raise AssertionError("waited in vain:\n" + "\n".join(self.notes))

    def finish(self) -> Verdict:
        """Turn to the end; what the history says."""
        self.until(lambda: {row.state for row in self.store.trials()} <= {"succeeded", "failed"})
        return check_history(history_of(self.store))

    def agent(self, name: str) -> AgentRow:
        return next(row for row in self.store.agents() if row.agent == name)

    def is_training(self, trial_id: str, *, epoch: int = 1, least_done: float = 0.0) -> bool:
        """Whether a trial is on its way under this epoch."""
        row = next(row for row in self.store.trials() if row.trial_id == trial_id)
        return (row.state, row.epoch) == ("running", epoch) and row.done_fraction > least_done


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., GivenRun]]:
    """A function of a fleet and a lease in seconds."""
    made: list[GivenRun] = []

    def make(fleet: Fleet, *, lease_seconds: float = 30.0) -> GivenRun:
        made.append(GivenRun(tmp_path / f"run-{len(made)}", fleet, lease_seconds))
        return made[-1]

    yield make
    for run in made:
        run.coordinator.end()
        run.store.close()
