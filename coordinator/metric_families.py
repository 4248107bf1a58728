"""Metric families of a run, made from its store at scrape time.

Whatever is counted is a tally that the store keeps up with every change: a scrape costs the same with ten trials as
with 100,000. All series of a family are there from the start, at zero, for the hardware that the run has seen.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.samples import Exemplar

from coordinator.metric_catalogue import (
    ANY,
    CANARY_KINDS,
    CATALOGUE,
    FAILURE_REASONS,
    FINAL_OUTCOMES,
    FIT_OUTCOMES,
    HARDWARE,
    INVALID_REASONS,
    MAX_AGENTS,
    REJECTION_REASONS,
    STORE_ERROR_REASONS,
    UNKNOWN,
    VERSION_LABELS,
    Family,
    known,
    strategy_of,
)
from coordinator.store import FILE_NAME, AgentRow, StoreReader
from coordinator.traffic import Traffic
from coordinator.version import git_commit, version
from coordinator.vitals import Timing

NUM_NEWEST_ATTEMPTS = 200
"""Among so many leases an exemplar is looked for."""
NUM_NEWEST_CANARIES = 512
FORGET_LOST_SECONDS = 3600.0
"""An agent that was lost so long ago is no series of its own any more."""

_Key = tuple[str, ...]
_Numbers = Mapping[_Key, float]
_Histogram = tuple[list[tuple[float, int]] | tuple[tuple[float, int], ...], float]
"""Buckets, each (upper bound, how many above the bound before), and the sum."""


def readable(*, is_readable: bool) -> Metric:
    """Whether the store can be read: the one family that there always is."""
    return _plain("store_readable", is_readable)


def writable(*, is_writable: bool) -> Metric:
    """Whether the coordinator's last commit worked."""
    return _plain("store_writable", is_writable)


def build() -> Metric:
    """Which archfleet this is. Asked when it starts: its files may change afterwards."""
    family = InfoMetricFamily("archfleet_build", CATALOGUE["build"].help)
    family.add_metric([], {"version": version(), "git_commit": git_commit() or ""})
    return family


def traffic_families(traffic: Traffic) -> Iterator[Metric]:
    """What the web listeners of this process were asked. A route has series once somebody has asked for it."""
    seen = traffic.counted()
    yield _found("http_requests", {key: float(num) for key, num in seen.requests.items()})
    durations = HistogramMetricFamily(
        "archfleet_http_request_duration_seconds", CATALOGUE["http_request_duration_seconds"].help, labels=["route"]
    )
    for route, took in seen.durations.items():
        buckets = zip((*CATALOGUE["http_request_duration_seconds"].bounds, math.inf), took.nums, strict=True)
        durations.add_metric([route], _cumulative(buckets, []), took.seconds)
    yield durations
    yield _found("http_auth_failures", {(reason,): num for reason, num in seen.auth_failures.items()})
    yield _plain("event_stream_clients", seen.num_streams)


def store_families(store: StoreReader, *, now_unix: float) -> Iterator[Metric]:
    """Every family that the store knows the facts of."""
    scrape = _Scrape(store, now_unix)
    yield from scrape.trials()
    yield from scrape.leases()
    yield from scrape.agents()
    yield from scrape.decisions()
    yield from scrape.fits()
    yield from scrape.benchmarks()
    yield from scrape.recommendation()
    yield from scrape.loop_and_disk()


