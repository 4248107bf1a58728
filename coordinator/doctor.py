"""`archfleet doctor`: whether a machine can do what archfleet needs, and what to do where it cannot.

Each check is a function of what was found (`coordinator/machine.py`), and gives findings:

    ok         nothing to do
    warning    it works, but not everything, not as fast, or not as exact
    problem    something that was set up does not work, or a run would end with this: exit status 1
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from rich.text import Text

from agent.device import UNKNOWN_PROFILE_ID
from coordinator.fleet.ray_session import OBJECT_STORE_BYTES
from coordinator.machine import PORTS, EngineHome, Machine, Requirement, Room
from coordinator.study import BudgetSpec
from hwprofiles.value import Value

Level = Literal["ok", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "problem")

LEAST_PYTHON = (3, 11)
LEAST_SQLITE = (3, 51, 3)
"""Older ones may reset a write-ahead log that a reader still needs."""
COMFORTABLE_DISK_BYTES = 10e9
AGENT_MEMORY_BYTES = 0.75e9
"""What an agent that trains a small proxy on a CPU uses, rounded up."""
COMFORTABLE_OPEN_FILES = 8_192
"""Ray has some hundreds open for each worker of a large machine."""
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "fuse.sshfs"}
)
EXTRAS = {
    "train": "`archfleet run`, `train` and `guard`, and the transformers engine",
    "fleet": "`archfleet run`: Ray, and metrics for Prometheus",
    "report": "reports as HTML",
    "figure": "`archfleet simulate search --figure`",
    "data": "`archfleet data`: tokenizers, Parquet, zstd, URLs",
    "dashboard": "`archfleet serve`, and the dashboard beside a run",
}
"""Extras that a whole archfleet has, and what each is for. Engines and the evaluation harness are looked at apart."""
MADE_BY = {"vllm": "make engines", "sglang": "make sglang", "lm-eval": "make harness"}
"""What makes an environment with an engine or the harness, for a CPU."""


class Finding(Value):
    """One line of what the doctor says."""

    name: str
    level: Level
    found: str
    what_to_do: str | None = None
    """None where there is nothing to do."""


def examine(machine: Machine) -> tuple[Finding, ...]:
    """All checks, in the order in which a newcomer would want to read them."""
    return tuple(finding for check in CHECKS for finding in check(machine))


def worst_level(findings: Iterable[Finding]) -> Level:
    """The level of the worst finding."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def findings_json(findings: tuple[Finding, ...]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "schema_version": 1,
        "level": worst_level(findings),
        "checks": [finding.model_dump(mode="json") for finding in findings],
    }


_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "problem": ("problem", "red"),
}


