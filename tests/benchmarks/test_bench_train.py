"""The benchmark of training runs at tiny sizes, a GPU's command line too; its interval is a t-interval."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy import stats


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).with_name("bench_train.py")
    spec = importlib.util.spec_from_file_location("bench_train", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = ["--sizes", "tiny", "--rounds", "2", "--steps", "2"]


@pytest.mark.filterwarnings("ignore")  # of transformers' Trainer
def test_ways_on_a_cpu_are_measured_in_turns_and_one_that_is_absent_says_why(
    bench: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "ACCELERATE", tmp_path / "absent")
    command = [*TINY, "--without", "ours, compiled", "--stall", "tiny"]
    bench.main([*command, "--json"])
    record = json.loads(capsys.readouterr().out)
    rows = {row["way"]: row for row in record["speed"]}
    assert set(rows) == set(bench.WAYS)
    for name in ("ours", "plain loop"):
        assert rows[name]["tokens_per_processor_second"] > 0
        assert rows[name]["ours_over_this"]["low"] <= rows[name]["ours_over_this"]["mean"]
    assert rows["ours, compiled"]["why_not"] == "left out"
    assert rows["transformers Trainer"]["why_not"] or rows["transformers Trainer"]["tokens_per_processor_second"]
    assert 0 < record["reporting"]["share_of_step_time"] < 1
    assert record["checkpoint"]["num_parameters"] == bench.SHAPES["tiny"].num_total_parameters
    bench.main(command)
    assert "ours / this" in capsys.readouterr().out


def test_the_command_for_a_gpu_runs_on_a_cpu_at_tiny_shapes(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--vocabularies", "64", "256", "--sequence-length", "16", "--batch-tokens", "64"]
    bench.main([*TINY, *sizes, "--gpu", "--device", "cpu"])
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "training-speed"
    assert {"hardware", "fingerprint", "versions", "measured_at", "mfu_convention"} <= set(record)
    assert [row["architecture"]["vocab_size"] for row in record["rows"]] == [64, 256]
    for row in record["rows"]:
        assert row["tokens_per_second"]["mean"] > 0
        assert row["mfu"] is None
        assert row["why_no_mfu"]
        assert row["layers"] == "plain: not asked for"


def test_mfu_is_told_where_the_sheet_has_a_peak(bench: ModuleType) -> None:
    options = type("Options", (), {"sequence_length": 16, "batch_tokens": 64, "rounds": 2, "steps": 1})
    row = bench.gpu_row("tiny", 64, device="cpu", peak=1e12, options=options)
    flops = bench.train_flops_per_token(bench.SHAPES["tiny"], 16)
    assert row["mfu"]["mean"] == pytest.approx(row["tokens_per_second"]["mean"] * flops / 1e12)


def test_the_sizes_are_what_they_are_called(bench: ModuleType) -> None:
    for name, millions in (("100k", 0.1), ("10m", 10), ("80m", 80), ("145m", 145), ("297m", 297), ("1b", 1000)):
        assert bench.SHAPES[name].num_parameters / 1e6 == pytest.approx(millions, rel=0.04)


def test_the_plain_loop_trains_the_same_model(bench: ModuleType) -> None:
    from agent.training.model import Decoder

    shape = bench.SHAPES["10m"]
    plain = bench.PlainModel(shape, 16)
    ours = Decoder(shape, max_sequence_length=16)
    count = sum(parameter.numel() for parameter in plain.parameters())
    assert count == sum(parameter.numel() for parameter in ours.parameters())
    tokens = torch.randint(1024, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert plain(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(1024), abs=1)


def test_a_ratio_has_a_t_interval_of_its_logarithm(bench: ModuleType) -> None:
    ours, theirs = [2.0, 3.0, 2.5, 2.2], [1.0, 1.4, 1.3, 1.2]
    logs = np.log(np.array(ours) / np.array(theirs))
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    found = bench.ratio(ours, theirs)
    assert found["mean"] == pytest.approx(math.exp(logs.mean()))
    assert (found["low"], found["high"]) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert bench.ratio([2.0], [1.0]) == {"mean": pytest.approx(2.0), "low": None, "high": None}
