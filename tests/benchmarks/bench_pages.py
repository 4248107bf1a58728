"""What the dashboard's pages cost with many trials in the store: goal, 300 ms for the first page with 10,000 trials.

    python tests/benchmarks/bench_pages.py [--trials 10000] [--run DIRECTORY]

Each page is asked of a source that has just been opened, as the first client does it, then again after the run has gone
on (a fact was added), and again when nothing has changed. Processor seconds of this process, on one core; the median
over repeats with its least and greatest. The run is a simulated fleet's; with --run, one that is there already (it is
copied).
"""

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.dashboard.source import RunSource
from coordinator.fleet.simulated import ALL_FAULTS
from coordinator.simulate_fleet import FleetSimulation, simulate_fleet
from coordinator.store import Store

NUM_REPEATS = 3
GOAL_MS = 300
Ask = Callable[[RunSource], object]
PAGES: dict[str, Ask] = {
    "first page with figures": lambda source: [source.overview(), source.figure("timeline"), source.figure("spend")],
    "overview": lambda source: source.overview(),
    "study": lambda source: source.study(),
    "trials, 200 rows": lambda source: source.trials(after=0, limit=200),
    "trials, the last 200": lambda source: source.trials(after=9_800, limit=200),
    "trials, 1,000 rows": lambda source: source.trials(after=0, limit=1000),
    "trials, a query": lambda source: source.trials(after=0, limit=200, query="proposed seed"),
    "hardware": lambda source: source.hardware(),
    "recommendation": lambda source: source.recommendation(),
    "list of figures": lambda source: source.figures(),
    "figure loss-x": lambda source: source.figure("loss-x"),
    "figure residuals-x": lambda source: source.figure("residuals-x"),
    "figure timeline": lambda source: source.figure("timeline"),
    "figure spend": lambda source: source.figure("spend"),
}


def main() -> None:
    """Make a run, ask for every page, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--run", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        if asked.run is None:
            simulate_fleet(FleetSimulation(num_agents=32, num_trials=asked.trials, faults=ALL_FAULTS), out=run)
        else:
            shutil.copytree(asked.run, run)
        with Store.resume(run) as store:
            print(f"{len(store.trials()):,} trials, {store.last_seq():,} facts; goal {GOAL_MS} ms for the first page")
            print(f"{'page':24s}{'first':>24s}{'after a new fact':>24s}{'unchanged':>16s}  (processor ms)")
            for name, ask in PAGES.items():
                _tell(name, ask, run, store)
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def _tell(name: str, ask: Ask, run: Path, store: Store) -> None:
    first, later, unchanged = [], [], []
    for number in range(NUM_REPEATS):
        source = RunSource(run)
        first.append(_milliseconds(ask, source))
        store.reject("train-0", epoch=number, agent="bench", reason="fenced", now_unix=time.time())
        time.sleep(1.1)
        later.append(_milliseconds(ask, source))
        unchanged.append(_milliseconds(ask, source))
        source.close()
    print(f"{name:24s}{_shown(first):>24s}{_shown(later):>24s}{statistics.median(unchanged):16.2f}", flush=True)


def _milliseconds(ask: Ask, source: RunSource) -> float:
    started = time.process_time()
    ask(source)
    return 1e3 * (time.process_time() - started)


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} [{min(values):.0f}, {max(values):.0f}]"


if __name__ == "__main__":
    main()
