import math

import numpy as np
import pytest

from scaling.pairing import RunNoise
from scaling.quantity import Measured, NotMeasured
from scaling.replicates import mean_over_seeds, mean_over_windows, pooled_noise, sd_of, sd_over_seeds


def test_the_mean_over_seeds_has_a_t_interval() -> None:
    mean = mean_over_seeds([3.60, 3.62, 3.61, 3.65], level=0.95)
    assert mean.value == pytest.approx(3.62)
    assert mean.interval is not None
    half = 3.182446 * np.std([3.60, 3.62, 3.61, 3.65], ddof=1) / 2  # t of 3 degrees of freedom, from a table
    assert mean.interval.high - mean.value == pytest.approx(half, rel=1e-6)
    assert mean.value - mean.interval.low == pytest.approx(half, rel=1e-6)


def test_one_seed_has_no_interval_and_no_scatter_and_says_why() -> None:
    mean = mean_over_seeds([3.6])
    assert mean.interval is None
    assert mean.no_interval_because == "one seed tells nothing of the scatter over seeds"
    assert isinstance(sd_over_seeds([3.6]), NotMeasured)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_the_scatter_hold_the_true_one_as_often_as_they_say(level: float) -> None:
    source = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        scatter = sd_over_seeds(source.normal(3.6, 0.011, size=4).tolist(), level=level)
        assert isinstance(scatter, Measured)
        assert scatter.interval is not None
        held += scatter.interval.low <= 0.011 <= scatter.interval.high
    assert held / 1000 == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 1000))


def test_pooling_forgets_the_means_of_the_shapes_and_adds_their_degrees_of_freedom() -> None:
    noise = pooled_noise([3.0, 3.2], [5.0, 5.2, 5.4], [7.0])
    assert noise.degrees_of_freedom == 3
    assert noise.sd == pytest.approx(math.sqrt((0.02 + 0.08) / 3))
    assert pooled_noise([3.0], [4.0]) == RunNoise(sd=None, degrees_of_freedom=0)
    assert isinstance(sd_of(RunNoise(sd=None, degrees_of_freedom=0), num_samples=2), NotMeasured)


def test_the_mean_over_windows_tells_of_text_and_not_of_seeds() -> None:
    mean = mean_over_windows([3.0, 3.5, 4.0, 3.5])
    assert mean.num_samples == 1
    assert mean.interval is not None
    assert mean.interval.method == "t over blocks of windows"
    assert mean_over_windows([3.0]).no_interval_because == "one held-out window"
