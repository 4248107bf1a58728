"""The step law against its published grid, and the recipes made of it."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import pytest

from scaling.step_law import outside_fitted_range, step_law_batch_tokens, step_law_rate, step_law_recipe

GRID = Path(__file__).resolve().parents[3] / "shared" / "data" / "steplaw_dense_grid.csv"
needs_grid = pytest.mark.skipif(not GRID.exists(), reason="the reference data are not beside the repository")
_SEQUENCE = 2048


@pytest.fixture(scope="module")
def cells() -> dict[tuple[float, float], list[tuple[float, float, float]]]:
    """(N, D) → settings as (rate, batch tokens, smoothed loss)."""
    found = defaultdict(list)
    with GRID.open() as file:
        for row in csv.DictReader(file):
            batch_tokens = float(row["batch_sequences"]) * _SEQUENCE
            setting = (float(row["lr"]), batch_tokens, float(row["smooth_loss"]))
            found[float(row["n_params_non_embed"]), float(row["n_tokens"])].append(setting)
    return found


def test_the_law_at_a_point_worked_out_by_hand() -> None:
    # By hand: 0.5822 - 0.713 · 20.7233 + 0.307 · 25.3284 = -6.4178, and -0.5447 + 0.571 · 25.3284 = 13.9178.
    assert step_law_rate(1e9, 1e11) == pytest.approx(math.exp(-6.4178), rel=1e-3)
    assert step_law_batch_tokens(1e11) == pytest.approx(math.exp(13.9178), rel=1e-3)


@needs_grid
def test_the_best_setting_of_every_published_cell_is_near_the_law(cells) -> None:
    assert len(cells) == 17
    for (N, D), settings in cells.items():
        rate, batch, _ = min(settings, key=lambda setting: setting[2])
        assert 1 / 1.8 < rate / step_law_rate(N, D) < 1.8
        assert 1 / 1.9 < batch / step_law_batch_tokens(D) < 1.9


@needs_grid
def test_the_published_run_nearest_the_law_loses_next_to_nothing(cells) -> None:
    for (N, D), settings in cells.items():
        rate, batch = step_law_rate(N, D), step_law_batch_tokens(D)
        nearest = min(settings, key=lambda one: math.hypot(math.log(one[0] / rate), math.log(one[1] / batch)))
        assert nearest[2] - min(loss for _, _, loss in settings) < 0.008


def test_a_batch_is_whole_sequences_and_at_least_one() -> None:
    assert step_law_batch_tokens(1e11, sequence_length=2048) % 2048 == 0
    assert step_law_batch_tokens(100, sequence_length=128) == 128


def test_a_recipe_follows_the_law_in_whole_batches() -> None:
    recipe = step_law_recipe(2.15e8, 2e10, 2048, seed=3)
    assert recipe.base_learning_rate == step_law_rate(2.15e8, 2e10)
    assert recipe.batch_tokens == step_law_batch_tokens(2e10, sequence_length=2048)
    assert recipe.num_tokens % recipe.batch_tokens == 0
    assert recipe.num_tokens == pytest.approx(2e10, rel=1e-4)
    assert (recipe.sequence_length, recipe.seed) == (2048, 3)


def test_every_field_of_the_recipe_can_be_given_instead() -> None:
    recipe = step_law_recipe(1e5, 1e6, 128, base_learning_rate=0.008, batch_tokens=512, warmup_fraction=0.1)
    assert (recipe.base_learning_rate, recipe.batch_tokens, recipe.warmup_fraction) == (0.008, 512, 0.1)


def test_how_far_the_law_is_stretched_is_said() -> None:
    assert outside_fitted_range(1e8, 1e10) == ""
    assert "N = 1e+05 (6e+07 to 1.07e+09), D = 1e+06" in outside_fitted_range(1e5, 1e6)


@pytest.mark.parametrize(("N", "D"), [(0, 1e6), (1e5, -1), (math.inf, 1e6)])
def test_nonsense_is_refused(N: float, D: float) -> None:
    with pytest.raises(ValueError, match="the step law is for positive finite numbers"):
        step_law_rate(N, D)
