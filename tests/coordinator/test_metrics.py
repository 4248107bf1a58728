"""Metrics over a real port, parsed as Prometheus does, and checked against the store."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from coordinator.errors import UserError
from coordinator.fleet.simulated import Faults, SimulatedFleet, VirtualClock
from coordinator.live import PlainView
from coordinator.loop import Coordinator
from coordinator.metric_catalogue import (
    CATALOGUE,
    FAILURE_REASONS,
    MAX_AGENTS,
    OUTCOMES,
    PHASES,
    VERSION_LABELS,
    strategy_of,
)
from coordinator.metrics import StudyCollector, metrics_book, serve_metrics
from coordinator.store import FILE_NAME, AgentRow, Store, StoreReader
from coordinator.study import parse_study, read_study
from coordinator.tokens import NUM_RANDOM_BYTES, TokenBook, create_token, revoke_token
from coordinator.traffic import AUTH_FAILURES, Traffic
from coordinator.version import git_commit, version
from coordinator.vitals import Vitals, tally_result

ALLOWED_LABELS = {
    *("phase", "outcome", "reason", "state", "hardware", "engine", "agent", "study", "route", "method", "code"),
    *("loop", "file", "kind", "strategy"),
    "le",  # of every histogram
}
INFO_LABELS = {"version", "git_commit", *VERSION_LABELS}
MAX_SERIES = 5_000
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def scrape(run: Path) -> dict[str, object]:
    with serve_metrics(run, port=0) as port:
        text = fetch(port)
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family appears twice"
    return {family.name: family for family in families}


def fetch(port: int, path: str = "/metrics", *, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
        return response.read().decode()


def collect(run: Path, *, now_unix: float = 2e9, vitals: Vitals | None = None, traffic: Traffic | None = None):
    """What a scrape collects, without a port, at a given time."""
    collector = StudyCollector(run, vitals=vitals, traffic=traffic, wall=lambda: now_unix)
    return {family.name: family for family in collector.collect()}


@pytest.fixture
def traffic() -> Traffic:
    """A few requests, one of them for something that is no route."""
    seen = Traffic()
    seen.answered("/api/trials/{trial_id}", "GET", 200, seconds=0.002)
    seen.answered("/api/trials/{trial_id}", "GET", 404, seconds=0.3)
    seen.answered("/api/events", "GET", 200, seconds=None)
    seen.answered("/etc/passwd", "BREW", 418, seconds=100.0)
    seen.refused("bad")
    return seen


def samples(families, name: str, **labels: str) -> list[float]:
    """Values of one sample name with these labels."""
    return [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


@pytest.fixture(scope="module")
def finished(finished_run: Path):
    return scrape(finished_run)


@pytest.fixture(scope="module")
def reader(finished_run: Path):
    with StoreReader.open(finished_run) as opened:
        yield opened


def test_every_family_has_the_prefix_a_help_text_and_samples(finished) -> None:
    assert all(name.startswith(("archfleet_", "process_")) for name in finished)
    assert all(family.documentation for family in finished.values())


def test_every_family_of_the_catalogue_is_there_once_something_happened(busy_fleet: Store, traffic: Traffic) -> None:
    families = collect(busy_fleet.run_directory, vitals=Vitals(), traffic=traffic)
    limited_only = {"archfleet_study_budget_accelerator_seconds"}
    assert set(families) == {f"archfleet_{name}" for name in CATALOGUE} - limited_only
    assert not [name for name, family in families.items() if not family.samples]


def test_types_are_those_of_the_catalogue(busy_fleet: Store) -> None:
    families = collect(busy_fleet.run_directory)
    assert {name: family.type for name, family in families.items()} == {
        name: CATALOGUE[name.removeprefix("archfleet_")].kind for name in families
    }


def test_no_series_appears_twice(finished) -> None:
    series = [(s.name, *sorted(s.labels.items())) for family in finished.values() for s in family.samples]
    assert len(series) == len(set(series))


def test_label_keys_come_from_the_allowed_list(finished) -> None:
    for name, family in finished.items():
        keys = {key for sample in family.samples for key in sample.labels}
        assert keys <= (
            ALLOWED_LABELS | INFO_LABELS if family.type == "info" or name.endswith("_info") else ALLOWED_LABELS
        )


def test_finished_trials_are_those_of_the_store(finished, reader) -> None:
    trials = reader.trials()
    for phase in PHASES:
        num = sum(t.phase == phase and t.state == "succeeded" for t in trials)
        assert samples(finished, "archfleet_trials_finished_total", phase=phase, outcome="succeeded") == [num]
    assert sum(samples(finished, "archfleet_trials_finished_total")) == len(trials)


def test_busy_seconds_are_those_of_the_store(finished, reader) -> None:
    spent = sum(trial.spent_seconds for trial in reader.trials())
    assert sum(samples(finished, "archfleet_accelerator_busy_seconds_total")) == pytest.approx(spent)


def test_duration_histogram_counts_every_success(finished, reader) -> None:
    for phase in PHASES:
        num = sum(trial.phase == phase for trial in reader.trials())
        assert samples(finished, "archfleet_trial_duration_seconds_count", phase=phase) == [num]
        assert samples(finished, "archfleet_trial_duration_seconds_bucket", phase=phase, le="+Inf") == [num]
        assert samples(finished, "archfleet_trial_duration_seconds_sum", phase=phase) == [2.0 * num]


def test_histogram_buckets_never_fall(finished) -> None:
    for family in finished.values():
        if family.type == "histogram" and family.samples:
            for phase in ({}, *({"phase": p} for p in PHASES)):
                buckets = [
                    s.value for s in family.samples if s.name.endswith("_bucket") and phase.items() <= s.labels.items()
                ]
                chunks = len(buckets) if phase or "phase" not in family.samples[0].labels else 0
                assert buckets[:chunks] == sorted(buckets[:chunks])


def test_fit_and_recommendation_are_the_newest_stored(finished, reader) -> None:
    assert samples(finished, "archfleet_fit_points") == [reader.last_fit().num_points]
    recommendation = reader.recommendation()
    assert samples(finished, "archfleet_fit_heldout_error_ratio") == [recommendation["heldout_error_ratio"]]
    measured = recommendation["answers"][0]["recommended_throughput"]["value"]
    assert samples(finished, "archfleet_recommendation_tokens_per_second") == [pytest.approx(measured)]


def test_build_and_readability_are_told(finished) -> None:
    assert samples(finished, "archfleet_build_info", version=version(), git_commit=git_commit() or "") == [1]
    assert samples(finished, "archfleet_store_readable") == [1]


def test_an_empty_run_has_all_counters_at_zero(store: Store) -> None:
    families = scrape(store.run_directory)
    assert samples(families, "archfleet_trials_finished_total") == [0] * len(PHASES) * len(OUTCOMES)
    assert len(samples(families, "archfleet_trial_failures_total")) == len(PHASES) * len(FAILURE_REASONS)
    assert sum(samples(families, "archfleet_trial_failures_total")) == 0


def test_failures_rejections_and_expired_leases_are_counted(driver) -> None:
    driver.plan()
    driver.fail_trial(driver.queued()[0], "out-of-memory")
    driver.store.reject("train-1", epoch=1, agent="a", reason="fenced", now_unix=0)
    driver.store.tally("leases_expired", phase="train", hardware="cpu-generic")
    families = scrape(driver.store.run_directory)
    assert samples(families, "archfleet_trial_failures_total", phase="train", reason="oom") == [1]
    assert samples(families, "archfleet_reports_rejected_total", reason="fenced") == [1]
    assert samples(families, "archfleet_leases_expired_total", phase="train", hardware="cpu-generic") == [1]
    assert samples(families, "archfleet_trials_finished_total", phase="train", outcome="failed") == [1]


def test_queue_and_running_are_gauges_of_now(driver) -> None:
    driver.plan()
    num = len(driver.queued())
    driver.lease(driver.queued()[0])
    families = scrape(driver.store.run_directory)
    assert samples(families, "archfleet_trials_queued", phase="train") == [num - 1]
    assert samples(families, "archfleet_trials_running", phase="train") == [1]


def test_a_large_fleet_stays_below_the_limit_of_series(busy_fleet: Store) -> None:
    families = collect(busy_fleet.run_directory, vitals=Vitals())
    assert samples(families, "archfleet_agents", hardware="h200", state="busy") == [10]
    assert len(samples(families, "archfleet_agent_last_heartbeat_timestamp_seconds")) == 32
    num = sum(len(family.samples) for family in families.values())
    assert 500 < num < MAX_SERIES


def test_no_label_has_another_key_or_value_than_the_catalogue_lists(busy_fleet: Store, traffic: Traffic) -> None:
    for name, family in collect(busy_fleet.run_directory, vitals=Vitals(), traffic=traffic).items():
        labels = CATALOGUE[name.removeprefix("archfleet_")].labels
        assert set(labels) <= ALLOWED_LABELS | (INFO_LABELS if family.type == "info" else set()), name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= set(labels), name
            odd = [(key, sample.labels[key]) for key, values in labels.items() if values]
            assert not [pair for pair in odd if pair[1] not in labels[pair[0]]], name


def test_every_reason_has_an_unknown_bucket_or_lists_all_there_are() -> None:
    with_reason = {name: family.labels["reason"] for name, family in CATALOGUE.items() if "reason" in family.labels}
    assert len(with_reason) == 5
    assert all("unknown" in values for values in with_reason.values())


def test_what_no_list_holds_counts_as_unknown(driver) -> None:
    driver.plan()
    driver.store.upsert_agent(agent_row("agent-9", hardware="abacus"))
    driver.store.reject("train-1", epoch=1, agent="a", reason="too early", now_unix=0)
    driver.store.tally("store_errors", "moonshine")
    families = collect(driver.store.run_directory)
    assert samples(families, "archfleet_accelerators", hardware="unknown") == [1]
    assert samples(families, "archfleet_reports_rejected_total", reason="unknown") == [1]
    assert samples(families, "archfleet_store_errors_total", reason="unknown") == [1]


def test_no_more_agents_are_shown_one_by_one_than_there_may_be(driver) -> None:
    with driver.store.transaction():
        for number in range(MAX_AGENTS + 10):
            driver.store.upsert_agent(agent_row(f"agent-{number:04d}", heard=driver.now + number))
    families = collect(driver.store.run_directory)
    shown = families["archfleet_agent_last_heartbeat_timestamp_seconds"].samples
    assert len(shown) == MAX_AGENTS
    assert shown[-1].labels["agent"] == f"agent-{MAX_AGENTS + 9:04d}"
    assert sum(samples(families, "archfleet_accelerators")) == MAX_AGENTS + 11  # and the driver's own


def test_an_agent_that_was_lost_long_ago_is_no_series_any_more(driver) -> None:
    driver.store.upsert_agent(agent_row("gone", state="lost", heard=driver.now))
    driver.store.upsert_agent(agent_row("going", state="lost", heard=driver.now + 3000))
    driver.store.set_meta("loop_unix", repr(driver.now + 3700))
    families = collect(driver.store.run_directory)
    assert not samples(families, "archfleet_agent_last_heartbeat_timestamp_seconds", agent="gone")
    assert samples(families, "archfleet_agent_last_heartbeat_timestamp_seconds", agent="going") == [driver.now + 3000]
    assert samples(families, "archfleet_agents", state="lost") == [2]


def test_metrics_follow_the_store_while_it_is_written(driver) -> None:
    driver.plan()
    with serve_metrics(driver.store.run_directory, port=0) as port:
        before = fetch(port)
        driver.run_trial(driver.queued()[0])
        after = fetch(port)
    line = 'archfleet_trials_finished_total{hardware="cpu-generic",outcome="succeeded",phase="train"}'
    assert f"{line} 0.0" in before
    assert f"{line} 1.0" in after


def test_a_store_that_is_gone_is_told_as_unreadable(run_copy: Path) -> None:
    (run_copy / FILE_NAME).unlink()
    assert samples(scrape(run_copy), "archfleet_store_readable") == [0]


def test_a_damaged_store_is_told_as_unreadable(run_copy: Path) -> None:
    path = run_copy / FILE_NAME
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)  # the head survives, every table is rubbish
    path.write_bytes(content)
    assert samples(scrape(run_copy), "archfleet_store_readable") == [0]


def test_a_port_in_use_is_told_with_the_way_out(finished_run: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}.*\n.*--metrics-port"),
            serve_metrics(finished_run, port=port),
        ):
            pass


def test_the_port_is_free_again_afterwards(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0) as port:
        fetch(port)
    with serve_metrics(finished_run, port=port) as again:
        assert again == port


def test_metrics_are_served_on_loopback_only(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0) as port, socket.socket() as other:
        other.bind(("127.0.0.2", port))  # free: the exporter did not take all addresses


def test_counters_never_fall_and_survive_a_restart(driver) -> None:
    run, before = driver.store.run_directory, {}
    driver.plan()
    for step in range(12):
        trial_id = driver.queued()[0]
        match step % 4:
            case 0:
                driver.run_trial(trial_id)
            case 1:
                driver.fail_trial(trial_id, "preempted", final=False)
            case 2:
                driver.fail_trial(trial_id, "timeout")
            case 3:
                driver.lease(trial_id)
                driver.now += 5
                counters = counters_of(collect(run, now_unix=driver.now))
                assert_none_fell(before, counters)
                driver.store.close()
                driver.store = Store.resume(run)
                driver.store.requeue_running(now_unix=driver.now + 1000)
        counters = counters_of(collect(run, now_unix=driver.now))
        assert_none_fell(before, counters)
        before = counters
    assert before["archfleet_trials_finished_total", ("outcome", "timeout")] == 3


def counters_of(families) -> dict[tuple[str, object], float]:
    """Values of all counters and buckets, by name and labels; outcomes once more, by name and outcome."""
    told = {}
    for family in families.values():
        if family.type in ("counter", "histogram"):
            for sample in family.samples:
                told[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
                if "outcome" in sample.labels:
                    key = sample.name, ("outcome", sample.labels["outcome"])
                    told[key] = told.get(key, 0) + sample.value
    return told


def assert_none_fell(before, after) -> None:
    fell = {key: (value, after.get(key)) for key, value in before.items() if after.get(key, -1) < value}
    assert not fell


def test_a_running_lease_is_spent_until_now_or_until_it_ended(driver) -> None:
    driver.plan()
    driver.lease(driver.queued()[0])
    for seconds, spent in ((0, 0), (30, 30), (60, 60), (9_000, 60)):
        families = collect(driver.store.run_directory, now_unix=driver.now + seconds)
        assert samples(families, "archfleet_accelerator_busy_seconds_total", phase="train") == [spent]
        assert samples(families, "archfleet_study_spent_accelerator_seconds_total") == [spent]


@pytest.mark.parametrize(("granted", "told"), [("", []), ("1800.0", [1800])])
def test_a_granted_budget_is_told_where_there_is_one(store: Store, granted: str, told: list[float]) -> None:
    store.set_meta("granted_seconds", granted)
    assert samples(collect(store.run_directory), "archfleet_study_budget_accelerator_seconds") == told


def test_what_waits_is_told_by_the_hardware_that_may_take_it(driver) -> None:
    driver.plan()
    families = collect(driver.store.run_directory)
    assert samples(families, "archfleet_trials_queued", phase="train", hardware="any") == [len(driver.queued())]
    assert samples(families, "archfleet_trials_queued", phase="bench", hardware="any") == [0]
    driver.store.set_meta("bench_hardware", "h200")
    while not (bench := [trial_id for trial_id in driver.queued() if trial_id.startswith("bench")]):
        driver.run_queue()
        driver.plan()
    families = collect(driver.store.run_directory)
    assert samples(families, "archfleet_trials_queued", phase="bench", hardware="h200") == [len(bench)]


def test_losses_newer_than_the_fit_are_pending(driver) -> None:
    driver.plan()
    for trial_id in driver.queued()[:3]:
        driver.run_trial(trial_id)
    driver.store.add_fit(num_points=2, outcome="ok", seconds=0.2, record={}, now_unix=driver.now)
    driver.store.set_meta("num_losses_fitted", "2")
    assert samples(collect(driver.store.run_directory), "archfleet_fit_pending_points") == [1]


@pytest.mark.parametrize(
    ("stage", "strategy"),
    [
        ("first-round", "explore"),
        ("round-2", "refine"),
        ("serving", "benchmark"),
        ("serving-best", "benchmark"),
        ("check", "check"),
        ("verdict", "verdict"),
        ("round-and-round", "unknown"),
    ],
)
def test_a_stage_has_a_strategy(stage: str, strategy: str) -> None:
    assert strategy_of(stage) == strategy


def test_every_plan_of_a_finished_study_is_a_decision_of_a_known_strategy(finished, reader) -> None:
    assert sum(samples(finished, "archfleet_scheduler_decisions_total")) == len(reader.plans())
    assert samples(finished, "archfleet_scheduler_decisions_total", strategy="unknown") == [0]


def test_the_interval_at_the_heldout_size_is_that_of_the_recommendation(finished, reader) -> None:
    row = next(row for row in reader.recommendation()["held_out"] if row["role"] == "recommended")
    width = row["predicted"]["interval"]["high"] - row["predicted"]["interval"]["low"]
    assert samples(finished, "archfleet_fit_interval_width_ratio") == [pytest.approx(width / row["predicted"]["value"])]


def test_exemplars_name_a_trial_of_their_bucket_in_openmetrics_only(finished_run: Path, reader) -> None:
    with serve_metrics(finished_run, port=0) as port:
        text, open_text = fetch(port), fetch(port, accept=OPEN_METRICS)
    assert "trial_id" not in text
    families = {family.name: family for family in open_metrics_families(open_text)}
    found = [s.exemplar for s in families["archfleet_trial_duration_seconds"].samples if s.exemplar is not None]
    assert found
    for exemplar in found:
        row = reader.trial(exemplar.labels["trial_id"])
        assert exemplar.value == row.ended_unix - row.leased_unix


def test_no_created_series_are_told(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0) as port:
        assert "_created" not in fetch(port, accept=OPEN_METRICS) + fetch(port)


def test_the_process_of_the_coordinator_is_told(finished) -> None:
    assert samples(finished, "process_resident_memory_bytes")[0] > 1e6
    assert samples(finished, "process_open_fds")[0] > 0


def test_writability_is_told_by_the_coordinator_that_writes(driver) -> None:
    vitals, run = Vitals(), driver.store.run_directory
    assert samples(collect(run, vitals=vitals), "archfleet_store_writable") == [1]
    vitals.not_committed("full")
    assert samples(collect(run, vitals=vitals), "archfleet_store_writable") == [0]
    assert "archfleet_store_writable" not in collect(run)


def test_a_broken_benchmark_counts_as_invalid(driver) -> None:
    while not (bench := [t for t in driver.queued() if t.startswith("bench")]):
        driver.run_queue()
        driver.plan()
    planned = next(row.planned for row in driver.store.trials() if row.trial_id == bench[0])
    good = driver.world.observe(planned.assignment)
    tally_result(driver.store, good.model_copy(update={"flags": ("nan", "throttled")}))
    tally_result(driver.store, good.model_copy(update={"flags": ("throttled",), "coefficient_of_variation": 0.03}))
    families = collect(driver.store.run_directory)
    labels = {"hardware": "cpu-generic", "engine": planned.assignment.recipe.engine}
    assert samples(families, "archfleet_bench_invalid_total", reason="nan", **labels) == [1]
    assert sum(samples(families, "archfleet_bench_invalid_total")) == 1
    assert samples(families, "archfleet_bench_repeat_variation_ratio", **labels) == [pytest.approx(0.02)]
    assert samples(families, "archfleet_reports_accepted_total", kind="result") == [2]


def test_a_backup_and_the_disk_are_told(driver) -> None:
    run = driver.store.run_directory
    assert "archfleet_store_last_backup_timestamp_seconds" not in collect(run)
    driver.store.set_meta("last_backup_unix", "12.5")
    families = collect(run)
    assert samples(families, "archfleet_store_last_backup_timestamp_seconds") == [12.5]
    assert samples(families, "archfleet_store_free_bytes")[0] > 0


def test_requests_are_told_by_the_templates_of_their_routes(finished_run: Path, traffic: Traffic) -> None:
    families = collect(finished_run, traffic=traffic)
    name = "archfleet_http_requests_total"
    assert samples(families, name, route="/api/trials/{trial_id}", method="GET", code="404") == [1]
    assert samples(families, name, route="unknown", method="unknown", code="unknown") == [1]
    assert len(samples(families, name)) == 4
    name = "archfleet_http_request_duration_seconds"
    assert samples(families, f"{name}_count", route="/api/trials/{trial_id}") == [2]
    assert samples(families, f"{name}_bucket", route="/api/trials/{trial_id}", le="0.0025") == [1]
    assert samples(families, f"{name}_sum", route="unknown") == [100]
    assert samples(families, f"{name}_count", route="/api/events") == []


def test_refused_credentials_are_told_from_zero_on(finished_run: Path, traffic: Traffic) -> None:
    name = "archfleet_http_auth_failures_total"
    assert samples(collect(finished_run), name) == [0] * len(AUTH_FAILURES)
    assert samples(collect(finished_run, traffic=traffic), name, reason="bad") == [1]


def test_open_streams_are_told_while_they_are_open(finished_run: Path) -> None:
    traffic = Traffic()
    with traffic.streaming(), traffic.streaming():
        assert samples(collect(finished_run, traffic=traffic), "archfleet_event_stream_clients") == [2]
    assert samples(collect(finished_run, traffic=traffic), "archfleet_event_stream_clients") == [0]


@pytest.mark.parametrize(("state", "is_finished"), [("running", 0), ("interrupted", 0), ("finished", 1)])
def test_a_study_that_has_come_to_its_end_says_so(store: Store, state: str, is_finished: int) -> None:
    store.set_meta("state", state)
    assert samples(collect(store.run_directory), "archfleet_study_finished") == [is_finished]


def test_a_scrape_is_counted_itself(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0) as port:
        fetch(port)
        told = {family.name: family for family in text_string_to_metric_families(fetch(port))}
    assert samples(told, "archfleet_http_requests_total", route="/metrics", method="GET", code="200") == [1]


def test_targets_are_what_http_sd_reads(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0) as port:
        (group,) = json.loads(fetch(port, "/targets"))
    assert group == {"targets": [f"127.0.0.1:{port}"], "labels": {"job": "archfleet-coordinator"}}


def test_another_path_is_not_found(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0) as port, pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(port, "/")


@pytest.fixture
def fleet_run(tmp_path: Path) -> Iterator[tuple[Store, Vitals]]:
    """The store of a study that the real loop took to its end on a simulated fleet whose agents hang."""
    table = read_study("quick").model_dump(mode="json")
    table["serving"]["recipe"] |= {"engine": "fake", "dtype": "bfloat16"}
    table["budget"] |= {"wall_minutes": 1e5}
    clock, vitals = VirtualClock(), Vitals()
    fleet = SimulatedFleet({"h200": 2, "a100-80gb": 2}, clock=clock, faults=Faults(hang=20, lost=0.05, duplicated=0.1))
    with Store.create(tmp_path / "run", parse_study(table, source="a test"), now_unix=clock.wall()) as store:
        coordinator = Coordinator(
            store=store,
            fleet=fleet,
            view=PlainView(Console(quiet=True)),
            num_agents=fleet.num_agents,
            corpus_id="c" * 64,
            started_monotonic=clock.monotonic(),
            granted_seconds=1e6,
            monotonic=clock.monotonic,
            wall=clock.wall,
            sleep=clock_sleep(clock),
            vitals=vitals,
        )
        assert coordinator.run()
        yield store, vitals


def clock_sleep(clock: VirtualClock):
    def sleep(seconds: float) -> None:
        clock.seconds += seconds

    return sleep


def test_what_the_loop_did_is_told(fleet_run: tuple[Store, Vitals]) -> None:
    store, vitals = fleet_run
    families = collect(store.run_directory, vitals=vitals)
    attempts = store.attempts()
    num_lost = sum(attempt.failure_kind in ("timeout", "agent-lost") for attempt in attempts)
    assert 0 < sum(samples(families, "archfleet_leases_expired_total")) <= num_lost
    failed = [samples(families, "archfleet_trial_failures_total", reason=reason) for reason in ("timeout", "lost")]
    assert sum(map(sum, failed)) == num_lost
    num_results = sum(attempt.outcome == "succeeded" for attempt in attempts)
    assert samples(families, "archfleet_reports_accepted_total", kind="result") == [num_results]
    assert samples(families, "archfleet_reports_accepted_total", kind="progress")[0] > 0
    assert samples(families, "archfleet_reports_rejected_total", reason="fenced")[0] > 0
    assert samples(families, "archfleet_loop_duration_seconds_count", loop="scheduler")[0] > num_results
    assert samples(families, "archfleet_store_commit_duration_seconds_count")[0] > num_results / 4
    assert samples(families, "archfleet_scheduler_decision_duration_seconds_count")[0] >= len(store.plans())
    assert samples(families, "archfleet_fit_pending_points") == [0]
    assert samples(families, "archfleet_study_budget_accelerator_seconds") == [1e6]
    assert samples(families, "archfleet_store_writable") == [1]
    spent = sum(attempt.spent_seconds for attempt in attempts)
    assert samples(families, "archfleet_study_spent_accelerator_seconds_total") == [pytest.approx(spent)]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here; on Debian: apt-get install prometheus")
def test_promtool_finds_no_fault(busy_fleet: Store) -> None:
    with serve_metrics(busy_fleet.run_directory, port=0, vitals=Vitals()) as port:
        told = fetch(port)
    checked = subprocess.run(["promtool", "check", "metrics"], input=told, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def agent_row(agent: str, *, hardware: str = "cpu-generic", state: str = "idle", heard: float = 1) -> AgentRow:
    return AgentRow(
        agent=agent,
        hardware=hardware,
        state=state,
        pid=1,
        heartbeat_unix=heard,
        joined_unix=1,
        clock_offset_seconds=0.25,
        versions={"archfleet": "1", "torch": "2.9", "driver": "580", "platform": "a secret host"},
    )


@pytest.fixture
def busy_fleet(run_copy: Path) -> Iterator[Store]:
    """A finished study's store, in which 32 agents of three kinds have also done everything that is counted."""
    with Store.resume(run_copy) as store:
        with store.transaction():
            for number in range(32):
                _be_busy(store, f"agent-{number}", ("a100-40gb", "a100-80gb", "h200")[number % 3])
            for key, value in (("loop_unix", "1"), ("num_losses_fitted", "1"), ("last_backup_unix", "1")):
                store.set_meta(key, value)
            vitals = Vitals()
            vitals.took("loop_seconds", 0.02)
            vitals.took("decision_seconds", 100)
            vitals.heard("heartbeat")
            vitals.not_committed("busy")
            vitals.committed(0.001)
            vitals.write(store)
        yield store


