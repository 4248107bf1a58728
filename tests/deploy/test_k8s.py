"""Kubernetes: rendered by kubectl, held to Kubernetes' own schemas, and to what a coordinator and its fleet need.

The schemas of what operators add (RayCluster, PodMonitor, PrometheusRule) are not in this repository. Where
ARCHFLEET_CRDS names a folder with ray.io_rayclusters.yaml, monitoring.coreos.com_podmonitors.yaml and
monitoring.coreos.com_prometheusrules.yaml of these projects' releases, those objects are held to them too.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.cli import main
from coordinator.fleet.actor import DRAIN_VARIABLE
from coordinator.metrics import JOB
from coordinator.study import read_study

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
KUBERNETES = "1.30"
OURS = {"archfleet/coordinator:0.1.0", "archfleet/agent:0.1.0"}
ADDED_BY_OPERATORS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "PodMonitor": "monitoring.coreos.com_podmonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
}

Object = dict[str, Any]


def rendered(folder: Path) -> list[Object]:
    """What kustomize makes of a folder; skips where kubectl is not installed."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return rendered(K8S)


@pytest.fixture(scope="module")
def example() -> list[Object]:
    return rendered(K8S / "example")


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return found


def pod_templates(objects: list[Object]) -> dict[str, Object]:
    """Every pod that these objects make, by a name."""
    cluster = one(objects, "RayCluster")["spec"]
    return {
        "coordinator": one(objects, "StatefulSet")["spec"]["template"],
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
    }


def containers(objects: list[Object]) -> list[Object]:
    specs = [template["spec"] for template in pod_templates(objects).values()]
    return [each for spec in specs for each in [*spec.get("initContainers", []), *spec["containers"]]]


@pytest.mark.parametrize("folder", [K8S, K8S / "base", K8S / "example"], ids=["all", "base", "example"])
def test_core_objects_keep_kubernetes_own_schemas(folder: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    checked = [each for each in rendered(folder) if each["kind"] not in ADDED_BY_OPERATORS]
    for each in checked:
        validate(each, KUBERNETES, strict=True)
    assert {"Namespace", "StatefulSet", "Service", "NetworkPolicy", "ConfigMap"} <= {each["kind"] for each in checked}


@pytest.mark.parametrize("kind", ADDED_BY_OPERATORS)
def test_objects_of_operators_keep_their_schemas(kind: str, objects: list[Object]) -> None:
    folder = os.environ.get("ARCHFLEET_CRDS")
    if folder is None:
        pytest.skip("ARCHFLEET_CRDS names no folder with the operators' definitions (see the head of this file)")
    jsonschema = pytest.importorskip("jsonschema")
    definition = yaml.safe_load((Path(folder) / ADDED_BY_OPERATORS[kind]).read_text())
    wanted = one(objects, kind)
    (version,) = (each for each in definition["spec"]["versions"] if wanted["apiVersion"].endswith(f"/{each['name']}"))
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(wanted)) == []


