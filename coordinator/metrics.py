"""Prometheus metrics of a run, computed from the store at scrape time.

Reading state instead of counting events means that counters survive restarts and that a metric can never
disagree with the store. No label carries a trial, a path or free text.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from coordinator.errors import StoreError, UserError
from coordinator.store import FILE_NAME, StoreReader, TrialRow
from coordinator.version import version
from scaling.observations import Failure, FailureKind

DURATION_BUCKETS_SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)
FAILURE_REASONS: dict[FailureKind, str] = {
    "out-of-memory": "oom",
    "engine-start": "engine_start",
    "nan-loss": "nan_loss",
    "timeout": "timeout",
    "preempted": "preempted",
    "hardware": "hardware",
    "validation": "validation",
    "agent-lost": "lost",
    "unknown": "unknown",
}
PHASES = ("train", "bench")
AGENT_STATES = ("idle", "busy", "lost")


class StudyCollector:
    """Reads one run's store whenever it is scraped."""

    def __init__(self, run_directory: Path) -> None:
        self._run_directory = run_directory

    def collect(self) -> Iterator[Metric]:
        """All metric families; only `archfleet_store_readable` = 0 where the store cannot be read."""
        try:
            with StoreReader.open(self._run_directory) as store:
                families = list(_families(store, self._run_directory))
        except StoreError:
            families = [_gauge("store_readable", "1 when the store can be read", 0)]
        yield from families


def _families(store: StoreReader, run_directory: Path) -> Iterator[Metric]:
    study = store.study().name
    trials = store.trials()
    failures = [record for record in store.observations() if isinstance(record, Failure)]
    yield InfoMetricFamily("archfleet_build", "Build of the coordinator", value={"version": version()})
    yield _gauge("store_readable", "1 when the store can be read", 1)
    yield from _trial_families(study, trials, failures)
    yield from _agent_families(store)
    yield from _science_families(study, store)
    yield from _store_families(store, run_directory)


def _trial_families(study: str, trials: list[TrialRow], failures: list[Failure]) -> Iterator[Metric]:
    by_state = Counter((trial.phase, trial.state) for trial in trials)
    for state, help_text in (("queued", "Trials waiting"), ("running", "Trials under a live lease")):
        family = GaugeMetricFamily(f"archfleet_trials_{state}", help_text, labels=["study", "phase"])
        for phase in PHASES:
            family.add_metric([study, phase], by_state[phase, state])
        yield family
    finished = CounterMetricFamily("archfleet_trials_finished", "Trials by final state", labels=["phase", "outcome"])
    for phase in PHASES:
        for outcome in ("succeeded", "failed"):
            finished.add_metric([phase, outcome], by_state[phase, outcome])
    yield finished
    failed = CounterMetricFamily("archfleet_trial_failures", "Failed attempts by cause", labels=["phase", "reason"])
    attempts = Counter((failure.assignment_id.split("-")[0], failure.failure_kind) for failure in failures)
    for phase in PHASES:
        for kind, reason in FAILURE_REASONS.items():
            failed.add_metric([phase, reason], attempts[phase, kind])
    yield failed
    yield _histogram(
        "trial_duration_seconds", "Lease to end of trials that succeeded", _durations(trials), DURATION_BUCKETS_SECONDS
    )
    waits = {
        phase: [t.first_leased_unix - t.queued_unix for t in trials if t.phase == phase and t.first_leased_unix]
        for phase in PHASES
    }
    yield _histogram("trial_queue_wait_seconds", "Enqueue to first lease", waits, DURATION_BUCKETS_SECONDS)
    busy = CounterMetricFamily(
        "archfleet_accelerator_busy_seconds", "Agent time under lease, failed attempts included", labels=["phase"]
    )
    for phase in PHASES:
        busy.add_metric([phase], sum(trial.spent_seconds for trial in trials if trial.phase == phase))
    yield busy


def _durations(trials: list[TrialRow]) -> dict[str, list[float]]:
    return {
        phase: [t.ended_unix - t.leased_unix for t in trials if _succeeded(t, phase) and t.ended_unix and t.leased_unix]
        for phase in PHASES
    }


def _succeeded(trial: TrialRow, phase: str) -> bool:
    return trial.phase == phase and trial.state == "succeeded"


