"""Counting: parameters, ratios and cache against transformers' own model and the published architectures."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.architecture import Architecture

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "bian2025_reference.json"


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Architecture(
        hidden_size=8 * draw(st.integers(1, 12)),
        intermediate_size=4 * draw(st.integers(1, 60)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 16)),
        vocab_size=draw(st.integers(16, 256)),
        tie_word_embeddings=draw(st.booleans()),
    )


def random_architecture(generator: random.Random) -> Architecture:
    kv_heads = generator.randint(1, 6)
    return Architecture(
        hidden_size=8 * generator.randint(1, 24),
        intermediate_size=4 * generator.randint(1, 90),
        num_hidden_layers=generator.randint(1, 2),
        num_attention_heads=kv_heads * generator.randint(1, 6),
        num_key_value_heads=kv_heads,
        head_dim=2 * generator.randint(1, 16),
        vocab_size=generator.randint(16, 256),
        tie_word_embeddings=generator.random() < 0.5,
    )


def parameters_by_group(config: dict[str, Any]) -> dict[str, int]:
    """What the model that transformers builds holds; nothing is allocated."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
    counts = dict.fromkeys(("self_attn", "mlp", "norm", "embed_tokens", "lm_head"), 0)
    for name, parameter in model.named_parameters():
        (group,) = (group for group in counts if group in name)
        counts[group] += parameter.numel()
    return counts


def as_llama(config: dict[str, Any]) -> dict[str, Any]:
    without = {name: value for name, value in config.items() if name != "sliding_window"}
    return {**without, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def test_200_random_shapes_count_as_the_models_that_transformers_builds() -> None:
    generator = random.Random(0)
    num_free_widths = num_llamas = 0
    for _ in range(200):
        architecture = random_architecture(generator)
        layers, tied = architecture.num_hidden_layers, architecture.tie_word_embeddings
        table = architecture.vocab_size * architecture.hidden_size
        expected = {
            "self_attn": layers * architecture.attention_parameters_per_layer,
            "mlp": layers * architecture.mlp_parameters_per_layer,
            "norm": architecture.num_norm_parameters,
            "embed_tokens": table,
            "lm_head": 0 if tied else table,
        }
        assert parameters_by_group(architecture.to_hf_config()) == expected, architecture.label
        assert expected["self_attn"] + expected["mlp"] == architecture.num_parameters
        assert expected["embed_tokens"] + expected["lm_head"] == architecture.num_embedding_parameters
        assert sum(expected.values()) == architecture.num_total_parameters
        num_free_widths += architecture.query_width != architecture.hidden_size
        # transformers' Llama config refuses the other hidden sizes, though its model could be built.
        if num_llamas < 20 and architecture.hidden_size % architecture.num_attention_heads == 0:
            assert parameters_by_group(as_llama(architecture.to_hf_config())) == expected, architecture.label
            num_llamas += 1
    assert num_free_widths > 150
    assert num_llamas == 20


def test_query_width_need_not_equal_hidden_size() -> None:
    wide = Architecture(
        hidden_size=64,
        intermediate_size=68,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=6,
        head_dim=16,
        vocab_size=1024,
    )
    assert wide.query_width == 192
    assert wide.num_parameters == 2 * (2 * 64 * (192 + 96) + 3 * 64 * 68)
    assert wide.query_group_size == 2


@given(architecture=architectures())
def test_ratios_rebuild_the_parameter_count(architecture: Architecture) -> None:
    attention = architecture.attention_parameters_per_layer
    rebuilt = architecture.num_hidden_layers * attention * (1 + architecture.mlp_attention_ratio)
    assert rebuilt == pytest.approx(architecture.num_parameters)
    width = architecture.width_ratio * math.sqrt(architecture.num_parameters)
    assert width == pytest.approx(architecture.hidden_size)


@given(architecture=architectures())
def test_config_round_trips(architecture: Architecture) -> None:
    assert Architecture.from_hf_config(architecture.to_hf_config()) == architecture


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data are not beside the repository")
def test_published_architectures_have_the_derived_counts() -> None:
    for model in json.loads(REFERENCE.read_text())["models"]:
        architecture = Architecture(
            hidden_size=model["d_model"],
            intermediate_size=model["d_ff"],
            num_hidden_layers=model["n_layers"],
            num_attention_heads=model["n_heads"],
            num_key_value_heads=model["n_kv_heads"],
            head_dim=model["head_dim"],
            vocab_size=128_256,
        )
        derived = model["derived"]
        assert architecture.num_parameters == derived["n_params_non_embed_matrices"], model["name"]
        assert architecture.attention_parameters_per_layer == derived["attention_params_per_layer"], model["name"]
        assert architecture.mlp_parameters_per_layer == derived["mlp_params_per_layer"], model["name"]
        assert round(architecture.mlp_attention_ratio, 6) == derived["r"], model["name"]
        assert round(architecture.width_ratio, 6) == derived["d_over_sqrt_n"], model["name"]
        assert architecture.query_group_size == model["gqa"], model["name"]
        assert architecture.key_value_elements_per_token == derived["kv_cache_values_per_token"], model["name"]


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_attention_heads \(6\) must be a multiple of num_key_value_heads \(4\)"):
        Architecture(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=6,
            num_key_value_heads=4,
            head_dim=16,
            vocab_size=64,
        )


def test_a_mixture_of_experts_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="num_local_experts = 8"):
        Architecture.from_hf_config({"model_type": "mistral", "num_local_experts": 8})
