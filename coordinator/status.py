"""`archfleet status`: how a run is doing, from its store alone. Works while it runs and afterwards."""

import fcntl
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from coordinator.live import clock
from coordinator.record import RunRecord, read_record
from coordinator.store import LOCK_NAME, AgentRow, StoreReader


def read_status(run_directory: Path) -> dict[str, Any]:
    """State, counts, fit and recommendation of a run, as JSON; one line of the latter for each hardware."""
    record = read_record(run_directory)
    return {
        "run_directory": str(run_directory),
        "study": record.study.name,
        "state": _state(record),
        "metrics_url": _metrics_url(record),
        "dashboard_url": _dashboard_url(run_directory),
        "trials": dict(Counter(trial.state for trial in record.trials)),
        "running": [
            {"trial": trial.trial_id, "agent": trial.agent, "done_fraction": trial.done_fraction}
            for trial in record.trials
            if trial.state == "running"
        ],
        "agents": [
            {
                "agent": a.agent,
                "hardware": a.hardware,
                "state": _agent_state(a, record),
                "heartbeat_age_seconds": time.time() - a.heartbeat_unix,
            }
            for a in record.agents
        ],
        "failed_attempts": dict(Counter(failure.failure_kind for failure in record.failures)),
        "spent_agent_seconds": sum(trial.spent_seconds for trial in record.trials),
        "token_scale": record.token_scale,
        "law": None if record.analysis is None else record.analysis.sentence(),
        "recommendation": None if record.recommendation is None else record.recommendation.sentence(),
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


def _state(record: RunRecord) -> str:
    if record.state != "running":
        return record.state
    return "running" if is_held(record.run_directory) else "killed; the `archfleet run` that began it goes on with it"


def _agent_state(agent: AgentRow, record: RunRecord) -> str:
    """Where a run has ended in peace its agents were stopped with it: nothing was lost."""
    return agent.state if record.state == "running" else "stopped"


def _metrics_url(record: RunRecord) -> str | None:
    if record.metrics_port is None or not is_held(record.run_directory):
        return None
    return f"http://127.0.0.1:{record.metrics_port}/metrics"


def _dashboard_url(run_directory: Path) -> str | None:
    """Where the run's dashboard is while a living coordinator has one."""
    if not is_held(run_directory):
        return None
    with StoreReader.open(run_directory) as store:
        return store.meta("dashboard_url") or None


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
