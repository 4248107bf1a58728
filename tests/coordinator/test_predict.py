"""Predictions from measured profiles and an engine's own runs, and what a user is told when they do not fit."""

import json
from pathlib import Path

import pytest

from coordinator.errors import UserError
from coordinator.predict import predict_table, read_serving_observations, run_prediction
from hwprofiles.calibrate import MeasuredDevice, TimedOperation, calibrate
from hwprofiles.catalog import load_profile
from hwprofiles.profile import Calibration, HardwareProfile
from hwprofiles.toml_text import profile_to_toml
from scaling.architecture import Architecture
from scaling.observations import Provenance, ServingObservation, ServingRepeat
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import ServingRecipe, Workload
from scaling.serving_cost import pass_cost

RECIPE = ServingRecipe(engine="transformers", dtype="float32")
SHORT = {"input_tokens": 32, "output_tokens": 32}


def shape(d: int, f: int) -> Architecture:
    return Architecture(
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=1024,
    )


def measured_profile() -> HardwareProfile:
    """A CPU whose matrix products reach half of its best rate at every size."""
    timings = [
        TimedOperation(operation="copy", dtype="float32", size=(1e8,), flops=0, num_bytes=2e8, seconds=(0.02,)),
        TimedOperation(operation="gemm", dtype="float32", size=(1e7, 1e7), flops=1e11, num_bytes=0, seconds=(1.0,)),
        *(
            TimedOperation(
                operation="gemm", dtype="float32", size=(rows, weights), flops=1e8, num_bytes=0, seconds=(0.002,)
            )
            for rows in (1, 4096)
            for weights in (1024, 2**20)
        ),
        *(
            TimedOperation(operation=operation, dtype="float32", size=(2, 16), flops=0, num_bytes=1e8, seconds=(0.02,))
            for operation in ("decode_attention", "prefill_attention")
        ),
    ]
    return calibrate(
        timings,
        device=MeasuredDevice(name="A CPU", kind="cpu", memory_bytes=16_000_000_000),
        sheet=load_profile("cpu-generic"),
        calibration=Calibration(
            device="A CPU", measured_at="2026-01-01", versions={}, num_threads=1, clock="processor", num_repeats=1,
            seconds=1,
        ),
    )  # fmt: skip


def observation(architecture: Architecture, batch: int, *, hardware: str = "cpu-generic", version: str = "5.0"):
    """What an engine with 5 ms of host time a step and twice the roofline's time would measure."""
    load = Workload(batch_size=batch, **SHORT)
    cost = pass_cost(architecture, 1024, True, measured_profile(), RECIPE, load)
    seconds = 32 * 0.005 + 2 * float(cost.prefill_seconds + cost.decode_seconds)
    rate = batch * 32 / seconds
    mean = Measured(value=rate, unit="tokens/s", num_samples=1, no_interval_because="made up")
    return ServingObservation(
        assignment_id="bench-0",
        architecture=architecture,
        recipe=RECIPE,
        workload=load,
        engine_version=version,
        repeats=(ServingRepeat(output_tokens_per_second=rate, seconds=seconds, num_output_tokens=batch * 32),),
        output_tokens_per_second=mean,
        total_tokens_per_second=mean,
        coefficient_of_variation=0,
        mean_running_sequences=NotMeasured(reason="made up"),
        joules_per_output_token=NotMeasured(reason="made up"),
        provenance=Provenance(
            agent="a", hostname="h", device="A CPU", hardware=hardware, started_at_unix=0, seconds=1, versions={}
        ),
    )


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(shape(72, 160).to_hf_config()))
    return str(tmp_path / "config.json")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    (tmp_path / "measured.toml").write_text(profile_to_toml(measured_profile()))
    return tmp_path / "measured.toml"


@pytest.fixture
def bench(tmp_path: Path):
    def write(observations) -> Path:
        failure = {"kind": "failure", "message": "one that did not end well"}
        rows = [one.model_dump(mode="json") for one in observations]
        (tmp_path / "bench.json").write_text(json.dumps({"schema_version": 2, "results": [*rows, failure]}))
        return tmp_path / "bench.json"

    return write


RUNS = [observation(shape(d, f), batch) for d, f in ((48, 64), (64, 200), (96, 128), (128, 96)) for batch in (16, 64)]


def test_a_measured_profile_is_the_basis_of_its_predictions(config, profile):
    (row,) = run_prediction(config, profile=profile, batches="16", dtype="float32", **SHORT)
    rate = row["output_tokens_per_second"]
    assert row["hardware"] == "cpu-generic"
    assert rate["basis"] == "roofline at efficiencies measured on A CPU, 2026-01-01"
    assert "no run of a whole engine" in rate["no_interval_because"]
    sheet = run_prediction(config, hardware="cpu-generic", batches="16", dtype="float32", **SHORT)[0]
    assert sheet["output_tokens_per_second"]["basis"] == "roofline, uncalibrated"
    assert sheet["output_tokens_per_second"]["value"] != rate["value"]


def test_observations_give_the_hosts_time_and_an_interval(config, profile, bench):
    rows = run_prediction(config, profile=profile, observations=bench(RUNS), batches="16..64", **SHORT)
    for row, batch in zip(rows, (16, 32, 64), strict=True):
        truth = observation(shape(72, 160), batch).output_tokens_per_second.value
        rate = row["output_tokens_per_second"]
        assert rate["value"] == pytest.approx(truth, rel=1e-3)
        assert rate["interval"]["low"] <= rate["value"] <= rate["interval"]["high"]
        assert rate["basis"] == "roofline + host term fitted on 8 runs of transformers 5.0"
        assert row["recipe"]["dtype"] == "float32"  # the observations'
    title = predict_table(rows).title
    assert "fitted on 8 runs of transformers 5.0; 90% intervals" in title