def _agent_families(store: StoreReader) -> Iterator[Metric]:
    agents = store.agents()
    states = GaugeMetricFamily("archfleet_agents", "Agents by state", labels=["hardware", "state"])
    counts = Counter((agent.hardware, agent.state) for agent in agents)
    for hardware in sorted({agent.hardware for agent in agents}):
        for state in AGENT_STATES:
            states.add_metric([hardware, state], counts[hardware, state])
    yield states
    heartbeat = GaugeMetricFamily(
        "archfleet_agent_last_heartbeat_timestamp_seconds", "Last sign of life, coordinator's clock", labels=["agent"]
    )
    for agent in agents:
        heartbeat.add_metric([agent.agent], agent.heartbeat_unix)
    yield heartbeat
    rejected = CounterMetricFamily("archfleet_reports_rejected", "Reports refused", labels=["reason"])
    reasons = Counter(reason for reason, *_ in store.rejections())
    for reason in ("fenced", "unknown_trial"):
        rejected.add_metric([reason], reasons[reason])
    yield rejected
    expired = CounterMetricFamily("archfleet_leases_expired", "Leases ended by time-out")
    expired.add_metric([], store.counters().get("leases_expired", 0))
    yield expired


def _science_families(study: str, store: StoreReader) -> Iterator[Metric]:
    history = store.fit_history()
    fits = CounterMetricFamily("archfleet_fits", "Fits by outcome", labels=["study", "outcome"])
    outcomes = Counter(outcome for outcome, _, _ in history)
    for outcome in ("ok", "not_converged"):
        fits.add_metric([study, outcome], outcomes[outcome])
    yield fits
    yield _histogram(
        "fit_duration_seconds", "One refit", {"": [s for _, s, _ in history]}, (0.1, 0.25, 0.5, 1, 2.5, 5, 10)
    )
    if (fit := store.last_fit()) is not None:
        yield _gauge("fit_points", "Observations in the newest fit", fit.num_points, study=study)
        yield _gauge("fit_last_success_timestamp_seconds", "When the newest fit was made", fit.unix, study=study)
        if (error := fit.record.get("residual_relative_error")) is not None:
            yield _gauge("fit_error_ratio", "Residual standard deviation over mean loss", error, study=study)
    recommendation = store.recommendation()
    if recommendation is not None and (error := recommendation.get("heldout_error_ratio")) is not None:
        yield _gauge(
            "fit_heldout_error_ratio",
            "Median |predicted - observed| / observed at the held-out size",
            error,
            study=study,
        )
    if recommendation is not None:
        yield from _recommendation_families(study, recommendation)


def _recommendation_families(study: str, recommendation: dict[str, Any]) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "archfleet_recommendation_tokens_per_second",
        "Measured output tokens/s of the recommended architecture",
        labels=["study", "hardware", "engine"],
    )
    throughput = recommendation.get("recommended_throughput") or {}
    if throughput.get("kind") == "measured":
        family.add_metric([study, recommendation["hardware"], recommendation["engine"]], throughput["value"])
    yield family
    yield _gauge(
        "recommendation_last_change_timestamp_seconds",
        "When it was made",
        recommendation.get("made_unix", math.nan),
        study=study,
    )


def _store_families(store: StoreReader, run_directory: Path) -> Iterator[Metric]:
    sizes = GaugeMetricFamily("archfleet_store_bytes", "Size of the store's files", labels=["file"])
    for label, suffix in (("db", ""), ("wal", "-wal")):
        path = run_directory / (FILE_NAME + suffix)
        sizes.add_metric([label], path.stat().st_size if path.is_file() else 0)
    yield sizes
    heartbeat = store.meta("loop_unix")
    yield _gauge(
        "loop_last_iteration_timestamp_seconds", "Last turn of the loop", float(heartbeat or math.nan), loop="scheduler"
    )


def _gauge(name: str, help_text: str, value: float, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"archfleet_{name}", help_text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _histogram(
    name: str, help_text: str, values: dict[str, list[float]], bounds: Iterable[float]
) -> HistogramMetricFamily:
    """A histogram by phase; the key "" means no label."""
    family = HistogramMetricFamily(f"archfleet_{name}", help_text, labels=[] if "" in values else ["phase"])
    edges = [*bounds, math.inf]
    for phase, sample in values.items():
        buckets = [
            ("+Inf" if math.isinf(edge) else str(float(edge)), float(sum(v <= edge for v in sample))) for edge in edges
        ]
        family.add_metric([phase] if phase else [], buckets, sum(sample))
    return family


@contextmanager
def serve_metrics(run_directory: Path, *, port: int) -> Iterator[int]:
    """Serve /metrics on loopback while the context is open; port 0 takes a free one. Yields the port.

    Raises:
        UserError: the port is in use.
    """
    registry = CollectorRegistry()
    registry.register(StudyCollector(run_directory))
    server: WSGIServer
    thread: Thread
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise UserError(
            f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}.\n"
            "Give another port with --metrics-port PORT, or 0 for any free one."
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
