"""Named architectures have the counts that were published for them."""

import json
from pathlib import Path

import pytest

from scaling.named import all_named, named_architecture

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "bian2025_reference.json"


@pytest.mark.parametrize(
    ("name", "num_total_parameters"),
    [("llama-3.2-1b", 1_235_814_400), ("llama-3.2-3b", 3_212_749_824)],
)
def test_published_checkpoints_have_their_published_size(name, num_total_parameters):
    assert named_architecture(name).num_total_parameters == num_total_parameters


def test_qwen3_has_its_published_size_but_for_its_query_and_key_norms():
    num_query_key_norm_parameters = 28 * 2 * 128
    assert named_architecture("qwen3-0.6b").num_total_parameters + num_query_key_norm_parameters == 596_049_920


def test_the_papers_models_have_the_papers_ratios():
    if not REFERENCE.exists():
        pytest.skip(f"no reference data at {REFERENCE}")
    models = {model["name"].lower(): model["derived"] for model in json.loads(REFERENCE.read_text())["models"]}
    assert len(models) == 7
    for name, derived in models.items():
        architecture = named_architecture(name)
        assert architecture.num_parameters == derived["n_params_non_embed_matrices"]
        assert architecture.mlp_attention_ratio == pytest.approx(derived["r"], abs=1e-6)
        assert architecture.width_ratio == pytest.approx(
            derived["d_over_sqrt_n"], abs=1e-6
        )  # as many digits as are given
        assert architecture.key_value_elements_per_token == derived["kv_cache_values_per_token"]


def test_every_named_architecture_has_a_source():
    assert all(named.source for named in all_named())


def test_names_are_read_in_any_case_and_unknown_ones_are_refused_with_the_list():
    assert named_architecture("Panda-1B") == named_architecture("panda-1b")
    with pytest.raises(ValueError, match=r"'llama-9'.*surefire-3b, or a path"):
        named_architecture("llama-9")
