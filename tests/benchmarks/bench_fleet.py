"""No-op trials a second through the real coordinator, store and Ray fleet, beside Ray Tune and Optuna; and their cost.

    python tests/benchmarks/bench_fleet.py [speed|size|memory] [--rounds 5] [--json]

speed   ours, Ray Tune (with and without its log files), Optuna with SQLite, in turns, every run a process of its own on
        the same cores. A no-op trial is the peers' function that returns at once: a `TrainAssignment` of the shipped
        kind is planned, leased, started on an agent, reported and committed as always; only the worker's training is
        replaced by an observation that is there already.
size    cost of the last trials of a run whose store holds 100 to 100,000 trials, by the clock and by the coordinator's
        processor time, and the time to take up such a run.
memory  highest resident memory of a simulated study with 10,000 trials on 1,000 agents; `speed` tells that of its runs.

Trials a second are counted from a quarter of the trials to the last: nobody's start is in them. Our trial has ended
when its result is durable (SQLite, synchronous=FULL) and shown; Optuna's when its storage returned from the commit; Ray
Tune's when its callback is told, which is before anything is on the disk.

`make peers` installs the peers; without them our figures stand alone, and the ratios are left out.
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from agent.assignment import BenchAssignment, TrainAssignment
from agent.device import make_provenance
from agent.worker import Worker
from coordinator.budget import Speed
from coordinator.fleet.base import AgentJoined, Fleet, FleetEvent
from coordinator.fleet.ray_fleet import RayFleet
from coordinator.fleet.ray_session import LocalSession
from coordinator.loop import Coordinator, work_directory
from coordinator.plan import Plan, PlannedTrial
from coordinator.planning import StudyPlanner, Tally
from coordinator.simulate_fleet import FleetSimulation, simulate_fleet
from coordinator.snapshot import Snapshot
from coordinator.store import Store
from coordinator.study import read_study
from scaling.architecture import Architecture
from scaling.observations import Observation, Progress, TrainingObservation
from scaling.recipes import TrainingRecipe

NUM_AGENTS = 2
PEERS_PYTHON = Path(__file__).parents[2] / ".engines" / "peers" / "bin" / "python"
PEERS_SCRIPT = Path(__file__).with_name("bench_peers.py")
TRIALS = {"archfleet": 2000, "tune": 200, "tune-quiet": 300, "optuna": 100}
"""Enough of each for some seconds a round."""
SIZES = (100, 1000, 10_000, 100_000)
NUM_LAST = 500
"""At each size the last so many trials are timed, or all where there are fewer."""
SIZE_ROUNDS = 3
"""At most: to fill a store with 100,000 trials takes a minute or two, and every run starts a Ray of its own."""
RUN_TIMEOUT_SECONDS = 300.0
GOAL_RATIO, GOAL_RESTART_SECONDS, GOAL_BYTES = 10.0, 2.0, 300e6
CONFIDENCE = 0.95
CORPUS_ID = "0" * 64
STAGE = "no-ops"
SHAPE = Architecture(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=300,
)


class NoopWorker(Worker):
    """A worker whose trainings have ended when they begin."""

    def prepare(self) -> None:
        """Nothing is needed."""

    def run(self, assignment: TrainAssignment | BenchAssignment) -> Generator[Progress | Observation, None, None]:
        """One observation, at once."""
        assert isinstance(assignment, TrainAssignment)
        yield noop_observation(assignment, self.agent_name)


def noop_observation(assignment: TrainAssignment, agent: str) -> TrainingObservation:
    """What a training that did nothing reports."""
    return TrainingObservation(
        assignment_id=assignment.id,
        architecture=assignment.architecture,
        recipe=assignment.recipe,
        corpus_id=assignment.corpus_id,
        loss=0.0,
        loss_standard_error=0.0,
        window_losses=(),
        num_tokens=1,
        tokens_per_second=0.0,
        train_seconds=0.0,
        curve=(),
        provenance=make_provenance(agent=agent, started_at_unix=time.time(), seconds=0.0),
    )


class NoopPlanner(StudyPlanner):
    """Plans nothing: the trials are in the store. Finished when they have ended; what they say is not looked at."""

    def due(self, tally: Tally) -> bool:
        """When nothing is left."""
        return tally.unfinished.get("train", 0) == 0

    def next_plan(self, state: object) -> Plan | None:
        """Never anything."""
        return None

    def is_finished(self, state: object) -> bool:
        """Asked only when nothing is left."""
        return True

    def fit(self, study: object, observations: object) -> None:
        """No-op trials say nothing of any law."""

    def conclude(self, state: object, *, now_unix: float) -> None:
        """Nothing follows."""


class Stamps:
    """A view that notes when each trial was shown to have ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.processor_seconds: list[float] = []
        """Of this process, all its threads, when each trial ended."""

    def note(self, sentence: str) -> None:
        """A trial's end is told in a sentence with its loss."""
        if "nats/token" in sentence:
            self.ends.append(time.monotonic())
            self.processor_seconds.append(time.process_time())

    def update(self, snapshot: Snapshot) -> None:
        """Nobody watches."""


