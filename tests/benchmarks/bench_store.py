"""What the store costs: durable progress events, whole trials at three sizes, a restart and the counts of a scrape.

    python tests/benchmarks/bench_store.py [--trials 100000]

Goals on two cores: 40,000 durable progress events a second in group commits; the cost of a trial flat from 100 to
100,000 trials in the store; a restart with 100,000 trials within 2 s; the counts of a scrape within 50 ms.
Every figure is the median over repeats with its least and greatest; commits are synchronous=FULL on this disk. Of a
trial the processor time is told too: with a hundred trials a commit the disk's part of it varies threefold by the hour.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.assignment import TrainAssignment
from coordinator.plan import Plan, PlannedTrial
from coordinator.store import Store, StoreReader
from coordinator.study import read_study
from coordinator.trials import Trials
from scaling.architecture import Architecture
from scaling.observations import Failure, Progress, Provenance
from scaling.recipes import TrainingRecipe

NUM_REPEATS = 5
EVENTS_A_COMMIT = 1_000
TRIALS_A_COMMIT = 100
WHERE = Provenance(
    agent="a", hostname="h", device="d", hardware="cpu-generic", started_at_unix=0, seconds=1, versions={}
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    num_trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as directory:
        store = Store.create(Path(directory) / "run", read_study("quick"), now_unix=0)
        sizes = sorted({100, 10_000, num_trials})
        for size in sizes:
            fill(store, size)
            trial_seconds(store, time.process_time)  # the first is slower: statements are prepared
            what = f"a trial from lease to result, {size:,} in the store"
            tell(what, "us", lambda: trial_seconds(store, time.perf_counter), 1e6)
            tell(f"{what}: processor", "us", lambda: trial_seconds(store, time.process_time), 1e6)
        tell("durable progress events", "a second", lambda: 1 / progress_seconds(store), 1, "goal 40,000")
        tell("one progress event, committed alone", "us", lambda: single_seconds(store), 1e6)
        run_directory = store.run_directory
        tell("counts of a scrape", "ms", lambda: scrape_seconds(run_directory), 1e3, "goal 50")
        store.close()
        tell(f"restart with {num_trials:,} trials", "s", lambda: restart_seconds(run_directory), 1, "goal 2")
        size = sum(path.stat().st_size for path in run_directory.iterdir())
        print(f"the store is {size / 1e6:,.0f} MB")


def tell(what: str, unit: str, measure: Callable[[], float], scale: float, goal: str = "") -> None:
    """Print the median of repeats with its spread."""
    values = sorted(scale * measure() for _ in range(NUM_REPEATS))
    spread = f"{statistics.median(values):,.4g} {unit} [{values[0]:,.4g}, {values[-1]:,.4g}]"
    print(f"{what}: {spread}{f', {goal}' if goal else ''}", flush=True)


def fill(store: Store, num_trials: int) -> None:
    """Queue trials until there are so many."""
    have = sum(count.num for count in store.counts())
    if have < num_trials:
        trials = tuple(planned(seed) for seed in range(have, num_trials))
        store.add_plan(Plan(stage=f"fill-{num_trials}", trials=trials), now_unix=0)


def planned(seed: int) -> PlannedTrial:
    """A training of one small shape."""
    architecture = Architecture(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=512,
    )
    recipe = TrainingRecipe(num_tokens=1_000_000, seed=seed)
    assignment = TrainAssignment(architecture=architecture, recipe=recipe, corpus_id="c" * 64)
    return PlannedTrial(role="space", reason="to fill the store", assignment=assignment)


def trial_seconds(store: Store, clock: Callable[[], float]) -> float:
    """Lease, one progress event, and the end of trials, in group commits; seconds a trial by a clock."""
    queued = store._database.rows(f"SELECT trial_id, epoch FROM trials WHERE state = 'queued' LIMIT {TRIALS_A_COMMIT}")
    started = clock()
    with store.transaction():
        for trial_id, epoch in queued:
            store.lease(trial_id, agent="a", hardware="cpu-generic", epoch=epoch + 1, now_unix=1, expires_unix=61)
            store.record_progress(trial_id, Progress(assignment_id=trial_id, done_fraction=0.5), expires_unix=62)
    with store.transaction():
        for trial_id, epoch in queued:
            failure = Failure(assignment_id=trial_id, failure_kind="preempted", message="again", provenance=WHERE)
            store.record_failure(trial_id, epoch + 1, failure, final=False, now_unix=2)
    return (clock() - started) / len(queued)


def progress_seconds(store: Store) -> float:
    """Progress of different trials in group commits; seconds an event."""
    trials = [row[0] for row in store._database.rows(f"SELECT trial_id FROM trials LIMIT {EVENTS_A_COMMIT}")]
    events = [Progress(assignment_id=trial_id, done_fraction=0.5, message="step") for trial_id in trials]
    num_commits = 20
    started = time.perf_counter()
    for number in range(num_commits):
        with store.transaction():
            for event in events:
                store.record_progress(event.assignment_id, event, expires_unix=number)
    return (time.perf_counter() - started) / (num_commits * len(events))


def single_seconds(store: Store) -> float:
    """One event a commit: what a sync of this disk costs."""
    (trial_id,) = store._database.row("SELECT trial_id FROM trials LIMIT 1") or ("",)
    event = Progress(assignment_id=trial_id, done_fraction=0.5)
    started = time.perf_counter()
    for number in range(100):
        store.record_progress(trial_id, event, expires_unix=number)
    return (time.perf_counter() - started) / 100


def scrape_seconds(run_directory: Path) -> float:
    """Open the store, and read every tally a scrape needs."""
    started = time.perf_counter()
    with StoreReader.open(run_directory) as reader:
        reader.counts(), reader.attempt_counts(), reader.rejection_counts()
        reader.durations(), reader.queue_waits(), reader.agents(), reader.counters()
    return time.perf_counter() - started


def restart_seconds(run_directory: Path) -> float:
    """Open for writing, check the file, put back what ran, and take up every trial, here all of them unfinished.

    `bench_fleet.py size` tells what the whole coordinator takes for a run whose trials have ended but for the last.
    """
    started = time.perf_counter()
    with Store.resume(run_directory) as store:
        store.requeue_running(now_unix=3)
        Trials().add(store.trials())
        store.attempts(unfinished=True)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
