"""One name, one port, one path everywhere: the files of deploy/ agree with each other and with the code's defaults.

Each file has tests of its own beside this one; here is only what two of them must say alike.
"""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml

from coordinator import health
from coordinator.cli import main
from coordinator.dashboard.server import DEFAULT_PORT
from coordinator.fleet.actor import DRAIN_VARIABLE
from coordinator.machine import PORTS
from coordinator.metric_catalogue import CATALOGUE
from coordinator.metrics import JOB
from coordinator.run import RunOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD_PORT, METRICS_PORT, RAY_PORT = 8420, 9464, 6379
STATE, CONFIGURATION = "/var/lib/archfleet", "/etc/archfleet"
TOKENS, METRICS_TOKEN = f"{CONFIGURATION}/tokens.toml", f"{CONFIGURATION}/metrics-token"
USER = 10001
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

TEXTS = {
    path.relative_to(DEPLOY).as_posix(): path.read_text()
    for path in sorted(DEPLOY.rglob("*"))
    if path.is_file() and path.suffix not in (".pyc", ".json") and not path.match("docker/*.txt")
}
"""By path below deploy/; locks and generated JSON left out."""


def only(pattern: str) -> dict[str, str]:
    found = {name: text for name, text in TEXTS.items() if re.fullmatch(pattern, name)}
    assert found, f"nothing in deploy/ is called {pattern}"
    return found


def documents(name: str) -> list[Any]:
    return [one for one in yaml.safe_load_all(TEXTS[name]) if one is not None]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Of compose.yaml."""
    return documents("compose.yaml")[0]["services"]


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    """Of Kubernetes, as they are written; kustomizations left out."""
    names = [name for name in TEXTS if re.fullmatch(r"k8s/.*\.yaml", name) and "kustomization" not in name]
    return [one for name in names for one in documents(name)]


def one_of(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def coordinator(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The coordinator's container on Kubernetes."""
    return containers(objects)["coordinator"]