def make_store(directory: Path, num_trials: int, *, num_done: int = 0) -> None:
    """A run of so many no-op trials, of which the first `num_done` have ended, each in its own rows as ever."""
    planned = tuple(
        PlannedTrial(
            role="space",
            reason="does nothing",
            assignment=TrainAssignment(
                architecture=SHAPE, recipe=TrainingRecipe(num_tokens=512, seed=seed), corpus_id=CORPUS_ID
            ),
        )
        for seed in range(num_trials)
    )
    now = time.time()
    with Store.create(directory, read_study("quick"), now_unix=now) as store, store.transaction():
        store.set_meta(
            "speed", Speed(seconds_per_token=0, seconds_per_token_parameter=0, num_agents=2).model_dump_json()
        )
        store.set_meta("token_scale", "1.0")
        store.add_plan(Plan(stage=STAGE, trials=planned), now_unix=now)
        for trial in planned[:num_done]:
            assert isinstance(trial.assignment, TrainAssignment)
            observation = noop_observation(trial.assignment, "agent-0")
            store.lease(
                trial.trial_id, agent="agent-0", hardware="cpu-generic", epoch=1, now_unix=now, expires_unix=now + 60
            )
            store.record_result(trial.trial_id, 1, observation, now_unix=now)


def run_noops(made: Path) -> dict[str, Any]:
    """A copy of a run, gone on with in this process.

    Returns:
        When each trial ended, seconds to take the run up, processor seconds of this process for all of it, highest
        resident bytes.
    """
    with tempfile.TemporaryDirectory(prefix="archfleet-noops-") as name:
        directory = Path(name) / "run"
        shutil.copytree(made, directory)
        blobs = Path(name) / "blobs"
        blobs.mkdir()
        started = time.monotonic()
        with Store.resume(directory) as store:
            fleet = PatientFleet(
                RayFleet(
                    LocalSession(num_cpus=NUM_AGENTS, record=work_directory(directory) / "ray-session.json"),
                    max_agents=NUM_AGENTS,
                    blob_directory=blobs,
                    work_directory=work_directory(directory),
                    worker=NoopWorker,
                )
            )
            stamps = Stamps()
            coordinator = Coordinator(
                store=store,
                fleet=fleet,
                view=stamps,
                num_agents=NUM_AGENTS,
                corpus_id=CORPUS_ID,
                started_monotonic=started,
                planner=NoopPlanner(),
                free_bytes=lambda _: 10**12,
            )
            if not coordinator.run():
                raise RuntimeError("the no-op run was stopped")
        return {
            "processor_seconds": stamps.processor_seconds,
            "ends": [end - started for end in stamps.ends],
            "take_up_seconds": fleet.started_monotonic - started,
            "resident_bytes": peak_resident_bytes(),
        }


