"""What sensors saw during a measured window: energy, clocks and throttling. Pure; `sensors.py` reads the sensors.

Energy is the integral of the power over the window, by trapezoids through the samples, with the power at both ends of
the window interpolated between the samples around them:

    E = sum over pieces of (P_i + P_(i+1)) / 2 · (t_(i+1) - t_i)                       [joules]

A counter of energy (RAPL) is interpolated at both ends and subtracted. Between two samples that matter at most
`MAX_GAP_SECONDS` may lie, and samples must reach from before the window to after it; else there is no energy, and a
reason.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from hwprofiles.value import Value

MAX_GAP_SECONDS = 3.0
CLOCK_TOLERANCE = 0.02
"""Relative distance of a median SM clock from the boost clock, or between repeats, above which a row is flagged."""
NO_SENSOR = "no power sensor was sampled"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at all sensors of a run."""

    seconds: float
    """On the system's monotonic clock."""
    power_watts: float | None = None
    """Of all devices together."""
    energy_joules: float | None = None
    """Of a counter that only rises; from an arbitrary zero."""
    sm_clocks_mhz: tuple[float, ...] = ()
    """One a device."""
    throttles: frozenset[str] = field(default_factory=frozenset)
    """Why a device holds its clocks down: power-cap, thermal, hardware."""


class WindowReading(Value):
    """What the sensors saw during one window."""

    joules: NonNegativeFloat | None = None
    sm_clock_mhz: NonNegativeFloat | None = None
    """Median over the window; with several devices that of the slowest."""
    boost_clock_mhz: NonNegativeFloat | None = None
    """What the device may reach."""
    throttles: tuple[str, ...] = ()
    num_samples: NonNegativeInt = 0
    sensor: str = ""
    """What was read, and what else it includes."""
    not_measured: dict[str, str] = Field(default_factory=dict)
    """Why `joules` or `sm_clock_mhz` is absent."""
    doubts: dict[str, str] = Field(default_factory=dict)
    """Validity flags, each with a sentence."""


def read_window(
    samples: Sequence[Sample],
    started_seconds: float | None,
    window_seconds: float,
    *,
    sensor: str,
    boost_clock_mhz: float | None = None,
    doubts: Mapping[str, str] | None = None,
) -> WindowReading:
    """What the samples, in the order of time, say of a window.

    Args:
        samples: of the whole run.
        started_seconds: when the window began, on the samples' clock; None where the engine does not tell.
        window_seconds: its length.
        sensor: what was read.
        boost_clock_mhz: what the device may reach.
        doubts: flags known already.
    """
    reasons: dict[str, str] = {}
    known = dict(doubts or {})
    if started_seconds is None:
        reason = "the engine does not tell when its window began"
        return WindowReading(sensor=sensor, not_measured=dict.fromkeys(("joules", "sm_clock"), reason), doubts=known)
    ended_seconds = started_seconds + window_seconds
    inside = [sample for sample in samples if started_seconds <= sample.seconds <= ended_seconds]
    joules = _joules(samples, started_seconds, ended_seconds)
    if isinstance(joules, str):
        reasons["joules"] = joules
    clock = slowest_median_clock(inside)
    if clock is None:
        reasons["sm_clock"] = "no clock was read within the window"
    return WindowReading(
        joules=None if isinstance(joules, str) else joules,
        sm_clock_mhz=clock,
        boost_clock_mhz=boost_clock_mhz,
        throttles=tuple(sorted(frozenset[str]().union(*(sample.throttles for sample in inside)))),
        num_samples=len(inside),
        sensor=sensor,
        not_measured=reasons,
        doubts=known,
    )


def _joules(samples: Sequence[Sample], start: float, end: float) -> float | str:
    """The energy of the window, or why there is none."""
    counted = [(each.seconds, each.energy_joules) for each in samples if each.energy_joules is not None]
    if counted:
        return _uncovered(counted, start, end) or interpolate(counted, end) - interpolate(counted, start)
    powers = [(each.seconds, each.power_watts) for each in samples if each.power_watts is not None]
    return _uncovered(powers, start, end) or integrate(powers, start, end)


def _uncovered(points: Sequence[tuple[float, float]], start: float, end: float) -> str | None:
    """Why samples do not cover a window; None if they do."""
    if not points:
        return "the sensor gave no power"
    if points[0][0] > start or points[-1][0] < end:
        return "samples of power do not cover the window"
    first = max(index for index, (seconds, _) in enumerate(points) if seconds <= start)
    last = min(index for index, (seconds, _) in enumerate(points) if seconds >= end)
    gap = max((points[i + 1][0] - points[i][0] for i in range(first, last)), default=0.0)
    if gap > MAX_GAP_SECONDS:
        return f"a gap of {gap:.1f} s between samples of power, over {MAX_GAP_SECONDS:g} s"
    return None


def integrate(points: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """The integral of a piecewise linear function through (t, y), t ascending, from start to end within its range."""
    inside = [(seconds, value) for seconds, value in points if start < seconds < end]
    corners = [(start, interpolate(points, start)), *inside, (end, interpolate(points, end))]
    return sum((t1 - t0) * (y0 + y1) / 2 for (t0, y0), (t1, y1) in pairwise(corners))


def interpolate(points: Sequence[tuple[float, float]], seconds: float) -> float:
    """Linear between the neighbours; `seconds` lies within the range of t."""
    t0, y0 = max((point for point in points if point[0] <= seconds), key=lambda point: point[0])
    t1, y1 = min((point for point in points if point[0] >= seconds), key=lambda point: point[0])
    return y0 if t1 == t0 else y0 + (y1 - y0) * (seconds - t0) / (t1 - t0)


def slowest_median_clock(samples: Sequence[Sample]) -> float | None:
    """The least of the devices' median SM clocks, in MHz; None where no sample has every device's."""
    num_devices = max((len(sample.sm_clocks_mhz) for sample in samples), default=0)
    whole = [sample.sm_clocks_mhz for sample in samples if num_devices and len(sample.sm_clocks_mhz) == num_devices]
    return min(statistics.median(device) for device in zip(*whole, strict=True)) if whole else None


def reading_flags(readings: Sequence[WindowReading]) -> frozenset[str]:
    """`throttled`, `clocks-off` and the readings' own doubts, over the repeats of one row."""
    flags = {flag for reading in readings for flag in reading.doubts}
    if any(reading.throttles for reading in readings):
        flags.add("throttled")
    clocks = [reading.sm_clock_mhz for reading in readings if reading.sm_clock_mhz]
    boosts = [(r.sm_clock_mhz, r.boost_clock_mhz) for r in readings if r.sm_clock_mhz and r.boost_clock_mhz]
    if clocks and max(clocks) > (1 + CLOCK_TOLERANCE) * min(clocks):
        flags.add("clocks-off")
    if any(abs(clock / boost - 1) > CLOCK_TOLERANCE for clock, boost in boosts):
        flags.add("clocks-off")
    return frozenset(flags)


def unwrap(previous_raw: float, raw: float, max_raw: float) -> float:
    """How far a counter rose that starts again at 0 after `max_raw`."""
    return raw - previous_raw if raw >= previous_raw else raw - previous_raw + max_raw
