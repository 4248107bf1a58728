"""Which shapes are trained at the wrong rate: planted gains are found, noise alone is not, and advice fits the case."""

import math

import numpy as np
import pytest

from scaling.architecture import Architecture
from scaling.observations import Failure, Provenance, TrainingObservation
from scaling.pairing import RunNoise
from scaling.quantity import Measured, NotMeasured
from scaling.rate_guard import GAIN_LIMIT, ShapeVerdict, advise, at_factor, judge, level_for, run_noise
from scaling.recipes import TrainingRecipe

RECIPE = TrainingRecipe(num_tokens=51_200)  # base fan-ins 64, 64, 196
CENTRE = Architecture(
    hidden_size=64,
    intermediate_size=196,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=512,
)
NARROW_MLP = CENTRE.model_copy(update={"hidden_size": 112, "intermediate_size": 52})
WIDE_MLP = CENTRE.model_copy(update={"hidden_size": 32, "intermediate_size": 400})
PROVENANCE = Provenance(
    agent="a", hostname="h", device="d", hardware="cpu-generic", started_at_unix=0.0, seconds=1.0, versions={}
)
QUIET = RunNoise(sd=0.0002, degrees_of_freedom=40)


def run(loss: float, *, architecture: Architecture = CENTRE, corpus_id: str = "c") -> TrainingObservation:
    windows = loss + np.linspace(-1, 1, 32)
    return TrainingObservation(
        assignment_id="train-1",
        architecture=architecture,
        recipe=RECIPE,
        corpus_id=corpus_id,
        loss=loss,
        loss_standard_error=0.1,
        window_losses=tuple(windows),
        num_tokens=51_200,
        tokens_per_second=1.0,
        train_seconds=1.0,
        curve=(),
        provenance=PROVENANCE,
    )


def diverged() -> Failure:
    return Failure(
        assignment_id="train-2", failure_kind="nan-loss", message="training diverged by step 3", provenance=PROVENANCE
    )


def verdict(
    slower: float, faster: float, *, architecture: Architecture = CENTRE, noise: RunNoise = QUIET
) -> ShapeVerdict:
    """Of a shape whose loss changes by so much at 0.7 and at 1.4 times the rate."""
    runs = {1.0: [run(4.0)], 0.7: [run(4.0 + slower)], 1.4: [run(4.0 + faster)]}
    return judge(architecture, "why", runs, RECIPE, noise)


def test_a_shape_that_loses_at_every_other_rate_holds() -> None:
    found = verdict(0.01, 0.02)
    assert (found.outcome, found.best_factor, found.loss) == ("holds", 1.0, 4.0)
    assert advise([found], RECIPE)[0].advice == ""


def test_a_gain_is_the_loss_that_a_rate_saves_and_has_an_interval() -> None:
    gain = verdict(-0.02, 0.03).gains[0]
    assert gain.factor == 0.7
    assert isinstance(gain.gain, Measured)
    assert gain.gain.value == pytest.approx(0.02)
    assert gain.gain.interval is not None
    assert gain.gain.interval.low < 0.02 < gain.gain.interval.high


@pytest.mark.parametrize(("gain", "outcome"), [(0.02, "off"), (0.002, "holds"), (0.0031, "undecided")])
def test_a_shape_is_off_when_it_gains_more_than_the_limit_beyond_noise(gain: float, outcome: str) -> None:
    found = verdict(-gain, 0.05)
    assert found.outcome == outcome
    assert found.best_factor == 0.7


def test_a_gain_within_noise_is_undecided_and_says_what_it_may_hide() -> None:
    found = verdict(-0.02, 0.05, noise=RunNoise(sd=0.02, degrees_of_freedom=10))
    assert found.outcome == "undecided"
    assert (
        "a gain of up to 0.071 nats/token is not ruled out: more seeds would tell" in advise([found], RECIPE)[0].advice
    )


def test_one_seed_without_noise_says_that_it_tells_nothing() -> None:
    found = verdict(-0.02, 0.05, noise=RunNoise(sd=None, degrees_of_freedom=0))
    assert found.outcome == "undecided"
    assert "give two or more" in advise([found], RECIPE)[0].advice


def test_a_centre_that_is_off_changes_the_base_rate() -> None:
    (centre,) = advise([verdict(-0.02, 0.05)], RECIPE)
    assert centre.advice == "set training.base_learning_rate = 0.0056"