def _be_busy(store: Store, agent: str, hardware: str) -> None:
    store.upsert_agent(agent_row(agent, hardware=hardware, state="busy"))
    store.add_canary(agent=agent, hardware=hardware, kind="gemm", rate=1, deviation=0.01, now_unix=1)
    store.tally("bench_invalid", "vllm/nan", phase="bench", hardware=hardware)
    store.tally("bench_variation", "vllm", phase="bench", hardware=hardware, seconds=0.01)
    store.tally("leases_expired", phase="train", hardware=hardware)


# From other machines


@pytest.fixture
def book(tmp_path: Path) -> tuple[TokenBook, dict[str, str]]:
    """A file of tokens, and the tokens: one for metrics, one for reading, one for metrics whose time is over."""
    path, secrets = tmp_path / "tokens.toml", {}
    for number, (name, scope) in enumerate({"prom": "metrics", "reader": "read", "old": "metrics"}.items()):
        secrets[name], _ = create_token(
            path,
            name,
            scopes=(scope,),
            random_bytes=bytes([number]) * NUM_RANDOM_BYTES,
            now_unix=1.0,
            expires_unix=2.0 if name == "old" else None,
        )
    return TokenBook(path), secrets


def answer_to(port: int, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_an_address_others_reach_needs_a_token_of_scope_metrics(book, tmp_path: Path) -> None:
    assert metrics_book("127.0.0.1", None) is None
    assert metrics_book("localhost", None) is None
    with pytest.raises(UserError, match=r"no token in .*\n.*archfleet token create NAME --scope metrics"):
        metrics_book("0.0.0.0", tmp_path / "nothing.toml")
    revoke_token(book[0].path, "prom")
    revoke_token(book[0].path, "old")
    with pytest.raises(UserError, match="no token of scope metrics"):
        metrics_book("0.0.0.0", book[0].path)


@pytest.mark.parametrize("path", ["/metrics", "/targets", "/else"])
@pytest.mark.parametrize(("user", "code"), [(None, 401), ("nobody", 401), ("old", 401), ("reader", 403), ("prom", 200)])
def test_metrics_ask_for_their_token(finished_run: Path, book, path: str, user: str | None, code: int) -> None:
    secrets = {**book[1], "nobody": "aft_nobody\xff"}
    headers = {} if user is None else {"Authorization": f"Bearer {secrets[user]}"}
    with serve_metrics(finished_run, port=0, book=book[0]) as port:
        assert answer_to(port, path, **headers)[0] == (404 if code == 200 and path == "/else" else code)


def test_a_listener_of_all_addresses_is_found_by_the_one_that_was_asked(finished_run: Path, book) -> None:
    asked = {"Host": "coordinator:9464", "Authorization": f"Bearer {book[1]['prom']}"}
    with serve_metrics(finished_run, port=0, host="0.0.0.0", book=book[0]) as port:
        (group,) = json.loads(answer_to(port, "/targets", **asked)[1])
        assert group["targets"] == ["coordinator:9464"]
        (group,) = json.loads(answer_to(port, "/targets", **asked | {"Host": '"x'})[1])
        assert group["targets"] == [f"127.0.0.1:{port}"]


def test_a_loopback_listener_without_tokens_minds_none(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0) as port:
        assert answer_to(port, "/metrics", Authorization="Bearer whatever")[0] == 200


def test_probes_need_no_token_and_tell_when_the_run_is_taken_up(finished_run: Path, book) -> None:
    vitals = Vitals()
    with serve_metrics(finished_run, port=0, book=book[0], is_ready=lambda: vitals.is_ready) as port:
        assert answer_to(port, "/healthz") == (200, "ok")
        assert answer_to(port, "/readyz")[0] == 503
        vitals.is_ready = True
        assert answer_to(port, "/readyz") == (200, "ok")


def test_metrics_are_served_over_ipv6(finished_run: Path) -> None:
    with serve_metrics(finished_run, port=0, host="::1") as port:
        (group,) = json.loads(urllib.request.urlopen(f"http://[::1]:{port}/targets", timeout=10).read())
    assert group["targets"] == [f"[::1]:{port}"]