def describe_findings(findings: tuple[Finding, ...]) -> Iterator[Text]:
    """Lines for people: a mark, what was found, and below it what to do; last how many of which level."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        word, colour = _MARKS[finding.level]
        first, *others = finding.found.splitlines()
        yield Text.assemble((f"{word:<8}", colour), (f"{finding.name:<{width}}  ", "bold"), first)
        for line in (*others, *(finding.what_to_do or "").splitlines()):
            yield Text(f"{'':<{10 + width}}{line}")
    counts = Counter(finding.level for finding in findings)
    yield Text(f"{counts['ok']} ok, {counts['warning']} to know of, {counts['problem']} to mend")


def check_python(machine: Machine) -> Iterator[Finding]:
    """The interpreter itself."""
    version = ".".join(map(str, machine.python_version))
    if machine.python_version[:2] < LEAST_PYTHON:
        yield Finding(
            name="Python",
            level="problem",
            found=f"{version} ({machine.python}), older than {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]}",
            what_to_do="make PYTHON=/path/to/python3.11, or a virtual environment of a newer Python",
        )
    else:
        yield Finding(name="Python", level="ok", found=f"{version} ({machine.python})")


def check_packages(machine: Machine) -> Iterator[Finding]:
    """Whether what is imported is ours, and what the base install asks for is there."""
    if machine.stranger is not None:
        yield Finding(
            name="packages",
            level="problem",
            found=machine.stranger,
            what_to_do="run archfleet from another folder, or in a virtual environment of its own",
        )
    if not machine.requirements:
        yield Finding(
            name="packages",
            level="warning",
            found="archfleet is used from a bare source tree; what it needs is not known",
            what_to_do=f"{machine.python} -m pip install --editable . in that folder",
        )
        return
    yield _judge_requirements("packages", [r for r in machine.requirements if r.extra is None], machine.python)


def check_extras(machine: Machine) -> Iterator[Finding]:
    """What is missing or too old, and what does not work without it."""
    for extra, purpose in EXTRAS.items():
        wanted = [r for r in machine.requirements if r.extra == extra]
        if wanted:
            yield _judge_requirements(f"extra {extra}", wanted, machine.python, extra=extra, purpose=purpose)


def _judge_requirements(
    name: str, wanted: list[Requirement], python: str, *, extra: str | None = None, purpose: str | None = None
) -> Finding:
    """What of this is there; a problem where the base install lacks something, a warning where an extra does."""
    lacking = [r.package for r in wanted if r.installed is None]
    missing = [f"{_listing(lacking)} {'is' if len(lacking) == 1 else 'are'} missing"] if lacking else []
    old = [
        f"{r.package} {r.installed} is older than {r.minimum}"
        for r in wanted
        if r.installed is not None
        and r.minimum is not None
        and version_numbers(r.installed) < version_numbers(r.minimum)
    ]
    if not missing and not old:
        return Finding(name=name, level="ok", found=", ".join(f"{r.package} {r.installed}" for r in wanted))
    target = "archfleet" if extra is None else f"'archfleet[{extra}]'"
    needed = "" if purpose is None else f" (needed for {purpose})"
    return Finding(
        name=name,
        level="problem" if extra is None else "warning",
        found=", ".join([*missing, *old]) + needed,
        what_to_do=f"{python} -m pip install {target}",
    )


def _listing(words: list[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def version_numbers(version: str) -> tuple[int, ...]:
    """The release of a version as numbers: "1!2.8.0+cu128" is (2, 8, 0)."""
    release = re.match(r"[0-9.]*", version.partition("!")[2] or version)
    assert release is not None  # it may match nothing, and does match
    return tuple(int(number) for number in release[0].split(".") if number)


def check_sqlite(machine: Machine) -> Iterator[Finding]:
    """The SQLite that keeps the store."""
    if version_numbers(machine.sqlite_version) < LEAST_SQLITE:
        yield Finding(
            name="SQLite",
            level="problem",
            found=f"{machine.sqlite_version}: its write-ahead log has a fault that was mended in 3.51.3",
            what_to_do=f"{machine.python} -m pip install --upgrade apsw",
        )
    else:
        yield Finding(name="SQLite", level="ok", found=f"{machine.sqlite_version}, of apsw")


def check_accelerators(machine: Machine) -> Iterator[Finding]:
    """Devices, their data sheets, and whether others use them."""
    if not machine.accelerators:
        found = "none: agents train and measure on the CPU"
        if machine.gpu_driver is not None:
            yield Finding(
                name="accelerators",
                level="problem",
                found=f"the driver {machine.gpu_driver} is there, but nvidia-smi lists no device",
                what_to_do="nvidia-smi tells why; in a container, give it the devices (--gpus all)",
            )
            return
        yield Finding(name="accelerators", level="ok", found=found)
        return
    kinds = Counter((a.device.name, a.device.hardware) for a in machine.accelerators)
    for (name, hardware), count in kinds.items():
        if hardware == UNKNOWN_PROFILE_ID:
            yield Finding(
                name="accelerators",
                level="warning",
                found=f"{count} × {name}: no data sheet is certainly its own",
                what_to_do="archfleet hw detect tells why; archfleet hw calibrate --out measured.toml measures it",
            )
        else:
            yield Finding(name="accelerators", level="ok", found=f"{count} × {name}, data sheet {hardware}")
    busy = [number for number, a in enumerate(machine.accelerators) if (a.used_memory_bytes or 0) > 2e9]
    if busy:
        yield Finding(
            name="accelerators",
            level="warning",
            found=f"others use the memory of device {', '.join(map(str, busy))}: benchmarks there are not exact",
            what_to_do="nvidia-smi lists whose processes they are; wait for them, or leave these devices out with "
            "CUDA_VISIBLE_DEVICES",
        )


def check_torch(machine: Machine) -> Iterator[Finding]:
    """Whether torch sees the accelerators that the driver shows."""
    if not machine.accelerators or all(r.installed is None for r in machine.requirements if r.package == "torch"):
        return
    expected = len(machine.accelerators)
    if machine.visible_devices is not None:
        expected = min(expected, len([word for word in machine.visible_devices.split(",") if word.strip()]))
    if machine.torch is None:
        yield Finding(
            name="torch",
            level="problem",
            found="torch does not start",
            what_to_do=f"{machine.python} -c 'import torch' tells why",
        )
    elif machine.torch.num_devices < expected:
        build = "is a build for CPUs" if machine.torch.cuda is None else f"is built for CUDA {machine.torch.cuda}"
        yield Finding(
            name="torch",
            level="problem",
            found=f"torch {build} and sees {machine.torch.num_devices} of {expected} devices "
            f"(driver {machine.gpu_driver})",
            what_to_do="install a torch for this driver's CUDA: https://pytorch.org/get-started",
        )
    else:
        limit = "" if machine.visible_devices is None else f", CUDA_VISIBLE_DEVICES={machine.visible_devices}"
        yield Finding(
            name="torch",
            level="ok",
            found=f"sees {machine.torch.num_devices} devices, CUDA {machine.torch.cuda}, "
            f"driver {machine.gpu_driver}{limit}",
        )


def check_energy(machine: Machine) -> Iterator[Finding]:
    """The bindings that read a GPU's power."""
    nvml = [r for r in machine.requirements if r.extra == "gpu"]
    if machine.accelerators and nvml:
        purpose = "power and clocks of GPUs; without, energy is null"
        yield _judge_requirements("extra gpu", nvml, machine.python, extra="gpu", purpose=purpose)


