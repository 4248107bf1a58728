"""The doctor: each check is a function of what was found; the probe finds what is really here."""

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.device import DeviceDescription
from coordinator.cli import main
from coordinator.doctor import (
    EXTRAS,
    MADE_BY,
    Finding,
    describe_findings,
    examine,
    findings_json,
    version_numbers,
    worst_level,
)
from coordinator.machine import (
    Accelerator,
    ClockState,
    EngineHome,
    Machine,
    Requirement,
    Room,
    TorchDevices,
    is_in_use,
    parse_accelerators,
    parse_requirements,
    probe_machine,
)

GIGABYTE = 10**9
H200 = Accelerator(device=DeviceDescription("NVIDIA H200", "h200", 150 * GIGABYTE, 700.0), used_memory_bytes=0)
TORCH = Requirement(package="torch", extra="train", minimum="2.4", installed="2.8.0+cu128")


def home(name: str, *, trouble: str | None = None, is_named: bool = False) -> EngineHome:
    version = None if trouble else "1.0"
    return EngineHome(name=name, python="/usr/bin/python3", is_named=is_named, version=version, trouble=trouble)


def room(path: str, *, free_bytes: int = 500 * GIGABYTE, file_system: str = "ext4", is_writable: bool = True) -> Room:
    return Room(path=Path(path), file_system=file_system, free_bytes=free_bytes, is_writable=is_writable)


HEALTHY = Machine(
    python_version=(3, 12, 1),
    python="/usr/bin/python3",
    requirements=(Requirement(package="numpy", extra=None, minimum="1.26", installed="2.1.0"), TORCH),
    stranger=None,
    sqlite_version="3.52.0",
    accelerators=(),
    gpu_driver=None,
    visible_devices=None,
    torch=None,
    engines=(home("transformers"), home("vllm"), home("sglang", trouble="it lacks sglang")),
    harness=home("lm-eval", trouble="it lacks lm_eval"),
    runs=room("runs"),
    temporary=room("/tmp"),
    shared_memory=room("/dev/shm", file_system="tmpfs"),
    memory_bytes=64 * GIGABYTE,
    available_memory_bytes=60 * GIGABYTE,
    num_cpus=16,
    load=0.5,
    governors=frozenset({"performance"}),
    ports_in_use=frozenset(),
    ray_mode=None,
    ray_trouble="RAY_AUTH_MODE is None",
    clock=ClockState(is_synchronised=True, largest_error_seconds=0.01),
    num_open_files=65_536,
)
ON_GPUS = replace(
    HEALTHY, accelerators=(H200, H200), gpu_driver="570.1", torch=TorchDevices(num_devices=2, cuda="12.8")
)


def findings(machine: Machine, name: str) -> list[Finding]:
    return [finding for finding in examine(machine) if finding.name == name]


def worst(machine: Machine) -> tuple[str, str]:
    """Level and whole text of the only finding that is not ok."""
    (bad,) = [finding for finding in examine(machine) if finding.level != "ok"]
    assert bad.what_to_do, "whoever is told of a trouble is told what to do"
    return bad.level, f"{bad.found} | {bad.what_to_do}"


