"""Rules speak of metrics that there are, each alert fires and keeps silent, a real Prometheus scrapes a coordinator.

The coordinator is the real one, at work on a simulated fleet. Prometheus, promtool and amtool are Debian's.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from coordinator.backup import back_up
from coordinator.fleet.simulated import Faults, SimulatedFleet, VirtualClock
from coordinator.live import PlainView
from coordinator.loop import Coordinator
from coordinator.metric_catalogue import CATALOGUE, Family
from coordinator.metrics import JOB, serve_metrics
from coordinator.store import Store
from coordinator.study import parse_study, read_study
from coordinator.tokens import TokenBook, create_token
from coordinator.traffic import Traffic
from coordinator.vitals import Vitals

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES, RULES_TEST = DEPLOY / "prometheus" / "rules.yml", DEPLOY / "prometheus" / "rules_test.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "archfleet.json"
PATIENCE_SECONDS = 60.0

FOREIGN = {
    "up": "Prometheus",
    "scrape_samples_post_metric_relabeling": "Prometheus",
    "ALERTS": "Prometheus",
    "process_start_time_seconds": "the client library",
    "DCGM_FI_DEV_SM_CLOCK": "NVIDIA's DCGM exporter, which needs a GPU",
    "DCGM_FI_DEV_POWER_USAGE": "NVIDIA's DCGM exporter, which needs a GPU",
    "DCGM_FI_DEV_XID_ERRORS": "NVIDIA's DCGM exporter, which needs a GPU",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "NVIDIA's DCGM exporter, which needs a GPU",
    "vllm:num_requests_running": "a vLLM server",
    "vllm:num_requests_waiting": "a vLLM server",
    "vllm:kv_cache_usage_perc": "a vLLM server",
    "vllm:time_to_first_token_seconds_bucket": "a vLLM server",
    "vllm:generation_tokens_total": "a vLLM server",
}
"""Metrics that are not the coordinator's, and who tells them."""
NOT_HERE = {name for name, who in FOREIGN.items() if name.startswith(("DCGM", "vllm"))}
"""Of these there is nothing on this machine: an expression that asks for one may find nothing."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here; on Debian: apt-get install prometheus"
)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here; on Debian: apt-get install prometheus"
)
needs_amtool = pytest.mark.skipif(
    shutil.which("amtool") is None, reason="no amtool here; on Debian: apt-get install prometheus-alertmanager"
)


# What is written down


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules that are an `alert` or a `record`."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def panel_expressions() -> list[str]:
    """Of every query of every panel, and of the annotations."""
    page = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in page["panels"] for target in panel.get("targets", [])]
    return asked + [one["expr"] for one in page["annotations"]["list"]]


def variable_queries() -> list[str]:
    """The selectors by which the dashboard's variables find their values."""
    page = json.loads(DASHBOARD.read_text())
    queries = [one["query"] for one in page["templating"]["list"] if one["type"] == "query"]
    return [re.fullmatch(r"label_values\((.+), \w+\)", query)[1] for query in queries]


EXPRESSIONS = {
    **{f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules("expr")},
    **{f"panel {place}": expression for place, expression in enumerate(panel_expressions())},
    **{f"variable {place}": expression for place, expression in enumerate(variable_queries())},
}


# What an expression asks for

WORDS = {"and", "or", "unless", "by", "on", "offset", "bool", "ignoring", "without", "group_left", "group_right"}


@dataclass
class Asked:
    """Names of metrics, what is demanded of their labels, and labels that are grouped by."""

    names: set[str] = field(default_factory=set)
    demands: list[tuple[str, str, str]] = field(default_factory=list)
    """Metric, label, value or pattern of values."""
    groups: set[str] = field(default_factory=set)


