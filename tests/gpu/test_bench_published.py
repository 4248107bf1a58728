"""The programme of published architectures: its logic with the fake engine, and a real one on a GPU."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from agent.sensors import open_boards
from coordinator.bench_record import make_record, read_record
from coordinator.errors import UserError


@pytest.fixture(scope="module")
def programme():
    spec = importlib.util.spec_from_file_location("bench_published", Path(__file__).with_name("bench_published.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAKE = ("--engine", "fake", "--size", "1b", "--batch", "1", "--input-tokens", "8", "--output-tokens", "8")


def on_a_gpu(record):
    """The record as if a real engine had made it on an H200: only to test what is written."""
    recipe = record.campaign.recipe.model_copy(update={"engine": "vllm"})
    fingerprint = {**record.fingerprint, "hardware": "h200", "device_kind": "gpu"}
    campaign = record.campaign.model_copy(update={"recipe": recipe})
    return record.model_copy(update={"campaign": campaign, "fingerprint": fingerprint})


def test_a_dry_run_is_labelled_fake_goes_on_and_is_not_kept_as_measured(programme, tmp_path, capsys):
    before = set(programme.MEASURED.glob("*"))
    assert programme.main([*FAKE, "--out", str(tmp_path)]) == 0
    first = read_record(tmp_path / "fake-1b")
    assert programme.main([*FAKE, "--out", str(tmp_path)]) == 0
    assert read_record(tmp_path / "fake-1b") == first
    words = capsys.readouterr().out
    assert "FAKE, not measured: surefire-1b at batch 1" in words
    assert "published for 1b: +21% and +47%" in words
    assert "not written to measured/: the fake engine measures nothing" in words
    assert set(programme.MEASURED.glob("*")) == before
    with pytest.raises(UserError, match="the fake engine measures nothing"):
        programme.save(first, "1b", directory=tmp_path)


def test_only_a_finished_campaign_on_a_gpu_is_kept_with_its_fingerprint(programme, tmp_path):
    assert programme.main([*FAKE, "--out", str(tmp_path)]) == 0
    record = read_record(tmp_path / "fake-1b")
    unfinished = on_a_gpu(make_record(record.campaign, record.restarts[:3]))
    assert "not finished" in programme.why_not_saved(unfinished)
    on_cpu = on_a_gpu(record).model_copy(update={"fingerprint": record.fingerprint})
    assert programme.why_not_saved(on_cpu) == "it did not run on a GPU"
    path = programme.save(on_a_gpu(record), "1b", directory=tmp_path / "measured")
    assert path.name == "h200-vllm-1b.json"
    content = json.loads(path.read_text())
    assert content["fingerprint"]["hardware"] == "h200"
    assert len(content["results"]) == 4


def test_an_engine_that_is_missing_ends_with_one_message(programme, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ARCHFLEET_VLLM_PYTHON", "/nowhere/python")
    assert programme.main(["--engine", "vllm", "--out", str(tmp_path)]) == 2
    assert "error: the interpreter of engine 'vllm', /nowhere/python" in capsys.readouterr().err


@pytest.fixture
def boards():
    found = open_boards()
    if isinstance(found, str):
        pytest.skip(f"no GPU that NVML shows: {found}")
    return found


@pytest.mark.gpu
def test_nvml_says_of_the_board_what_nvidia_smi_says(boards):
    command = ["nvidia-smi", "--query-gpu=memory.used,clocks.max.sm", "--format=csv,noheader,nounits"]
    used, clock = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].split(",")
    (board,) = boards
    assert board.used_bytes() == pytest.approx(float(used) * 2**20, abs=2**30)
    assert board.boost_clock_mhz() == pytest.approx(float(clock), rel=0.2)
    assert 5 < board.power_watts() < 2000


@pytest.mark.gpu
def test_a_short_run_on_the_gpu_has_energy_and_gives_the_gpu_back(boards, programme, tmp_path, monkeypatch):
    asked = programme.argparse.Namespace(
        batch="8", input_tokens=64, output_tokens=64, repeats=1, window_seconds=5.0, dtype="bfloat16", out=tmp_path
    )
    monkeypatch.setattr(programme, "save", lambda record, size: "nowhere")  # too short to be kept
    programme.measure("transformers", "1b", asked, programme.Console(quiet=True))
    record = read_record(tmp_path / "transformers-1b")
    for row in record.observations():
        assert row.joules_per_output_token.kind == "measured"
        assert "gpu-not-released" not in row.flags