def containers(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the coordinator's pod, by name."""
    return {one["name"]: one for one in one_of(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"]}


def settings(words: list[str]) -> dict[str, str]:
    """Options with a value among a command's words."""
    return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


# Images


def test_images_have_two_names_and_the_version_of_the_project() -> None:
    found = [
        (name, image, tag)
        for name, text in TEXTS.items()
        for image, tag in re.findall(r"(archfleet/[a-z]+):([\w.-]+)", text)
    ]
    assert {image for _, image, _ in found} == {"archfleet/coordinator", "archfleet/agent"}
    assert not [one for one in found if one[2].partition("-")[0] != VERSION]


def test_both_images_are_run_by_compose_and_by_kubernetes(services, objects) -> None:
    wanted = {f"archfleet/{name}:{VERSION}" for name in ("coordinator", "agent")}
    assert wanted <= {service["image"] for service in services.values()}
    assert wanted <= set(re.findall(r"'image': '([^']+)'", str(objects)))


def test_each_image_is_built_by_the_dockerfile_of_its_name(services) -> None:
    for service in services.values():
        if "build" in service:
            name = service["image"].partition("/")[2].partition(":")[0]
            assert service["build"]["dockerfile"] == f"deploy/docker/Dockerfile.{name}"


def test_images_carry_the_version_of_the_project() -> None:
    for name, text in only(r"docker/Dockerfile\.\w+").items():
        assert re.findall(r"^ARG VERSION=(.+)$", text, flags=re.MULTILINE) == [VERSION], name


def test_coordinator_and_agents_have_the_same_ray(objects) -> None:
    locked = {
        version
        for name in ("coordinator", "agent")
        for version in re.findall(r"^ray==(\S+)", (DEPLOY / "docker" / f"{name}.txt").read_text(), flags=re.MULTILINE)
    }
    assert {one_of(objects, "RayCluster")["spec"]["rayVersion"]} == locked


def test_everything_of_ours_runs_as_the_same_user(objects) -> None:
    for name, text in only(r"docker/Dockerfile\.\w+").items():
        assert re.findall(r"^USER (.+)$", text, flags=re.MULTILINE) == [f"{USER}:{USER}"], name
    users = re.findall(r"'(?:runAsUser|runAsGroup|fsGroup)': (\d+)", str(objects))
    assert set(users) == {str(USER)}
    assert f"chown {USER}:{USER}" in TEXTS["compose.yaml"]


# Ports


def test_ports_are_the_defaults_of_the_code() -> None:
    assert DASHBOARD_PORT == DEFAULT_PORT
    assert METRICS_PORT == RunOptions(runs=Path()).metrics_port == urlsplit(health.READY_URL).port
    assert set(PORTS) == {DASHBOARD_PORT, METRICS_PORT, RAY_PORT}
    (option,) = [one for one in main.commands["run"].params if one.name == "metrics_port"]
    assert option.default == METRICS_PORT


def test_every_port_that_a_file_gives_an_option_is_that_port() -> None:
    wanted = {
        "dashboard-port": DASHBOARD_PORT,
        "metrics-port": METRICS_PORT,
        "port": RAY_PORT,  # of `ray start`
    }
    for name, text in TEXTS.items():
        for option, port in re.findall(r"--((?:dashboard-|metrics-)?port)[= ](\d+)", text):
            assert int(port) == wanted[option], name
        for port in re.findall(r"--address[= ][\"']?[\w.${}-]+:(\d+)", text):
            assert int(port) == RAY_PORT, name


def test_compose_publishes_what_the_coordinator_listens_on_to_this_machine_alone(services) -> None:
    told = settings(services["coordinator"]["command"])
    assert (told["dashboard-port"], told["metrics-port"]) == (str(DASHBOARD_PORT), str(METRICS_PORT))
    assert services["coordinator"]["ports"] == [f"127.0.0.1:{DASHBOARD_PORT}:{DASHBOARD_PORT}"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_kubernetes_names_the_ports_that_the_coordinator_listens_on(objects, coordinator) -> None:
    told = settings(coordinator["args"])
    wanted = {"dashboard": DASHBOARD_PORT, "metrics": METRICS_PORT}
    assert {name: int(told[f"{name}-port"]) for name in wanted} == wanted
    assert {port["name"]: port["containerPort"] for port in coordinator["ports"]} == wanted
    (service,) = [one for one in objects if one["kind"] == "Service"]
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == wanted
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(wanted)
    probes = [coordinator[key]["httpGet"] for key in coordinator if key.endswith("Probe")]
    assert {probe["port"] for probe in probes} == {"metrics"}
    assert {probe["path"] for probe in probes} == {"/healthz", urlsplit(health.READY_URL).path}
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    rules = [rule for policy in policies for rule in policy.get("ingress", ())]
    assert {port["port"] for rule in rules for port in rule.get("ports", ())} == set(wanted)


def test_the_coordinators_image_exposes_the_ports_and_asks_itself_whether_it_is_well() -> None:
    text = TEXTS["docker/Dockerfile.coordinator"]
    assert re.findall(r"^EXPOSE (.+)$", text, flags=re.MULTILINE) == [f"{DASHBOARD_PORT} {METRICS_PORT}"]
    assert f'"python", "-m", "{health.__name__}"' in text


# Tokens and state


def test_tokens_lie_at_one_path() -> None:
    found = {
        (name, path)
        for name, text in TEXTS.items()
        for path in re.findall(r"--tokens[= ](/\S+?)(?=[\"'\],`]|\s|$)", text)
    }
    assert {path for _, path in found} == {TOKENS}
    assert {"compose.yaml", "k8s/base/coordinator.yaml", "README.md"} <= {name for name, _ in found}


def test_the_tokens_path_is_mounted_where_it_is_named(services, objects, coordinator) -> None:
    assert f"secrets:{CONFIGURATION}" in services["coordinator"]["volumes"]
    assert CONFIGURATION in [mount["mountPath"] for mount in coordinator["volumeMounts"]]
    made = services["setup"]["command"][0]
    assert services["setup"]["working_dir"] == CONFIGURATION
    assert "--tokens tokens.toml" in made
    assert f"> {Path(METRICS_TOKEN).name}" in made


def test_prometheus_reads_the_metrics_token_where_compose_makes_it(services) -> None:
    (scraped,) = documents("prometheus/prometheus.yml")[0]["scrape_configs"]
    (found,) = scraped["http_sd_configs"]
    for one in (scraped, found):
        assert one["authorization"] == {"type": "Bearer", "credentials_file": METRICS_TOKEN}
    assert f"secrets:{CONFIGURATION}:ro" in services["prometheus"]["volumes"]
    assert METRICS_TOKEN in TEXTS["README.md"]


def test_the_metrics_token_has_one_name_on_kubernetes(objects) -> None:
    (endpoint,) = one_of(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    credentials = endpoint["authorization"]["credentials"]
    made = re.search(r"secret generic (\S*metrics\S*) --from-file=(\w+)=", TEXTS["k8s/kustomization.yaml"])
    assert made is not None
    assert (credentials["name"], credentials["key"]) == made.groups()
    assert f"`{credentials['name']}`" in TEXTS["README.md"]


def test_state_lies_at_one_path(services, coordinator) -> None:
    for name, text in only(r"docker/Dockerfile\.\w+").items():
        assert re.findall(r"^WORKDIR (.+)$", text, flags=re.MULTILINE)[-1] == STATE, name
    assert f"state:{STATE}" in services["coordinator"]["volumes"]
    assert STATE in [mount["mountPath"] for mount in coordinator["volumeMounts"]]
    assert f"`{STATE}" in TEXTS["README.md"]


def test_ray_is_always_asked_for_a_token() -> None:
    for name, text in TEXTS.items():
        if "RAY_AUTH_TOKEN_PATH" in text:
            assert re.search(r"RAY_AUTH_MODE[\"']?\s*[:=,]\s*(value:\s*)?[\"']?token", text), name
    assert "authOptions: {mode: token}" in TEXTS["k8s/base/raycluster.yaml"]


def test_who_is_taken_away_is_told_by_the_variable_that_agents_look_at() -> None:
    named = {variable for text in TEXTS.values() for variable in re.findall(r"\bARCHFLEET_DRAIN\w*", text)}
    assert named == {DRAIN_VARIABLE}


# Labels


def test_labels_that_are_asked_for_are_those_of_pods_of_ours(objects) -> None:
    found = [one["metadata"].get("labels", {}) for one in every(objects) if "containers" in one.get("spec", ())]
    pods = [labels for labels in found if "app.kubernetes.io/name" in labels]
    assert len(pods) == 4
    asked = [one["matchLabels"] for one in every(objects) if "matchLabels" in one]
    asked += [one["spec"]["selector"] for one in objects if one["kind"] == "Service"]
    ours = [labels for labels in asked if not set(labels) & {"kubernetes.io/metadata.name", "k8s-app"}]
    assert len(ours) >= 6
    assert not [labels for labels in ours if not any(labels.items() <= pod.items() for pod in pods)]


def test_workers_are_told_apart_by_their_hardware(objects) -> None:
    for group in one_of(objects, "RayCluster")["spec"]["workerGroupSpecs"]:
        assert group["template"]["metadata"]["labels"]["archfleet.io/hardware"] == group["groupName"]


# systemd


def unit(name: str) -> str:
    """A unit's text, continued lines joined."""
    return re.sub(r"\\\n\s*", "", TEXTS[f"systemd/archfleet-{name}.service"])


def test_units_keep_state_tokens_and_ports_where_the_others_do() -> None:
    text = unit("coordinator")
    assert f"WorkingDirectory={STATE}\n" in text
    assert f"StateDirectory={Path(STATE).name}\n" in text
    (command,) = re.findall(r"^ExecStart=(.+)$", text, flags=re.MULTILINE)
    told = settings(command.split())
    assert (told["dashboard-port"], told["metrics-port"]) == (str(DASHBOARD_PORT), str(METRICS_PORT))
    assert told["tokens"] == TOKENS
    assert f"WorkingDirectory={STATE}\n" in unit("backup")
    assert f" {STATE}\n" in TEXTS["systemd/sysusers.conf"]
    for name in ("coordinator", "head", "agent@"):
        assert set(re.findall(r"^EnvironmentFile=-?(/.+)/", unit(name), flags=re.MULTILINE)) == {CONFIGURATION}
        assert f"LoadCredential=ray-token:{CONFIGURATION}/ray-token\n" in unit(name)


def test_units_run_what_the_images_run_from_the_same_folder() -> None:
    assert "PATH=/opt/archfleet/bin:" in TEXTS["docker/Dockerfile.coordinator"]
    for name in ("coordinator", "head", "agent@", "backup"):
        assert re.search(r"^ExecStart=/opt/archfleet/bin/(archfleet|ray) ", unit(name), flags=re.MULTILINE)


def test_copies_are_made_as_often_everywhere_and_as_many_stay() -> None:
    pod = containers(documents("k8s/base/coordinator.yaml"))
    loops = [pod["backup"]["command"][-1], documents("compose.yaml")[0]["services"]["backup"]["command"][-1]]
    assert all(f"sleep {6 * 3600} &" in loop for loop in loops)
    assert "OnCalendar=*-*-* 00/6:00:00\n" in TEXTS["systemd/archfleet-backup.timer"]
    assert {re.findall(r"tail -n \+(\d+)", text)[0] for text in (*loops, unit("backup"))} == {"15"}


# Watching


def test_the_job_of_the_rules_is_the_one_that_the_coordinator_tells(objects) -> None:
    (endpoint,) = one_of(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert [one["replacement"] for one in endpoint["relabelings"] if one["targetLabel"] == "job"] == [JOB]
    jobs = {job for text in TEXTS.values() for job in re.findall(r'\bjob\s*=\s*"([^"]+)"', text)}
    # Of the rules' tests: a stranger.
    assert jobs - {"something-else", "node"} == {JOB}


SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
EXPOSED = {f"archfleet_{name}{end}" for name, family in CATALOGUE.items() for end in SUFFIXES[family.kind]}


@cache
def recorded() -> frozenset[str]:
    """Names that rules give to what they record, as patterns."""
    rules = [rule for group in rule_groups() for rule in group["rules"]]
    return frozenset(re.escape(rule["record"]) for rule in rules if "record" in rule)


def strangers(text: str) -> set[str]:
    """Names of metrics in a text that no coordinator exposes; those of recording rules left out."""
    bare = re.sub("|".join(recorded()), "", text)
    return set(re.findall(r"(?<![\w/.-])archfleet_[a-z_]+[a-z](?![\w-])", bare)) - EXPOSED


def test_metrics_that_are_named_anywhere_are_exposed() -> None:
    families = {f"archfleet_{name}" for name in CATALOGUE}  # build.py puts some together
    for name, text in TEXTS.items():
        assert strangers(text) <= families, name


def test_metrics_that_the_dashboard_asks_for_are_exposed() -> None:
    """As Grafana reads it: build.py puts names together of which the text above does not tell."""
    text = (DEPLOY / "grafana" / "dashboards" / "archfleet.json").read_text()
    asked = [one["expr"] for one in every(json.loads(text)) if "expr" in one]
    assert len(asked) > 40
    found = {name for expression in asked for name in strangers(expression)}
    assert not found


def every(value: Any) -> Iterator[dict[str, Any]]:
    """Each object within a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from every(inner)


@pytest.mark.parametrize("name", ["archfleet_study_spendings", "archfleet_trials_finished", "archfleet_agents_total"])
def test_a_metric_that_is_not_exposed_would_be_noticed(name: str) -> None:
    assert strangers(f"sum(rate({name}[5m]))") == {name}


def rule_groups() -> list[dict[str, Any]]:
    return documents("prometheus/rules.yml")[0]["groups"]


def test_kubernetes_has_the_same_rules(objects) -> None:
    assert one_of(objects, "PrometheusRule")["spec"]["groups"] == rule_groups()


def test_prometheus_finds_coordinator_rules_and_alertmanager_under_composes_names(services) -> None:
    configuration = documents("prometheus/prometheus.yml")[0]
    url = urlsplit(configuration["scrape_configs"][0]["http_sd_configs"][0]["url"])
    assert (url.hostname in services, url.port, url.path) == (True, METRICS_PORT, "/targets")
    mounts = [volume.split(":")[1] for volume in services["prometheus"]["volumes"]]
    assert "/etc/prometheus/prometheus.yml" in mounts
    assert {f"/etc/prometheus/{name}" for name in configuration["rule_files"]} <= set(mounts)
    ((target,),) = [one["targets"] for one in configuration["alerting"]["alertmanagers"][0]["static_configs"]]
    assert target.partition(":")[0] in services


def test_grafana_finds_prometheus_its_files_and_the_dashboard_under_composes_names(services) -> None:
    (source,) = documents("grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"]
    url = urlsplit(source["url"])
    assert f"127.0.0.1:{url.port}:{url.port}" in services[url.hostname]["ports"]
    (link,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert urlsplit(link["url"]).port == DASHBOARD_PORT
    (provider,) = documents("grafana/provisioning/dashboards/archfleet.yaml")[0]["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


# Commands


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every call of archfleet: whole lines of text, and lists of words in YAML."""
    for name, text in TEXTS.items():
        joined = re.sub(r"\\\n\s*", " ", text)
        pattern = r"(?<![\w./-])archfleet ((?:run|serve|token|backup|status|doctor|data|report) [^\n`#>|;&)]*)"
        for line in re.findall(pattern, joined):
            yield name, shlex.split(line.replace("'", "").replace('"', ""))
    yield "compose.yaml", documents("compose.yaml")[0]["services"]["coordinator"]["command"]
    pod = containers(documents("k8s/base/coordinator.yaml"))
    yield "k8s/base/coordinator.yaml", pod["coordinator"]["args"]


def test_every_command_has_the_options_that_it_is_given() -> None:
    lines = list(command_lines())
    assert {"compose.yaml", "k8s/base/coordinator.yaml", "README.md"} <= {name for name, _ in lines}
    for name, words in lines:
        found: click.Command = main
        rest = list(words)
        while isinstance(found, click.Group) and rest and rest[0] in found.commands:
            found, rest = found.commands[rest[0]], rest[1:]
        flags = {flag for one in found.params if isinstance(one, click.Option) for flag in one.opts}
        given = {word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)}
        assert given <= flags, f"{name}: {' '.join(words)}"


def test_a_coordinator_that_a_supervisor_runs_never_begins_a_finished_study_anew(services, coordinator) -> None:
    for words in (services["coordinator"]["command"], coordinator["args"]):
        assert words[0] == "run"
        assert "--stay" in words