def check_engines(machine: Machine) -> Iterator[Finding]:
    """Each engine and the evaluation harness: which interpreter has it."""
    for home in machine.engines:
        yield _judge_home(f"engine {home.name}", home, f"`--engine {home.name}`")
    serving = [home for home in machine.engines if home.trouble is None and home.name != "transformers"]
    if machine.accelerators and not serving:
        yield Finding(
            name="engines",
            level="warning",
            found="there are accelerators, and neither vLLM nor SGLang: the transformers engine says little of serving",
            what_to_do="python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm; then, here and wherever agents run,\n"
            "export ARCHFLEET_VLLM_PYTHON=~/vllm/bin/python",
        )
    yield _judge_home("lm-eval harness", machine.harness, "`archfleet score`")


def _judge_home(name: str, home: EngineHome, purpose: str) -> Finding:
    if home.trouble is None:
        return Finding(name=name, level="ok", found=f"{home.version or 'version not known'} ({home.python})")
    if home.is_named:
        trouble, _, advice = home.trouble.partition("; ")
        advice = advice or "correct what names the interpreter, or install it there"
        return Finding(name=name, level="problem", found=trouble, what_to_do=advice)
    made_by = f" (`{MADE_BY[home.name]}` brings it)" if home.name in MADE_BY else ""
    return Finding(name=name, level="ok", found=f"not installed; only {purpose} needs it{made_by}")


def check_disk(machine: Machine) -> Iterator[Finding]:
    """Where runs are, and where temporary files are."""
    least = 1e9 * float(BudgetSpec.model_fields["min_free_disk_gigabytes"].default)
    yield _judge_room("disk for runs", machine.runs, least, "archfleet run --runs DIR, on a disk with more")
    if machine.runs.file_system in NETWORK_FILE_SYSTEMS:
        yield Finding(
            name="disk for runs",
            level="warning",
            found=f"{machine.runs.path} is on a network file system ({machine.runs.file_system}): a store there is "
            "safe only while one machine reads and writes it",
            what_to_do="archfleet run --runs DIR on a local disk, and `archfleet backup` to the network's",
        )
    yield _judge_room("temporary files", machine.temporary, least, "export TMPDIR=DIR, on a disk with more")


def _judge_room(name: str, room: Room, least_bytes: float, elsewhere: str) -> Finding:
    found = f"{room.path}: {_size(room.free_bytes)} free ({room.file_system})"
    if not room.is_writable:
        return Finding(name=name, level="problem", found=f"{room.path} cannot be written to", what_to_do=elsewhere)
    if room.free_bytes < least_bytes:
        least = f"{found}; below {_size(least_bytes)} nothing new is started"
        return Finding(name=name, level="problem", found=least, what_to_do=f"free some, or {elsewhere}")
    if room.free_bytes < COMFORTABLE_DISK_BYTES:
        return Finding(name=name, level="warning", found=f"{found}: little", what_to_do=f"free some, or {elsewhere}")
    return Finding(name=name, level="ok", found=found)