class PatientFleet:
    """A fleet whose agents are announced when all are there, so that the first trials are shared too.

    It notes when it was asked to start: until then the coordinator took its run up.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._held: list[FleetEvent] = []
        self._num_joined = 0
        self.started_monotonic = math.nan

    def start(self) -> None:
        """As the fleet does."""
        self.started_monotonic = time.monotonic()
        self._fleet.start()

    def poll(self, *, timeout_seconds: float) -> list[FleetEvent]:
        """As the fleet does, from the moment when the last agent has joined."""
        events = self._fleet.poll(timeout_seconds=timeout_seconds)
        if self._num_joined >= NUM_AGENTS:
            return events
        self._num_joined += sum(isinstance(event, AgentJoined) for event in events)
        self._held += events
        return self._held if self._num_joined >= NUM_AGENTS else []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fleet, name)


def run_memory() -> dict[str, Any]:
    """A simulated study in this process, SIMULATED agents included in its memory."""
    result = simulate_fleet(FleetSimulation(num_agents=1000, num_trials=10_000))
    return {
        "kept": result["kept"],
        "num_trials": result["num_trials"],
        "wall_seconds": result["wall_seconds"],
        "resident_bytes": peak_resident_bytes(),
    }


def peak_resident_bytes() -> int:
    """The highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rate(ends: Sequence[float]) -> float:
    """Trials a second from a quarter of the ends to the last."""
    begin = len(ends) // 4
    return (len(ends) - 1 - begin) / (ends[-1] - ends[begin])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval (Student's t on logarithms) of ratios, one a round."""
    logs = [math.log(value) for value in values]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


# Each run in a process of its own


def in_a_process(command: Sequence[str]) -> dict[str, Any]:
    """The JSON that a command prints last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ours(what: str, *arguments: str) -> dict[str, Any]:
    """One of our own runs."""
    return in_a_process([sys.executable, __file__, "--one", what, *arguments])


def our_noops(made: Path) -> dict[str, Any]:
    """One run of no-op trials."""
    return ours("noops", str(made))


def measure_speed(rounds: int, scratch: Path) -> dict[str, Any]:
    """Trials a second of everybody, in turns; ratios of each round by itself."""
    peers = [name for name in TRIALS if name != "archfleet"] if PEERS_PYTHON.exists() else []
    rates: dict[str, list[float]] = {name: [] for name in ("archfleet", *peers)}
    resident, processor_ms = [], []
    made = scratch / "speed"
    make_store(made, TRIALS["archfleet"])
    for number in range(rounds):
        order = list(rates) if number % 2 == 0 else list(reversed(rates))
        for name in order:
            if name == "archfleet":
                result = our_noops(made)
                resident.append(result["resident_bytes"])
                processor_ms.append(1000 / rate(result["processor_seconds"]))
            else:
                command = [str(PEERS_PYTHON), str(PEERS_SCRIPT), name, "--trials", str(TRIALS[name])]
                result = in_a_process(command)
            rates[name].append(rate(result["ends"]))
    ratios = {name: interval([a / b for a, b in zip(rates["archfleet"], rates[name], strict=True)]) for name in peers}
    return {
        "trials_per_second": rates,
        "ratios": ratios,
        "goal_ratio": GOAL_RATIO,
        "processor_ms": processor_ms,
        "resident_bytes": max(resident),
    }


def measure_size(rounds: int, scratch: Path) -> list[dict[str, Any]]:
    """Cost of the last trials at each size, the sizes in turns."""
    found: dict[int, dict[str, list[float]]] = {}
    for size in SIZES:
        make_store(scratch / str(size), size, num_done=size - min(NUM_LAST, size))
        found[size] = {"ms": [], "processor_ms": [], "take_up_seconds": []}
    for number in range(rounds):
        for size in SIZES if number % 2 == 0 else reversed(SIZES):
            result = our_noops(scratch / str(size))
            found[size]["ms"].append(1000 / rate(result["ends"]))
            found[size]["processor_ms"].append(1000 / rate(result["processor_seconds"]))
            found[size]["take_up_seconds"].append(result["take_up_seconds"])
    return [
        {"num_trials": size, "goal_take_up_seconds": GOAL_RESTART_SECONDS, **values} for size, values in found.items()
    ]


# For people


def spread(values: Sequence[float], digits: str = ".3g") -> str:
    """Median, and from the least to the greatest."""
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def show_speed(result: Mapping[str, Any], console: Console) -> None:
    """Trials a second and ratios."""
    table = Table(title=f"No-op trials on {NUM_AGENTS} agents, {os.cpu_count()} cores")
    for column in ("who", "trials/s: median (least to greatest)", "ours is so many times as fast (95 % interval)"):
        table.add_column(column)
    for name, rates in result["trials_per_second"].items():
        ratio = result["ratios"].get(name)
        said = "" if ratio is None else f"{ratio[0]:.1f} ({ratio[1]:.1f} to {ratio[2]:.1f})"
        table.add_row(name, spread(rates), said)
    table.caption = f"Goal: {GOAL_RATIO:g} times tune. Our results are durable, those of tune and tune-quiet are not."
    console.print(table)
    if not result["ratios"]:
        console.print("The peers are not installed: `make peers` first.")
    console.print(
        f"The coordinator, Ray's driver included: {spread(result['processor_ms'])} ms of processor time a trial; "
        f"highest resident memory in these runs {result['resident_bytes'] / 1e6:.0f} MB"
    )


def show_size(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Cost by size."""
    table = Table(title=f"Cost of a no-op trial among the last {NUM_LAST}, by trials in the store")
    for column in (
        *("trials in the store", "ms a trial: median (least to greatest)", "of it the coordinator's processor"),
        "seconds to take the run up",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        spreads = (spread(row[name]) for name in ("ms", "processor_ms", "take_up_seconds"))
        table.add_row(f"{row['num_trials']:,}", *spreads)
    table.caption = f"Goals: flat; {GOAL_RESTART_SECONDS:g} s to take up 100,000 trials."
    console.print(table)


def show_memory(result: Mapping[str, Any], console: Console) -> None:
    """Memory of the simulated study."""
    console.print(
        f"SIMULATED study, {result['num_trials']:,} trials on 1,000 agents in {result['wall_seconds']:.0f} s: highest "
        f"resident memory {result['resident_bytes'] / 1e6:.0f} MB, simulated agents included (goal: "
        f"{GOAL_BYTES / 1e6:.0f} MB); history {'kept' if result['kept'] else 'VIOLATED'}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "size", "memory"), help="by default all three")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, *made = arguments.one
        print(json.dumps(run_memory() if kind == "memory" else run_noops(Path(made[0]))))
        return
    console, figures = Console(), {}
    figures["load_before"] = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="archfleet-bench-") as scratch:
        if arguments.what in (None, "speed"):
            figures["speed"] = measure_speed(arguments.rounds, Path(scratch))
        if arguments.what in (None, "size"):
            figures["size"] = measure_size(min(arguments.rounds, SIZE_ROUNDS), Path(scratch))
    if arguments.what in (None, "memory"):
        figures["memory"] = ours("memory")
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    console.print(
        f"Load of this machine before: {figures['load_before']:.1f}. What else runs slows everybody, not alike."
    )
    for name, show in (("speed", show_speed), ("size", show_size), ("memory", show_memory)):
        if name in figures:
            show(figures[name], console)


if __name__ == "__main__":
    main()
