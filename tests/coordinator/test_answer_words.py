"""An answer in a few words: what to build, and how it compares."""

from pathlib import Path

import pytest

from coordinator.answer_words import headline, verdict_words, why_panda
from coordinator.recommendation import HardwareAnswer
from coordinator.record import RunRecord, read_record
from coordinator.speedup import Speedup
from scaling.architecture import Architecture
from scaling.quantity import Measured, NotMeasured

SLOWER = Speedup(ratio=NotMeasured(reason="not asked for here"), verdict="slower")


@pytest.fixture(scope="module")
def record(finished_run: Path) -> RunRecord:
    return read_record(finished_run)


@pytest.fixture
def baseline(record: RunRecord) -> Architecture:
    assert record.recommendation is not None
    return record.recommendation.baseline


@pytest.fixture
def answer(record: RunRecord, baseline: Architecture) -> HardwareAnswer:
    """For a shape that is not the baseline, however the run itself ended."""
    assert record.recommendation is not None
    other = baseline.model_copy(update={"intermediate_size": baseline.intermediate_size + 4})
    found = record.recommendation.answers[0]
    return found.model_copy(update={"recommended": other, "role": "panda", "measured_verdict": "tie"})


def test_a_proposal_is_named_with_its_role_and_compared_in_loss_and_speed(
    answer: HardwareAnswer, baseline: Architecture
) -> None:
    assert headline(answer, baseline) == f"Panda {answer.recommended.label}"
    assert list(verdict_words(answer, baseline, SLOWER)) == [
        "a tie with the baseline in loss",
        "slower than the baseline",
    ]


def test_a_refuted_proposal_leaves_the_baseline_to_be_built(answer: HardwareAnswer, baseline: Architecture) -> None:
    refuted = answer.model_copy(update={"measured_verdict": "worse"})
    assert headline(refuted, baseline) == f"Keep the baseline, {baseline.label}"
    first, loss, _ = verdict_words(refuted, baseline, SLOWER)
    assert first == "failed its check: keep the baseline"
    assert loss == "higher loss than the baseline"


def test_the_baseline_itself_is_not_compared(answer: HardwareAnswer, baseline: Architecture) -> None:
    same = answer.model_copy(update={"recommended": baseline})
    assert headline(same, baseline) == f"The baseline itself, {baseline.label}"
    assert list(verdict_words(same, baseline, SLOWER)) == ["the baseline itself"]


def test_panda_says_why_it_is_not_the_fastest_and_what_that_costs(
    answer: HardwareAnswer, baseline: Architecture
) -> None:
    slower = Speedup(
        ratio=Measured(value=0.87, unit="×", num_samples=6, no_interval_because="not asked for here"), verdict="slower"
    )
    words = why_panda(answer.model_copy(update={"measured_verdict": "better"}), baseline, slower)
    assert words.startswith("No Surefire beyond the baseline: nothing that was benchmarked is faster")
    assert "it is slower than the baseline (0.87 times its output tokens/s)" in words
    assert words.endswith("keep the baseline.")
    assert "not compared" in why_panda(answer, baseline, Speedup(ratio=SLOWER.ratio, verdict="not compared"))


def test_a_panda_that_ties_in_all_says_that_nothing_speaks_for_it(
    answer: HardwareAnswer, baseline: Architecture
) -> None:
    tie = Speedup(ratio=SLOWER.ratio, verdict="a tie")
    assert why_panda(answer, baseline, tie).endswith("speaks for leaving the baseline.")
    better = answer.model_copy(update={"measured_verdict": "better"})
    assert "leaving" not in why_panda(better, baseline, tie)


@pytest.mark.parametrize("change", [{"role": "surefire"}, {"measured_verdict": "worse"}])
def test_only_a_panda_that_stands_needs_that_explanation(
    answer: HardwareAnswer, baseline: Architecture, change: dict[str, str]
) -> None:
    assert why_panda(answer.model_copy(update=change), baseline, SLOWER) == ""