@pytest.mark.parametrize("machine", [HEALTHY, ON_GPUS], ids=["cpu", "gpus"])
def test_a_healthy_machine_has_nothing_to_do(machine: Machine) -> None:
    found = examine(machine)
    assert worst_level(found) == "ok"
    assert all(finding.what_to_do is None for finding in found)


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"python_version": (3, 10, 4)}, "problem", ["3.10.4", "3.11"]),
        ({"stranger": "another `agent` is in the way"}, "problem", ["another `agent`", "virtual environment"]),
        ({"requirements": ()}, "warning", ["bare source tree", "pip install"]),
        ({"sqlite_version": "3.40.1"}, "problem", ["3.40.1", "apsw"]),
        ({"gpu_driver": "570.1"}, "problem", ["570.1", "--gpus all"]),
        ({"runs": room("runs", free_bytes=GIGABYTE)}, "problem", ["1 GB free", "--runs"]),
        ({"runs": room("runs", free_bytes=5 * GIGABYTE)}, "warning", ["5 GB free", "--runs"]),
        ({"runs": room("runs", is_writable=False)}, "problem", ["cannot be written", "--runs"]),
        ({"runs": room("runs", file_system="nfs4")}, "warning", ["nfs4", "archfleet backup"]),
        ({"temporary": room("/tmp", free_bytes=0)}, "problem", ["/tmp", "TMPDIR"]),
        ({"available_memory_bytes": 3 * GIGABYTE}, "warning", ["3 GB", "--agents 4"]),
        ({"shared_memory": room("/dev/shm", free_bytes=64 * 2**20)}, "warning", ["67.1 MB", "--shm-size"]),
        ({"shared_memory": None}, "warning", ["no /dev/shm", "--shm-size"]),
        ({"load": 15.0}, "warning", ["15.0 busy", "benchmarks"]),
        ({"governors": frozenset({"powersave", "performance"})}, "warning", ["powersave", "cpupower"]),
        ({"ports_in_use": frozenset({8420})}, "warning", ["in use (dashboard)", "--dashboard-port"]),
        ({"ports_in_use": frozenset({9464})}, "warning", ["in use (metrics)", "--metrics-port 0"]),
        ({"ray_mode": "disabled", "ray_trouble": "no token.\nSet it"}, "problem", ["no token.", "Set it"]),
        ({"clock": ClockState(is_synchronised=False, largest_error_seconds=16)}, "warning", ["synchron", "NTP"]),
        ({"num_open_files": 1024}, "warning", ["1,024", "LimitNOFILE"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_one_trouble_is_one_line_that_says_what_to_do(change: dict[str, object], level: str, words: list[str]) -> None:
    found_level, text = worst(replace(HEALTHY, **change))  # type: ignore[arg-type]
    assert found_level == level
    for word in words:
        assert word in text


def test_little_memory_does_not_matter_to_agents_on_accelerators() -> None:
    assert worst_level(examine(replace(ON_GPUS, available_memory_bytes=3 * GIGABYTE))) == "ok"


def test_what_the_kernel_does_not_tell_is_no_trouble() -> None:
    silent = replace(HEALTHY, clock=None, memory_bytes=None, available_memory_bytes=None, governors=frozenset())
    assert worst_level(examine(silent)) == "ok"


def test_a_ray_head_on_this_machine_is_told_not_bemoaned() -> None:
    (found,) = findings(replace(HEALTHY, ports_in_use=frozenset({6379})), "port 6379")
    assert found.level == "ok"
    assert "--address 127.0.0.1:6379" in found.found


# Packages and extras


def test_a_missing_extra_says_what_does_not_work_without_it() -> None:
    without = replace(HEALTHY, requirements=(replace(TORCH, installed=None),))
    (found,) = findings(without, "extra train")
    assert found.level == "warning"
    assert "torch is missing" in found.found
    assert EXTRAS["train"] in found.found
    assert found.what_to_do == "/usr/bin/python3 -m pip install 'archfleet[train]'"


def test_packages_that_are_missing_are_told_in_one_sentence() -> None:
    wanted = [replace(TORCH, package=name, installed=None) for name in ("tokenizers", "torch", "transformers")]
    (found,) = findings(replace(HEALTHY, requirements=tuple(wanted)), "extra train")
    assert found.found.startswith("tokenizers, torch and transformers are missing (needed for `archfleet run`")


def test_an_old_package_of_the_base_install_is_a_problem() -> None:
    old = Requirement(package="pydantic", extra=None, minimum="2.7", installed="1.10.2")
    level, text = worst(replace(HEALTHY, requirements=(*HEALTHY.requirements, old)))
    assert level == "problem"
    assert "pydantic 1.10.2 is older than 2.7" in text


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.8.0+cu128", (2, 8, 0)), ("1769699998!10.1.0", (10, 1, 0)), ("0.45.0rc1", (0, 45, 0)), ("dev", ())],
)
def test_versions_are_compared_as_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


def test_requirements_are_read_as_metadata_writes_them() -> None:
    lines = ["numpy>=1.26", "torch>=2.4; extra == 'train'", 'lm-eval[hf]>=0.4.9 ; extra == "eval"', "nothing-like-it"]
    found = parse_requirements(lines)
    assert [(r.package, r.extra, r.minimum) for r in found] == [
        ("numpy", None, "1.26"),
        ("torch", "train", "2.4"),
        ("lm-eval", "eval", "0.4.9"),
        ("nothing-like-it", None, None),
    ]
    assert found[0].installed is not None
    assert found[3].installed is None


def test_every_extra_that_is_looked_for_exists() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(EXTRAS) | {"gpu"} <= set(project["optional-dependencies"])


# Accelerators and engines


def test_devices_are_counted_by_kind_with_their_sheets() -> None:
    (found,) = findings(ON_GPUS, "accelerators")
    assert found.found == "2 × NVIDIA H200, data sheet h200"


def test_a_device_without_a_sheet_can_be_calibrated() -> None:
    strange = replace(H200, device=DeviceDescription("NVIDIA Z1", "unknown", 10 * GIGABYTE, 100.0))
    level, text = worst(replace(ON_GPUS, accelerators=(H200, strange)))
    assert level == "warning"
    assert "archfleet hw calibrate" in text


def test_devices_that_others_use_are_named() -> None:
    level, text = worst(replace(ON_GPUS, accelerators=(H200, replace(H200, used_memory_bytes=70 * GIGABYTE))))
    assert level == "warning"
    assert "device 1" in text


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (None, "does not start"),
        (TorchDevices(num_devices=0, cuda=None), "a build for CPUs and sees 0 of 2"),
        (TorchDevices(num_devices=1, cuda="12.8"), "CUDA 12.8 and sees 1 of 2"),
    ],
)
def test_a_torch_that_misses_devices_is_a_problem(torch: TorchDevices | None, words: str) -> None:
    level, text = worst(replace(ON_GPUS, torch=torch))
    assert level == "problem"
    assert words in text


