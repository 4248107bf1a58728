"""Ratios of measured throughputs: their intervals, corrections and refusals."""

import numpy as np
import pytest
from scipy import stats

from scaling.named import named_architecture
from scaling.observations import Provenance, ServingObservation, ServingRepeat
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import ServingRecipe, Workload
from scaling.throughput_comparison import compare_throughput

LLAMA_1B = named_architecture("llama-3.2-1b")


def observation(rates, *, architecture=LLAMA_1B, flags=(), workload=None, processor_ratio=None):
    repeats = tuple(
        ServingRepeat(
            output_tokens_per_second=rate,
            seconds=2.0,
            num_output_tokens=round(2 * rate),
            processor_seconds=None if processor_ratio is None else 2.0 * processor_ratio,
        )
        for rate in rates
    )
    mean = Measured(value=sum(rates) / len(rates), unit="tokens/s", num_samples=len(rates), no_interval_because="test")
    return ServingObservation(
        assignment_id="bench-0",
        architecture=architecture,
        recipe=ServingRecipe(dtype="float32"),
        workload=workload or Workload(batch_size=4),
        engine_version="1",
        repeats=repeats,
        output_tokens_per_second=mean,
        total_tokens_per_second=mean,
        coefficient_of_variation=0.0,
        mean_running_sequences=NotMeasured(reason="test"),
        joules_per_output_token=NotMeasured(reason="test"),
        flags=flags,
        provenance=Provenance(
            agent="a", hostname="h", device="d", hardware="cpu-generic", started_at_unix=0, seconds=1, versions={}
        ),
    )


def test_comparison_equals_welchs_interval_of_scipy():
    first, second = [100.0, 103.0, 98.0], [120.0, 131.0, 126.0, 119.0]
    (comparison,) = compare_throughput([observation(first), observation(second)])
    expected = stats.ttest_ind(np.log(second), np.log(first), equal_var=False).confidence_interval(0.95)
    assert comparison.interval is not None
    assert comparison.interval.low == pytest.approx(np.exp(expected.low))
    assert comparison.interval.high == pytest.approx(np.exp(expected.high))
    assert comparison.shows_difference
    assert comparison.verdict.startswith("faster: 1.")


def test_a_ratio_whose_interval_holds_one_is_no_difference():
    (comparison,) = compare_throughput([observation([100.0, 110.0, 90.0]), observation([104.0, 95.0, 108.0])])
    assert not comparison.shows_difference
    assert comparison.verdict.startswith("no difference shown")


def test_several_comparisons_widen_each_interval():
    baseline, other = observation([100.0, 102.0, 98.0]), observation([110.0, 111.0, 108.0])
    (alone,) = compare_throughput([baseline, other])
    among_three, *_ = compare_throughput([baseline, other, other, other])
    assert alone.interval is not None
    assert among_three.interval is not None
    assert among_three.interval.low < alone.interval.low
    assert among_three.interval.level == pytest.approx(1 - 0.05 / 3)
    assert "Bonferroni over 3" in among_three.interval.method


def test_processor_time_removes_what_others_took():
    quiet = observation([100.0, 101.0, 99.0], processor_ratio=1.0)
    busy = observation([50.0, 50.5, 49.5], processor_ratio=0.5)
    (wall,) = compare_throughput([quiet, busy])
    (processor,) = compare_throughput([quiet, busy], clock="processor")
    assert wall.ratio == pytest.approx(0.5, rel=1e-3)
    assert processor.ratio == pytest.approx(1.0, rel=1e-2)
    with pytest.raises(ValueError, match="without processor seconds"):
        compare_throughput([quiet, observation([1.0, 2.0])], clock="processor")


def test_one_repeat_gives_a_ratio_without_interval():
    (comparison,) = compare_throughput([observation([100.0]), observation([150.0])])
    assert comparison.interval is None
    assert comparison.ratio == pytest.approx(1.5)
    assert not comparison.shows_difference


def test_invalid_rows_are_not_compared():
    (comparison,) = compare_throughput([observation([1.0, 2.0]), observation([3.0, 4.0], flags=("nan", "noisy"))])
    assert comparison.verdict == "not comparable: invalid measurement (nan)"


def test_rows_under_different_workloads_are_refused():
    with pytest.raises(ValueError, match="only under the same workload"):
        compare_throughput([observation([1.0]), observation([1.0], workload=Workload(batch_size=8))])


def test_ratios_looked_at_elsewhere_widen_the_interval_too():
    baseline, other = observation([100.0, 102.0, 98.0]), observation([110.0, 111.0, 108.0])
    (counted,) = compare_throughput([baseline, other], num_comparisons=6)
    among_six, *_ = compare_throughput([baseline, *[other] * 6])
    assert counted.interval == among_six.interval


def test_a_comparison_names_its_clock():
    rows = [observation([100.0, 101.0], processor_ratio=1.0), observation([50.0, 51.0], processor_ratio=0.5)]
    for clock in ("wall", "processor"):
        (comparison,) = compare_throughput(rows, clock=clock)
        assert comparison.clock == clock
        assert f"{clock} time" in comparison.interval.method


def test_rows_of_different_engine_versions_are_refused():
    newer = observation([1.0, 2.0]).model_copy(update={"engine_version": "2"})
    with pytest.raises(ValueError, match="only under the same engine version"):
        compare_throughput([observation([1.0, 2.0]), newer])
