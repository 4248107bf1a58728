"""From microbenchmarks to a measured profile: pure; what was timed comes in as values (timed in `agent/engines/`).

    e(operation, size) = exp( mean over aspect ratios of median over repeats of ln(t_least / t) )

with t_least by the roofline of the *peaks that the profile then carries*. On a board with a data sheet these are the
sheet's; on a CPU, whose sheet is assumed, and on a board without one, they are the best rates that were measured.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hwprofiles.profile import (
    Calibration,
    Dtype,
    EfficiencyPoint,
    EfficiencyTable,
    HardwareProfile,
    Operation,
)
from hwprofiles.roofline import least_seconds
from hwprofiles.value import Value


class TimedOperation(Value):
    """One shape of one operation, timed a few times; `flops` and `num_bytes` are its work as the roofline counts it."""

    operation: Operation | Literal["launch"]
    dtype: Dtype
    size: tuple[PositiveFloat, ...]
    """Along the operation's axes (`hwprofiles.profile.AXES`); empty for a launch."""
    flops: NonNegativeFloat
    num_bytes: NonNegativeFloat
    seconds: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Of one call; one figure a repeat."""


class MeasuredDevice(Value):
    """The device that was timed, by what it says of itself."""

    name: str
    kind: Literal["gpu", "cpu"]
    memory_bytes: PositiveInt
    power_watts: PositiveFloat | None = None


def calibrate(
    timings: Sequence[TimedOperation],
    *,
    device: MeasuredDevice,
    sheet: HardwareProfile | None,
    calibration: Calibration,
) -> HardwareProfile:
    """A measured profile: the sheet's peaks (or the best measured rates), and an efficiency table an operation.

    Args:
        timings: what was timed; at least a copy and a gemm.
        device: where.
        sheet: the data sheet of this device; None where no sheet is certainly its own.
        calibration: how and when, kept in the profile.

    Raises:
        ValueError: no copy or no gemm was timed, so there is neither a bandwidth nor a rate to go by.
    """
    missing = {"copy", "gemm"} - {timing.operation for timing in timings}
    if missing:
        raise ValueError(f"a profile needs timings of copy and gemm; there are none of {', '.join(sorted(missing))}")
    measured_rates = _best_flops_per_second(timings)
    base = _base(sheet, device, calibration, measured_rates, _bandwidth(timings))
    dtypes = {timing.dtype for timing in timings if timing.operation != "launch"}
    peaks = dict(base.peak_flops_per_second)
    for dtype in sorted(dtypes - set(peaks)):
        peaks[dtype] = measured_rates[dtype]
    profile = base.model_copy(update={"peak_flops_per_second": peaks})
    launches = [second for timing in timings if timing.operation == "launch" for second in timing.seconds]
    return HardwareProfile.model_validate(
        {
            **profile.model_dump(),
            "efficiencies": _tables(timings, profile),
            "launch_seconds": statistics.median(launches) if launches else None,
            "calibration": calibration,
        }
    )


def _base(
    sheet: HardwareProfile | None,
    device: MeasuredDevice,
    calibration: Calibration,
    rates: dict[Dtype, float],
    bandwidth: float,
) -> HardwareProfile:
    """The profile without its efficiencies."""
    how = f"measured on {device.name}, {calibration.measured_at}, {calibration.num_repeats} repeats"
    memory = {"memory_bytes": f"what the device reports, {calibration.measured_at}"}
    note = f"Measured: {calibration.device}."
    if sheet is not None and sheet.kind == "gpu":
        return sheet.model_copy(
            update={
                "memory_bytes": device.memory_bytes,
                "provenance": {**sheet.provenance, **memory, "efficiencies": how},
                "notes": f"{sheet.notes} {note}".strip(),
            }
        )
    best = f"{how}: the best gemm, not a peak of the silicon"
    return HardwareProfile(
        id="unknown" if sheet is None else sheet.id,
        name=f"{device.name} (measured)",
        kind=device.kind,
        peak_flops_per_second=rates,
        memory_bytes=device.memory_bytes,
        memory_bandwidth_bytes_per_second=bandwidth,
        power_watts=device.power_watts,
        device_names=(device.name,),
        provenance={
            **memory,
            "peak_flops_per_second": best,
            "memory_bandwidth_bytes_per_second": f"{how}: copy of the largest size, bytes read and written",
            "efficiencies": how,
            **({} if device.power_watts is None else {"power_watts": "the power limit that the driver reports"}),
        },
        notes=f"{note} Efficiencies are relative to the best rates measured here.",
    )


def _best_flops_per_second(timings: Sequence[TimedOperation]) -> dict[Dtype, float]:
    best: dict[Dtype, float] = {}
    for timing in timings:
        if timing.operation == "gemm":
            rate = timing.flops / statistics.median(timing.seconds)
            best[timing.dtype] = max(rate, best.get(timing.dtype, 0.0))
    return best


def _bandwidth(timings: Sequence[TimedOperation]) -> float:
    largest = max((t for t in timings if t.operation == "copy"), key=lambda timing: timing.size)
    return largest.num_bytes / statistics.median(largest.seconds)


def _tables(timings: Sequence[TimedOperation], profile: HardwareProfile) -> tuple[EfficiencyTable, ...]:
    cells: dict[tuple[Operation, Dtype], dict[tuple[float, ...], list[TimedOperation]]] = defaultdict(dict)
    for timing in timings:
        if timing.operation != "launch":
            cells[timing.operation, timing.dtype].setdefault(timing.size, []).append(timing)
    return tuple(
        EfficiencyTable(
            operation=operation,
            dtype=dtype,
            points=tuple(_point(size, group, profile) for size, group in sorted(grid.items())),
        )
        for (operation, dtype), grid in sorted(cells.items())
    )


def _point(size: tuple[float, ...], timings: Sequence[TimedOperation], profile: HardwareProfile) -> EfficiencyPoint:
    logs = []
    for timing in timings:
        least = float(least_seconds(timing.flops, timing.num_bytes, profile, timing.dtype))
        logs.append([math.log(least / seconds) for seconds in timing.seconds])
    everything = [value for repeats in logs for value in repeats]
    return EfficiencyPoint(
        size=size,
        efficiency=_rounded(math.exp(statistics.mean(statistics.median(repeats) for repeats in logs))),
        spread=_rounded(statistics.stdev(everything)) if len(everything) > 1 else 0.0,
        num_samples=len(everything),
    )


def _rounded(value: float) -> float:
    """To four digits: more would be noise, and a reader has to get through the file."""
    return float(f"{value:.4g}")
