"""Metrics over a real port, parsed as Prometheus does, and checked against the store."""

import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.errors import UserError
from coordinator.metrics import FAILURE_REASONS, PHASES, serve_metrics
from coordinator.store import FILE_NAME, AgentRow, Store, StoreReader

ALLOWED_LABELS = {
    *("phase", "outcome", "reason", "state", "hardware", "engine", "agent", "study", "route", "method", "code"),
    *("loop", "file", "kind", "strategy"),
    "le",  # of every histogram
}
INFO_LABELS = {"version"}
MAX_SERIES = 5_000


def scrape(run: Path) -> dict[str, object]:
    with serve_metrics(run, port=0) as port:
        text = fetch(port)
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family appears twice"
    return {family.name: family for family in families}


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        assert response.status == 200
        return response.read().decode()


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
    assert all(name.startswith("archfleet_") for name in finished)
    assert all(family.documentation for family in finished.values())
    assert all(family.samples for family in finished.values())


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
        if family.type == "histogram":
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
    measured = recommendation["recommended_throughput"]["value"]
    assert samples(finished, "archfleet_recommendation_tokens_per_second") == [pytest.approx(measured)]


def test_build_and_readability_are_told(finished) -> None:
    from coordinator.version import version

    assert samples(finished, "archfleet_build_info", version=version()) == [1]
    assert samples(finished, "archfleet_store_readable") == [1]


def test_an_empty_run_has_all_counters_at_zero(store: Store) -> None:
    families = scrape(store.run_directory)
    assert samples(families, "archfleet_trials_finished_total") == [0] * 4
    assert len(samples(families, "archfleet_trial_failures_total")) == len(PHASES) * len(FAILURE_REASONS)
    assert sum(samples(families, "archfleet_trial_failures_total")) == 0


def test_failures_rejections_and_expired_leases_are_counted(driver) -> None:
    driver.plan()
    driver.fail_trial(driver.queued()[0], "out-of-memory")
    driver.store.reject("train-1", epoch=1, agent="a", reason="fenced", now_unix=0)
    driver.store.count("leases_expired")
    families = scrape(driver.store.run_directory)
    assert samples(families, "archfleet_trial_failures_total", phase="train", reason="oom") == [1]
    assert samples(families, "archfleet_reports_rejected_total", reason="fenced") == [1]
    assert samples(families, "archfleet_leases_expired_total") == [1]


def test_queue_and_running_are_gauges_of_now(driver) -> None:
    driver.plan()
    num = len(driver.queued())
    driver.lease(driver.queued()[0])
    families = scrape(driver.store.run_directory)
    assert samples(families, "archfleet_trials_queued", phase="train") == [num - 1]
    assert samples(families, "archfleet_trials_running", phase="train") == [1]


def test_a_large_fleet_stays_below_the_limit_of_series(driver) -> None:
    for number in range(64):
        hardware = ("a100-40gb", "a100-80gb", "h200")[number % 3]
        row = AgentRow(
            agent=f"agent-{number}", hardware=hardware, state="busy", pid=number, heartbeat_unix=1, joined_unix=1
        )
        driver.store.upsert_agent(row)
    driver.plan()
    families = scrape(driver.store.run_directory)
    assert samples(families, "archfleet_agents", hardware="h200", state="busy") == [21]
    assert sum(len(family.samples) for family in families.values()) < MAX_SERIES


def test_metrics_follow_the_store_while_it_is_written(driver) -> None:
    driver.plan()
    with serve_metrics(driver.store.run_directory, port=0) as port:
        before = fetch(port)
        driver.run_trial(driver.queued()[0])
        after = fetch(port)
    line = 'archfleet_trials_finished_total{outcome="succeeded",phase="train"}'
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
