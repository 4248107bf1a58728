"""The catalogue of data sheets and the matching of devices to them."""

import csv
from pathlib import Path

import pytest

from hwprofiles.catalog import all_profiles, load_profile, match_device

IDS = (
    "a10", "a100-40gb", "a100-80gb", "a100-pcie-40gb", "a100-pcie-80gb", "a30", "a40", "b200-sxm-180gb",
    "b300-sxm-288gb", "cpu-generic", "gb200", "gb300", "h100-nvl-94gb", "h100-pcie-80gb", "h100-sxm", "h200",
    "h200-nvl-141gb", "l4", "l40", "l40s", "rtx-pro-6000-server",
)  # fmt: skip
SPECS = Path(__file__).parents[3] / "shared" / "data" / "gpu-specs.csv"
RENAMED = {
    "a100-40gb": "a100-sxm4-40gb",
    "a100-80gb": "a100-sxm4-80gb",
    "h100-sxm": "h100-sxm5-80gb",
    "h200": "h200-sxm5-141gb",
}


ROWS = {profile_id: RENAMED.get(profile_id, profile_id) for profile_id in IDS if profile_id != "cpu-generic"}


def reference_rows():
    if not SPECS.exists():
        pytest.skip(f"no reference table at {SPECS}")
    with SPECS.open() as lines:
        return {row["id"]: row for row in csv.DictReader(line for line in lines if line[0] != "#")}


def test_the_catalogue_has_the_shipped_sheets_in_order():
    assert tuple(profile.id for profile in all_profiles()) == IDS


def test_every_board_of_the_reference_table_has_a_sheet():
    assert set(reference_rows()) == set(ROWS.values())


@pytest.mark.parametrize("profile", all_profiles(), ids=lambda profile: profile.id)
def test_every_figure_names_its_source(profile):
    figures = {
        name
        for name in ("memory_bytes", "memory_bandwidth_bytes_per_second", "peak_flops_per_second", "power_watts",
                     "link_bytes_per_second", "num_multiprocessors")
        if getattr(profile, name) is not None
    }  # fmt: skip
    assert figures <= set(profile.provenance)


def test_generic_cpu_figures_are_marked_as_assumptions():
    assert all(source.startswith("assumption") for source in load_profile("cpu-generic").provenance.values())


@pytest.mark.parametrize(("profile_id", "row_id"), ROWS.items())
def test_sheets_agree_with_the_reference_table(profile_id, row_id):
    row = reference_rows()[row_id]
    profile = load_profile(profile_id)
    assert profile.memory_bandwidth_bytes_per_second == float(row["mem_bw_gbs"]) * 1e9
    columns = {"bf16_dense_tflops": "bfloat16", "fp8_dense_tflops": "fp8", "int8_dense_tops": "int8",
               "fp4_dense_tflops": "fp4"}  # fmt: skip
    peaks = {dtype: float(row[column]) * 1e12 for column, dtype in columns.items() if row[column]}
    assert profile.peak_flops_per_second == pytest.approx({**peaks, "float16": peaks["bfloat16"]})
    assert profile.link_bytes_per_second == (float(row["gpu_link_gbs_bidir"]) * 1e9 or None)
    assert profile.power_watts == float(row["tdp_w"])
    assert profile.num_multiprocessors == (int(row["sm_count"]) if row["sm_count"] else None)


@pytest.mark.parametrize(("profile_id", "row_id"), ROWS.items())
def test_memory_is_what_the_driver_reports_and_absent_where_that_was_not_read(profile_id, row_id):
    reported = reference_rows()[row_id]["mem_total_mib_reported"]
    profile = load_profile(profile_id)
    if reported:
        assert profile.memory_bytes == int(reported) * 2**20
    elif profile.memory_bytes is None:
        assert "No memory_bytes: the label says" in profile.notes
    else:
        assert profile.provenance["memory_bytes"].startswith("driver:")


def test_unknown_hardware_is_refused_with_the_list_of_known_ids():
    with pytest.raises(ValueError, match=r"'h300'.*" + ", ".join(IDS)):
        load_profile("h300")


@pytest.mark.parametrize(
    "profile", [p for p in all_profiles() if p.device_names and p.memory_bytes], ids=lambda profile: profile.id
)
def test_a_device_matches_its_own_sheet(profile):
    assert match_device(profile.device_names[0], profile.memory_bytes, profile.power_watts) == profile.id


@pytest.mark.parametrize(
    ("name", "mib", "power_watts"),
    [
        ("NVIDIA H200 NVL", 143156, 600),  # its name contains another sheet's
        ("NVIDIA H100 PCIe", 81090, 350),  # its sheet does not know the memory
        ("NVIDIA H200", 71578, None),  # half a board: a MIG slice
        ("NVIDIA A100-SXM4-80GB", 40441, 400),
        ("NVIDIA H200", 143156, 1000),  # draws more than the board may
    ],
)
def test_a_device_that_is_not_certainly_a_sheet_matches_none(name, mib, power_watts):
    assert match_device(name, mib * 2**20, power_watts) is None


def test_a_power_capped_board_is_still_that_board():
    assert match_device("NVIDIA H200", 143156 * 2**20, 500.0) == "h200"


def test_a_device_that_does_not_tell_its_memory_matches_none():
    assert match_device("NVIDIA H200", None) is None
