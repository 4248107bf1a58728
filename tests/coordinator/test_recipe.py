"""What a study's words about training mean at each of its sizes."""

import pytest

from coordinator.recipe import Cell, centre_fan_ins, recipe_of, step_law_note
from coordinator.shapes import centre_shape
from coordinator.study import ReferenceSpec, StudySpec, TrainingSpec
from scaling.step_law import step_law_batch_tokens, step_law_rate


def with_training(study: StudySpec, **training: object) -> StudySpec:
    return study.model_copy(update={"training": TrainingSpec.model_validate(training)})


def with_ratios(study: StudySpec, *ratios: float, **training: object) -> StudySpec:
    entry = ReferenceSpec(num_parameters=50e3, ratios=ratios)
    return with_training(study, **training).model_copy(
        update={"reference": (entry,), "fit": study.fit.model_copy(update={"tokens_per_parameter": 10})}
    )


def test_numbers_of_the_study_are_those_of_the_recipe(study: StudySpec) -> None:
    recipe = recipe_of(with_training(study, base_learning_rate=0.004, weight_decay=0.2), Cell(1e5, 10), token_scale=1)
    assert (recipe.base_learning_rate, recipe.weight_decay, recipe.warmup_tokens) == (0.004, 0.2, None)
    assert recipe.num_tokens == pytest.approx(1e6, abs=256)


def test_a_rate_by_the_step_law_follows_n_and_the_scaled_d(study: StudySpec) -> None:
    by_law = with_training(study, base_learning_rate="step-law", batch_tokens="step-law")
    for N in (50e3, 100e3):
        recipe = recipe_of(by_law, Cell(N, 10), token_scale=0.5)
        assert recipe.base_learning_rate == step_law_rate(N, 5 * N)
        assert recipe.batch_tokens == step_law_batch_tokens(5 * N, sequence_length=128)
        assert recipe.num_tokens % recipe.batch_tokens == 0


def test_a_rate_by_the_step_law_is_the_centres_and_fan_ins_may_be_given(study: StudySpec) -> None:
    by_law = with_training(study, base_learning_rate="step-law")
    centre = centre_shape(by_law, 50e3)
    assert recipe_of(by_law, Cell(50e3, 10), token_scale=1).base_fan_ins == centre_fan_ins(by_law, 50e3)
    assert centre_fan_ins(by_law, 50e3).mlp == centre.intermediate_size
    fan_ins = {"hidden": 64, "attention": 64, "mlp": 196}
    given = with_training(study, base_learning_rate="step-law", base_fan_ins=fan_ins)
    assert recipe_of(given, Cell(50e3, 10), token_scale=1).base_fan_ins.model_dump() == fan_ins


def test_runs_of_one_size_share_rate_batch_and_warm_up_where_they_share_trunks(study: StudySpec) -> None:
    words = {"base_learning_rate": "step-law", "batch_tokens": "step-law", "warmup_fraction": 0.1}
    shared = with_ratios(study, 5, 10, 20, **words)
    recipes = [recipe_of(shared, Cell(50e3, ratio), token_scale=0.8) for ratio in (5, 10, 20)]
    assert len({str(recipe.trunk_identity()) for recipe in recipes}) == 1
    assert recipes[0].base_learning_rate == step_law_rate(50e3, 0.8 * 500e3)
    assert recipes[0].warmup_tokens == pytest.approx(0.1 * 0.8 * 500e3, abs=recipes[0].batch_tokens)


def test_the_warm_up_of_a_trunk_ends_before_its_shortest_branch_decays(study: StudySpec) -> None:
    shared = with_ratios(study, 1, 20, warmup_fraction=0.1)  # 0.1 of 10 N would be more than 0.7 of 1 N
    short = recipe_of(shared, Cell(50e3, 1), token_scale=1)
    assert short.num_warmup_steps == short.first_decaying_step


def test_other_sizes_warm_up_over_a_fraction_of_their_own_d(study: StudySpec) -> None:
    assert recipe_of(with_ratios(study, 5, 20), Cell(100e3, 10), token_scale=1).warmup_tokens is None


def test_warm_up_tokens_of_the_study_are_scaled_as_d_is(study: StudySpec) -> None:
    explicit = with_training(study, warmup_tokens=20_480)
    assert recipe_of(explicit, Cell(1e5, 10), token_scale=0.5).warmup_tokens == 10_240


def test_a_stretched_step_law_is_said(study: StudySpec) -> None:
    assert step_law_note(study, token_scale=1) == ""
    note = step_law_note(with_training(study, base_learning_rate="step-law"), token_scale=1)
    assert note.startswith("The step law is extrapolated to N = 2.5e+04")
