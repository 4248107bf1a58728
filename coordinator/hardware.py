"""`archfleet hw`: the data sheets, which of them this machine's device is, and a profile measured on it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from agent.device import UNKNOWN_PROFILE_ID, DeviceDescription, describe_device, driver_version, versions
from agent.engines.microbenchmarks import CPU_PLAN, GPU_PLAN, num_timings, run_microbenchmarks
from coordinator.errors import UserError
from hwprofiles.calibrate import MeasuredDevice, TimedOperation, calibrate
from hwprofiles.catalog import all_profiles, load_profile, sheets_named
from hwprofiles.profile import Calibration, HardwareProfile
from hwprofiles.toml_text import profile_to_toml, seal

Dtype = Literal["float32", "bfloat16", "float16"]
NUM_REPEATS = 5


def sheets_table() -> Table:
    """The shipped data sheets, for people."""
    table = Table("id", "name", "bf16 TFLOP/s (dense)", "memory GiB", "bandwidth GB/s", "power W")
    for profile in all_profiles():
        peak = profile.peak_flops_per_second.get("bfloat16")
        table.add_row(
            profile.id,
            profile.name,
            "-" if peak is None else f"{peak / 1e12:.5g}",
            "not read" if profile.memory_bytes is None else f"{profile.memory_bytes / 2**30:.1f}",
            f"{profile.memory_bandwidth_bytes_per_second / 1e9:.4g}",
            "-" if profile.power_watts is None else f"{profile.power_watts:.0f}",
        )
    return table


def detect_device(device: DeviceDescription | None = None) -> dict[str, Any]:
    """What a device is (by default this machine's first) and which sheet is certainly its own, or why none is."""
    device = device or describe_device()
    matched = None if device.hardware == UNKNOWN_PROFILE_ID else device.hardware
    return {
        "schema_version": 1,
        "name": device.name,
        "kind": _kind(device),
        "memory_bytes": device.memory_bytes,
        "power_watts": device.power_watts,
        "hardware": matched,
        "no_hardware_because": None if matched else _why_unmatched(device),
        "driver_version": driver_version(),
        "versions": dict(versions()),
    }


def describe_detected(found: dict[str, Any]) -> str:
    """The same in sentences."""
    memory = "unknown memory" if found["memory_bytes"] is None else f"{found['memory_bytes'] / 2**30:.1f} GiB"
    sheet = f"its data sheet is {found['hardware']}" if found["hardware"] else found["no_hardware_because"]
    if found["hardware"] and load_profile(found["hardware"]).kind == "cpu":
        sheet += ", whose figures are assumed: `archfleet hw calibrate` measures this one"
    driver = f"GPU driver {found['driver_version']}" if found["driver_version"] else "no GPU driver"
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['name']} ({found['kind']}), {memory}: {sheet}.\n{driver}; {packages}"


def calibrate_device(
    *,
    hardware: str | None,
    seconds: float,
    on_gpu: bool | None = None,
    dtype: Dtype | None = None,
    num_threads: int = 1,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> HardwareProfile:
    """Measure this machine's device and make a profile of it.

    Args:
        hardware: the sheet whose peaks to keep, where the user knows better than the detection.
        seconds: about how long the microbenchmarks may take.
        on_gpu: the first visible GPU or the CPU; None takes a GPU where there is one.
        dtype: of the operands; by default float32 on a CPU and bfloat16 on a GPU.
        num_threads: CPU threads.
        on_progress: called with (results so far, results in all).

    Raises:
        UserError: there is no such sheet, the sheet is of another kind of device, or torch is missing.
    """
    device = describe_device(on_gpu=on_gpu)
    kind = _kind(device)
    try:
        sheet = _sheet(hardware, device, kind)
        plan = GPU_PLAN if kind == "gpu" else CPU_PLAN
        used_dtype: Dtype = dtype or ("bfloat16" if kind == "gpu" else "float32")
        total, started = num_timings(plan, used_dtype), time.monotonic()
        timings: list[TimedOperation] = []
        for timing in run_microbenchmarks(
            plan,
            dtype=used_dtype,
            on_gpu=kind == "gpu",
            seconds=seconds,
            num_threads=num_threads,
            num_repeats=NUM_REPEATS,
        ):
            timings.append(timing)
            on_progress(len(timings), total)
        if device.memory_bytes is None:
            raise ValueError(f"{device.name} does not tell its memory; a profile needs it")
        return calibrate(
            timings,
            device=MeasuredDevice(
                name=device.name, kind=kind, memory_bytes=device.memory_bytes, power_watts=device.power_watts
            ),
            sheet=sheet,
            calibration=_calibration(device, kind, num_threads, time.monotonic() - started),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def require_folder(file: Path) -> None:
    """Find out before minutes of measuring whether there is a place for the result.

    Raises:
        UserError: the file's folder does not exist.
    """
    if not file.absolute().parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.absolute().parent}; create it or choose another --out")


def write_profile(profile: HardwareProfile, file: Path) -> None:
    """Write a profile as TOML.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        file.write_text(seal(profile_to_toml(profile)), "utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}; choose another --out") from None


def calibration_table(profile: HardwareProfile) -> Table:
    """What was measured, for people: the range of each operation's efficiencies."""
    title = f"MEASURED: {profile.name}, {profile.memory_bandwidth_bytes_per_second / 1e9:.4g} GB/s, " + ", ".join(
        f"{dtype} {peak / 1e12:.4g} TFLOP/s" for dtype, peak in profile.peak_flops_per_second.items()
    )
    table = Table("operation", "dtype", "sizes", "efficiency", "median spread", title=title)
    for curve in profile.efficiencies:
        efficiencies = [point.efficiency for point in curve.points]
        spreads = sorted(point.spread for point in curve.points)
        table.add_row(
            curve.operation.replace("_", " "),
            curve.dtype,
            str(len(curve.points)),
            f"{min(efficiencies):.2g} to {max(efficiencies):.2g}",
            f"{spreads[len(spreads) // 2]:.1%}",
        )
    if profile.launch_seconds is not None:
        table.caption = f"starting one small operation takes the host {profile.launch_seconds * 1e6:.2g} µs"
    return table


def _kind(device: DeviceDescription) -> Literal["gpu", "cpu"]:
    if device.hardware == UNKNOWN_PROFILE_ID:
        return "gpu"
    return load_profile(device.hardware).kind


def _why_unmatched(device: DeviceDescription) -> str:
    same_name = ", ".join(profile.id for profile in sheets_named(device.name))
    if same_name:
        return f"no sheet is certainly its own: memory or power limit differ from, or are not known of, {same_name}"
    return "no sheet is certainly its own: none has this name"


def _sheet(hardware: str | None, device: DeviceDescription, kind: str) -> HardwareProfile | None:
    if hardware is None:
        return None if device.hardware == UNKNOWN_PROFILE_ID else load_profile(device.hardware)
    sheet = load_profile(hardware)
    if sheet.kind != kind:
        raise ValueError(f"{hardware} is a {sheet.kind}, but {device.name} was found here; leave --hardware out")
    return sheet


def _calibration(device: DeviceDescription, kind: str, num_threads: int, seconds: float) -> Calibration:
    driver = driver_version()
    clock: Literal["wall", "processor", "gpu-events"] = "processor" if num_threads == 1 else "wall"
    return Calibration(
        device=device.name,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={**dict(versions()), **({"driver": driver} if driver else {})},
        num_threads=None if kind == "gpu" else num_threads,
        clock="gpu-events" if kind == "gpu" else clock,
        num_repeats=NUM_REPEATS,
        seconds=round(seconds, 1),
    )
