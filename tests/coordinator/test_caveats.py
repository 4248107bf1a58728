"""Caveats: what a reader must know before believing a run."""

import pytest

from coordinator.caveats import Troubles, caveats
from coordinator.study import StudySpec

NONE = Troubles(num_failed_attempts=0, num_retries=0, num_given_up=0, num_refused=0)


def told(study: StudySpec, **changes: object) -> str:
    asked = {"token_scale": 1.0, "is_simulated": False, "troubles": NONE} | changes
    return "\n".join(caveats(study, **asked))  # type: ignore[arg-type]


def test_small_proxies_say_that_they_show_the_method_only(study: StudySpec) -> None:
    assert "shows the method" in told(study)


def test_a_simulation_is_the_first_thing_told(study: StudySpec) -> None:
    assert told(study, is_simulated=True).startswith("SIMULATED")
    assert "SIMULATED" not in told(study)


@pytest.mark.parametrize(("scale", "is_told"), [(0.6, True), (1.0, False), (None, False)])
def test_fewer_tokens_than_asked_for_are_told(study: StudySpec, scale: float | None, is_told: bool) -> None:
    assert ("of the study's tokens" in told(study, token_scale=scale)) == is_told


def test_troubles_are_counted(study: StudySpec) -> None:
    troubles = Troubles(num_failed_attempts=2, num_retries=1, num_given_up=1, num_refused=3)
    sentence = "2 failed attempts, 1 retry, 1 trial given up, 3 late or repeated reports refused."
    assert told(study, troubles=troubles).endswith(sentence)