def asked(expression: str) -> Asked:
    found = Asked()
    for name, matchers in re.findall(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}", expression):
        found.names.add(name)
        found.demands += [(name, label, value) for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', matchers)]
    bare = re.sub(r'\{[^}]*\}|\[[^]]*\]|"[^"]*"', " ", expression)
    grouping = r"\b(?:by|on|without|ignoring|group_left)\s*\(([^)]*)\)"
    for labels in re.findall(grouping, bare):
        found.groups |= {label.strip() for label in labels.split(",") if label.strip()}
    bare = re.sub(grouping, " ", bare)
    found.names |= {
        name
        for name, call in re.findall(r"(?<![\w:.])([A-Za-z_:][\w:]*)(\s*\()?", bare)
        if not call and name not in WORDS
    }
    return found


SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
SAMPLES: dict[str, Family] = {
    f"archfleet_{name}{suffix}": family for name, family in CATALOGUE.items() for suffix in SUFFIXES[family.kind]
}
RECORDED = {rule["record"]: asked(rule["expr"]) for rule in rules("record")}
OF_EVERY_SCRAPE = {"instance", "job"}


def labels_of(name: str) -> set[str] | None:
    """Labels that a series of this name has; null where that is not ours to say."""
    if name in FOREIGN:
        return None
    if name in RECORDED:
        return RECORDED[name].groups
    more = {"le"} if name.endswith("_bucket") else set()
    return {*SAMPLES[name].labels, *OF_EVERY_SCRAPE, *more}


def odd_demands(demands: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Those for a label that the metric has not, or for a value that the label never takes."""
    odd = []
    for name, label, wanted in demands:
        if (known := labels_of(name)) is None:
            continue
        values = SAMPLES[name].labels.get(label, ()) if name in SAMPLES else ()
        unknown = [value for value in wanted.split("|") if values and "$" not in value and value not in values]
        if label not in known or unknown:
            odd.append((name, label, wanted))
    return odd


def test_every_expression_asks_for_metrics_and_labels_that_there_are() -> None:
    for where, expression in EXPRESSIONS.items():
        found = asked(expression)
        assert found.names or where == "rule ArchfleetWatchdog", where
        assert found.names <= {*SAMPLES, *RECORDED, *FOREIGN}, where
        assert not odd_demands(found.demands), where
        known = [labels for name in found.names if (labels := labels_of(name)) is not None]
        if len(known) == len(found.names):
            assert found.groups <= set().union(*known), where


def test_rates_are_of_counters() -> None:
    rated = [name for one in EXPRESSIONS.values() for name in re.findall(r"(?:rate|increase)\(([\w:]+)", one)]
    assert len(rated) > 20
    assert {SAMPLES[name].kind for name in rated if name not in FOREIGN} == {"counter", "histogram"}


def test_no_series_of_the_rules_tests_is_made_up() -> None:
    tests = yaml.safe_load(RULES_TEST.read_text())["tests"]
    series = [one["series"] for test in tests for one in test["input_series"] if one["series"] != "nothing"]
    demands = [demand for one in series for demand in asked(one).demands]
    assert not odd_demands(demands)
    for one in series:
        (name,) = asked(one).names
        given = {label for _, label, _ in asked(one).demands}
        known = labels_of(name)
        # `job` is left out where no rule asks for it.
        assert known is None or known - given <= {"job"}, one


def test_no_metric_is_named_as_foreign_that_nothing_asks_for() -> None:
    assert set(FOREIGN) == set().union(*(asked(one).names for one in EXPRESSIONS.values())) & set(FOREIGN)


# Rules and routes by the tools that read them


@needs_promtool
def test_rules_fire_and_keep_silent_as_their_tests_say() -> None:
    checked = subprocess.run(
        ["promtool", "test", "rules", str(RULES_TEST)], text=True, capture_output=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    tests = yaml.safe_load(RULES_TEST.read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules("alert")}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == names
    silent = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert silent == names - {"ArchfleetWatchdog"}  # which is never silent


def test_every_alert_has_a_severity_a_summary_and_a_place_in_the_runbook() -> None:
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("critical", "warning", "info", "none"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["runbook"] == f"deploy/README.md#{rule['alert'].lower()}"


@needs_promtool
def test_promtool_finds_no_fault_in_the_configuration() -> None:
    path = DEPLOY / "prometheus" / "prometheus.yml"
    checked = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(path)], text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_amtool
@pytest.mark.parametrize(
    ("alert", "receiver"),
    [
        (("alertname=ArchfleetWatchdog", "severity=none"), "dead-mans-switch"),
        (("alertname=ArchfleetLoopStalled", "severity=critical"), "somebody-now"),
        (("alertname=ArchfleetCanaryDrift", "severity=warning"), "somebody-today"),
    ],
)
def test_an_alert_reaches_its_receiver(alert: tuple[str, ...], receiver: str) -> None:
    path = DEPLOY / "prometheus" / "alertmanager.yml"
    checked = subprocess.run(["amtool", "check-config", str(path)], text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    command = ["amtool", "config", "routes", "test", f"--config.file={path}", f"--verify.receivers={receiver}", *alert]
    routed = subprocess.run(command, text=True, capture_output=True, check=False)
    assert routed.returncode == 0, routed.stdout + routed.stderr


def test_what_the_routes_name_are_alerts_that_there_are() -> None:
    names = {rule["alert"] for rule in rules("alert")}
    matchers = re.findall(r'alertname =~? "([^"]+)"', (DEPLOY / "prometheus" / "alertmanager.yml").read_text())
    for pattern in matchers:
        assert [name for name in names if re.fullmatch(pattern, name)], pattern


# A real Prometheus


class HastyClock(VirtualClock):
    """Hours of the simulated fleet pass in seconds; what is written down is of now, as Prometheus' own clock is."""

    def wall(self) -> float:
        """The real time."""
        return time.time()


@dataclass
class Watched:
    """What Prometheus knew of a coordinator that has just brought its study to an end."""

    answers: dict[str, list[dict[str, Any]]]
    """By expression."""
    alerts: dict[str, str]
    """State by name, of alerts that are at least pending."""
    rules: dict[str, str]
    """Health by name."""
    targets: list[dict[str, Any]]


def study_on_a_simulated_fleet(run: Path, vitals: Vitals) -> tuple[Store, Coordinator]:
    table = read_study("quick").model_dump(mode="json")
    table["serving"]["recipe"] |= {"engine": "fake", "dtype": "bfloat16"}
    table["budget"] |= {"wall_minutes": 1e5, "canary_every_minutes": 5}
    clock = HastyClock()
    fleet = SimulatedFleet({"h200": 2, "a100-80gb": 2}, clock=clock, faults=Faults(drift=40, out_of_memory=0.1))

    def sleep(seconds: float) -> None:
        clock.seconds += seconds

    store = Store.create(run, parse_study(table, source="a test"), now_unix=clock.wall())
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
        sleep=sleep,
        vitals=vitals,
    )
    return store, coordinator


def hasty_configuration(directory: Path, port: int, token: str) -> None:
    """The shipped files in a directory of their own: everything once a second, and the coordinator of the test."""
    (directory / "metrics-token").write_text(token)
    configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    del configuration["alerting"]  # there is none here
    (scraped,) = configuration["scrape_configs"]
    (found,) = scraped["http_sd_configs"]
    url = urllib.parse.urlsplit(found["url"])
    found |= {"url": url._replace(netloc=f"127.0.0.1:{port}").geturl(), "refresh_interval": "1s"}
    for one in (scraped, found):
        one["authorization"] = one["authorization"] | {"credentials_file": "metrics-token"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    hasty = yaml.safe_load(RULES.read_text())
    for group in hasty["groups"]:
        group["interval"] = "1s"
    (directory / "rules.yml").write_text(yaml.safe_dump(hasty))


def free_port() -> int:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        return int(other.getsockname()[1])


@dataclass
class Prometheus:
    """One that runs."""

    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The answer to an expression in which the dashboard's variables stand for everything."""
        plain = expression.replace("$__rate_interval", "1m")
        plain = re.sub(r"\$\w+", ".*", plain)
        return self.ask("query", query=plain)["result"]

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                if self.query(expression):
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"no answer to {expression} within {PATIENCE_SECONDS:.0f} s")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Half of a study, two scrapes, the other half, two more scrapes; then everything is asked at once."""
    directory = tmp_path_factory.mktemp("prometheus")
    token, _ = create_token(
        directory / "tokens.toml", "prometheus", scopes=("metrics",), random_bytes=os.urandom(32), now_unix=time.time()
    )
    vitals = Vitals()
    store, coordinator = study_on_a_simulated_fleet(directory / "run", vitals)
    listener = serve_metrics(
        store.run_directory,
        port=0,
        book=TokenBook(directory / "tokens.toml"),
        vitals=vitals,
        traffic=Traffic(),
    )
    with store, listener as port:
        hasty_configuration(directory, port, token)
        prometheus = Prometheus(f"127.0.0.1:{free_port()}")
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    "prometheus",
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    f"--web.listen-address={prometheus.address}",
                ],
                cwd=directory,
                stdout=log,
                stderr=log,
            )
        try:
            yield watch(prometheus, coordinator)
        finally:
            coordinator.end()
            process.terminate()
            process.wait(timeout=30)


def watch(prometheus: Prometheus, coordinator: Coordinator) -> Watched:
    coordinator.begin()
    while len(coordinator.store.attempts()) < 5:
        assert not coordinator.turn()
    prometheus.wait_for("count_over_time(archfleet_store_readable[5m]) >= 2")
    while not coordinator.turn():
        pass
    back_up(coordinator.store.run_directory, now_unix=time.time())
    num_scraped = prometheus.query("count_over_time(archfleet_store_readable[5m])")[0]["value"][1]
    prometheus.wait_for(f"count_over_time(archfleet_store_readable[5m]) > {num_scraped} + 1")
    prometheus.wait_for("count_over_time(instance_study:archfleet_budget_used:ratio[5m]) > 3")
    told = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    return Watched(
        answers={one: prometheus.query(one) for one in EXPRESSIONS.values()},
        alerts={rule["name"]: rule["state"] for rule in told if rule.get("state", "inactive") != "inactive"},
        rules={rule["name"]: rule["health"] for rule in told},
        targets=prometheus.ask("targets")["activeTargets"],
    )


@needs_prometheus
def test_the_coordinator_is_found_by_its_token_under_the_job_of_the_rules(watched: Watched) -> None:
    (target,) = watched.targets
    assert (target["health"], target["labels"]["job"], target["lastError"]) == ("up", JOB, "")


@needs_prometheus
def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    assert watched.rules == {rule.get("alert") or rule["record"]: "ok" for rule in rules("expr")}


@needs_prometheus
def test_every_expression_has_an_answer_where_a_coordinator_runs(watched: Watched) -> None:
    silent = {where for where, expression in EXPRESSIONS.items() if not watched.answers[expression]}
    not_here = {where for where, expression in EXPRESSIONS.items() if asked(expression).names & NOT_HERE}
    alerts = {f"rule {rule['alert']}" for rule in rules("alert")}  # which are silent as long as all is well
    assert silent - alerts == not_here - alerts


@needs_prometheus
def test_of_a_fleet_whose_nodes_slow_down_that_alone_is_told(watched: Watched) -> None:
    watched.alerts.pop("ArchfleetStoreDiskFillsSoon", None)  # of the disk of this machine
    slow = {"ArchfleetCanaryDrift": "pending", "ArchfleetAgentsQuarantined": "pending"}
    assert watched.alerts == {"ArchfleetWatchdog": "firing", **slow}