class _Scrape:
    """One scrape: the facts that several families share."""

    def __init__(self, store: StoreReader, now_unix: float) -> None:
        self._store = store
        self._now = now_unix
        self._study = store.study()
        self._agents = store.agents()
        self._attempts = store.attempt_counts()
        self._counts = store.counts()
        self._running = store.running_seconds(now_unix=now_unix)
        kinds = {agent.hardware for agent in self._agents} | {count.hardware for count in self._counts} - {""}
        self._kinds = tuple(sorted({known(kind, HARDWARE) for kind in kinds})) or (UNKNOWN,)

    # What ran

    def trials(self) -> Iterator[Metric]:
        """How many trials are where, and how they ended."""
        study = self._study.name
        yield _found("trials_queued", self._queued())
        running: Counter[_Key] = Counter()
        finished: Counter[_Key] = Counter()
        for count in self._counts:
            hardware = known(count.hardware, HARDWARE)
            if count.state == "running":
                running[study, count.phase, hardware] += count.num
            elif count.state == "succeeded":
                finished[count.phase, hardware, "succeeded"] += count.num
        for phase, kind, failure, num, _ in self._store.tallied("final_failures"):
            finished[phase, known(kind, HARDWARE), FINAL_OUTCOMES.get(failure, "failed")] += num
        yield self._filled("trials_running", running)
        yield self._filled("trials_finished", finished)
        failed: Counter[_Key] = Counter()
        for phase, kind, outcome, num, _ in self._attempts:
            if outcome not in ("succeeded", "interrupted"):
                reason = next((name for key, name in FAILURE_REASONS.items() if key == outcome), UNKNOWN)
                failed[phase, known(kind, HARDWARE), reason] += num
        yield self._filled("trial_failures", failed)
        yield self._durations()
        waits: dict[_Key, _Histogram] = {
            (row.phase,): (row.buckets, row.sum_seconds) for row in self._store.queue_waits()
        }
        yield self._histograms("trial_queue_wait_seconds", waits)

    def _queued(self) -> _Numbers:
        """Waiting trials by the hardware that may take them; "any" where several kinds may."""
        study, budget = self._study.name, self._study.budget
        waiting: Counter[str] = Counter()
        for count in self._counts:
            if count.state == "queued":
                waiting[count.phase] += count.num
        kinds = budget.training_hardware
        trainable = known(kinds[0], HARDWARE) if len(kinds) == 1 else ANY
        queued: Counter[_Key] = Counter({(study, "train", trainable): waiting["train"]})
        usual = self._store.meta("bench_hardware") or budget.bench_hardware
        for kind in self._study.serving.hardware or (usual or ANY,):
            queued[study, "bench", kind if kind == ANY else known(kind, HARDWARE)] = 0
        if waiting["bench"]:
            for named, num in self._store.queued_benchmarks().items():
                wanted = named or usual
                queued[study, "bench", ANY if wanted is None else known(wanted, HARDWARE)] += num
        return queued

    def _durations(self) -> Metric:
        rows: dict[_Key, _Histogram] = {}
        for row in self._store.durations():
            key = (row.phase, known(row.hardware, HARDWARE))
            before, seconds = rows.get(key, ([(bound, 0) for bound, _ in row.buckets], 0.0))
            buckets = [(bound, num + old) for (bound, num), (_, old) in zip(row.buckets, before, strict=True)]
            rows[key] = (buckets, row.sum_seconds + seconds)
        return self._histograms("trial_duration_seconds", rows, exemplars=self._exemplars())

    def _exemplars(self) -> dict[_Key, list[Exemplar]]:
        """The newest trials that succeeded, by phase and hardware."""
        found: dict[_Key, list[Exemplar]] = {}
        for attempt in self._store.newest_attempts(NUM_NEWEST_ATTEMPTS):
            if attempt.outcome == "succeeded" and attempt.ended_unix is not None:
                key = (attempt.trial_id.partition("-")[0], known(attempt.hardware, HARDWARE))
                seconds = attempt.ended_unix - attempt.leased_unix
                found.setdefault(key, []).append(Exemplar({"trial_id": attempt.trial_id}, seconds, attempt.ended_unix))
        return found

    def leases(self) -> Iterator[Metric]:
        """What was spent, and what went wrong between coordinator and agents."""
        spent: dict[_Key, float] = {}
        ended = [(row.phase, row.hardware, row.spent_seconds) for row in self._attempts]
        for phase, hardware, seconds in (*ended, *self._running):
            key = (phase, known(hardware, HARDWARE))
            spent[key] = spent.get(key, 0.0) + seconds
        yield self._filled("accelerator_busy_seconds", spent)
        yield self._filled("study_spent_accelerator_seconds", {(self._study.name,): math.fsum(spent.values())})
        if granted := self._store.meta("granted_seconds"):
            yield _found("study_budget_accelerator_seconds", {(self._study.name,): float(granted)})
        expired: Counter[_Key] = Counter()
        for row in self._store.tallied("leases_expired"):
            expired[row.phase, known(row.hardware, HARDWARE)] += row.num
        yield self._filled("leases_expired", expired)
        accepted: dict[_Key, float] = {(row.name,): row.num for row in self._store.tallied("reports")}
        yield self._filled("reports_accepted", accepted)
        yield self._filled("reports_rejected", _bucketed(self._store.rejection_counts().items(), REJECTION_REASONS))

    # Who ran it

    def agents(self) -> Iterator[Metric]:
        """Agents, all together and one by one."""
        states: Counter[_Key] = Counter((known(row.hardware, HARDWARE), row.state) for row in self._agents)
        yield self._filled("agents", states)
        live: Counter[_Key] = Counter((known(row.hardware, HARDWARE),) for row in self._agents if row.state != "lost")
        yield self._filled("accelerators", live)
        shown = self._shown_agents()
        info = InfoMetricFamily("archfleet_agent", CATALOGUE["agent"].help, labels=["agent"])
        for row in shown:
            told = {name: row.versions[name] for name in VERSION_LABELS if name in row.versions}
            info.add_metric([row.agent], {"hardware": known(row.hardware, HARDWARE), **told})
        yield info
        heard: dict[_Key, float] = {(row.agent,): row.heartbeat_unix for row in shown}
        yield _found("agent_last_heartbeat_timestamp_seconds", heard)
        offsets: dict[_Key, float] = {
            (row.agent,): row.clock_offset_seconds for row in shown if row.clock_offset_seconds is not None
        }
        yield _found("agent_clock_offset_seconds", offsets)
        names = {row.agent for row in shown}
        canaries: dict[_Key, float] = {
            (canary.agent, known(canary.kind, CANARY_KINDS)): canary.deviation
            for canary in self._store.newest_canaries(NUM_NEWEST_CANARIES)
            if canary.deviation is not None and canary.agent in names
        }
        yield _found("canary_deviation_ratio", canaries)

    def _shown_agents(self) -> list[AgentRow]:
        there = [row for row in self._agents if row.state != "lost" or self._lost_for(row) < FORGET_LOST_SECONDS]
        newest = sorted(there, key=lambda row: row.heartbeat_unix, reverse=True)[:MAX_AGENTS]
        return sorted(newest, key=lambda row: row.agent)

    def _lost_for(self, row: AgentRow) -> float:
        """On the run's own clock: a store that nobody writes any more keeps the agents it had."""
        return float(self._store.meta("loop_unix") or row.heartbeat_unix) - row.heartbeat_unix

    # What was decided and learnt

    def decisions(self) -> Iterator[Metric]:
        """What was planned."""
        made: Counter[_Key] = Counter()
        for stage, num in self._store.num_plans().items():
            made[self._study.name, strategy_of(stage)] += num
        yield self._filled("scheduler_decisions", made)
        yield self._timing("scheduler_decision_duration_seconds", "decision_seconds")

    def fits(self) -> Iterator[Metric]:
        """Fits, and the newest of them."""
        study, history = self._study.name, self._store.fit_history()
        outcomes: Counter[_Key] = Counter((study, known(outcome, FIT_OUTCOMES)) for outcome, _, _ in history)
        yield self._filled("fits", outcomes)
        took = [seconds for _, seconds, _ in history]
        bounds = (*CATALOGUE["fit_duration_seconds"].bounds, math.inf)
        below = [sum(seconds <= bound for seconds in took) for bound in bounds]
        buckets = [(bound, num - before) for bound, num, before in zip(bounds, below, [0, *below], strict=False)]
        yield self._histograms("fit_duration_seconds", {(): (buckets, sum(took))})
        if (fit := self._store.last_fit()) is None:
            return
        yield _found("fit_points", {(study,): fit.num_points})
        yield _found("fit_last_success_timestamp_seconds", {(study,): fit.unix})
        if (known_losses := self._store.meta("num_losses_fitted")) is not None:
            losses = sum(row.num for row in self._counts if (row.phase, row.state) == ("train", "succeeded"))
            yield _found("fit_pending_points", {(study,): losses - int(known_losses)})
        if (error := fit.record.get("residual_relative_error")) is not None:
            yield _found("fit_error_ratio", {(study,): error})

    def benchmarks(self) -> Iterator[Metric]:
        """What benchmarks say of themselves."""
        invalid: Counter[_Key] = Counter()
        for row in self._store.tallied("bench_invalid"):
            engine, _, flag = row.name.partition("/")
            reason = known(flag.replace("-", "_"), INVALID_REASONS)
            invalid[known(row.hardware, HARDWARE), engine, reason] += row.num
        yield self._filled("bench_invalid", invalid)
        variation: dict[_Key, float] = {
            (known(row.hardware, HARDWARE), row.name): row.seconds / row.num
            for row in self._store.tallied("bench_variation")
        }
        yield _found("bench_repeat_variation_ratio", variation)

    def recommendation(self) -> Iterator[Metric]:
        """The answer, once there is one."""
        study, told = self._study.name, self._store.recommendation()
        if told is None:
            return
        if (error := told.get("heldout_error_ratio")) is not None:
            yield _found("fit_heldout_error_ratio", {(study,): error})
        if (width := _interval_width(told)) is not None:
            yield _found("fit_interval_width_ratio", {(study,): width})
        rates: dict[_Key, float] = {}
        made: dict[_Key, float] = {}
        for answer in told.get("answers", [told]):  # one answer was all there was in schema 1
            hardware, rate = known(answer["hardware"], HARDWARE), answer["recommended_throughput"]
            made[study, hardware] = told["made_unix"]
            if rate["kind"] == "measured":
                rates.setdefault((study, hardware, answer["engine"]), rate["value"])
        yield _found("recommendation_tokens_per_second", rates)
        yield _found("recommendation_last_change_timestamp_seconds", made)

    # The coordinator itself

    def loop_and_disk(self) -> Iterator[Metric]:
        """The loop's pulse, whether it has come to its end, and the files it writes."""
        yield _found("study_finished", {(self._study.name,): float(self._store.meta("state") == "finished")})
        if (turned := self._store.meta("loop_unix")) is not None:
            yield _found("loop_last_iteration_timestamp_seconds", {("scheduler",): float(turned)})
        yield self._timing("loop_duration_seconds", "loop_seconds", "scheduler")
        yield self._timing("store_commit_duration_seconds", "commit_seconds")
        errors = _bucketed(((row.name, row.num) for row in self._store.tallied("store_errors")), STORE_ERROR_REASONS)
        yield self._filled("store_errors", errors)
        files = {"db": FILE_NAME, "wal": f"{FILE_NAME}-wal"}
        paths = {label: self._store.run_directory / name for label, name in files.items()}
        sizes: dict[_Key, float] = {
            (label,): path.stat().st_size if path.is_file() else 0 for label, path in paths.items()
        }
        yield _found("store_bytes", sizes)
        yield _plain("store_free_bytes", self._store.free_bytes())
        if (backed_up := self._store.meta("last_backup_unix")) is not None:
            yield _plain("store_last_backup_timestamp_seconds", float(backed_up))

    # How a family is put together

    def _filled(self, name: str, found: _Numbers) -> Metric:
        """A family with all its series, at zero where nothing was found. Its labels have listed values."""
        return _found(name, dict.fromkeys(self._series(CATALOGUE[name]), 0.0) | dict(found))

    def _series(self, family: Family) -> Iterator[_Key]:
        return product(*(self._values(family, label) for label in family.labels))

    def _values(self, family: Family, label: str) -> tuple[str, ...]:
        return {"study": (self._study.name,), "hardware": self._kinds}.get(label, family.labels[label])

    def _histograms(
        self, name: str, found: Mapping[_Key, _Histogram], *, exemplars: Mapping[_Key, list[Exemplar]] | None = None
    ) -> Metric:
        """Histograms of which each bucket holds what is above the one before."""
        family = HistogramMetricFamily(f"archfleet_{name}", CATALOGUE[name].help, labels=[*CATALOGUE[name].labels])
        empty: _Histogram = ([(bound, 0) for bound in (*CATALOGUE[name].bounds, math.inf)], 0.0)
        filled = dict.fromkeys(self._series(CATALOGUE[name]), empty)
        for key, (buckets, seconds) in (filled | dict(found)).items():
            family.add_metric(list(key), _cumulative(buckets, (exemplars or {}).get(key, [])), seconds)
        return family

    def _timing(self, name: str, kind: Timing, *labels: str) -> Metric:
        rows = self._store.tallied(kind)
        nums = {float(row.name): row.num for row in rows}
        buckets = [(bound, nums.get(bound, 0)) for bound in (*CATALOGUE[name].bounds, math.inf)]
        return self._histograms(name, {labels: (buckets, sum(row.seconds for row in rows))})


