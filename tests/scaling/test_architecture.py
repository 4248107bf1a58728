"""Counting: parameters, ratios and cache against transformers' own model and the published architectures."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
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


@settings(max_examples=12, deadline=None)
@given(architecture=architectures())
def test_counts_equal_those_of_the_model_that_transformers_builds(architecture: Architecture) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**architecture.to_hf_config())
        )
    blocks = sum(p.numel() for name, p in model.named_parameters() if "layers." in name and "norm" not in name)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert blocks == architecture.num_parameters
    assert norms == architecture.num_norm_parameters
    assert sum(p.numel() for p in model.parameters()) == architecture.num_total_parameters


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
        assert architecture.mlp_attention_ratio == pytest.approx(derived["r"], rel=1e-5), model["name"]
        assert architecture.width_ratio == pytest.approx(derived["d_over_sqrt_n"], rel=1e-4), model["name"]
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
