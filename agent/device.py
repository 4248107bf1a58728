"""Which device this is, and what made a number on it. Asks the driver, not torch."""

import functools
import importlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scaling.observations import Provenance

CPU_PROFILE_ID = "cpu-generic"
UNKNOWN_PROFILE_ID = "unknown"
PRETENDED_VARIABLE = "ARCHFLEET_PRETENDED_HARDWARE"
"""Names the profile that this agent pretends to have: tests of mixed fleets on CPUs."""
_PACKAGES = ("archfleet", "numpy", "torch", "transformers", "tokenizers", "safetensors")
_DRIVER_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class DeviceDescription:
    """A device by what it says of itself, and the profile (`hwprofiles`) that it matches."""

    name: str
    hardware: str
    memory_bytes: int | None = None
    """As the driver or the kernel reports it."""
    power_watts: float | None = None
    """The power limit that the driver reports."""


def describe_device(*, on_gpu: bool | None = None) -> DeviceDescription:
    """The first visible GPU, or the CPU; `on_gpu` decides where the caller knows which one is used."""
    gpu = _describe_gpu() if on_gpu is not False else None
    if gpu is None and on_gpu:
        return DeviceDescription("a GPU that nvidia-smi does not show", UNKNOWN_PROFILE_ID)
    return gpu or DeviceDescription(_cpu_name(), CPU_PROFILE_ID, _host_memory_bytes())


def pretended_hardware() -> str | None:
    """Profile id that this agent says it has, and that its fake engine serves by; real engines ignore it."""
    return os.environ.get(PRETENDED_VARIABLE) or None


@functools.cache
def _describe_gpu() -> DeviceDescription | None:
    """Asks the driver, not torch: a machine that only coordinates needs no torch."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total,power.limit", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        command.append(f"--id={visible.split(',')[0]}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpu_line(answer.stdout)


def parse_gpu_line(answer: str) -> DeviceDescription | None:
    """The first device of nvidia-smi's "name, MiB, watts" lines; None where it lists none."""
    fields = [field.strip() for field in answer.strip().partition("\n")[0].rsplit(",", 2)]
    if len(fields) != 3 or not fields[0]:
        return None
    name, memory_mebibytes, power_watts = fields[0], _number(fields[1]), _number(fields[2])
    memory_bytes = None if memory_mebibytes is None else int(memory_mebibytes * 2**20)
    hardware = _match_profile(name, memory_bytes, power_watts) or UNKNOWN_PROFILE_ID
    return DeviceDescription(name, hardware, memory_bytes, power_watts)


@functools.cache
def driver_version() -> str | None:
    """The GPU driver's version; None where there is no GPU driver to ask."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().partition("\n")[0] or None


_FINGERPRINT = {
    "gpu_name": "name",
    "gpu_uuid": "uuid",
    "gpu_memory_mebibytes": "memory.total",
    "gpu_power_limit_watts": "power.limit",
    "gpu_driver": "driver_version",
    "gpu_max_sm_clock_mhz": "clocks.max.sm",
    "gpu_max_memory_clock_mhz": "clocks.max.mem",
    "gpu_ecc": "ecc.mode.current",
}
"""Our word → nvidia-smi's."""


@functools.cache
def gpu_fingerprint() -> dict[str, str]:
    """What the driver says of the first visible board that can change a number; empty where it cannot be asked."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_FINGERPRINT.values())}", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        command.append(f"--id={visible.split(',')[0]}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_fingerprint(answer.stdout)


def parse_fingerprint(answer: str) -> dict[str, str]:
    """The first board of nvidia-smi's lines; empty where it lists none. What it does not know stays [N/A]."""
    fields = [field.strip() for field in answer.strip().partition("\n")[0].split(",")]
    return dict(zip(_FINGERPRINT, fields, strict=True)) if len(fields) == len(_FINGERPRINT) else {}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # the driver writes [N/A] for what it does not know
        return None


def _match_profile(name: str, memory_bytes: int | None, power_watts: float | None) -> str | None:
    catalog = importlib.import_module("hwprofiles.catalog")
    match: str | None = catalog.match_device(name, memory_bytes, power_watts)
    return match


def _host_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not every platform tells
        return None


@functools.cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """Versions of what can change a number: the packages that are installed, Python and the platform."""
    found = [
        ("python", platform.python_version()),
        ("platform", platform.platform()),
        ("kernel", platform.release()),
        ("cpu", _cpu_name()),
    ]
    for package in _PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def make_provenance(*, agent: str, started_at_unix: float, seconds: float, on_gpu: bool | None = None) -> Provenance:
    """Provenance of something that this process did on this device."""
    device = describe_device(on_gpu=on_gpu)
    return Provenance(
        agent=agent,
        hostname=socket.gethostname(),
        device=device.name,
        hardware=device.hardware,
        started_at_unix=started_at_unix,
        seconds=max(0.0, seconds),
        versions=dict(versions()),
    )
