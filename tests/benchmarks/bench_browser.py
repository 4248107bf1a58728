"""What a person waits for: pages in a real Chromium, with what they cost the server. Goal: 300 ms for the first page.

    python tests/benchmarks/bench_browser.py [--trials 10000] [--run DIRECTORY] [--repeats 3] [--list]

Every page is opened in a fresh profile at 1280 x 900, of a server that has just been started and has read nothing. Told
are the first contentful paint, when the page's own facts stand, when the figures in view are drawn, when the last one
of the page is (it is scrolled to its end by then), bytes over the wire with everything that the page asked for, and
processor time of the page's main thread and of the server until then: the rest of the machine's load is not in these.
Opened once more: what the server has kept. Medians with least and greatest. The list of trials is scrolled by a screen
a frame, by a tenth of one, and searched (60 ms of it wait for the next key); with --list nothing else is done.
Goal: 16 ms of work for each screen, so that no frame waits.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_dashboard import processor_seconds
from playwright.sync_api import Browser, Page, sync_playwright

from coordinator.dashboard.access import Access
from coordinator.dashboard.server import serve_dashboard
from coordinator.fleet.simulated import ALL_FAULTS
from coordinator.simulate_fleet import FleetSimulation, simulate_fleet
from coordinator.traffic import Traffic

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
PAGES = ("/", "/study", "/trials", "/hardware", "/recommendation")
NUM_FRAMES = 120
NUM_SEARCHES = 12
DRAWN = """(hasFigures) => {
  if (document.querySelector("main")?.getAttribute("aria-busy") !== "false") return false;
  window.factsAt ??= performance.now();
  const places = [...document.querySelectorAll(".figure-place")];
  if (hasFigures && !places.length) return false; // their list is on its way
  const isDrawn = (one) => one.querySelector("canvas, .missing:not([hidden])");
  window.inViewAt ??= places.every((one) => one.getBoundingClientRect().top > innerHeight || isDrawn(one))
    ? performance.now() : undefined;
  const next = places.find((one) => !isDrawn(one));
  if (window.inViewAt) next?.scrollIntoView();
  return !next;
}"""
COSTS = """() => ({
  paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
  facts: window.factsAt,
  view: window.inViewAt,
  bytes: [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .reduce((sum, one) => sum + one.transferSize, 0),
})"""
SCROLL = """async ({ numFrames, screens }) => {
  const box = document.querySelector(".trial-box");
  const frames = [];
  let before = await new Promise(requestAnimationFrame);
  for (let k = 0; k < numFrames; k += 1) {
    box.scrollTop = (k + 1) * screens * box.clientHeight % box.scrollHeight;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - before);
    before = now;
  }
  box.scrollTop = 0;
  return frames;
}"""
SEARCH = """async (words) => {
  const input = document.querySelector(".trial-bar input");
  const told = document.querySelector(".trial-number");
  const began = performance.now();
  const changes = { childList: true, characterData: true, subtree: true };
  const changed = new Promise((done) => new MutationObserver(done).observe(told, changes));
  input.value = words;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  await changed;
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


def main(argv: Sequence[str] | None = None) -> None:
    """Make a run, open its pages, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="the list of trials alone")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.serve is not None:
        serve(asked.serve)
        return
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as driver:
        run = Path(directory) / "run"
        if asked.run is None:
            simulate_fleet(FleetSimulation(num_agents=32, num_trials=asked.trials, faults=ALL_FAULTS), out=run)
        else:
            shutil.copytree(asked.run, run)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        if not asked.list:
            tell_pages(browser, run, num_repeats=asked.repeats)
        tell_list(browser, run)
        browser.close()


def tell_pages(browser: Browser, run: Path, *, num_repeats: int) -> None:
    """Every page."""
    heads = "".join(f"{head:>20s}" for head in ("paint", "facts", "figures in view", "last figure"))
    print(f"{'page':26s}{heads}{'kB':>6s}{'browser':>18s}{'server':>18s}  (ms)")
    for path in PAGES:
        tell_page(browser, run, path, num_repeats=num_repeats)


def tell_page(browser: Browser, run: Path, path: str, *, num_repeats: int) -> None:
    """One page, of a fresh server and then once more."""
    first, again = [], []
    for _ in range(num_repeats):
        with served(run) as (process, origin):
            first.append(opened(browser, process, origin + path))
            again.append(opened(browser, process, origin + path))
    for name, costs in ((path, first), (f"{path} once more", again)):
        told = {key: [one[key] for one in costs] for key in costs[0]}
        times = "".join(f"{shown(told[key]):>20s}" for key in ("paint", "facts", "view", "figure"))
        kilobytes = statistics.median(told["bytes"]) / 1e3
        work = "".join(f"{shown(told[key]):>18s}" for key in ("browser", "server"))
        print(f"{name:26s}{times}{kilobytes:6.0f}{work}", flush=True)


def tell_list(browser: Browser, run: Path) -> None:
    """The list of trials: frames while it is scrolled, and how long a search takes to be shown."""
    with served(run) as (process, origin), fresh_page(browser) as page:
        before, began = processor_seconds(process), time.monotonic()
        page.goto(f"{origin}/trials")
        page.wait_for_function(
            """() => /^[\\d,]+ trials$/.test(document.querySelector(".trial-number")?.textContent)"""
        )
        seconds, spent = time.monotonic() - began, processor_seconds(process) - before
        print(f"list: {page.text_content('.trial-number')} fetched in {seconds:.1f} s, {spent:.2f} s of the server")
        clock = thread_clock(page)
        for what, screens in (("a screen", 1.0), ("a tenth of a screen", 0.1)):
            spent = clock()
            frames = sorted(page.evaluate(SCROLL, {"numFrames": NUM_FRAMES, "screens": screens}))
            tell_work(f"scrolling by {what}", clock() - spent, frames)
        spent, words = clock(), ["prop", "proposed", "bench", "d1", "h200", "zzz"]
        waits = sorted(page.evaluate(SEARCH, words[k % len(words)]) for k in range(NUM_SEARCHES))
        tell_work("searching", clock() - spent, waits)


def tell_work(what: str, seconds: float, waits: Sequence[float]) -> None:
    """What something costs the page each time, and how long it takes to be shown, in ascending order."""
    work = 1e3 * seconds / len(waits)
    print(
        f"{what}: {work:.1f} ms of work, {statistics.median(waits):.0f} ms until it is shown, {waits[-1]:.0f} at most"
    )


def opened(browser: Browser, process: "subprocess.Popen[str]", address: str) -> dict[str, float]:
    """Milliseconds and bytes of a page in a fresh profile."""
    with fresh_page(browser) as page:
        before, clock = processor_seconds(process), thread_clock(page)
        page.goto(address, wait_until="commit")
        page.wait_for_function(DRAWN, arg=not address.endswith("/trials"), polling=50, timeout=120_000)
        figure = page.evaluate("performance.now()")
        server = 1e3 * (processor_seconds(process) - before)
        costs: dict[str, float] = page.evaluate(COSTS)
        return costs | {"figure": figure, "server": server, "browser": 1e3 * clock()}


def thread_clock(page: Page) -> Callable[[], float]:
    """Tells the processor seconds of the page's main thread so far: what else the machine does is not in it."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(float(one["value"]) for one in metrics if one["name"] == "ThreadTime")

    return seconds


@contextmanager
def fresh_page(browser: Browser) -> Iterator[Page]:
    """A page of a profile that knows nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page: Page = context.new_page()
        yield page
    finally:
        context.close()


@contextmanager
def served(run: Path) -> Iterator[tuple[Any, str]]:
    """A process of its own that serves the dashboard of a run, and its address."""
    command = [sys.executable, __file__, "--serve", str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip().rstrip("/")
        process.communicate()


def serve(run: Path) -> None:
    """Serve until the input ends; every line of it asks for the processor seconds used so far."""
    with serve_dashboard(
        run, port=0, access=Access(), traffic=Traffic(), is_ready=threading.Event().is_set, say=lambda _: None
    ) as dashboard:
        print(dashboard.url, flush=True)
        for _ in sys.stdin:
            print(time.process_time(), flush=True)


def shown(values: list[float]) -> str:
    """The median with the least and the greatest."""
    return f"{statistics.median(values):.0f} [{min(values):.0f}, {max(values):.0f}]"


if __name__ == "__main__":
    main()
