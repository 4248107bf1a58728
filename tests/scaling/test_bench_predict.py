"""The benchmark of predictions: its shapes have equal N, and its figures come out right on runs of a known engine."""

import importlib.util
from pathlib import Path

import pytest

from agent.benchmark.engine_limits import VLLM_CPU_HEAD_SIZES
from hwprofiles.catalog import load_profile
from scaling.observations import Provenance, ServingObservation, ServingRepeat
from scaling.quantity import Measured, NotMeasured
from scaling.serving_cost import pass_cost

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_predict.py"
PROFILE = load_profile("cpu-generic")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_predict", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def observe(bench, shape) -> ServingObservation:
    """Attention four times as slow as the roofline says, 2 ms of host time a step."""
    load = bench.WORKLOAD
    cost = pass_cost(shape, shape.vocab_size, True, PROFILE, bench.RECIPE, load)
    seconds = load.output_tokens * 0.002 + float(cost.matrix_seconds) + 4 * float(cost.attention_seconds)
    num_tokens = load.batch_size * load.output_tokens
    rate = num_tokens / seconds
    mean = Measured(value=rate, unit="tokens/s", num_samples=1, no_interval_because="made up")
    repeat = ServingRepeat(
        output_tokens_per_second=rate, seconds=seconds, num_output_tokens=num_tokens, processor_seconds=seconds
    )
    return ServingObservation(
        assignment_id="bench-0",
        architecture=shape,
        recipe=bench.RECIPE,
        workload=load,
        engine_version="1",
        repeats=(repeat, repeat),
        output_tokens_per_second=mean,
        total_tokens_per_second=mean,
        coefficient_of_variation=0,
        mean_running_sequences=NotMeasured(reason="made up"),
        joules_per_output_token=NotMeasured(reason="made up"),
        provenance=Provenance(
            agent="a", hostname="h", device="A CPU", hardware="cpu-generic", started_at_unix=0, seconds=1, versions={}
        ),
    )


def test_there_are_six_shapes_to_calibrate_on_and_twelve_others_of_equal_size(bench):
    shapes = bench.shapes(400_000, smoke=False)
    assert len(set(shapes)) == len(shapes) == bench.NUM_CALIBRATION + 12
    assert all(shape.num_parameters == pytest.approx(400_000, rel=0.02) for shape in shapes)


def test_an_engine_that_is_a_host_and_a_scale_is_ranked_perfectly_by_the_fit_and_less_well_without(bench):
    result = bench.rank([observe(bench, shape) for shape in bench.shapes(400_000, smoke=False)], PROFILE)
    *_, fitted = result["ways"].values()
    alone = result["ways"]["assumed sheet, roofline alone"]
    assert fitted["spearman"] == pytest.approx(1)
    assert fitted["mean_error"] < 1e-3 < alone["mean_error"]
    assert result["intervals_that_hold_the_measured_rate"] == "12 of 12"


def test_speed_is_measured_on_as_many_shapes_as_are_asked_for(bench):
    assert bench.speed(PROFILE, None, dtype="float32", num_shapes=500, laptop=True) > 0


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_each_engines_shapes_have_equal_size_and_heads_that_it_runs(bench, engine):
    setting = bench.SETTINGS[engine]
    shapes = bench.shapes(setting.num_parameters, smoke=False, setting=setting)
    assert len(set(shapes)) == bench.NUM_CALIBRATION + 12
    assert all(shape.num_parameters == pytest.approx(setting.num_parameters, rel=0.02) for shape in shapes)
    if engine == "vllm":
        assert setting.head_dim in VLLM_CPU_HEAD_SIZES


def test_a_rank_correlation_has_a_bootstrap_interval_around_it(bench):
    measured = [float(rate) for rate in range(12)]
    predicted = [rate + 3 * (-1) ** index for index, rate in enumerate(measured)]
    compared = bench.compare([one + 10 for one in measured], [one + 10 for one in predicted])
    low, high = compared["spearman_interval"]
    assert low < compared["spearman"] < high <= 1


def test_four_shapes_have_no_interval_of_their_rank_correlation(bench):
    assert bench.spearman_interval([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]) is None


def test_what_was_recorded_is_not_measured_again(bench, monkeypatch):
    shapes = bench.shapes(400_000, smoke=True)
    measured, record = [], {}

    def measure_once(shape, *_):
        measured.append(shape)
        return observe(bench, shape)

    monkeypatch.setattr(bench, "measure_once", measure_once)
    for _ in range(2):
        found = bench.measure(shapes, bench.RECIPE, num_repeats=2, window_seconds=1.0, record=record, save=lambda: None)
    assert [one.architecture for one in found] == shapes
    assert len(measured) == 2 * len(shapes)