def _found(name: str, found: _Numbers) -> Metric:
    """A family with the series that were found."""
    make = CounterMetricFamily if CATALOGUE[name].kind == "counter" else GaugeMetricFamily
    family = make(f"archfleet_{name}", CATALOGUE[name].help, labels=[*CATALOGUE[name].labels])
    for key, value in found.items():
        family.add_metric(list(key), value)
    return family


def _plain(name: str, value: float) -> Metric:
    return _found(name, {(): float(value)})


def _cumulative(buckets: Iterable[tuple[float, int]], exemplars: Iterable[Exemplar]) -> list[Any]:
    """Buckets as they are told: (upper bound, how many up to it), with the newest exemplar that fell into each."""
    told: list[Any] = []
    lower, total = -math.inf, 0
    for bound, num in buckets:
        total += num
        inside = [exemplar for exemplar in exemplars if lower < exemplar.value <= bound]
        told.append((_told(bound), float(total), *inside[-1:]))
        lower = bound
    return told


def _told(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else str(bound)


def _bucketed(counts: Iterable[tuple[str, int]], values: tuple[str, ...]) -> dict[_Key, float]:
    found: Counter[_Key] = Counter()
    for value, num in counts:
        found[(known(value, values),)] += num
    return dict(found)


def _interval_width(recommendation: Mapping[str, Any]) -> float | None:
    """Width of the interval over the prediction at the held-out size; the widest where several are recommended."""
    predictions = [row["predicted"] for row in recommendation["held_out"] if row["role"] == "recommended"]
    widths = [
        (predicted["interval"]["high"] - predicted["interval"]["low"]) / predicted["value"]
        for predicted in predictions
        if predicted["kind"] == "predicted" and predicted["interval"] is not None
    ]
    return max(widths, default=None)
