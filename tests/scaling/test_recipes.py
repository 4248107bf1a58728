import pytest
from pydantic import ValidationError

from scaling.recipes import TrainingRecipe

SHORT, LONG = (TrainingRecipe(num_tokens=512 * steps, warmup_tokens=512 * 40) for steps in (200, 800))


def test_a_recipe_without_warmup_tokens_is_named_as_before() -> None:
    assert "warmup_tokens" not in TrainingRecipe(num_tokens=1_000_000).model_dump()
    assert SHORT.model_dump()["warmup_tokens"] == 512 * 40


def test_the_warm_up_is_a_share_of_the_tokens_or_so_many_tokens() -> None:
    assert TrainingRecipe(num_tokens=512 * 200, warmup_fraction=0.1).num_warmup_steps == 20
    assert SHORT.num_warmup_steps == LONG.num_warmup_steps == 40
    assert TrainingRecipe(num_tokens=512, warmup_fraction=0).num_warmup_steps == 1


def test_a_decay_begins_at_its_share_of_the_steps() -> None:
    assert (SHORT.num_steps, SHORT.first_decaying_step, SHORT.trunk_tokens) == (200, 140, 140 * 512)
    assert LONG.first_decaying_step == 560


def test_runs_share_a_trunk_when_all_but_their_length_and_decay_is_equal() -> None:
    other_decay = LONG.model_copy(update={"decay_fraction": 0.2})
    assert SHORT.trunk_identity() == LONG.trunk_identity() == other_decay.trunk_identity()
    as_share = TrainingRecipe(num_tokens=512 * 400, warmup_fraction=0.1)  # 40 steps too
    assert as_share.trunk_identity() == LONG.trunk_identity()
    for change in ({"seed": 1}, {"order_seed": 1}, {"base_learning_rate": 0.004}, {"warmup_tokens": 512 * 30}):
        assert LONG.model_copy(update=change).trunk_identity() != LONG.trunk_identity()


def test_a_warm_up_that_reaches_into_the_decay_is_refused() -> None:
    with pytest.raises(ValidationError, match="begins after 3584 of 5120 tokens: give at most so many"):
        TrainingRecipe(num_tokens=5120, warmup_tokens=4096)


def test_a_recipe_without_a_z_loss_keeps_its_name() -> None:
    assert "z_loss_weight" not in TrainingRecipe(num_tokens=1).model_dump_json()
    weighted = TrainingRecipe(num_tokens=1, z_loss_weight=1e-4)
    assert TrainingRecipe.model_validate_json(weighted.model_dump_json()) == weighted
    assert "z_loss_weight" in weighted.trunk_identity()
