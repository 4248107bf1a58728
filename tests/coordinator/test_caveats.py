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


def with_serving(study: StudySpec, *, engine: str = "transformers", **changes: object) -> StudySpec:
    serving = study.serving
    recipe = serving.recipe.model_copy(update={"engine": engine})
    return study.model_copy(update={"serving": serving.model_copy(update={"recipe": recipe, **changes})})


def test_a_simulated_fleet_is_told_first_and_nothing_of_it_is_called_measured(study: StudySpec) -> None:
    for engine in ("fake", "vllm"):
        words = told(with_serving(study, engine=engine, predict_hardware=()), is_simulated=True)
        assert words.startswith("SIMULATED: nothing was trained")
        assert "measured" not in words
    assert "SIMULATED" not in told(with_serving(study))


def test_the_fake_engine_alone_takes_nothing_from_the_losses(study: StudySpec) -> None:
    words = told(with_serving(study, engine="fake"))
    assert words.startswith("SIMULATED throughput: the engine `fake`")
    assert "Losses were measured by training." in words


def test_predictions_are_told_of_hardware_alone_on_which_nothing_was_measured(study: StudySpec) -> None:
    two = with_serving(study, hardware=("h200",), predict_hardware=("h200", "a100-80gb"))
    assert "Numbers for a100-80gb are roofline predictions" in told(two)
    assert "roofline" not in told(with_serving(study, hardware=("h200",), predict_hardware=("h200",)))


@pytest.mark.parametrize(("scale", "is_told"), [(0.6, True), (1.0, False), (None, False)])
def test_fewer_tokens_than_asked_for_are_told(study: StudySpec, scale: float | None, is_told: bool) -> None:
    assert ("of the study's tokens" in told(study, token_scale=scale)) == is_told


def test_troubles_are_counted(study: StudySpec) -> None:
    troubles = Troubles(num_failed_attempts=2, num_retries=1, num_given_up=1, num_refused=3)
    sentence = "2 failed attempts, 1 retry, 1 trial given up, 3 late or repeated reports refused."
    assert told(study, troubles=troubles).endswith(sentence)
