"""Runs the real command in a process of its own, as a user would, and looks at it from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from coordinator.errors import StoreError
from coordinator.runs import list_runs
from coordinator.store import StoreReader, TrialRow

# The smallest study that passes through every stage; runs are long enough to be killed in the middle.
TINY_STUDY = """
schema_version = 1
name = "tiny"

[corpus]
source = "{text}"
vocab_size = 300
num_eval_windows = 32

[space]
num_hidden_layers = 2
head_dim = 16
query_group_size = 2
hidden_multiple_of = 4
intermediate_multiple_of = 4
x_min = 0.12
x_max = 0.5
tolerance = 0.05

[training]
sequence_length = 64
batch_tokens = 512

[[reference]]
num_parameters = 25e3
tokens_per_parameter = 4

[fit]
num_parameters = 25e3
tokens_per_parameter = 8
num_space_shapes = 6
num_centre_replicates = 1
num_rounds = 1
num_runs_per_round = 1

[target]
num_parameters = 40e3
tokens_per_parameter = 4
num_validation_seeds = 1

[serving]
num_candidates = 1
num_repeats = 3
min_window_seconds = 0.2

[serving.recipe]
engine = "fake"
dtype = "float32"

[serving.workload]
batch_size = 4
input_tokens = 8
output_tokens = 8

[budget]
wall_minutes = 30
checkpoint_every_seconds = 0.5
"""


@dataclass
class Command:
    """One `archfleet` process."""

    process: subprocess.Popen[str]
    log: Path

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self, timeout_seconds: float) -> str:
        self.process.wait(timeout_seconds)
        return self.log.read_text()


@dataclass
class UserFolder:
    """A folder in which archfleet is used."""

    folder: Path

    def start(self, *arguments: str) -> Command:
        log = self.folder / f"log-{time.monotonic_ns()}.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "coordinator.cli", *arguments],
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        return Command(process, log)

    def processes_of(self, folder: Path) -> list[psutil.Process]:
        return processes_of(folder)

    @property
    def run_directory(self) -> Path:
        return list_runs(self.folder / "runs")[-1]

    def trials(self) -> dict[str, TrialRow]:
        with StoreReader.open(self.run_directory) as store:
            return {trial.trial_id: trial for trial in store.trials()}

    def wait_for(self, condition: Callable[["UserFolder"], bool], command: Command, *, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            assert command.process.poll() is None, f"ended too early:\n{command.log.read_text()}"
            try:
                if condition(self):
                    return
            except (IndexError, StoreError):
                pass  # the run is not there yet
            time.sleep(0.05)
        raise AssertionError(f"waited {timeout_seconds} s in vain:\n{command.log.read_text()}")


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living processes that were started in or for this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def user_folder(tmp_path: Path) -> Iterator[UserFolder]:
    yield UserFolder(tmp_path)
    _end_all(tmp_path)


@pytest.fixture(scope="session")
def shared_user_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserFolder]:
    folder = tmp_path_factory.mktemp("shared")
    yield UserFolder(folder)
    _end_all(folder)


def _end_all(folder: Path) -> None:
    for process in processes_of(folder):
        process.kill()
    for record in folder.glob("runs/*/agents/ray-session.json"):  # of a run that was killed and not taken up again
        shutil.rmtree(json.loads(record.read_text())["directory"], ignore_errors=True)


@pytest.fixture
def tiny_study(tmp_path: Path) -> Path:
    """A study on text that every checkout has: this project's own source."""
    text = tmp_path / "text"
    text.mkdir()
    root = Path(__file__).parents[2]
    for number, source in enumerate(sorted([*root.glob("scaling/*.py"), *root.glob("coordinator/*.py")])):
        (text / f"{number}.txt").write_text(source.read_text())
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_STUDY.format(text=text))
    return path
