"""Sensors of power, clocks and memory, read while an engine runs by a thread of the agent's own process.

NVIDIA boards are read through NVML (the package nvidia-ml-py, extra `gpu`), processors through Linux's RAPL counters.
Where there is no sensor, `open_sensor` says why. NVML's power is the board's mean over the last second on most boards
(an instantaneous value on the A100), so a window's edges are blurred by about a second.
"""

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from agent.power import NO_SENSOR, Sample, WindowReading, read_window, unwrap

SAMPLE_SECONDS = 0.2
RELEASE_SECONDS = 20.0
RELEASE_TOLERANCE_BYTES = 256 * 2**20
"""Memory beyond what was used before an engine that still counts as given back."""
_POWERCAP = Path("/sys/class/powercap")
THROTTLES: Mapping[int, str] = {0x04: "power-cap", 0x08: "hardware", 0x20: "thermal", 0x40: "thermal", 0x80: "hardware"}
"""NVML's bits of nvmlClocksEventReasons: SwPowerCap, HwSlowdown, SwThermal, HwThermal, HwPowerBrake."""


class Board(Protocol):
    """One accelerator, as its driver shows it. What it does not know is None."""

    def power_watts(self) -> float | None:
        """Power now."""

    def sm_clock_mhz(self) -> float | None:
        """Clock of its multiprocessors now."""

    def boost_clock_mhz(self) -> float | None:
        """The clock that it may reach."""

    def event_reasons(self) -> int:
        """NVML's bits that say why its clock is what it is."""

    def pids(self) -> frozenset[int]:
        """Processes that compute on it, numbered as the driver's side sees them."""

    def used_bytes(self) -> int | None:
        """Memory in use by anybody."""


class Sensor(Protocol):
    """What is sampled during a run."""

    name: str
    boost_clock_mhz: float | None

    def read(self, seconds: float) -> Sample:
        """One look, labelled with the time."""


class NvmlBoard:
    """A board through NVML."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def power_watts(self) -> float | None:
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def sm_clock_mhz(self) -> float | None:
        clock = self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)
        return None if clock is None else float(clock)

    def boost_clock_mhz(self) -> float | None:
        kind = self._nvml.NVML_CLOCK_SM
        clock = self._ask("nvmlDeviceGetMaxCustomerBoostClock", kind) or self._ask("nvmlDeviceGetMaxClockInfo", kind)
        return None if clock is None else float(clock)

    def event_reasons(self) -> int:
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # named so before driver 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return int(reasons or 0)

    def pids(self) -> frozenset[int]:
        return frozenset(int(process.pid) for process in self._ask("nvmlDeviceGetComputeRunningProcesses") or ())

    def used_bytes(self) -> int | None:
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """None where this board, driver or version of the package does not tell."""
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):
            return None


class GpuSensor:
    """Boards, sampled together."""

    def __init__(self, boards: Sequence[Board]) -> None:
        self._boards = tuple(boards)
        boosts = [boost for board in boards if (boost := board.boost_clock_mhz()) is not None]
        self.boost_clock_mhz = min(boosts) if boosts else None
        self.name = f"NVML, {len(self._boards)} whole board(s), others' work on them included"

    def read(self, seconds: float) -> Sample:
        """Power only where every board tells it."""
        powers = [board.power_watts() for board in self._boards]
        known = [power for power in powers if power is not None]
        clocks = [board.sm_clock_mhz() for board in self._boards]
        bits = [board.event_reasons() for board in self._boards]
        return Sample(
            seconds=seconds,
            power_watts=sum(known) if len(known) == len(powers) else None,
            sm_clocks_mhz=tuple(clock for clock in clocks if clock is not None),
            throttles=frozenset(name for bit, name in THROTTLES.items() for each in bits if each & bit),
        )


class RaplSensor:
    """The processors' packages by the kernel's counters of energy."""

    boost_clock_mhz: float | None = None

    def __init__(self, packages: Sequence[Path]) -> None:
        self._packages = tuple(packages)
        self._raw = [_microjoules(package) for package in self._packages]
        self._max_raw = [float((package / "max_energy_range_uj").read_text()) for package in self._packages]
        self._total = 0.0
        self.name = f"RAPL, {len(self._packages)} whole package(s), others' work on them included, without memory"

    def read(self, seconds: float) -> Sample:
        """Joules since the sensor was opened."""
        raw = [_microjoules(package) for package in self._packages]
        self._total += 1e-6 * sum(map(unwrap, self._raw, raw, self._max_raw))
        self._raw = raw
        return Sample(seconds=seconds, energy_joules=self._total)


def _microjoules(package: Path) -> float:
    return float((package / "energy_uj").read_text())


def open_sensor(kind: Literal["cpu", "gpu"], *, num_devices: int = 1, powercap: Path = _POWERCAP) -> Sensor | str:
    """The sensor of what an engine ran on, or why there is none."""
    if kind == "cpu":
        return open_rapl(powercap)
    boards = open_boards(num_devices)
    return boards if isinstance(boards, str) else GpuSensor(boards)


def open_rapl(powercap: Path) -> Sensor | str:
    """The packages' counters, or why they cannot be read."""
    packages = sorted(path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1)
    if not packages:
        return f"{NO_SENSOR}: {powercap} shows no processor package (RAPL)"
    try:
        return RaplSensor(packages)
    except (OSError, ValueError) as error:
        return f"{NO_SENSOR}: the RAPL counters cannot be read by this user: {error}"


