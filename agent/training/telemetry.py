"""What a run tells of its machine, about once a second: speed, MFU, memory and power. Null where it is not known.

Sensors are read by a thread, never by the one that trains. MFU is PaLM's (arXiv 2204.02311, appendix B):

    MFU = tokens/s · (6 · parameters + 12 · L · A · T) / peak FLOP/s

over the dense bf16 peak of the device's data sheet, parameters being all that multiply. There is none on a CPU, whose
sheet holds assumptions and not a peak, nor on a device without a sheet.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from agent.device import CPU_PROFILE_ID, UNKNOWN_PROFILE_ID
from agent.power import Sample
from agent.sensors import Sensor, open_sensor
from hwprofiles.catalog import load_profile

PERIOD_SECONDS = 1.0
_STATM = Path("/proc/self/statm")


def peak_flops_per_second(hardware: str) -> float | None:
    """Dense bf16 peak of a profile's data sheet; None on a CPU and where there is no sheet."""
    if hardware in (CPU_PROFILE_ID, UNKNOWN_PROFILE_ID):
        return None
    try:
        profile = load_profile(hardware)
    except ValueError:
        return None
    return profile.peak_flops_per_second.get("bfloat16") if profile.kind == "gpu" else None


def memory_bytes(device: torch.device) -> int | None:
    """Most that torch's allocator has held on a GPU, or what this process holds now; None where that is not told."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None  # not Linux


class PowerMeter:
    """Mean power since the last look, from samples that a thread takes; nothing runs where there is no sensor."""

    def __init__(
        self,
        sensor: Sensor | str,
        *,
        clock: Callable[[], float] = time.monotonic,
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self._sensor = None if isinstance(sensor, str) else sensor
        self.why_not = sensor if isinstance(sensor, str) else ""
        """Why there is no power."""
        self._clock = clock
        self._period_seconds = period_seconds
        self._stopped = threading.Event()
        self._samples: list[Sample] = []
        self._thread: threading.Thread | None = None
        if self._sensor is not None:
            self._thread = threading.Thread(target=self._run, name="archfleet-power", daemon=True)
            self._thread.start()

    def watts(self) -> float | None:
        """Mean over the samples since the last call, its last one included; None where they tell nothing."""
        samples = self._samples[:]
        del self._samples[: len(samples) - 1]  # the last one begins the next stretch
        return mean_watts(samples)

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._sensor is not None
        while True:
            try:
                self._samples.append(self._sensor.read(self._clock()))
            except (OSError, ValueError) as error:
                self.why_not = f"the sensor could not be read: {error}"
            if self._stopped.wait(self._period_seconds):
                return


def mean_watts(samples: list[Sample]) -> float | None:
    """Of a counter of energy: its rise over the time; of powers: their mean."""
    counted = [(each.seconds, each.energy_joules) for each in samples if each.energy_joules is not None]
    if len(counted) > 1 and counted[-1][0] > counted[0][0]:
        return (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
    powers = [each.power_watts for each in samples if each.power_watts is not None]
    return sum(powers) / len(powers) if powers else None


def open_power_meter(device: torch.device, *, num_devices: int = 1) -> PowerMeter:
    """The meter of what trains: the processors, or so many boards together."""
    return PowerMeter(open_sensor("cpu" if device.type == "cpu" else "gpu", num_devices=num_devices))
