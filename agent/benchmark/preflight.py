"""What can be known before an engine is started: whether it can run an architecture, and whether there is memory."""

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from agent.benchmark.campaign import Campaign, Candidate
from agent.device import CPU_PROFILE_ID, describe_device
from hwprofiles.catalog import load_profile
from hwprofiles.profile import BYTES_PER_ELEMENT
from scaling.quantity import NotMeasured
from scaling.recipes import Workload
from scaling.serving import predict_serving

HOLDS_THE_WHOLE_BATCH = frozenset({"transformers"})
"""Engines that keep the KV cache of the whole batch at once; in the others what does not fit waits in a queue."""
VLLM_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention on a CPU (seen in its CPU build 0.32.0)."""
_DRIVER_TIMEOUT_SECONDS = 10.0
_MEBIBYTE = 2**20
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory that an engine could take now, and of what."""

    available_bytes: float
    place: str
    on_gpu: bool


def check_campaign(campaign: Campaign, memory: Memory) -> None:
    """Refuse what cannot be measured on this machine, before anything is started.

    Raises:
        ValueError: a candidate's head size is not the engine's, or weights and KV cache need more than the memory.
    """
    for candidate in campaign.candidates:
        if campaign.recipe.engine == "vllm" and not memory.on_gpu:
            _check_head_size(candidate)
        for workload in campaign.workloads:
            if campaign.recipe.engine == "fake":
                _check_pretended(campaign, candidate, workload)
            else:
                _check_memory(campaign, candidate, workload, memory)


def _check_head_size(candidate: Candidate) -> None:
    head_dim = candidate.architecture.head_dim
    if head_dim not in VLLM_CPU_HEAD_SIZES:
        raise ValueError(
            f"{candidate.name}: head_dim {head_dim} does not run in vLLM on a CPU; expected one of "
            f"{', '.join(map(str, VLLM_CPU_HEAD_SIZES))}. Measure it with --engine transformers, or on a GPU"
        )


def _check_pretended(campaign: Campaign, candidate: Candidate, workload: Workload) -> None:
    profile = load_profile(CPU_PROFILE_ID)
    prediction = predict_serving(candidate.architecture, profile, campaign.recipe, workload)
    if isinstance(prediction.requests_per_second, NotMeasured):
        raise ValueError(
            f"{candidate.name}: the fake engine cannot serve this: {prediction.requests_per_second.reason}"
        )


def _check_memory(campaign: Campaign, candidate: Candidate, workload: Workload, memory: Memory) -> None:
    """Weights and KV cache are a lower bound: activations and the engine's own buffers come on top."""
    element_bytes = BYTES_PER_ELEMENT[campaign.recipe.dtype]
    sequences = workload.batch_size if campaign.recipe.engine in HOLDS_THE_WHOLE_BATCH else 1
    tokens = workload.input_tokens + workload.output_tokens
    weights = candidate.architecture.num_total_parameters * element_bytes
    cache = sequences * tokens * candidate.architecture.key_value_bytes_per_token(element_bytes)
    if weights + cache <= memory.available_bytes:
        return
    what = f"batch {workload.batch_size}" if sequences > 1 else "one sequence"
    smaller = ("a smaller --batch, " if sequences > 1 else "") + "shorter lengths, "
    narrower = "--dtype bfloat16 " if element_bytes > BYTES_PER_ELEMENT["bfloat16"] else ""
    raise ValueError(
        f"{candidate.name} does not fit in the memory of {memory.place}: weights of {weights / 1e9:.2f} GB and "
        f"{cache / 1e9:.2f} GB of KV cache ({what} of {tokens} tokens, {campaign.recipe.dtype}) need at least "
        f"{(weights + cache) / 1e9:.2f} GB, available are {memory.available_bytes / 1e9:.2f} GB. "
        f"Give {smaller}{narrower}or a smaller architecture"
    )


def available_memory() -> Memory:
    """Free memory of the first visible GPU, or what this process may still take of the machine's."""
    device = describe_device()
    free = _gpu_free_bytes() if device.hardware != CPU_PROFILE_ID else None
    if free is not None:
        return Memory(available_bytes=free, place=device.name, on_gpu=True)
    return Memory(available_bytes=_host_available_bytes(), place="this machine", on_gpu=False)


def _gpu_free_bytes() -> float | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        command.append(f"--id={visible.split(',')[0]}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_SECONDS, check=True)
        return float(answer.stdout.split("\n")[0]) * _MEBIBYTE
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


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
