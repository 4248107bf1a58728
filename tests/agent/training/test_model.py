import math

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from agent.training.model import Decoder, init_weights, initial_std, parameters_by_kind, to_hf_state_dict
from scaling.architecture import Architecture


def _architecture(**changes: int | bool) -> Architecture:
    fields: dict[str, int | bool] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
    }
    return Architecture.model_validate(fields | changes)


SHAPES = {
    "grouped": _architecture(),
    "multi-head": _architecture(num_key_value_heads=4),
    "multi-query": _architecture(num_key_value_heads=1),
    "query-width-unlike-hidden": _architecture(hidden_size=48, num_attention_heads=6, num_key_value_heads=3),
    "untied": _architecture(tie_word_embeddings=False),
    "deep": _architecture(num_hidden_layers=5),
}


def _model(architecture: Architecture, *, seed: int = 0) -> Decoder:
    model = Decoder(architecture, max_sequence_length=64)
    init_weights(model, seed=seed)
    return model


def _tokens(architecture: Architecture) -> torch.Tensor:
    return torch.randint(0, architecture.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", SHAPES.values(), ids=SHAPES.keys())
def test_transformers_computes_the_same_logits_from_the_exported_weights(architecture: Architecture) -> None:
    model, tokens = _model(architecture), _tokens(architecture)
    with torch.no_grad():  # gains unlike 1, so that a gain in the wrong place shows
        for _, kind, parameter in parameters_by_kind(model):
            if kind == "gain":
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    reference = LlamaForCausalLM(LlamaConfig.from_dict(architecture.to_hf_config()))
    reference.load_state_dict(to_hf_state_dict(model), strict=True)
    reference.eval()
    with torch.no_grad():
        difference = (model(tokens) - reference(tokens).logits).abs().max()
    assert difference <= 1e-4


@pytest.mark.parametrize("architecture", SHAPES.values(), ids=SHAPES.keys())
def test_the_model_has_the_counted_parameters(architecture: Architecture) -> None:
    model = Decoder(architecture, max_sequence_length=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == architecture.num_total_parameters


def test_a_model_that_disagrees_with_its_counts_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Architecture, "mlp_parameters_per_layer", property(lambda self: 2 * self.hidden_size))
    with pytest.raises(AssertionError, match="the architecture counts"):
        Decoder(_architecture(), max_sequence_length=8)


def test_a_token_cannot_see_the_tokens_after_it() -> None:
    model, tokens = _model(_architecture()), _tokens(_architecture())
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 512
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :40], after[:, :40], atol=1e-5)
    assert not torch.allclose(before[:, 40:], after[:, 40:], atol=1e-2)


@pytest.mark.parametrize("architecture", SHAPES.values(), ids=SHAPES.keys())
def test_initial_weights_have_the_stated_spread(architecture: Architecture) -> None:
    for name, kind, parameter in parameters_by_kind(_model(architecture)):
        if kind == "gain":
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            expected = initial_std(kind, architecture)
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=5 / math.sqrt(parameter.numel())), (
                name
            )


def test_the_branches_of_a_deep_model_start_smaller() -> None:
    shallow, deep = _architecture(), _architecture(num_hidden_layers=8)
    assert initial_std("attention", shallow) == pytest.approx(1 / math.sqrt(64) / math.sqrt(4))
    assert initial_std("mlp", shallow) == pytest.approx(1 / math.sqrt(96) / math.sqrt(4))
    assert initial_std("mlp", deep) == pytest.approx(initial_std("mlp", shallow) / 2)
    assert initial_std("hidden", deep) == initial_std("hidden", shallow)


@pytest.mark.parametrize("hidden_size", [32, 64, 128])
def test_an_untrained_model_guesses_whatever_its_width(hidden_size: int) -> None:
    architecture = _architecture(hidden_size=hidden_size)
    tokens = _tokens(architecture)
    with torch.no_grad():
        logits = _model(architecture)(tokens)
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert math.log(512) - 0.1 < float(loss) < math.log(512) + 0.8


def test_a_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (_model(_architecture(), seed=seed).embedding for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
