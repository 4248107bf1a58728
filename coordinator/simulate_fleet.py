"""`archfleet simulate fleet`: a whole study on a simulated fleet with faults, through the real coordinator.

The real planner, dispatch, store and loop run; agents, time and faults are simulated (`fleet/simulated.py`). The
coordinator is dropped now and then between two of its acts, as a kill would do it, and a new one goes on from the
store. At the end `coordinator/history.py` looks through what the store and the fleet remember. SIMULATED: it tells of
the coordinator's bookkeeping, nothing of models or devices.
"""

import math
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator.budget import Speed
from coordinator.errors import UserError
from coordinator.fleet.simulated import (
    ALL_FAULTS,
    FAULT_NAMES,
    CoordinatorCrash,
    Faults,
    SimulatedFleet,
    Started,
    VirtualClock,
)
from coordinator.fleet.simulated_world import SPEEDS, SimulatedWorld, truth_with_optimum
from coordinator.history import Fact, Leased, check_history, history_of
from coordinator.loop import Coordinator
from coordinator.shapes import check_feasible
from coordinator.snapshot import Snapshot
from coordinator.store import FILE_NAME, Store
from coordinator.study import StudySpec, parse_study, read_study
from scaling.observations import Failure

MIX = {"h200": 3, "a100-80gb": 4, "cpu-generic": 1}
"""Parts of each hardware in a fleet."""
CORPUS_ID = "5" * 64
MIN_TRIALS, MAX_ROUNDS = 100, 5
RUNS_PER_ROUND = 64
"""Rounds are at least this large, so that the fleet does not run dry while the next is planned."""
FREE_BYTES = 10**12
"""Of the simulated disk."""
NUM_VIEWS, REFIT_SHARE = 40, 1.0
"""Simulated time passes so fast that showing and refitting as often as in a real run would take most of it."""
DOWN_SECONDS = 30.0
"""From a coordinator's crash to its next start."""
NUM_TRIALS_OF_A_STUDY = 100
"""About as many, where the study says how many itself: it tells only how often to look, and when to give up."""
GIVE_UP_FACTOR = 5.0
"""A study is stuck that takes this many times as long as with every agent of the slowest hardware, and over a day."""
BATCH_TOKENS = 512
MIN_SAMPLES = 8
ASSUMPTIONS = (
    "SIMULATED: times follow from assumed speeds (40 % of the data sheets' peaks and some milliseconds a step), losses "
    "from a known law, faults from made-up rates. The planner, dispatch, store and loop are the real ones."
)


@dataclass(frozen=True, kw_only=True)
class FleetSimulation:
    """What is simulated."""

    num_agents: int = 64
    num_trials: int = 10_000
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    accelerator_hours: float | None = None
    """Granted to the study; null for what the study's own budget says, or no limit."""
    study: str | None = None
    """A shipped study or a study file; null for one made of as many trials as are asked for."""


