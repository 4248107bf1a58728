"""The history checker finds each kind of broken promise, and nothing in a history that kept them all."""

import pytest

from coordinator.history import Ended, Fact, Leased, check_history

GOOD = [
    Leased("t", 1, "a", 10),
    Leased("u", 1, "b", 10),
    Ended("t", 1, "retried", 4),
    Leased("t", 2, "a", 10),
    Ended("u", 1, "failed", 12),
    Ended("t", 2, "succeeded", 9),
]


def test_a_history_that_kept_every_promise() -> None:
    verdict = check_history(GOOD, granted_seconds=30, acknowledged={"t": 2})
    assert verdict.kept
    assert (verdict.num_attempts, verdict.num_succeeded, verdict.num_failed, verdict.num_open) == (3, 1, 1, 0)
    assert verdict.spent_seconds == 25


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ([Leased("t", 1, "a"), Leased("t", 2, "b")], "while a holds it"),
        ([Leased("t", 1, "a"), Leased("u", 1, "a")], "while it holds t"),
        ([Leased("t", 2, "a"), Ended("t", 2, "retried"), Leased("t", 2, "b")], "epoch 2 follows epoch 2"),
        ([Leased("t", 1, "a"), Ended("t", 1, "succeeded"), Leased("t", 2, "a")], "leased after its end"),
        ([Leased("t", 1, "a"), Ended("t", 1, "failed"), Leased("t", 2, "a")], "leased after its end"),
        ([Leased("t", 2, "a"), Ended("t", 1, "succeeded")], "without a live lease"),
        ([*GOOD, Ended("t", 2, "succeeded")], "two results count"),
    ],
)
def test_a_broken_promise_is_named(facts: list[Fact], complaint: str) -> None:
    verdict = check_history(facts)
    assert any(complaint in violation for violation in verdict.violations)
    assert not verdict.kept


def test_an_attempt_started_beyond_the_budget_is_named() -> None:
    verdict = check_history(GOOD, granted_seconds=23)
    assert len(verdict.violations) == 1
    assert verdict.violations[0].startswith("t: started with 24.0")


def test_work_in_flight_may_cost_more_than_was_reserved() -> None:
    assert check_history([Leased("t", 1, "a", 10), Ended("t", 1, "succeeded", 50)], granted_seconds=10).kept


@pytest.mark.parametrize("acknowledged", [{"t": 1}, {"u": 1}, {"never": 1}])
def test_a_lost_acknowledged_result_is_named(acknowledged: dict[str, int]) -> None:
    (violation,) = check_history(GOOD, acknowledged=acknowledged).violations
    assert "is lost" in violation
