"""Timings become a measured profile: a sheet keeps its peaks, an assumed CPU gets those that were measured."""

import math
import tomllib

import pytest

from hwprofiles.calibrate import MeasuredDevice, TimedOperation, calibrate
from hwprofiles.catalog import load_profile, read_profile
from hwprofiles.profile import Calibration, HardwareProfile
from hwprofiles.roofline import efficiency
from hwprofiles.toml_text import profile_to_toml

CALIBRATION = Calibration(
    device="NVIDIA H200",
    measured_at="2026-01-01T00:00:00+00:00",
    versions={"torch": "2.13", 'odd "name"': "a\\b\x7f"},
    clock="gpu-events",
    num_repeats=3,
    seconds=40.0,
)
H200 = load_profile("h200")
GPU = MeasuredDevice(name="NVIDIA H200", kind="gpu", memory_bytes=150_000_000_000, power_watts=700)
CPU = MeasuredDevice(name="A CPU", kind="cpu", memory_bytes=16_000_000_000)


def timed(operation, size, *, flops=0.0, num_bytes=0.0, seconds=(1.0,), dtype="bfloat16"):
    return TimedOperation(
        operation=operation, dtype=dtype, size=size, flops=flops, num_bytes=num_bytes, seconds=seconds
    )


def timings(dtype="bfloat16"):
    return [
        timed("launch", (), seconds=(4e-6, 5e-6, 90e-6), dtype=dtype),
        timed("copy", (1e6,), num_bytes=2e6, seconds=(1e-6,), dtype=dtype),
        timed("copy", (1e9,), num_bytes=2e9, seconds=(0.001, 0.0005, 0.0005), dtype=dtype),
        timed("gemm", (128, 1e6), flops=989e9, num_bytes=1, seconds=(0.002, 0.0025, 0.002), dtype=dtype),
        timed("gemm", (128, 1e6), flops=989e9, num_bytes=1, seconds=(0.008, 0.008, 0.008), dtype=dtype),
        timed("decode_attention", (4, 64), flops=1, num_bytes=4.8e9, seconds=(0.002,), dtype=dtype),
    ]  # fmt: skip


def on_h200(**settings):
    return calibrate(timings(), device=GPU, sheet=H200, calibration=CALIBRATION, **settings)


def test_a_board_keeps_its_sheets_peaks_and_gets_its_own_memory():
    profile = on_h200()
    assert profile.peak_flops_per_second == H200.peak_flops_per_second
    assert profile.memory_bandwidth_bytes_per_second == H200.memory_bandwidth_bytes_per_second
    assert profile.memory_bytes == 150_000_000_000
    assert profile.id == "h200"


def test_efficiency_is_the_least_time_over_the_measured_median_averaged_over_aspect_ratios():
    profile = on_h200()
    assert efficiency(profile, "gemm", "bfloat16", 128, 1e6) == pytest.approx(math.sqrt(0.5 * 0.125))
    assert efficiency(profile, "decode_attention", "bfloat16", 4, 64) == pytest.approx(0.5)


def test_points_carry_their_spread_and_their_number_of_samples():
    (gemm,) = (table for table in on_h200().efficiencies if table.operation == "gemm")
    (point,) = gemm.points
    assert point.num_samples == 6
    assert point.spread == pytest.approx(0.72, abs=0.03)


def test_the_hosts_launch_time_is_a_median():
    assert on_h200().launch_seconds == 5e-6


def test_an_assumed_cpu_is_replaced_by_what_was_measured():
    profile = calibrate(timings("float32"), device=CPU, sheet=load_profile("cpu-generic"), calibration=CALIBRATION)
    assert profile.id == "cpu-generic"
    assert profile.peak_flops_per_second == {"float32": pytest.approx(989e9 / 0.002)}
    assert profile.memory_bandwidth_bytes_per_second == pytest.approx(4e12)  # of the largest copy
    assert all("assumption" not in source for source in profile.provenance.values())
    assert "2026-01-01" in profile.provenance["peak_flops_per_second"]


def test_a_board_without_a_sheet_gets_a_profile_named_unknown():
    profile = calibrate(timings(), device=GPU, sheet=None, calibration=CALIBRATION)
    assert profile.id == "unknown"
    assert profile.power_watts == 700


def test_a_dtype_that_the_sheet_does_not_know_gets_the_best_measured_rate():
    profile = calibrate(timings("float32"), device=GPU, sheet=H200, calibration=CALIBRATION)
    assert profile.peak_flops_per_second["float32"] == pytest.approx(989e9 / 0.002)
    assert profile.peak_flops_per_second["bfloat16"] == 989e12


def test_timings_without_a_copy_or_a_gemm_are_refused():
    with pytest.raises(ValueError, match="none of copy"):
        calibrate([timings()[3]], device=GPU, sheet=H200, calibration=CALIBRATION)


@pytest.mark.parametrize("sheet", [H200, None])
def test_a_profile_survives_being_written_as_toml(tmp_path, sheet):
    profile = calibrate(timings(), device=GPU, sheet=sheet, calibration=CALIBRATION)
    text = profile_to_toml(profile)
    assert HardwareProfile.model_validate(tomllib.loads(text)) == profile
    (tmp_path / "measured.toml").write_text(text)
    assert read_profile(tmp_path / "measured.toml") == profile


@pytest.mark.parametrize(
    ("text", "expected"),
    [("id = ", "not TOML"), ("id = 'x'", "not a hardware profile: name: Field required"), (None, "cannot be read")],
)
def test_a_file_that_is_no_profile_says_why(tmp_path, text, expected):
    file = tmp_path / "measured.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=expected) as caught:
        read_profile(file)
    assert str(file) in str(caught.value)