def test_a_torch_sees_no_more_devices_than_it_may() -> None:
    one = replace(ON_GPUS, visible_devices="0", torch=TorchDevices(num_devices=1, cuda="12.8"))
    assert findings(one, "torch")[0].found.endswith("CUDA_VISIBLE_DEVICES=0")
    assert worst_level(examine(one)) == "ok"


def test_energy_needs_bindings_only_where_there_are_gpus() -> None:
    nvml = Requirement(package="nvidia-ml-py", extra="gpu", minimum="12", installed=None)
    assert worst_level(examine(replace(HEALTHY, requirements=(*HEALTHY.requirements, nvml)))) == "ok"
    level, text = worst(replace(ON_GPUS, requirements=(*HEALTHY.requirements, nvml)))
    assert level == "warning"
    assert "energy is null" in text


def test_an_engine_that_is_named_and_not_there_is_a_problem() -> None:
    broken = home("vllm", trouble="/opt/vllm/bin/python does not run", is_named=True)
    level, text = worst(replace(HEALTHY, engines=(broken,)))
    assert level == "problem"
    assert "/opt/vllm/bin/python does not run" in text


def test_what_an_engines_trouble_says_to_do_is_what_to_do() -> None:
    broken = home("vllm", trouble="/opt/python does not run; name another: ARCHFLEET_VLLM_PYTHON=X", is_named=True)
    (found,) = findings(replace(HEALTHY, engines=(broken,)), "engine vllm")
    assert found.found == "/opt/python does not run"
    assert found.what_to_do == "name another: ARCHFLEET_VLLM_PYTHON=X"