def open_boards(num_devices: int = 1, *, nvml: Any = None) -> tuple[Board, ...] | str:
    """The first visible boards through NVML, or why there are none.

    An index in CUDA_VISIBLE_DEVICES counts as nvidia-smi does, in the order of the bus.
    """
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ImportError:
        return f"{NO_SENSOR}: the package nvidia-ml-py is not installed; pip install 'archfleet[gpu]'"
    try:
        nvml.nvmlInit()
        handles = [_handle(nvml, name) for name in visible_devices(num_devices)]
    except (nvml.NVMLError, ValueError) as error:
        return f"{NO_SENSOR}: NVML does not answer: {error}"
    return tuple(NvmlBoard(nvml, handle) for handle in handles)


def visible_devices(num_devices: int, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Indices or UUIDs of the first devices that CUDA may use.

    Raises:
        ValueError: fewer are visible than are asked for.
    """
    listed = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(map(str, range(num_devices)))
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    if len(names) < num_devices:
        raise ValueError(f"CUDA_VISIBLE_DEVICES={listed!r} shows {len(names)} device(s), the run uses {num_devices}")
    return names[:num_devices]


def _handle(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


class Sampler:
    """Samples a sensor in a thread until it is stopped."""

    def __init__(
        self, sensor: Sensor, *, clock: Callable[[], float] = time.monotonic, period_seconds: float = SAMPLE_SECONDS
    ) -> None:
        self._sensor = sensor
        self._clock = clock
        self._period_seconds = period_seconds
        self._samples: list[Sample] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="archfleet-sensors", daemon=True)
        self._look()  # before the engine goes on: its window may begin at once
        self._thread.start()

    def read_window(self, started_seconds: float | None, window_seconds: float) -> WindowReading:
        """What was seen of a window that has ended."""
        self._look()
        samples = sorted(self._samples, key=lambda sample: sample.seconds)
        return read_window(
            samples,
            started_seconds,
            window_seconds,
            sensor=self._sensor.name,
            boost_clock_mhz=self._sensor.boost_clock_mhz,
        )

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_seconds):
            self._look()

    def _look(self) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # a sensor that fails leaves a gap, which is told
            self._samples.append(self._sensor.read(self._clock()))


class Usage:
    """Who computed on the boards, and how much memory was in use, before an engine was started."""

    def __init__(self, boards: Sequence[Board]) -> None:
        self._boards = tuple(boards)
        self._pids = _pids(boards)
        self._used_bytes = _used_bytes(boards)

    @property
    def doubts(self) -> dict[str, str]:
        """`gpu-shared`, if somebody else was there."""
        if not self._pids:
            return {}
        return {"gpu-shared": f"other processes computed on the GPU: {', '.join(map(str, sorted(self._pids)))}"}

    def wait_until_released(
        self,
        *,
        timeout_seconds: float = RELEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> str | None:
        """Wait until the driver lists nobody new and the memory is back; what is still held when the time is over."""
        deadline = clock() + timeout_seconds
        while (held := self._held()) is not None and clock() < deadline:
            sleep(0.1)
        return held

    def _held(self) -> str | None:
        new = _pids(self._boards) - self._pids
        if new:
            return f"the GPU's driver still lists processes {', '.join(map(str, sorted(new)))}"
        used = _used_bytes(self._boards)
        if used is None or self._used_bytes is None or used <= self._used_bytes + RELEASE_TOLERANCE_BYTES:
            return None
        return f"{(used - self._used_bytes) / 1e9:.2f} GB of the GPU's memory are not back"


def _pids(boards: Sequence[Board]) -> frozenset[int]:
    return frozenset[int]().union(*(board.pids() for board in boards))


def _used_bytes(boards: Sequence[Board]) -> int | None:
    used = [board.used_bytes() for board in boards]
    known = [each for each in used if each is not None]
    return sum(known) if len(known) == len(used) else None


@contextlib.contextmanager
def sampling(sensor: Sensor | str) -> Iterator[Sampler | str]:
    """A sampler that ends with the block; the reason where there is no sensor."""
    if isinstance(sensor, str):
        yield sensor
        return
    sampler = Sampler(sensor)
    try:
        yield sampler
    finally:
        sampler.stop()