def simulated_study(num_trials: int) -> StudySpec:
    """The shipped study `laptop`, made so large that its planner asks for about so many trials.

    Raises:
        UserError: too few for its stages.
    """
    if num_trials < MIN_TRIALS:
        raise UserError(f"{num_trials} trials are too few for a study's stages; ask for --trials {MIN_TRIALS} or more.")
    table = read_study("laptop").model_dump(mode="json")
    table["name"] = "simulated-fleet"
    table["description"] = "SIMULATED: a large study for the simulated fleet"
    table["corpus"]["num_eval_windows"] = 2
    table["reference"] = [
        {"num_parameters": 100e3, "tokens_per_parameter": 240, "num_shapes": 6},
        {"num_parameters": 100e3, "tokens_per_parameter": 480},
        {"num_parameters": 200e3, "tokens_per_parameter": 120},
    ]
    table["fit"] |= {"num_parameters": 200e3, "tokens_per_parameter": 240, "num_space_shapes": 24}
    table["fit"]["num_centre_replicates"] = 8
    table["target"] |= {"num_parameters": 400e3, "tokens_per_parameter": 120}
    table["serving"]["recipe"] |= {"engine": "fake", "dtype": "bfloat16"}
    table["serving"]["num_candidates"] = 8
    # All but the rounds: first round, benchmarks, runs at the target.
    fixed = 24 + 8 + 8 + 9 + 5
    num_rounds = max(1, min(MAX_ROUNDS, (num_trials - fixed) // RUNS_PER_ROUND))
    table["fit"] |= {"num_rounds": num_rounds, "num_runs_per_round": round((num_trials - fixed) / num_rounds)}
    # Never scaled down for lack of time: the number of trials is what is wanted here.
    table["budget"] |= {"wall_minutes": 1e6, "checkpoint_every_seconds": 60}
    study = parse_study(table, source="the simulated study")
    check_feasible(study)
    return study


def as_simulated(study: StudySpec) -> StudySpec:
    """A study of the user's with the simulated engine, in bfloat16, and called simulated wherever it is named."""
    table = study.model_dump(mode="json")
    table["name"] = f"simulated-{study.name}"[:63]
    table["description"] = f"SIMULATED: {study.description}"
    table["serving"]["recipe"] |= {"engine": "fake", "dtype": "bfloat16"}
    simulated = parse_study(table, source="the simulated study")
    check_feasible(simulated)
    return simulated


def chosen_faults(names: Sequence[str], *, every: bool = False) -> Faults:
    """The named faults at their rates, or all of them.

    Raises:
        UserError: a fault nobody knows.
    """
    if unknown := [name for name in names if name not in FAULT_NAMES]:
        raise UserError(f"fault {unknown[0]!r} is unknown; choose among {', '.join(FAULT_NAMES)}, or --faults for all.")
    return ALL_FAULTS if every else ALL_FAULTS.only(*names)


def fleet_mix(num_agents: int) -> dict[str, int]:
    """Agents by hardware, in the proportions of `MIX`.

    Raises:
        UserError: none at all.
    """
    if num_agents < 1:
        raise UserError(f"{num_agents} agents can do nothing; ask for --agents 1 or more.")
    counts = {hardware: num_agents * part // sum(MIX.values()) for hardware, part in MIX.items()}
    counts["h200"] += num_agents - sum(counts.values())
    return {hardware: count for hardware, count in counts.items() if count}


# The run


@dataclass
class _Watcher:
    """The view of a simulated run: tells how far it is, and samples what the process holds."""

    run_directory: Path
    clock: VirtualClock
    progress: Callable[[int, int], None]
    notes: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, float]] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Notes are for people who watch; nobody does."""

    def update(self, snapshot: Snapshot) -> None:
        """Tell the progress bar, and sample a few dozen times in all."""
        self.progress(snapshot.num_done, snapshot.num_expected)
        if not self.samples or snapshot.num_done - self.samples[-1]["num_done"] >= snapshot.num_expected / 40:
            self.samples.append(self.sample(snapshot.num_done))

    def sample(self, num_done: int) -> dict[str, float]:
        """Resident memory, open files, the store's write-ahead log in bytes, and the series that a scrape gives."""
        wal = self.run_directory / f"{FILE_NAME}-wal"
        # Scraped first: SQLite keeps a reader's file for the next one while the writer has the store open.
        num_series = _num_series(self.run_directory)
        return {
            "num_done": num_done,
            "resident_bytes": _resident_bytes(),
            "num_open_files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
            "wal_bytes": wal.stat().st_size if wal.exists() else 0,
            "num_series": num_series,
        }


def simulate_fleet(
    what: FleetSimulation,
    *,
    out: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, expected: None,
) -> dict[str, Any]:
    """Run the study to its end, whatever happens, and check its history.

    Args:
        what: is simulated.
        out: a new run directory that keeps the store, for `archfleet serve` and `archfleet report`; null keeps nothing.
        progress: is told how many trials are done, of how many.

    Raises:
        UserError: too few trials or agents, no such study, or a run in `out` already.
    """
    study = simulated_study(what.num_trials) if what.study is None else as_simulated(read_study(what.study))
    mix = fleet_mix(what.num_agents)
    with _scratch_directory() as directory:
        return _Simulation(what, study, mix, out or directory / "simulated-fleet", progress).run()


class _Simulation:
    def __init__(
        self,
        what: FleetSimulation,
        study: StudySpec,
        mix: dict[str, int],
        run_directory: Path,
        progress: Callable[[int, int], None],
    ) -> None:
        self._what = what
        self._clock = VirtualClock()
        best_x = math.sqrt(study.space.x_min * study.space.x_max)
        truth = truth_with_optimum(best_x, name=study.name)
        self._world = (
            SimulatedWorld(seed=what.seed) if what.study is None else SimulatedWorld(seed=what.seed, truth=truth)
        )
        self._fleet = SimulatedFleet(
            mix,
            clock=self._clock,
            world=self._world,
            faults=what.faults,
            seed=what.seed,
        )
        self._store = Store.create(run_directory, study, now_unix=self._clock.wall())
        self._store.set_meta("simulated", "1")
        self._watcher = _Watcher(run_directory, self._clock, progress)
        self._acknowledged: dict[str, int] = {}
        self._num_crashes = 0
        speeds = [SPEEDS[hardware].seconds_per_token(study.fit.num_parameters, BATCH_TOKENS) for hardware in mix]
        run_tokens = study.fit.num_parameters * study.fit.tokens_per_parameter
        runs_per_agent = 5 + (what.num_trials if what.study is None else NUM_TRIALS_OF_A_STUDY) / what.num_agents
        self._view_seconds = min(speeds) * run_tokens * runs_per_agent / NUM_VIEWS
        self._give_up_seconds = max(86_400.0, GIVE_UP_FACTOR * max(speeds) * run_tokens * runs_per_agent)
        hours = what.accelerator_hours if what.accelerator_hours is not None else study.budget.accelerator_hours
        self._granted_seconds = None if hours is None else 3600 * hours
        self._stopped_because: str | None = None

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        finished = False
        try:
            while not finished and self._stopped_because is None and not self._is_stuck():
                finished = self._run_coordinator()
            self._store.set_meta("state", "finished" if finished else "interrupted")
            return self._result(self._store, finished=finished, wall_seconds=time.monotonic() - started)
        finally:
            self._store.close()

    def _run_coordinator(self) -> bool:
        """One life of the coordinator; whether it came to the study's end."""
        coordinator = Coordinator(
            store=self._store,
            fleet=self._fleet,
            view=self._watcher,
            num_agents=self._fleet.num_agents,
            corpus_id=CORPUS_ID,
            started_monotonic=self._clock.monotonic(),
            granted_seconds=self._granted_seconds,
            monotonic=self._clock.monotonic,
            wall=self._clock.wall,
            free_bytes=lambda _: FREE_BYTES,
            view_seconds=self._view_seconds,
            refit_share=REFIT_SHARE,
        )
        try:
            coordinator.begin()
            finished = False
            while not finished and not self._is_stuck():
                finished = coordinator.turn()
            coordinator.end()
        except CoordinatorCrash:
            self._start_again()
            return False
        except UserError as error:  # the granted hours are spent
            self._stopped_because = str(error)
            coordinator.end()
        return finished

    def _start_again(self) -> None:
        """The old process is gone: what it committed is what there is, and none of it may ever be missing."""
        self._num_crashes += 1
        self._acknowledged |= _accepted(self._store)
        self._store.close()
        self._clock.seconds += DOWN_SECONDS
        self._store = Store.resume(self._store.run_directory)

    def _is_stuck(self) -> bool:
        return self._clock.seconds > self._give_up_seconds

    # What came of it

    def _result(self, store: Store, *, finished: bool, wall_seconds: float) -> dict[str, Any]:
        trials = store.trials()
        facts = _facts(store)
        verdict = check_history(facts, granted_seconds=self._granted_seconds, acknowledged=self._acknowledged)
        violations = [*verdict.violations, *contradictions(facts, self._fleet.started)]
        if not finished and self._stopped_because is None:
            violations.append(f"the study did not end within {self._clock.seconds / 3600:,.0f} simulated hours")
        failures = Counter(o.failure_kind for o in store.observations() if isinstance(o, Failure))
        fleet_seconds = self._clock.seconds * self._fleet.num_agents
        done = [trial for trial in trials if trial.state == "succeeded"]
        useful = sum(self._world.seconds(t.planned.assignment, t.hardware or "h200") for t in done)
        ideal_seconds = self._ideal_seconds([trial.planned.assignment for trial in done])
        return {
            "simulated": True,
            "assumptions": ASSUMPTIONS,
            "agents": self._fleet.hardware,
            "seed": self._what.seed,
            "kept": not violations,
            "violations": violations,
            "finished": finished,
            "stopped_because": self._stopped_because,
            "granted_accelerator_hours": None if self._granted_seconds is None else self._granted_seconds / 3600,
            "num_trials": len(trials),
            "num_succeeded": verdict.num_succeeded,
            "num_failed": verdict.num_failed,
            "num_attempts": verdict.num_attempts,
            "num_acknowledged_at_crashes": len(self._acknowledged),
            "coordinator_crashes": self._num_crashes,
            "faults": dict(sorted(self._fleet.struck.items())),
            "failed_attempts": dict(sorted(failures.items())),
            "rejected_reports": dict(sorted(Counter(reason for reason, *_ in store.rejections()).items())),
            "simulated_hours": self._clock.seconds / 3600,
            "fleet_hours": fleet_seconds / 3600,
            "utilisation": self._fleet.busy_seconds / fleet_seconds,
            "useful_share": useful / fleet_seconds,
            "accelerator_hours": verdict.spent_seconds / 3600,
            "ideal_hours": ideal_seconds / 3600,
            "ideal_accelerator_hours": ideal_seconds * self._fleet.num_agents / 3600,
            "events": self._fleet.num_events,
            "wall_seconds": wall_seconds,
            "soak": _soak(self._watcher.samples),
        }

    def _ideal_seconds(self, assignments: Sequence[TrainAssignment | BenchAssignment]) -> float:
        """Seconds that these take if no agent ever waits, fails or repeats: all hardware at its rate, work divisible.

        A lower bound: 1 / sum over hardware of (agents / seconds that one of them takes for everything).
        """
        rates = [
            count / max(sum(self._world.seconds(one, hardware) for one in assignments), 1e-9)
            for hardware, count in self._fleet.hardware.items()
        ]
        return 1 / sum(rates) if assignments else 0.0


def _facts(store: Store) -> list[Fact]:
    """The store's history, with what was reserved for every attempt as its estimate says."""
    speed = store.meta("speed")
    assert speed is not None, "agents are priced before anything is leased"
    price = Speed.model_validate_json(speed).assignment_seconds
    seconds = {trial.trial_id: price(trial.planned.assignment) for trial in store.trials()}
    return [
        replace(fact, seconds=seconds[fact.trial_id]) if isinstance(fact, Leased) else fact
        for fact in history_of(store)
    ]


def contradictions(facts: Sequence[Fact], started: Sequence[Started]) -> list[str]:
    """Where the fleet remembers something else than the store: nothing is started twice, or without being written."""
    leased = {(fact.trial_id, fact.epoch, fact.agent) for fact in facts if isinstance(fact, Leased)}
    times = Counter((one.trial_id, one.epoch, one.agent) for one in started)
    twice = [f"{trial}: epoch {epoch} was started {n} times" for (trial, epoch, _), n in times.items() if n > 1]
    unwritten = [
        f"{trial}: {agent} started epoch {epoch}, of which the store knows nothing"
        for trial, epoch, agent in times
        if (trial, epoch, agent) not in leased
    ]
    return [*twice, *unwritten]


def _accepted(store: Store) -> dict[str, int]:
    return {row.trial_id: row.epoch for row in store.attempts() if row.outcome == "succeeded"}


# What the process holds


def _soak(samples: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Growth over the second half of the run, per trial; null for a run too short to tell."""
    if len(samples) < MIN_SAMPLES:
        return dict.fromkeys(("resident_bytes_per_trial", "open_files_growth", "largest_wal_bytes", "series_growth"))
    middle, last = samples[len(samples) // 2], samples[-1]
    num_trials = max(1.0, last["num_done"] - middle["num_done"])
    return {
        "resident_bytes_per_trial": (last["resident_bytes"] - middle["resident_bytes"]) / num_trials,
        "open_files_growth": last["num_open_files"] - middle["num_open_files"],
        "largest_wal_bytes": max(sample["wal_bytes"] for sample in samples),
        "series_growth": last["num_series"] - middle["num_series"],
    }


def _num_series(run_directory: Path) -> float:
    """Time series in one scrape; 0 always where the metrics' library is not installed."""
    try:
        from coordinator.metrics import StudyCollector
    except ModuleNotFoundError:
        return 0.0
    return float(sum(len(family.samples) for family in StudyCollector(run_directory).collect()))


def _resident_bytes() -> float:
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    """In memory where there is such a place: what survives a power loss is tested elsewhere, on real disks."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="archfleet-", dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


# For people


def fleet_table(result: dict[str, Any]) -> Table:
    """The verdict and the figures behind it."""
    kept = "every promise kept" if result["kept"] else f"{len(result['violations'])} PROMISES BROKEN"
    agents = ", ".join(f"{count} {hardware}" for hardware, count in result["agents"].items())
    table = Table(
        title=f"SIMULATED fleet of {agents}, seed {result['seed']}: {kept}",
        caption=result["assumptions"],
        show_header=False,
    )
    table.add_column("what")
    table.add_column("value")
    for name, value in _rows(result):
        table.add_row(name, value)
    return table


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for violation in result["violations"][:10]:
        yield "BROKEN", violation
    if result["stopped_because"] is not None:
        yield "stopped", result["stopped_because"]
    yield (
        "trials",
        f"{result['num_trials']:,}: {result['num_succeeded']:,} succeeded, {result['num_failed']:,} failed, in "
        f"{result['num_attempts']:,} attempts",
    )
    yield (
        "coordinator crashes",
        f"{result['coordinator_crashes']}; {result['num_acknowledged_at_crashes']:,} results stood before the last",
    )
    yield "faults", _counts(result["faults"])
    yield "failed attempts", _counts(result["failed_attempts"])
    yield "refused reports", _counts(result["rejected_reports"])
    yield (
        "simulated time",
        f"{result['simulated_hours']:,.1f} h ({result['fleet_hours']:,.0f} agent-hours); without faults, waiting or "
        f"rounds at least {result['ideal_hours']:,.1f} h",
    )
    yield "utilisation", f"{result['utilisation']:.1%} at work, {result['useful_share']:.1%} on what counted in the end"
    yield (
        "accelerator time",
        f"{result['accelerator_hours']:,.0f} h under lease; {result['ideal_accelerator_hours']:,.0f} h at the least",
    )
    yield "wall time here", f"{result['wall_seconds']:.1f} s for {result['events']:,} events"
    soak = result["soak"]
    if soak["largest_wal_bytes"] is not None:
        yield (
            "soak, second half",
            f"memory {soak['resident_bytes_per_trial'] / 1e3:+.1f} kB a trial, open files "
            f"{soak['open_files_growth']:+.0f}, write-ahead log at most {soak['largest_wal_bytes'] / 1e6:.1f} MB, "
            f"time series {soak['series_growth']:+.0f}",
        )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
