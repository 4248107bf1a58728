"""The benchmark of predictions: its shapes have equal N, and its figures come out right on runs of a known engine."""

import importlib.util
from pathlib import Path

import pytest

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
