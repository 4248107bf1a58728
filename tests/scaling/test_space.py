"""The search space: every candidate legal, as near the target as divisibility allows, and misses explained."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.catalog import load_profile
from scaling.architecture import Architecture
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import predict_throughput_array
from scaling.space import MemoryLimit, SearchSpace, baseline_shape

LAPTOP = SearchSpace(num_parameters=100_000, num_hidden_layers=2, head_dim=16, vocab_size=1024)
LLAMA_1B = Architecture(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=128_256,
)


def test_columns_agree_with_the_architecture_of_every_candidate() -> None:
    candidates = LAPTOP.enumerate()
    assert len(candidates) > 40
    for index in range(len(candidates)):
        architecture = candidates.architecture(index)
        assert architecture.num_parameters == candidates.num_parameters[index]
        assert architecture.width_ratio == pytest.approx(candidates.x[index])
        assert architecture.mlp_attention_ratio == pytest.approx(candidates.r[index])
        assert architecture.query_group_size == candidates.query_group_size[index]
        assert architecture.key_value_elements_per_token == candidates.key_value_elements_per_token[index]
        assert candidates.index_of(architecture) == index


@settings(max_examples=25, deadline=None)
@given(
    num_parameters=st.integers(60_000, 5_000_000),
    layers=st.integers(1, 6),
    tolerance=st.floats(0.02, 0.1),
    groups=st.sets(st.sampled_from([1, 2, 4]), min_size=1),
)
def test_every_candidate_is_legal(num_parameters: int, layers: int, tolerance: float, groups: set[int]) -> None:
    space = SearchSpace(
        num_parameters=num_parameters,
        tolerance=tolerance,
        num_hidden_layers=layers,
        head_dim=16,
        query_group_sizes=tuple(groups),
        vocab_size=1024,
    )
    found = space.enumerate()
    assert (np.abs(found.num_parameters / num_parameters - 1) <= tolerance).all()
    assert ((found.r >= space.r_range[0]) & (found.r <= space.r_range[1])).all()
    assert not (found.hidden_size % space.hidden_multiple_of).any()
    assert not (found.intermediate_size % space.intermediate_multiple_of).any()
    assert set(found.query_group_size.tolist()) <= groups


def test_the_list_is_complete_against_a_plain_search() -> None:
    best: dict[tuple[int, int], int] = {}
    for d in range(16, 400, 16):
        for kv in range(1, 60):
            options = [(abs(4 * d * 16 * 3 * kv + 6 * d * f - 100_000), f) for f in range(4, 1100, 4)]
            best[(d, kv)] = min(options)[1]
    expected = set()
    for (d, kv), f in best.items():
        N = 2 * (2 * d * 16 * 3 * kv + 3 * d * f)
        r = 3 * f / (2 * 16 * 3 * kv)
        if abs(N / 100_000 - 1) <= 0.03 and 0.3 <= r <= 8.0:
            expected.add((d, kv, f))
    found = LAPTOP.enumerate()
    columns = (found.hidden_size, found.num_key_value_heads, found.intermediate_size)
    assert set(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_all_intermediate_sizes_within_the_tolerance_are_listed_on_request() -> None:
    space = LAPTOP.model_copy(update={"intermediate_sizes": "all", "num_hidden_layers": (2, 3)})
    expected = set()
    for layers in (2, 3):
        for d in range(16, 400, 16):
            for kv in range(1, 60):
                attention = 2 * d * 16 * 3 * kv
                for f in range(4, 1100, 4):
                    N, r = layers * (attention + 3 * d * f), 3 * d * f / attention
                    if abs(N / 100_000 - 1) <= 0.03 and 0.3 <= r <= 8.0:
                        expected.add((layers, d, kv, f))
    found = space.enumerate()
    names = ("num_hidden_layers", "hidden_size", "num_key_value_heads", "intermediate_size")
    listed = list(zip(*(getattr(found, name).tolist() for name in names), strict=True))
    assert len(listed) == len(set(listed))
    assert set(listed) == expected


def test_several_layer_counts_list_what_each_lists_alone() -> None:
    both = LAPTOP.model_copy(update={"num_hidden_layers": (4, 2)}).enumerate()
    alone = [LAPTOP.model_copy(update={"num_hidden_layers": layers}).enumerate() for layers in (2, 4)]
    assert len(both) == sum(len(part) for part in alone)
    assert [both.architecture(i) for i in range(len(both))] == [
        part.architecture(i) for part in alone for i in range(len(part))
    ]
    as_range = SearchSpace.model_validate({**LAPTOP.model_dump(), "num_hidden_layers": range(2, 5, 2)})
    assert as_range.layer_counts == (2, 4)


def test_no_layer_count_is_refused() -> None:
    with pytest.raises(ValueError, match="num_hidden_layers is empty"):
        SearchSpace.model_validate({**LAPTOP.model_dump(), "num_hidden_layers": ()})


def test_of_several_layer_counts_a_baseline_takes_the_one_nearest_its_models() -> None:
    space = LAPTOP.model_copy(update={"num_hidden_layers": (1, 2, 3), "query_group_sizes": (4,)})
    assert baseline_shape(LLAMA_1B, 100_000, space).num_hidden_layers == 3


def test_total_parameters_count_embeddings_and_norms() -> None:
    for tied in (True, False):
        found = LAPTOP.model_copy(update={"tie_word_embeddings": tied}).enumerate()
        assert found.num_total_parameters[5] == found.architecture(5).num_total_parameters


def billion(**changes: object) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "num_parameters": 1_000_000_000,
            "num_hidden_layers": 16,
            "head_dim": 64,
            "query_group_sizes": (1, 2, 4, 8),
            "hidden_multiple_of": 128,
            "intermediate_multiple_of": 128,
            "vocab_size": 128_256,
            **changes,
        }
    )


def test_the_memory_limit_admits_what_the_throughput_model_can_run() -> None:
    small = load_profile("a100-40gb").model_copy(update={"memory_bytes": 6_000_000_000})
    everything = billion().enumerate()
    limited = billion(memory=MemoryLimit(profile=small, tokens_per_sequence=3072)).enumerate()
    rates = predict_throughput_array(
        everything,
        vocab_size=128_256,
        tie_word_embeddings=True,
        profile=small,
        recipe=ServingRecipe(),
        workload=Workload(batch_size=1, input_tokens=2048, output_tokens=1024),
    )
    runs = everything.take(np.isfinite(rates))
    assert 0 < len(limited) < len(everything)
    # The throughput model leaves the norms out of the weights: a few at the very edge differ.
    assert all(runs.index_of(limited.architecture(i)) is not None for i in range(0, len(limited), 100))
    assert len(runs) * 0.998 <= len(limited) <= len(runs)


def test_longer_sequences_and_wider_numbers_leave_fewer_candidates() -> None:
    small = load_profile("a100-40gb").model_copy(update={"memory_bytes": 6_000_000_000})
    sizes = [
        len(billion(memory=MemoryLimit(profile=small, tokens_per_sequence=tokens)).enumerate())
        for tokens in (1024, 4096, 8192)
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(ValueError, match="Relax memory"):
        billion(memory=MemoryLimit(profile=small, dtype="float32")).enumerate()


def test_ranges_bind() -> None:
    found = LAPTOP.model_copy(update={"x_range": (0.15, 0.3), "r_range": (1.0, 2.0)}).enumerate()
    assert ((found.x >= 0.15) & (found.x <= 0.3) & (found.r >= 1.0) & (found.r <= 2.0)).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tolerance": 1e-6}, "Relax tolerance"),
        ({"r_range": (20.0, 21.0)}, "Relax r_range"),
        ({"hidden_size_range": (33, 40)}, "Relax hidden_size_range"),
        ({"num_parameters": 1000}, "num_hidden_layers"),
        ({"x_range": (3.0, 4.0)}, "x_range"),
    ],
)
def test_an_impossible_space_says_what_to_relax(change: dict[str, object], expected: str) -> None:
    space = SearchSpace.model_validate({**LAPTOP.model_dump(), **change})
    with pytest.raises(ValueError, match="no legal architecture") as caught:
        space.enumerate()
    assert expected in str(caught.value)


def test_reversed_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="must not exceed"):
        SearchSpace.model_validate({**LAPTOP.model_dump(), "r_range": (5.0, 0.5)})


@pytest.mark.parametrize("num_parameters", [50_000, 100_000, 200_000, 400_000])
def test_the_baseline_keeps_the_ratios_of_its_model(num_parameters: int) -> None:
    shape = baseline_shape(LLAMA_1B, num_parameters, LAPTOP)
    assert shape.num_parameters == pytest.approx(num_parameters, rel=LAPTOP.tolerance)
    assert shape.num_hidden_layers == 2
    assert shape.mlp_attention_ratio == pytest.approx(4.8, rel=0.25)
    # d / sqrt(N) of a model with 16 layers, carried to 2 layers.
    assert shape.width_ratio == pytest.approx(LLAMA_1B.width_ratio * 8**0.5, rel=0.25)


def test_the_baseline_at_its_own_size_is_the_model_itself() -> None:
    space = SearchSpace(
        num_parameters=LLAMA_1B.num_parameters,
        num_hidden_layers=16,
        head_dim=64,
        query_group_sizes=(4,),
        hidden_multiple_of=64,
        intermediate_multiple_of=64,
        vocab_size=128_256,
    )
    assert baseline_shape(LLAMA_1B, LLAMA_1B.num_parameters, space) == LLAMA_1B


def test_a_baseline_joins_the_candidates_once() -> None:
    candidates = LAPTOP.model_copy(update={"r_range": (0.5, 2.0)}).enumerate()
    baseline = baseline_shape(LLAMA_1B, 100_000, LAPTOP)
    more, index = candidates.including(baseline)
    assert len(more) == len(candidates) + 1
    assert more.architecture(index) == baseline
    assert more.including(baseline) == (more, index)
    with pytest.raises(ValueError, match="cannot join"):
        candidates.including(LLAMA_1B)


def test_a_space_of_a_billion_parameters_is_listed_at_once() -> None:
    space = SearchSpace(
        num_parameters=973_000_000,
        tolerance=0.02,
        num_hidden_layers=16,
        head_dim=64,
        query_group_sizes=(1, 2, 4, 8),
        hidden_multiple_of=64,
        intermediate_multiple_of=64,
        vocab_size=128_256,
    )
    start = time.process_time()
    assert len(space.enumerate()) > 5000
    assert time.process_time() - start < 1.0
