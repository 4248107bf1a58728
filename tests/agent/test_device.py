import pytest

from agent.device import (
    CPU_PROFILE_ID,
    UNKNOWN_PROFILE_ID,
    describe_device,
    make_provenance,
    parse_fingerprint,
    parse_gpu_line,
)


def test_the_cpu_is_described_by_name_and_has_the_generic_profile() -> None:
    device = describe_device(on_gpu=False)
    assert device.hardware == CPU_PROFILE_ID
    assert device.name


def test_a_gpu_is_matched_to_its_sheet_by_name_and_memory() -> None:
    device = parse_gpu_line("NVIDIA H200, 143771, 700.00\nNVIDIA H200, 143771, 700.00\n")
    assert device is not None
    assert (device.name, device.hardware) == ("NVIDIA H200", "h200")


@pytest.mark.parametrize("answer", ["NVIDIA Something New, 1234, 55.0", "NVIDIA H200, [N/A], [N/A]"])
def test_a_gpu_without_a_sheet_is_unknown_and_not_guessed(answer: str) -> None:
    device = parse_gpu_line(answer)
    assert device is not None
    assert device.hardware == UNKNOWN_PROFILE_ID


@pytest.mark.parametrize("answer", ["", "\n", "No devices were found"])
def test_no_gpu_is_no_device(answer: str) -> None:
    assert parse_gpu_line(answer) is None


def test_provenance_names_the_versions_that_change_numbers() -> None:
    provenance = make_provenance(agent="a-1", started_at_unix=5.0, seconds=2.0, on_gpu=False)
    assert {"python", "platform", "kernel", "cpu", "archfleet", "torch"} <= provenance.versions.keys()
    assert (provenance.agent, provenance.started_at_unix, provenance.seconds) == ("a-1", 5.0, 2.0)


def test_a_gpu_tells_its_memory_and_power_limit_and_a_cpu_its_memory() -> None:
    board = parse_gpu_line("NVIDIA H200, 143771, 700.00")
    assert board is not None
    assert (board.memory_bytes, board.power_watts) == (143771 * 2**20, 700.0)
    assert (describe_device(on_gpu=False).memory_bytes or 0) > 2**28


def test_the_fingerprint_of_a_board_is_what_its_driver_says() -> None:
    line = "NVIDIA H200, GPU-1f, 143771, 700.00, 570.86.15, 1980, 3201, Enabled"
    assert parse_fingerprint(f"{line}\n{line}\n") == {
        "gpu_name": "NVIDIA H200",
        "gpu_uuid": "GPU-1f",
        "gpu_memory_mebibytes": "143771",
        "gpu_power_limit_watts": "700.00",
        "gpu_driver": "570.86.15",
        "gpu_max_sm_clock_mhz": "1980",
        "gpu_max_memory_clock_mhz": "3201",
        "gpu_ecc": "Enabled",
    }
    assert parse_fingerprint("No devices were found") == {}
