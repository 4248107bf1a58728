import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from agent.training.model import (
    Decoder,
    from_hf_state_dict,
    init_weights,
    initial_std,
    parameters_by_kind,
    to_hf_state_dict,
)
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


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Small legal shapes; the query width is mostly unlike the hidden size."""
    num_kv_heads = draw(st.integers(1, 3))
    return Architecture(
        hidden_size=draw(st.integers(3, 40)),
        intermediate_size=draw(st.integers(1, 70)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=num_kv_heads * draw(st.integers(1, 4)),
        num_key_value_heads=num_kv_heads,
        head_dim=2 * draw(st.integers(1, 9)),
        vocab_size=draw(st.integers(2, 80)),
        tie_word_embeddings=draw(st.booleans()),
    )


def _with_uneven_gains(model: Decoder) -> Decoder:
    with torch.no_grad():  # gains unlike 1, so that a gain in the wrong place shows
        for _, kind, parameter in parameters_by_kind(model):
            if kind == "gain":
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    return model


def _llama(architecture: Architecture) -> LlamaForCausalLM | MistralForCausalLM:
    """Mistral, the same model, where Llama's configuration refuses widths that are no multiple of the heads."""
    config = architecture.to_hf_config()
    if architecture.hidden_size % architecture.num_attention_heads:
        return MistralForCausalLM(MistralConfig.from_dict(config)).eval()
    return LlamaForCausalLM(LlamaConfig.from_dict(config)).eval()


def _check_same_logits(architecture: Architecture) -> None:
    model, tokens = _with_uneven_gains(_model(architecture)), _tokens(architecture)
    reference = _llama(architecture)
    reference.load_state_dict(to_hf_state_dict(model), strict=True)
    back = _model(architecture, seed=7)
    from_hf_state_dict(back, reference.state_dict())
    with torch.no_grad():
        logits = model(tokens)
        assert (logits - reference(tokens).logits).abs().max() <= 1e-4
        assert torch.equal(logits, back(tokens))


@pytest.mark.parametrize("architecture", SHAPES.values(), ids=SHAPES.keys())
def test_transformers_computes_the_same_logits_and_its_weights_come_back(architecture: Architecture) -> None:
    _check_same_logits(architecture)


@given(architectures())
@settings(max_examples=25, deadline=None)
def test_any_shape_goes_to_transformers_and_back(architecture: Architecture) -> None:
    _check_same_logits(architecture)


def test_weights_that_transformers_made_give_its_logits_here() -> None:
    architecture = SHAPES["query-width-unlike-hidden"]
    reference, model, tokens = _llama(architecture), _model(architecture), _tokens(architecture)
    state = reference.state_dict()
    del state["lm_head.weight"]  # as safetensors leaves out what is shared
    from_hf_state_dict(model, state)
    with torch.no_grad():
        assert (model(tokens) - reference(tokens).logits).abs().max() <= 1e-4


def test_weights_of_another_shape_are_refused_and_change_nothing() -> None:
    model = _model(_architecture())
    before = model.blocks[0].down.detach().clone()
    with pytest.raises(ValueError, match=r"6 names differ.*mlp\.down_proj\.weight: given \(64, 80\)"):
        from_hf_state_dict(model, to_hf_state_dict(_model(_architecture(intermediate_size=80), seed=1)))
    assert torch.equal(model.blocks[0].down, before)


def test_an_untied_head_is_not_dropped_in_silence() -> None:
    with pytest.raises(ValueError, match="the architecture ties them"):
        from_hf_state_dict(_model(_architecture()), to_hf_state_dict(_model(_architecture(tie_word_embeddings=False))))


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
