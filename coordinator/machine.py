"""What a machine has that archfleet needs: asked of the kernel, the driver and the interpreters, and not judged here.

`coordinator/doctor.py` judges. Nothing heavy is imported into this process: torch and the engines are asked in another.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import apsw

from agent.device import DeviceDescription, driver_version, parse_gpu_line
from agent.engines.base import DRIVERS
from agent.engines.interpreters import EngineMissingError, find_engine, find_interpreter
from agent.scoring.harness import VARIABLE as HARNESS_VARIABLE
from agent.scoring.harness import HarnessMissingError, find_harness
from coordinator.errors import UserError
from coordinator.fleet.ray_session import package_folders, require_token

PORTS = {8420: "dashboard", 9464: "metrics", 6379: "a Ray head"}
_TIMEOUT_SECONDS = 60.0
_GPU_QUERY = "memory.used,name,memory.total,power.limit"
_ASK_TORCH = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
_ASK_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
_REQUIREMENT = re.compile(
    r"""(?P<package>[\w.-]+)(\[[^]]*\])?\s*(>=\s*(?P<minimum>[\w.!+]+))?(.*\bextra\s*==\s*["'](?P<extra>[\w-]+)["'])?"""
)


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A package that archfleet, or one of its extras, asks for."""

    package: str
    extra: str | None
    """None: of the base install."""
    minimum: str | None
    installed: str | None
    """Its version; None where it is missing."""


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device, by what its driver says."""

    device: DeviceDescription
    used_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class TorchDevices:
    """How many CUDA devices torch sees, and for which CUDA it was built (None: a build for CPUs)."""

    num_devices: int
    cuda: str | None


@dataclass(frozen=True, kw_only=True)
class EngineHome:
    """Where this node looks for an engine, or for the evaluation harness, and what is there."""

    name: str
    python: str | None
    """None: the configuration cannot be read."""
    is_named: bool
    """Whether the user named the interpreter; else it is this one."""
    version: str | None
    trouble: str | None
    """Why it cannot be used; None where it can."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A folder's file system."""

    path: Path
    file_system: str
    free_bytes: int
    is_writable: bool


@dataclass(frozen=True, kw_only=True)
class ClockState:
    """What the kernel says of the wall clock."""

    is_synchronised: bool
    largest_error_seconds: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All that `archfleet doctor` looks at."""

    python_version: tuple[int, int, int]
    python: str
    requirements: tuple[Requirement, ...]
    """Empty where archfleet itself is not installed (a bare source tree)."""
    stranger: str | None
    """What stands in the way of archfleet's own packages."""
    sqlite_version: str
    accelerators: tuple[Accelerator, ...]
    gpu_driver: str | None
    visible_devices: str | None
    """CUDA_VISIBLE_DEVICES."""
    torch: TorchDevices | None
    """None where torch is missing, or there is no accelerator to ask it about."""
    engines: tuple[EngineHome, ...]
    harness: EngineHome
    runs: Room
    temporary: Room
    shared_memory: Room | None
    memory_bytes: int | None
    available_memory_bytes: int | None
    num_cpus: int
    load: float
    """Processes that ran or waited, mean of the last minute."""
    governors: frozenset[str]
    """Of the processors; empty where it cannot be read."""
    ports_in_use: frozenset[int]
    ray_mode: str | None
    """RAY_AUTH_MODE."""
    ray_trouble: str | None
    """Why our Ray token cannot be used."""
    clock: ClockState | None
    num_open_files: int
    """Hard limit."""


def probe_machine(runs: Path, *, environment: Mapping[str, str]) -> Machine:
    """Ask this machine; some seconds where it has GPUs or engines of their own.

    Args:
        runs: where run directories are or will be.
        environment: variables that name interpreters and tokens.
    """
    accelerators = _accelerators()
    memory = _memory()
    return Machine(
        python_version=sys.version_info[:3],
        python=sys.executable,
        requirements=_requirements(),
        stranger=_stranger(),
        sqlite_version=apsw.sqlite_lib_version(),
        accelerators=accelerators,
        gpu_driver=driver_version(),
        visible_devices=environment.get("CUDA_VISIBLE_DEVICES"),
        torch=_torch_devices() if accelerators else None,
        engines=tuple(_engine(name, environment) for name in DRIVERS if name != "fake"),
        harness=_harness(environment),
        runs=_room(runs),
        temporary=_room(Path(tempfile.gettempdir())),
        shared_memory=_room(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        memory_bytes=memory.get("MemTotal"),
        available_memory_bytes=memory.get("MemAvailable"),
        num_cpus=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        governors=_governors(),
        ports_in_use=frozenset(port for port in PORTS if is_in_use(port)),
        ray_mode=environment.get("RAY_AUTH_MODE"),
        ray_trouble=_ray_trouble(environment),
        clock=_clock(),
        num_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )


def parse_requirements(lines: Iterable[str]) -> tuple[Requirement, ...]:
    """What a distribution's metadata asks for, such as "torch>=2.4; extra == 'train'", beside what is installed."""
    found = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is not None:
            found.append(
                Requirement(
                    package=match["package"],
                    extra=match["extra"],
                    minimum=match["minimum"],
                    installed=_version(match["package"]),
                )
            )
    return tuple(found)


def parse_accelerators(answer: str) -> tuple[Accelerator, ...]:
    """The devices of nvidia-smi's lines "MiB in use, name, MiB, watts"."""
    found = []
    for line in answer.splitlines():
        used, _, rest = line.partition(",")
        device = parse_gpu_line(rest)
        if device is not None:
            used_bytes = int(used) * 2**20 if used.strip().isdecimal() else None
            found.append(Accelerator(device=device, used_memory_bytes=used_bytes))
    return tuple(found)


def _requirements() -> tuple[Requirement, ...]:
    try:
        return parse_requirements(importlib.metadata.requires("archfleet") or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stranger() -> str | None:
    try:
        package_folders()
    except UserError as error:
        return str(error)
    return None


def _accelerators() -> tuple[Accelerator, ...]:
    answer = _answer("nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits")
    return () if answer is None else parse_accelerators(answer)


def _torch_devices() -> TorchDevices | None:
    words = (_answer(sys.executable, "-c", _ASK_TORCH) or "").split()
    if len(words) != 2:
        return None
    return TorchDevices(num_devices=int(words[0]), cuda=None if words[1] == "None" else words[1])


def _engine(name: str, environment: Mapping[str, str]) -> EngineHome:
    try:
        home = find_interpreter(name, environment=environment)
    except ValueError as error:
        return EngineHome(name=name, python=None, is_named=True, version=None, trouble=str(error))
    is_named = home.python != sys.executable
    try:
        find_engine(name, environment=environment)
    except EngineMissingError as error:
        return EngineHome(name=name, python=home.python, is_named=is_named, version=None, trouble=str(error))
    version = _answer(home.python, "-c", _ASK_VERSION, name)
    return EngineHome(name=name, python=home.python, is_named=is_named, version=version, trouble=None)


def _harness(environment: Mapping[str, str]) -> EngineHome:
    is_named = bool(environment.get(HARNESS_VARIABLE, "").strip())
    try:
        python = find_harness(environment)
    except HarnessMissingError as error:
        return EngineHome(name="lm-eval", python=None, is_named=is_named, version=None, trouble=str(error))
    version = _answer(python, "-c", _ASK_VERSION, "lm-eval")
    return EngineHome(name="lm-eval", python=python, is_named=is_named, version=version, trouble=None)


def _answer(*command: str) -> str | None:
    """What a program prints, without its last line end; None where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _room(path: Path) -> Room:
    """The file system of a folder, or of the nearest one above that exists."""
    folder = path.absolute()
    while not _is_folder(folder):
        folder = folder.parent
    state = os.statvfs(folder)
    return Room(
        path=path,
        file_system=_file_system(folder.resolve()),
        free_bytes=state.f_bavail * state.f_frsize,
        is_writable=os.access(folder, os.W_OK),
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # what is above it may not be looked into, or its name is longer than names can be
        return False


def _file_system(folder: Path) -> str:
    """Kind of the file system mounted nearest above a folder; "unknown" where the kernel does not tell."""
    try:
        lines = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    except OSError:
        return "unknown"
    above = [
        (len(place), number, kind) for number, (_, place, kind, *_) in enumerate(lines) if folder.is_relative_to(place)
    ]
    return max(above)[2] if above else "unknown"  # of two at one place the later hides the earlier


def _memory() -> dict[str, int]:
    """Bytes by the kernel's names, no more than this container may use; empty where the kernel does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return {}
    found = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    limit, used = (_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        found["MemTotal"] = min(found["MemTotal"], limit)
        found["MemAvailable"] = min(found["MemAvailable"], max(0, limit - used))
    return found


def _number(file: str) -> int | None:
    try:
        return int(Path(file).read_text("ascii"))
    except (OSError, ValueError):  # "max": no limit
        return None


def _governors() -> frozenset[str]:
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    try:
        return frozenset(file.read_text("ascii").strip() for file in files)
    except OSError:  # a processor that is switched off
        return frozenset()


def is_in_use(port: int) -> bool:
    """Whether a loopback port is taken."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _ray_trouble(environment: Mapping[str, str]) -> str | None:
    try:
        require_token(dict(environment))
    except UserError as error:
        return str(error)
    return None


_TIME_ERROR = 5
"""adjtimex(2): the clock is not synchronised."""


def _clock() -> ClockState | None:
    """What adjtimex(2) says when it is asked to change nothing; None where there is none."""
    answer = (ctypes.c_long * 64)()  # struct timex is shorter; its modes are 0
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(answer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    return ClockState(is_synchronised=state != _TIME_ERROR, largest_error_seconds=answer[3] * 1e-6)
