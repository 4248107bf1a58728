"""What this machine is, and a profile measured on it, by library and by command."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.device import UNKNOWN_PROFILE_ID, DeviceDescription
from coordinator.cli import main
from coordinator.errors import UserError
from coordinator.hardware import calibrate_device, describe_detected, detect_device
from hwprofiles.catalog import read_profile

pytest.importorskip("torch", reason="microbenchmarks run torch (extra: train)")


def archfleet(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_detect_as_json_names_the_sheet_or_says_why_there_is_none() -> None:
    found = json.loads(archfleet("hw", "detect", "--json").stdout)
    assert found["name"]
    assert (found["hardware"] is None) == (found["no_hardware_because"] is not None)
    assert "torch" in found["versions"]


def test_detect_for_people_is_a_sentence() -> None:
    found = detect_device()
    text = archfleet("hw", "detect").output
    assert found["name"] in text
    assert "torch" in text
    if found["hardware"] == "cpu-generic":
        assert "whose figures are assumed" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H100 PCIe", "h100-pcie-80gb"), ("NVIDIA Something New", "none has this name")],
)
def test_a_board_that_is_certainly_no_sheets_own_is_told_why(name: str, expected: str) -> None:
    found = detect_device(DeviceDescription(name, UNKNOWN_PROFILE_ID, 85_000_000_000, 350.0))
    assert found["hardware"] is None
    assert expected in found["no_hardware_because"]
    assert "no sheet is certainly its own" in describe_detected(found)


def test_calibrating_writes_a_profile_that_predictions_can_use(tmp_path: Path) -> None:
    file = tmp_path / "measured.toml"
    result = archfleet("hw", "calibrate", "--cpu", "--seconds", 1, "--out", file, "--json")
    assert result.exit_code == 0, result.output
    profile = read_profile(file)
    assert json.loads(result.stdout)["id"] == profile.id == "cpu-generic"
    assert profile.calibration is not None
    assert profile.calibration.clock == "processor"
    assert {table.operation for table in profile.efficiencies} == {
        "gemm", "copy", "decode_attention", "prefill_attention",
    }  # fmt: skip
    shape = {
        "model_type": "mistral", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
        "vocab_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    words = ["--dtype", "float32", "--batch", "16..64", "--input-tokens", 32, "--output-tokens", 32]
    predicted = archfleet("predict", tmp_path, "--profile", file, *words, "--json")
    assert predicted.exit_code == 0, predicted.output
    assert {row["output_tokens_per_second"]["kind"] for row in json.loads(predicted.stdout)} == {"predicted"}
    assert "efficiencies measured on" in archfleet("predict", tmp_path, "--profile", file, *words).output


def test_a_folder_that_is_not_there_is_found_out_before_measuring(tmp_path: Path) -> None:
    result = archfleet("hw", "calibrate", "--out", tmp_path / "nowhere" / "measured.toml")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


@pytest.mark.parametrize(("hardware", "expected"), [("h300", "unknown hardware 'h300'"), ("h200", "h200 is a gpu")])
def test_a_sheet_that_cannot_be_this_cpus_is_refused(hardware: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        calibrate_device(hardware=hardware, seconds=1, on_gpu=False)