def test_a_shape_that_learns_too_fast_is_looked_at_kind_by_kind() -> None:
    shape = verdict(-0.02, 0.05, architecture=NARROW_MLP)
    advice = advise([verdict(0.01, 0.01), shape], RECIPE)[1].advice
    assert advice.startswith("it learns too fast; archfleet guard --kind hidden, attention or mlp tells which")


def test_narrow_matrices_that_learn_too_fast_are_slowed_or_capped() -> None:
    shape = verdict(-0.02, 0.05, architecture=NARROW_MLP)
    advice = advise([verdict(0.01, 0.01), shape], RECIPE, "mlp")[1].advice
    assert "learn at 3.8 times the base rate, too fast for it: lower training.base_fan_ins.mlp or set " in advice
    assert "training.max_rate_multiplier = 2.6" in advice


def test_wide_matrices_that_learn_too_slowly_move_the_base() -> None:
    shape = verdict(0.05, -0.02, architecture=WIDE_MLP)
    advice = advise([verdict(0.01, 0.01), shape], RECIPE, "mlp")[1].advice
    assert "learn at 0.49 times the base rate, too slowly for it: raise training.base_fan_ins.mlp" in advice


def test_one_kind_of_matrix_moves_its_base_fan_in() -> None:
    assert at_factor(RECIPE, 0.7).base_learning_rate == pytest.approx(0.7 * RECIPE.base_learning_rate)
    slower = at_factor(RECIPE, 0.7, "hidden")
    assert slower.base_fan_ins.hidden == 45
    assert slower.model_copy(update={"base_fan_ins": RECIPE.base_fan_ins}) == RECIPE
    (centre,) = advise([verdict(-0.02, 0.05)], RECIPE, "hidden")
    assert centre.advice == "set training.base_fan_ins.hidden = 45"


def test_what_the_centre_needs_is_not_asked_of_each_shape() -> None:
    both = advise([verdict(-0.02, 0.05), verdict(-0.03, 0.05, architecture=NARROW_MLP)], RECIPE)
    assert both[1].advice == "what the centre needs helps this shape too"


def test_a_rate_at_which_a_shape_diverges_is_no_gain_and_one_where_it_starts_is_told() -> None:
    runs = {1.0: [run(4.0)], 0.7: [run(4.1)], 1.4: [diverged()]}
    found = judge(CENTRE, "why", runs, RECIPE, QUIET)
    assert found.outcome == "holds"
    assert found.gains[1].gain == NotMeasured(reason="training diverged by step 3")
    lost = judge(CENTRE, "why", {1.0: [diverged()], 0.7: [run(4.1)], 1.4: [diverged()]}, RECIPE, QUIET)
    assert (lost.outcome, lost.loss) == ("diverged", None)
    assert advise([lost], RECIPE)[0].advice == "set training.base_learning_rate = 0.004"


def test_runs_of_other_text_are_refused() -> None:
    with pytest.raises(ValueError, match="same held-out windows"):
        judge(CENTRE, "why", {1.0: [run(4.0)], 0.7: [run(4.0, corpus_id="other")]}, RECIPE, QUIET)


def test_noise_is_pooled_over_shapes_and_factors() -> None:
    results = [{1.0: [run(4.0), run(4.02)], 0.7: [run(5.0), run(5.02)]}]
    noise = run_noise(results)
    assert noise.degrees_of_freedom == 2
    assert noise.sd == pytest.approx(0.02 / math.sqrt(2))


def test_noise_alone_finds_a_shape_off_in_at_most_one_of_twenty_guards() -> None:
    source, num_guards, num_shapes, sd = np.random.default_rng(0), 200, 7, 0.01
    level, alarms = level_for(2 * num_shapes), 0
    for _ in range(num_guards):
        losses = source.normal(4.0, sd, (num_shapes, 3, 2))
        results = [
            {factor: [run(loss) for loss in losses[shape, at]] for at, factor in enumerate((1.0, 0.7, 1.4))}
            for shape in range(num_shapes)
        ]
        noise = run_noise(results)
        verdicts = [judge(CENTRE, "why", one, RECIPE, noise, level=level) for one in results]
        alarms += any(one.outcome == "off" for one in verdicts)
    assert alarms / num_guards <= 0.08  # 0.05 and two standard errors


def test_the_limit_is_a_tenth_of_what_is_fitted() -> None:
    assert GAIN_LIMIT == 0.003
    assert level_for(14) == pytest.approx(1 - 0.1 / 14)
