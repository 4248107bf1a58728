"""What live pages cost the coordinator: processor time of its process with and without listeners, and the delay.

    python tests/benchmarks/bench_dashboard.py [--clients 100] [--seconds 30]

A process of its own serves the dashboard of a run and writes to it as a coordinator does: five facts a second, and a
sign of life of each of 32 running trials every five seconds, every one in a commit of its own. The listeners are raw
connections in this process, so that their cost is not counted. Goal: 100 listeners cost less than 10 % of a core.

The delay is from before the commit to the listener's socket, over all listeners and facts; a fact that a listener was
not told, or told twice, is counted as wrong.
"""

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bench_store import planned

from coordinator.dashboard.access import Access
from coordinator.dashboard.server import serve_dashboard
from coordinator.plan import Plan
from coordinator.store import Store
from coordinator.study import read_study
from coordinator.traffic import Traffic
from scaling.observations import Progress

FACTS_A_SECOND = 5
NUM_RUNNING = 32
SIGN_OF_LIFE_SECONDS = 5.0
SETTLE_SECONDS = 3.0
is_over = threading.Event()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure without and with listeners, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve is not None:
        serve(options.serve)
        return
    with tempfile.TemporaryDirectory() as directory:
        served = subprocess.Popen(
            [sys.executable, __file__, "--serve", f"{directory}/run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            asyncio.run(measure(served, options.clients, options.seconds))
        finally:
            served.communicate()


async def measure(served: "subprocess.Popen[str]", num_clients: int, seconds: float) -> None:
    """Print the processor time without listeners, and with them what they heard."""
    assert served.stdout is not None
    port = int(served.stdout.readline())
    alone = await processor_share(served, seconds)
    print(f"without listeners: {alone:.2%} of a core", flush=True)
    listeners = [Ear() for _ in range(num_clients)]
    tasks = [asyncio.create_task(ear.listen(port)) for ear in listeners]
    await asyncio.sleep(SETTLE_SECONDS)
    share = await processor_share(served, seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    print(f"with {num_clients}: {share:.2%} of a core; they cost {share - alone:.2%} (goal: under 10 %)")
    delays = sorted(1e3 * delay for ear in listeners for delay in ear.delays)
    num_wrong, num_deaf = sum(ear.num_wrong for ear in listeners), sum(not ear.delays for ear in listeners)
    print(f"{len(delays)} facts heard, {num_wrong} wrong, {num_deaf} deaf listeners")
    print(f"delay: {statistics.median(delays):.0f} ms in the middle, {delays[int(0.99 * len(delays))]:.0f} ms at 99 %")


async def processor_share(served: "subprocess.Popen[str]", seconds: float) -> float:
    """Processor time of the serving process over a while, as a share of that time."""
    began, spent = time.monotonic(), await asyncio.to_thread(processor_seconds, served)
    await asyncio.sleep(seconds)
    return (await asyncio.to_thread(processor_seconds, served) - spent) / (time.monotonic() - began)


def processor_seconds(served: "subprocess.Popen[str]") -> float:
    """What the serving process has used so far, as it says itself."""
    assert served.stdin is not None
    assert served.stdout is not None
    served.stdin.write("\n")
    served.stdin.flush()
    return float(served.stdout.readline())


class Ear:
    """One listener: a raw connection that looks at nothing but numbers and times."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.num_wrong = 0
        self._last: int | None = None

    async def listen(self, port: int) -> None:
        """Hear until cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        try:
            while line := await reader.readline():
                if line.startswith(b"data: ") and b'"kind":"canary"' in line:
                    self._hear(json.loads(line[6:]))
        finally:
            writer.close()

    def _hear(self, fact: dict[str, float]) -> None:
        self.delays.append(time.time() - fact["unix"])
        self.num_wrong += self._last is not None and fact["seq"] != self._last + 1
        self._last = int(fact["seq"])


def serve(run_directory: Path) -> None:
    """Serve a run and write to it; print the port, and the processor time whenever asked, until the input ends."""
    with Store.create(run_directory, read_study("quick"), now_unix=time.time()) as store:
        trial_ids = store.add_plan(
            Plan(stage="all", trials=tuple(planned(seed) for seed in range(200))), now_unix=time.time()
        )[:NUM_RUNNING]
        for trial_id in trial_ids:
            store.lease(trial_id, agent="a", hardware="h200", epoch=1, now_unix=time.time(), expires_unix=4e9)
        with serve_dashboard(
            run_directory, access=Access(), port=0, traffic=Traffic(), is_ready=lambda: True, say=print
        ) as listening:
            print(listening.port, flush=True)
            threading.Thread(target=answer, daemon=True).start()
            write(store, trial_ids)


def answer() -> None:
    """Tell the processor time so far at every line that comes in, and end with the input."""
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, flush=True)
    is_over.set()


def write(store: Store, trial_ids: Sequence[str]) -> None:
    """Facts and signs of life, as they come in a run."""
    turn, signs = 0, NUM_RUNNING / SIGN_OF_LIFE_SECONDS / FACTS_A_SECOND
    due = 0.0
    while not is_over.wait(1 / FACTS_A_SECOND):
        store.add_canary(agent="a", hardware="h200", kind="gemm", rate=1.0, deviation=0.01, now_unix=time.time())
        due += signs
        while due >= 1:
            turn, due = turn + 1, due - 1
            trial_id = trial_ids[turn % len(trial_ids)]
            progress = Progress(assignment_id=trial_id, done_fraction=turn % 1000 / 1000)
            store.record_progress(trial_id, progress, expires_unix=4e9)


if __name__ == "__main__":
    main()