def check_memory(machine: Machine) -> Iterator[Finding]:
    """Memory for agents, and shared memory for Ray."""
    if machine.memory_bytes is None or machine.available_memory_bytes is None:
        yield Finding(name="memory", level="ok", found="not known here")
    else:
        found = f"{_size(machine.available_memory_bytes)} of {_size(machine.memory_bytes)} available"
        num_agents = int(machine.available_memory_bytes / AGENT_MEMORY_BYTES)
        if machine.accelerators or num_agents >= machine.num_cpus:
            yield Finding(name="memory", level="ok", found=found)
        else:
            yield Finding(
                name="memory",
                level="warning",
                found=f"{found}: little for {machine.num_cpus} agents, one a core",
                what_to_do=f"archfleet run --agents {max(1, num_agents)}",
            )
    shared = machine.shared_memory
    if shared is None or shared.free_bytes < 2 * OBJECT_STORE_BYTES:
        yield Finding(
            name="shared memory",
            level="warning",
            found="there is no /dev/shm" if shared is None else f"/dev/shm: {_size(shared.free_bytes)} free",
            what_to_do="Ray goes to slower files instead; in a container give it more: --shm-size=1g, or an emptyDir "
            "of medium Memory at /dev/shm",
        )
    else:
        yield Finding(name="shared memory", level="ok", found=f"/dev/shm: {_size(shared.free_bytes)} free")


def check_processors(machine: Machine) -> Iterator[Finding]:
    """Processors: how many, how busy, and whether their clocks stand still."""
    found = f"{machine.num_cpus} for this process, {machine.load:.1f} busy in the last minute"
    if machine.load > 0.5 * machine.num_cpus:
        yield Finding(
            name="processors",
            level="warning",
            found=f"{found}: what is measured on a CPU now is not exact",
            what_to_do="let other work end before benchmarks; trainings only take longer",
        )
    else:
        yield Finding(name="processors", level="ok", found=found)
    if not machine.governors:
        yield Finding(name="governor", level="ok", found="not readable here")
    elif machine.governors == {"performance"}:
        yield Finding(name="governor", level="ok", found="performance")
    else:
        yield Finding(
            name="governor",
            level="warning",
            found=f"{', '.join(sorted(machine.governors))}: clocks follow the load, and so do benchmarks on the CPU",
            what_to_do="cpupower frequency-set --governor performance, before benchmarks",
        )


def check_ports(machine: Machine) -> Iterator[Finding]:
    """The ports of a run, on loopback."""
    advice = {
        8420: "a run takes a free one and says which; --dashboard-port chooses",
        9464: "perhaps another run (`archfleet status`); --metrics-port 0 takes a free one",
        6379: None,
    }
    for port, purpose in PORTS.items():
        if port not in machine.ports_in_use:
            yield Finding(name=f"port {port}", level="ok", found=f"free ({purpose})")
        elif advice[port] is None:
            yield Finding(
                name=f"port {port}",
                level="ok",
                found=f"something listens, perhaps {purpose}: `archfleet run --address 127.0.0.1:{port}` would use it",
            )
        else:
            yield Finding(name=f"port {port}", level="warning", found=f"in use ({purpose})", what_to_do=advice[port])


def check_ray(machine: Machine) -> Iterator[Finding]:
    """Whether a cluster that is there already could be used."""
    if machine.ray_trouble is None:
        yield Finding(name="Ray token", level="ok", found="there, and readable by this user alone")
    elif machine.ray_mode is None:
        yield Finding(
            name="Ray token",
            level="ok",
            found="RAY_AUTH_MODE is not set: a run makes a cluster and a token of its own; only --address needs yours",
        )
    else:
        sentence, _, rest = machine.ray_trouble.partition("\n")
        yield Finding(name="Ray token", level="problem", found=sentence, what_to_do=rest or None)


def check_clock(machine: Machine) -> Iterator[Finding]:
    """The wall clock. Leases go by another one; times in reports and between machines by this."""
    clock = machine.clock
    if clock is None:
        yield Finding(name="clock", level="ok", found="the kernel does not tell whether it is synchronised")
    elif clock.is_synchronised:
        yield Finding(name="clock", level="ok", found=f"synchronised, within {clock.largest_error_seconds:.3g} s")
    else:
        yield Finding(
            name="clock",
            level="warning",
            found="the kernel does not know it to be synchronised: times of several machines may not agree",
            what_to_do="run an NTP service (chrony, systemd-timesyncd); no lease and no decision depends on it",
        )


def check_open_files(machine: Machine) -> Iterator[Finding]:
    """How many files a process may open."""
    if machine.num_open_files < COMFORTABLE_OPEN_FILES:
        yield Finding(
            name="open files",
            level="warning",
            found=f"at most {machine.num_open_files:,} a process; Ray may want {COMFORTABLE_OPEN_FILES:,}",
            what_to_do="ulimit -n 65536 before the run, or LimitNOFILE=65536 in its systemd unit",
        )
    else:
        yield Finding(name="open files", level="ok", found=f"at most {machine.num_open_files:,} a process")


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_extras,
    check_sqlite,
    check_accelerators,
    check_torch,
    check_energy,
    check_engines,
    check_disk,
    check_memory,
    check_processors,
    check_ports,
    check_ray,
    check_clock,
    check_open_files,
)