def test_the_sheet_can_be_fitted_too(config, bench):
    (row,) = run_prediction(config, hardware="cpu-generic", observations=bench(RUNS), batches="32", **SHORT)
    assert row["output_tokens_per_second"]["interval"]


def test_the_recipe_is_told_and_changes_the_prediction():
    plain = run_prediction("llama-3.2-1b", batches="4096")
    recipe = {"quantization": "fp8", "kv_cache_dtype": "fp8", "tensor_parallel_size": 2}
    rows = run_prediction("llama-3.2-1b", batches="4096", **recipe)
    assert recipe.items() <= rows[0]["recipe"].items()
    assert "bfloat16, weights in fp8, KV cache in fp8, 2 devices in tensor parallel," in predict_table(rows).title
    assert rows[0]["effective_batch"]["value"] == 4096
    assert plain[0]["effective_batch"]["value"] < 4096
    assert "weights in" not in predict_table(plain).title


def test_a_measured_profile_has_no_data_for_kernels_that_it_did_not_measure(config, profile):
    wishes = ({"quantization": "gptq"}, {"kv_cache_dtype": "fp8"}, {"tensor_parallel_size": 2})
    words = ("weights in gptq near", "KV cache in fp8 near", "does not tell how fast devices exchange")
    for wish, expected in zip(wishes, words, strict=True):
        (row,) = run_prediction(config, profile=profile, batches="16", dtype="float32", **wish, **SHORT)
        assert expected in row["output_tokens_per_second"]["reason"]


def test_observations_of_another_recipe_are_not_used(config, profile, bench):
    with pytest.raises(UserError, match=r"no run with these --quantization.* only in float32; ask for these"):
        run_prediction(config, profile=profile, observations=bench(RUNS), quantization="fp8", **SHORT)


@pytest.mark.parametrize(
    ("wish", "reason"),
    [({"quantization": "quark"}, "no data: how many bits"), ({"tensor_parallel_size": 3}, "3 devices cannot share")],
)
def test_a_reason_that_all_numbers_have_is_told_once(wish, reason):
    table = predict_table(run_prediction("llama-3.2-1b", batches="128,256", **wish))
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["128", "256"]
    assert columns[1][0].startswith(reason)
    assert columns[1][1] == "as above"
    assert columns[2] == columns[3] == columns[4] == ["", ""]


def test_a_quantisation_that_is_no_name_is_refused(config):
    with pytest.raises(UserError, match="quantization 'F P': String should match"):
        run_prediction(config, quantization="F P")


def test_sizes_that_were_not_measured_have_no_data(tmp_path, profile):
    (tmp_path / "config.json").write_text(json.dumps(shape(4096, 16384).to_hf_config()))
    rows = run_prediction(str(tmp_path), profile=profile, batches="16", dtype="float32", **SHORT)
    assert rows[0]["output_tokens_per_second"]["reason"].startswith("no data: the measured profile of cpu-generic")
    assert "prefill gemm, prefill head, decode gemm" in rows[0]["output_tokens_per_second"]["reason"]
    assert rows[0]["effective_batch"]["value"] == 16
    assert "no data" in predict_table(rows).title


def test_a_board_without_known_memory_is_refused_with_a_way_out(config):
    with pytest.raises(UserError, match=r"l4 does not know what memory.*hw calibrate --hardware l4"):
        run_prediction(config, hardware="l4")


@pytest.mark.parametrize(
    ("runs", "settings", "expected"),
    [
        (RUNS[:2], {}, "1 shapes with transformers 5.0"),
        ([*RUNS, observation(shape(48, 64), 16, version="6.0")], {}, "runs of several engines"),
        ([observation(shape(48, 64), 16, hardware="h200")], {}, "it has runs on h200"),
        (RUNS, {"engine": "vllm"}, "no valid runs of vllm on cpu-generic"),
        (RUNS, {"dtype": "bfloat16"}, "no valid runs in bfloat16 on cpu-generic"),
        (RUNS, {"hardware": "h200"}, "leave one of them out"),
        (RUNS, {"clock": "processor"}, "no processor seconds"),
    ],
)
def test_observations_that_cannot_be_used_say_why(config, profile, bench, runs, settings, expected):
    with pytest.raises(UserError, match=expected):
        run_prediction(config, profile=profile, observations=bench(runs), **settings)


def test_failures_in_a_bench_file_are_passed_over(bench):
    assert read_serving_observations(bench(RUNS)) == tuple(RUNS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not JSON"),
        ("{}", "no serving observation"),
        ("7", "no serving observation"),
        ('[{"kind": "serving"}]', "not an observation of this version: assignment_id"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_observations_says_so(tmp_path, content, expected):
    file = tmp_path / "bench.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=expected) as caught:
        read_serving_observations(file)
    assert str(file) in str(caught.value)


def test_a_dtype_without_a_peak_is_refused_with_the_option_to_type(config, profile):
    narrow = measured_profile().model_copy(update={"peak_flops_per_second": {"float32": 1e11}})
    profile.write_text(profile_to_toml(narrow))
    with pytest.raises(UserError, match="cpu-generic has no peak for bfloat16; give --dtype float32"):
        run_prediction(config, batches="16", profile=profile, **SHORT)
    with pytest.raises(UserError, match="h200 has no peak for float32; give --dtype bfloat16 or --dtype float16"):
        run_prediction(config, batches="16", hardware="h200", dtype="float32", **SHORT)
