"""Paired differences: what is hard for all cancels, and both sources of error are in the interval."""

from collections.abc import Sequence

import numpy as np
import pytest

from scaling.architecture import Architecture
from scaling.observations import Provenance, TrainingObservation, TrainingPoint
from scaling.pairing import RunNoise, noise_floor, paired_difference, window_difference
from scaling.recipes import TrainingRecipe

SHAPE = Architecture(
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=300,
)
UNKNOWN = RunNoise(sd=None, degrees_of_freedom=0)


def run(windows: Sequence[float], *, corpus_id: str = "c", sequence_length: int = 128) -> TrainingObservation:
    return TrainingObservation(
        assignment_id="train-0",
        architecture=SHAPE,
        recipe=TrainingRecipe(num_tokens=5120, sequence_length=sequence_length, batch_tokens=512),
        corpus_id=corpus_id,
        loss=float(np.mean(windows)),
        loss_standard_error=0.0,
        window_losses=tuple(windows),
        num_tokens=5120,
        tokens_per_second=1.0,
        train_seconds=1.0,
        curve=(TrainingPoint(num_tokens=5120, loss=3.0, learning_rate=0.0, gradient_norm=1.0),),
        provenance=Provenance(
            agent="a", hostname="h", device="d", hardware="cpu-generic", started_at_unix=0.0, seconds=1.0, versions={}
        ),
    )


def test_what_is_hard_for_all_cancels() -> None:
    hardness = np.random.default_rng(0).normal(3.5, 1.0, 40)
    found = window_difference([run(hardness - 0.02)], [run(hardness)])
    assert found.difference.value == pytest.approx(-0.02)
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def test_windows_and_seeds_are_both_in_the_interval() -> None:
    source = np.random.default_rng(1)
    a, b = source.normal(3.5, 0.1, 50), source.normal(3.5, 0.1, 50)
    noise = RunNoise(sd=0.02, degrees_of_freedom=10**6)
    found = paired_difference([run(a), run(a)], [run(b)], noise, level=0.95)
    windows = window_difference([run(a)], [run(b)]).standard_error
    expected = 1.96 * np.sqrt(windows**2 + 0.02**2 * (1 / 2 + 1))
    assert found.interval is not None
    assert found.interval.high - found.value == pytest.approx(expected, rel=1e-3)


def test_without_a_known_noise_there_is_no_interval() -> None:
    found = paired_difference([run([3.0, 3.1])], [run([3.2, 3.2])], UNKNOWN)
    assert found.interval is None
    assert "windows alone understate" in str(found.no_interval_because)


def test_the_noise_floor_is_what_two_runs_of_one_architecture_differ_by() -> None:
    source, sd = np.random.default_rng(2), 0.011
    floor = noise_floor(RunNoise(sd=sd, degrees_of_freedom=10**6), level=0.9)
    assert floor is not None
    differences = np.abs(source.normal(0, sd, 4000) - source.normal(0, sd, 4000))
    assert float((differences <= floor).mean()) == pytest.approx(0.9, abs=0.02)
    assert noise_floor(UNKNOWN) is None


@pytest.mark.parametrize(
    "other",
    [run([3.0, 3.1], corpus_id="d"), run([3.0]), run([3.0, 3.1], sequence_length=256)],
    ids=["corpus", "count", "T"],
)
def test_other_windows_do_not_pair(other: TrainingObservation) -> None:
    with pytest.raises(ValueError, match="only over the same held-out windows of one corpus"):
        paired_difference([run([3.0, 3.1])], [other], UNKNOWN)


def test_a_single_window_has_no_error() -> None:
    with pytest.raises(ValueError, match="one held-out window has no standard error"):
        window_difference([run([3.0])], [run([3.1])])