def test_an_engine_that_nobody_asked_for_is_no_trouble_and_says_what_brings_it() -> None:
    (found,) = findings(HEALTHY, "engine sglang")
    assert (found.level, found.found) == (
        "ok",
        "not installed; only `--engine sglang` needs it (`make sglang` brings it)",
    )


def test_what_brings_an_engine_is_a_target_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text("utf-8")
    for command in MADE_BY.values():
        assert f"\n{command.removeprefix('make ')}: " in makefile


def test_accelerators_without_a_serving_engine_are_a_warning() -> None:
    level, text = worst(replace(ON_GPUS, engines=(home("transformers"),)))
    assert level == "warning"
    assert "ARCHFLEET_VLLM_PYTHON" in text


def test_the_drivers_lines_are_read() -> None:
    answer = "12, NVIDIA H200, 143771, 700.00\n[N/A], NVIDIA A100-SXM4-80GB, 81920, 400.00\n\nNo devices were found\n"
    first, second = parse_accelerators(answer)
    assert (first.device.name, first.device.hardware, first.used_memory_bytes) == ("NVIDIA H200", "h200", 12 * 2**20)
    assert (second.device.hardware, second.used_memory_bytes) == ("a100-80gb", None)


# This machine


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    environment = {"ARCHFLEET_VLLM_PYTHON": "/nonexistent/python", "RAY_AUTH_MODE": "disabled"}
    return probe_machine(tmp_path_factory.mktemp("doctor") / "runs" / "deep", environment=environment)


def test_the_probe_finds_this_machine(here: Machine) -> None:
    assert here.python_version == sys.version_info[:3]
    assert here.num_cpus == len(os.sched_getaffinity(0))
    assert here.runs.free_bytes > 0
    assert here.runs.is_writable
    assert not here.runs.path.exists(), "a look makes nothing"
    assert here.memory_bytes is None or here.memory_bytes > 2**28
    assert {r.package for r in here.requirements if r.extra is None} >= {"numpy", "apsw"}
    assert here.stranger is None


def test_the_probe_finds_what_the_environment_names(here: Machine) -> None:
    vllm = next(engine for engine in here.engines if engine.name == "vllm")
    assert vllm.is_named
    assert vllm.trouble is not None
    assert "/nonexistent/python" in vllm.trouble
    assert here.ray_mode == "disabled"
    assert {finding.name for finding in examine(here) if finding.level == "problem"} >= {"engine vllm", "Ray token"}


@pytest.mark.parametrize("place", ["/proc/1/root/no/such", "/etc/" + "a" * 300])
def test_a_place_for_runs_that_cannot_be_looked_into_is_judged_by_the_one_above(place: str) -> None:
    machine = probe_machine(Path(place), environment={})
    assert machine.runs.path == Path(place)
    assert findings(machine, "disk for runs")


def test_a_port_is_in_use_while_somebody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert is_in_use(port)
    assert not is_in_use(port)


def test_lines_for_people_and_for_programs_tell_the_same() -> None:
    found = examine(replace(HEALTHY, num_open_files=1024))
    text = "\n".join(line.plain for line in describe_findings(found))
    told = findings_json(found)
    assert told["level"] == "warning"
    for check in told["checks"]:
        assert check["name"] in text
        assert check["found"] in text
    assert text.endswith(f"{len(found) - 1} ok, 1 to know of, 0 to mend")


def test_a_problem_ends_with_exit_status_1(tmp_path: Path) -> None:
    environment = {"ARCHFLEET_VLLM_PYTHON": "/nonexistent/python"}
    result = CliRunner().invoke(main, ["doctor", "--runs", str(tmp_path), "--json"], env=environment)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["level"]) == (1, "problem")
    assert any("/nonexistent/python" in check["found"] for check in told["checks"])
