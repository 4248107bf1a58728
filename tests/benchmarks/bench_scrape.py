"""What a scrape costs with many trials in the store: goal, 50 ms with 100,000 trials and 32 agents.

    python tests/benchmarks/bench_scrape.py [--trials 100000]

A scrape is an HTTP request to /metrics of a store in which a tenth of the trials has ended and each of 32 agents holds
one; beside it, how long the store alone takes. Every figure is the median over repeats with its least and greatest.
"""

import argparse
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from bench_store import planned

from agent.assignment import TrainAssignment
from coordinator.metrics import StudyCollector, serve_metrics
from coordinator.plan import Plan, PlannedTrial
from coordinator.store import AgentRow, Store
from coordinator.study import read_study
from scaling.observations import Provenance, TrainingObservation, TrainingPoint

NUM_REPEATS = 20
NUM_AGENTS = 32
KINDS = ("a100-40gb", "a100-80gb", "h200")


def main() -> None:
    """Fill a store, scrape it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100_000)
    num_trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        with Store.create(run, read_study("quick"), now_unix=0) as store:
            fill(store, num_trials)
            with serve_metrics(run, port=0) as port:
                text = fetch(port)
                told = f"{num_trials:,} trials, {sum(not line.startswith('#') for line in text.splitlines()):,} series"
                tell(f"one scrape over HTTP, {told}", lambda: fetch(port))
            collector = StudyCollector(run)
            tell("collecting alone", lambda: list(collector.collect()))


def tell(what: str, act: Callable[[], object]) -> None:
    """Print the median of repeats with its spread."""
    values = []
    for _ in range(NUM_REPEATS):
        started = time.perf_counter()
        act()
        values.append(1e3 * (time.perf_counter() - started))
    values.sort()
    print(f"{what}: {statistics.median(values):.3g} ms [{values[0]:.3g}, {values[-1]:.3g}], goal 50", flush=True)


def fetch(port: int) -> str:
    """What Prometheus would get."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def fill(store: Store, num_trials: int) -> None:
    """Queue trials, end a tenth of them, and leave every agent with one."""
    trials = tuple(planned(seed) for seed in range(num_trials))
    store.add_plan(Plan(stage="first-round", trials=trials), now_unix=0)
    ended = num_trials // 10
    with store.transaction():
        for number, planned in enumerate(trials[: ended + NUM_AGENTS]):
            agent, hardware = f"agent-{number % NUM_AGENTS}", KINDS[number % NUM_AGENTS % len(KINDS)]
            trial_id, began = planned.trial_id, float(number)
            lease = {"agent": agent, "hardware": hardware, "epoch": 1, "now_unix": began, "expires_unix": began + 60}
            store.lease(trial_id, **lease)
            if number < ended:
                store.record_result(trial_id, 1, _observation(planned, agent, hardware), now_unix=began + number % 600)
        for number in range(NUM_AGENTS):
            _join(store, f"agent-{number}", KINDS[number % len(KINDS)])


def _join(store: Store, agent: str, hardware: str) -> None:
    versions = {"archfleet": "1", "torch": "2.9", "driver": "580", "cuda": "13.0"}
    seen = {"heartbeat_unix": 0.0, "joined_unix": 0.0, "clock_offset_seconds": 0.1}
    store.upsert_agent(AgentRow(agent=agent, hardware=hardware, state="busy", pid=1, versions=versions, **seen))
    for _ in range(100):
        store.add_canary(agent=agent, hardware=hardware, kind="gemm", rate=1.0, deviation=0.01, now_unix=0)


def _observation(planned: PlannedTrial, agent: str, hardware: str) -> TrainingObservation:
    assignment = planned.assignment
    assert isinstance(assignment, TrainAssignment)
    return TrainingObservation(
        assignment_id=assignment.id,
        architecture=assignment.architecture,
        recipe=assignment.recipe,
        corpus_id=assignment.corpus_id,
        loss=2.5,
        loss_standard_error=0.01,
        window_losses=tuple([2.5] * 64),
        num_tokens=1_000_000,
        tokens_per_second=30_000,
        train_seconds=30,
        curve=(TrainingPoint(num_tokens=1_000_000, loss=2.5, learning_rate=0.008, gradient_norm=1),),
        provenance=Provenance(
            agent=agent, hostname="h", device="d", hardware=hardware, started_at_unix=0, seconds=30, versions={}
        ),
    )


if __name__ == "__main__":
    main()
