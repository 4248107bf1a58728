import itertools

import pytest
import torch

from agent.training.model import Decoder, init_weights, parameters_by_kind
from agent.training.optim import clip_gradients, make_optimizer, rate_multiplier, schedule, set_rates
from scaling.architecture import Architecture
from scaling.recipes import FanIns, TrainingRecipe

ARCHITECTURE = Architecture(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=64,
    tie_word_embeddings=False,
)
RECIPE = TrainingRecipe(
    num_tokens=51_200, base_learning_rate=0.01, base_fan_ins=FanIns(hidden=64, attention=64, mlp=192)
)


def _model() -> Decoder:
    model = Decoder(ARCHITECTURE, max_sequence_length=8)
    init_weights(model, seed=0)
    return model


def test_hidden_matrices_learn_at_base_fan_in_over_fan_in() -> None:
    multipliers = {kind: rate_multiplier(kind, ARCHITECTURE, RECIPE) for kind in ("hidden", "attention", "mlp")}
    assert multipliers == {"hidden": 64 / 32, "attention": 64 / 16, "mlp": 192 / 48}
    assert rate_multiplier("embedding", ARCHITECTURE, RECIPE) == rate_multiplier("gain", ARCHITECTURE, RECIPE) == 1


def test_a_cap_keeps_matrices_of_small_fan_in_from_learning_faster() -> None:
    capped = RECIPE.model_copy(update={"max_rate_multiplier": 2.5})
    multipliers = {kind: rate_multiplier(kind, ARCHITECTURE, capped) for kind in ("hidden", "attention", "mlp")}
    assert multipliers == {"hidden": 2.0, "attention": 2.5, "mlp": 2.5}
    assert rate_multiplier("embedding", ARCHITECTURE, capped.model_copy(update={"max_rate_multiplier": 0.5})) == 1
    assert "max_rate_multiplier" not in RECIPE.model_dump()


def test_every_parameter_is_optimised_once_at_the_rate_of_its_kind() -> None:
    model = _model()
    optimizer = make_optimizer(model, RECIPE)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for _, kind, parameter in parameters_by_kind(model):
        assert rates[id(parameter)] == pytest.approx(0.01 * rate_multiplier(kind, ARCHITECTURE, RECIPE))


def test_weight_decay_shrinks_every_matrix_alike_and_no_gain() -> None:
    model = _model()
    optimizer = make_optimizer(model, RECIPE)
    set_rates(optimizer, 0.5)
    before = {name: parameter.detach().clone() for name, _, parameter in parameters_by_kind(model)}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, kind, parameter in parameters_by_kind(model):
        factor = 1.0 if kind == "gain" else 1 - 0.01 * 0.5 * RECIPE.weight_decay
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-6), name


def test_the_schedule_warms_up_stays_and_decays_to_almost_nothing() -> None:
    factors = [schedule(step, RECIPE) for step in range(RECIPE.num_steps)]  # 100 steps: 2 up, 68 level, 30 down
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert all(factor == 1.0 for factor in factors[1:71])
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[70:]))
    assert factors[85] == pytest.approx(1 - 0.5**0.5)
    assert 0 < factors[-1] < 0.02


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_schedule_is_a_factor_for_the_shortest_runs(num_steps: int) -> None:
    recipe = RECIPE.model_copy(update={"num_tokens": 512 * num_steps})
    assert all(0 < schedule(step, recipe) <= 1 for step in range(recipe.num_steps))


def test_gradients_are_clipped_to_the_norm() -> None:
    model = _model()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = clip_gradients(list(model.parameters()), 1.0)
    assert float(norm) == pytest.approx(sum(p.numel() for p in model.parameters()) ** 0.5, rel=1e-5)
    clipped = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    assert clipped == pytest.approx(1.0, rel=1e-4)
