"""`archfleet status`: how a run is doing, from its store alone. Works while it runs and afterwards."""

import fcntl
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from coordinator.analysis import Analysis
from coordinator.live import clock
from coordinator.recommendation import Recommendation
from coordinator.record import is_simulated
from coordinator.store import LOCK_NAME, StoreReader


def read_status(run_directory: Path) -> dict[str, Any]:
    """State, counts, fit and recommendation of a run, as JSON; one line of the latter for each hardware.

    All of it from tallies and the newest rows: it takes no longer with 10,000 trials than with ten.

    Raises:
        StoreError: there is no store, it is damaged, or a newer archfleet made it.
    """
    with StoreReader.open(run_directory) as store:
        store.check()
        return _status_of(store, is_held=is_held(run_directory))


def _status_of(store: StoreReader, *, is_held: bool) -> dict[str, Any]:
    told = store.meta("state") or "unknown"
    trials, failed = Counter[str](), Counter[str]()
    for count in store.counts():
        trials[count.state] += count.num
    for ended in store.attempt_counts():
        if ended.outcome not in ("succeeded", "interrupted"):
            failed[ended.outcome] += ended.num
    fit, recommendation = store.last_fit(), store.recommendation()
    token_scale = store.meta("token_scale")
    return {
        "run_directory": str(store.run_directory),
        "study": store.study().name,
        "state": _state(told, is_held=is_held),
        "metrics_url": store.meta("metrics_url") if is_held else None,
        "dashboard_url": (store.meta("dashboard_url") or None) if is_held else None,
        "trials": dict(trials),
        "running": [
            {"trial": trial_id, "agent": agent, "done_fraction": done_fraction}
            for trial_id, agent, done_fraction in store.running()
        ],
        "agents": [
            {
                "agent": agent.agent,
                "hardware": agent.hardware,
                "state": agent.state if told == "running" else "stopped",  # with its run: nothing was lost
                "heartbeat_age_seconds": time.time() - agent.heartbeat_unix,
            }
            for agent in store.agents()
        ],
        "failed_attempts": dict(failed),
        "spent_agent_seconds": sum(count.spent_seconds for count in store.counts()),
        "token_scale": None if token_scale is None else float(token_scale),
        "law": None if fit is None else Analysis.from_json(fit.record).sentence(),
        "recommendation": None
        if recommendation is None
        else Recommendation.model_validate(recommendation).sentence(simulated=is_simulated(store)),
    }


def describe_status(status: dict[str, Any]) -> str:
    """The same in sentences."""
    trials = ", ".join(f"{count} {state}" for state, count in sorted(status["trials"].items())) or "none planned yet"
    lines = [
        f"{status['run_directory']}: study {status['study']}, {status['state']}",
        f"  trials: {trials}; {clock(status['spent_agent_seconds'])} agent-minutes spent",
    ]
    lines += [f"  {row['agent']}: {row['trial']} {row['done_fraction']:.0%} done" for row in status["running"]]
    if status["failed_attempts"]:
        causes = ", ".join(f"{count} {kind}" for kind, count in status["failed_attempts"].items())
        lines.append(f"  failed attempts: {causes}")
    lines.append(f"  law: {status['law'] or 'none yet'}")
    lines += [f"  recommendation: {line}" for line in (status["recommendation"] or "none yet").split("\n")]
    if status["metrics_url"]:
        lines.append(f"  metrics: {status['metrics_url']}")
    if status["dashboard_url"]:
        lines.append(f"  dashboard: {status['dashboard_url']}")
    return "\n".join(lines)


def _state(told: str, *, is_held: bool) -> str:
    if told != "running" or is_held:
        return told
    return "killed; the `archfleet run` that began it goes on with it"


def is_held(run_directory: Path) -> bool:
    """Whether a living coordinator holds this run."""
    try:
        lock = os.open(run_directory / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