def strict(schema: Any) -> Any:
    """The schema, with fields refused that it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False) is True:
        made.pop("type", None)
    if made.get("type") == "object" and "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def test_there_is_one_coordinator_with_a_volume_that_outlives_it(objects: list[Object]) -> None:
    spec = one(objects, "StatefulSet")["spec"]
    assert spec["replicas"] == 1
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert not [each for each in objects if each["kind"] in ("Deployment", "HorizontalPodAutoscaler")]


def test_it_has_time_to_stop_and_is_ready_when_it_has_recovered(objects: list[Object]) -> None:
    pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    coordinator = pod["containers"][0]
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert coordinator["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert coordinator["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}


def test_the_coordinators_options_exist_and_its_files_are_mounted(objects: list[Object]) -> None:
    pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    coordinator = pod["containers"][0]
    name, study, *arguments = coordinator["args"]
    main.commands[name].make_context(name, [study, *arguments])  # click refuses what it does not know
    (config,) = (volume for volume in pod["volumes"] if volume["name"] == "config")
    mounted = {
        item["path"] for source in config["projected"]["sources"] for each in source.values() for item in each["items"]
    }
    folder = next(mount["mountPath"] for mount in coordinator["volumeMounts"] if mount["name"] == "config")
    tokens = next(argument.partition("=")[2] for argument in arguments if argument.startswith("--tokens="))
    assert {Path(study), Path(tokens)} == {Path(folder) / path for path in mounted}


def test_ports_are_named_and_the_service_leads_to_them(objects: list[Object]) -> None:
    coordinator = one(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in coordinator["ports"]}
    assert ports == {"dashboard": 8420, "metrics": 9464}
    for port in one(objects, "Service")["spec"]["ports"]:
        assert port["port"] == ports[port["targetPort"]]
    for option, port in (("dashboard", 8420), ("metrics", 9464)):
        assert f"--{option}-port={port}" in coordinator["args"]
    assert all(port.get("name") for each in containers(objects) for port in each.get("ports", []))


def test_no_container_is_root_or_can_write_to_its_image_or_become_more(objects: list[Object]) -> None:
    for name, template in pod_templates(objects).items():
        context = template["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001), name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert template["spec"]["automountServiceAccountToken"] is False, name
    for each in containers(objects):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, each["name"]
        assert each["resources"]["limits"]["memory"], each["name"]


def test_what_is_mounted_is_there(objects: list[Object]) -> None:
    claims = {claim["metadata"]["name"] for claim in one(objects, "StatefulSet")["spec"]["volumeClaimTemplates"]}
    for name, template in pod_templates(objects).items():
        spec = template["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]} | (claims if name == "coordinator" else set())
        for each in [*spec.get("initContainers", []), *spec["containers"]]:
            assert {mount["name"] for mount in each.get("volumeMounts", [])} <= volumes, each["name"]


def test_secrets_are_named_and_none_is_here(objects: list[Object]) -> None:
    assert not [each for each in objects if each["kind"] == "Secret"]
    for each in containers(objects):
        for variable in each.get("env", []):
            assert "TOKEN" not in variable["name"] or variable["value"].startswith("/"), variable["name"]
    volumes = one(objects, "StatefulSet")["spec"]["template"]["spec"]["volumes"]
    mounted = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
    projected = [source for volume in volumes for source in volume.get("projected", {}).get("sources", [])]
    assert mounted == [one(objects, "RayCluster")["metadata"]["name"]]  # KubeRay makes it
    assert [source["secret"]["name"] for source in projected if "secret" in source] == ["archfleet-tokens"]


def test_images_are_ours_at_one_version(objects: list[Object], example: list[Object]) -> None:
    assert {each["image"] for each in containers(objects)} == OURS
    assert {each["image"].rpartition("/")[0] for each in containers(example)} == {"registry.example/archfleet"}


def test_a_group_of_workers_for_each_kind_of_gpu_and_none_that_measures_processors(objects: list[Object]) -> None:
    cluster = one(objects, "RayCluster")["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    products = {}
    for group in cluster["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        products[group["groupName"]] = spec["nodeSelector"]["nvidia.com/gpu.product"]
        assert group["rayStartParams"]["num-cpus"] == "0"
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert products == {"a100": "NVIDIA-A100-SXM4-80GB", "h200": "NVIDIA-H200"}


def test_ray_is_the_version_of_the_images(objects: list[Object]) -> None:
    lock = (ROOT / "deploy" / "docker" / "agent.txt").read_text()
    assert f"\nray=={one(objects, 'RayCluster')['spec']['rayVersion']} " in lock


def test_a_worker_that_must_go_drains_first(objects: list[Object]) -> None:
    for group in one(objects, "RayCluster")["spec"]["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        container = spec["containers"][0]
        (file,) = (each["value"] for each in container["env"] if each["name"] == DRAIN_VARIABLE)
        shell, option, script = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, option) == ("/bin/sh", "-c")
        assert script.startswith(f"touch {file} && sleep ")
        assert spec["terminationGracePeriodSeconds"] >= int(script.split()[-1]) + 40  # Ray drains 30 s


def test_nobody_speaks_but_those_who_must(objects: list[Object]) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            assert rule["from"], name
        for rule in policy.get("egress", []):
            assert rule["to"], name
    member = {"archfleet.io/ray": "member"}
    assert policies["allow-ray"]["podSelector"]["matchLabels"] == member
    for template in pod_templates(objects).values():
        assert member.items() <= template["metadata"]["labels"].items()
    ports = {rule["ports"][0]["port"] for rule in policies["allow-readers"]["ingress"]}
    assert ports == {"dashboard", "metrics"}


def test_prometheus_asks_the_right_pods_with_a_token_under_the_job_of_the_rules(objects: list[Object]) -> None:
    spec = one(objects, "PodMonitor")["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    labels = one(objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert endpoint["authorization"]["credentials"] == {"name": "archfleet-metrics-token", "key": "token"}
    assert {"action": "replace", "targetLabel": "job", "replacement": JOB} in endpoint["relabelings"]


def test_the_rules_are_those_of_prometheus(objects: list[Object]) -> None:
    ours = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    theirs = one(objects, "PrometheusRule")["spec"]["groups"]
    assert theirs == ours, "make deploy/k8s/monitoring/rules.yaml anew: its head says how"


def test_the_command_at_the_head_of_the_rules_makes_them_anew(tmp_path: Path) -> None:
    for folder in ("k8s", "prometheus"):
        shutil.copytree(ROOT / "deploy" / folder, tmp_path / folder)
    theirs, ours = tmp_path / "k8s" / "monitoring" / "rules.yaml", tmp_path / "prometheus" / "rules.yml"
    (command,) = re.findall(r"^# {3}(\{ sed .+)$", theirs.read_text(), flags=re.MULTILINE)
    before = theirs.read_text()
    assert " for: 2m" in before
    ours.write_text(ours.read_text().replace(" for: 2m", " for: 3m"))
    subprocess.run(["sh", "-euc", command], cwd=theirs.parent, check=True)
    assert theirs.read_text() == before.replace(" for: 2m", " for: 3m")


@pytest.mark.parametrize("file", ["base/study.toml", "example/study.toml"])
def test_studies_can_be_read(file: str, objects: list[Object]) -> None:
    assert read_study(str(K8S / file)).name in ("smoke", "fleet")


def test_the_study_is_a_config_map_whose_name_changes_with_it(objects: list[Object], example: list[Object]) -> None:
    names = []
    for rendered_objects, file in ((objects, "base/study.toml"), (example, "example/study.toml")):
        study = one(rendered_objects, "ConfigMap")
        assert study["data"]["study.toml"] == (K8S / file).read_text()
        assert study["metadata"]["name"] in yaml.safe_dump(one(rendered_objects, "StatefulSet"))
        names.append(study["metadata"]["name"])
    assert len(set(names)) == 2


def test_the_example_changes_what_it_says(example: list[Object]) -> None:
    replicas = [group["replicas"] for group in one(example, "RayCluster")["spec"]["workerGroupSpecs"]]
    assert replicas == [4, 8]
    stateful = one(example, "StatefulSet")["spec"]
    assert "--allowed-host=archfleet.example" in stateful["template"]["spec"]["containers"][0]["args"]
    assert stateful["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "fast"
