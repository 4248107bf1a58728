"""What of this machine an engine could take now: devices, memory, and what its CPU can do."""

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from agent.device import CPU_PROFILE_ID, describe_device

_DRIVER_TIMEOUT_SECONDS = 10.0
_MEBIBYTE = 2**20
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices and memory that an engine could take now."""

    available_bytes: float
    """Of the machine, or of the visible GPU that has least."""
    place: str
    on_gpu: bool
    num_devices: int = 1
    """Visible GPUs; one without a GPU."""
    cpu_flags: frozenset[str] = frozenset()
    """Instruction sets by the kernel's names."""


def this_machine() -> Machine:
    """Free memory of the visible GPUs, or what this process may still take of the machine's."""
    device = describe_device()
    free = _gpu_free_bytes() if device.hardware != CPU_PROFILE_ID else ()
    if free:
        return Machine(available_bytes=min(free), place=device.name, on_gpu=True, num_devices=len(free))
    return Machine(
        available_bytes=_host_available_bytes(), place="this machine", on_gpu=False, cpu_flags=_read_cpu_flags()
    )


def _gpu_free_bytes() -> tuple[float, ...]:
    """Of each visible GPU; empty where the driver does not tell."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_SECONDS, check=True)
        return free_bytes_of_visible(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def free_bytes_of_visible(answer: str, visible: str | None) -> tuple[float, ...]:
    """Free bytes of the GPUs that CUDA_VISIBLE_DEVICES names, of nvidia-smi's "index, uuid, MiB" lines.

    Unset means all; a name may be an index or the beginning of a UUID, and what follows an unknown one is invisible.

    Raises:
        ValueError: a line has another form.
    """
    lines = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.strip()]
    free = {(index, uuid): float(mebibytes) * _MEBIBYTE for index, uuid, mebibytes in lines}
    if visible is None:
        return tuple(free.values())
    found: list[float] = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        matching = [amount for (index, uuid), amount in free.items() if name == index or uuid.startswith(name)]
        if not matching:
            break
        found.append(matching[0])
    return tuple(found)


def _read_cpu_flags() -> frozenset[str]:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return frozenset(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())
    return frozenset()


def _host_available_bytes() -> float:
    """The least of what the kernel thinks is available and what the control group leaves."""
    available = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    return min(available, group_available_bytes(_CGROUP))


def group_available_bytes(group: Path) -> float:
    """What a control group (version 2) may still take: limit - current + inactive file cache; infinite without one."""
    try:
        limit = int((group / "memory.max").read_text())
        current = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no group, version 1, or "max"
        return float("inf")
    return float(limit - current + int(statistics.get("inactive_file", 0)))
