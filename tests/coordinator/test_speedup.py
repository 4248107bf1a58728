"""Speedup: the newest valid benchmarks of the two shapes on one hardware, or why they cannot be compared."""

from pathlib import Path

import pytest

from coordinator.recommendation import HardwareAnswer
from coordinator.record import RunRecord, read_record
from coordinator.speedup import speedup
from scaling.observations import ServingObservation
from scaling.quantity import Measured, NotMeasured


@pytest.fixture(scope="module")
def record(finished_run: Path) -> RunRecord:
    return read_record(finished_run)


@pytest.fixture
def answer(record: RunRecord) -> HardwareAnswer:
    assert record.recommendation is not None
    return record.recommendation.answers[0]


def runs_at(record: RunRecord, answer: HardwareAnswer, factor: float, spread: float) -> list[ServingObservation]:
    """Benchmarks of both shapes: the recommended one this much faster, repeats so far apart."""
    assert record.recommendation is not None
    some = next(iter(record.serving.values()))

    def run(shape, rate: float) -> ServingObservation:
        repeats = tuple(
            repeat.model_copy(update={"output_tokens_per_second": rate * part})
            for repeat, part in zip(some.repeats, (1 - spread, 1.0, 1 + spread), strict=True)
        )
        return some.model_copy(update={"architecture": shape, "repeats": repeats})

    return [run(record.recommendation.baseline, 1000.0), run(answer.recommended, 1000.0 * factor)]


@pytest.mark.parametrize(
    ("factor", "spread", "verdict"), [(1.3, 0.01, "faster"), (0.7, 0.01, "slower"), (1.05, 0.1, "a tie")]
)
def test_a_ratio_has_its_interval_and_a_word(
    record: RunRecord, answer: HardwareAnswer, factor: float, spread: float, verdict: str
) -> None:
    assert record.recommendation is not None
    found = speedup(answer, record.recommendation.baseline, runs_at(record, answer, factor, spread))
    assert isinstance(found.ratio, Measured)
    assert found.ratio.interval is not None
    assert found.ratio.value == pytest.approx(factor, rel=0.01)
    assert found.verdict == verdict


def test_without_a_benchmark_of_both_there_is_no_ratio(record: RunRecord, answer: HardwareAnswer) -> None:
    assert record.recommendation is not None
    baseline = record.recommendation.baseline
    found = speedup(answer, baseline, runs_at(record, answer, 1.0, 0.01)[:1])
    assert (found.verdict, isinstance(found.ratio, NotMeasured)) == ("not compared", True)
    elsewhere = answer.model_copy(update={"hardware": "h200"})
    assert speedup(elsewhere, baseline, runs_at(record, answer, 1.3, 0.01)).verdict == "not compared"


def test_the_baseline_is_not_compared_with_itself(record: RunRecord, answer: HardwareAnswer) -> None:
    found = speedup(answer, answer.recommended, runs_at(record, answer, 1.3, 0.01))
    assert found.ratio == NotMeasured(reason="the recommended shape is the baseline itself")
