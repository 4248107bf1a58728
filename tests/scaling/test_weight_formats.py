"""Quantised weights, KV caches of fewer bytes and tensor parallelism in predictions of serving."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.catalog import load_profile
from scaling.architecture import Architecture
from scaling.named import named_architecture
from scaling.quantity import NotMeasured, Predicted
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import predict_serving, predict_throughput_array
from scaling.serving_cost import device_share, pass_cost
from scaling.weight_formats import WEIGHT_FORMATS, bytes_per_weight

LLAMA_1B = named_architecture("llama-3.2-1b")
LLAMA_3B = named_architecture("llama-3.2-3b")
LONG = Workload(batch_size=100_000)


def recipe(**changes) -> ServingRecipe:
    return ServingRecipe(engine="vllm", dtype="bfloat16", **changes)


def predicted(architecture, profile, workload=LONG, **changes):
    return predict_serving(architecture, load_profile(profile), recipe(**changes), workload)


def rate(prediction) -> float:
    assert isinstance(prediction.output_tokens_per_second, Predicted)
    return prediction.output_tokens_per_second.value


shapes = st.builds(
    lambda d, f, kv, group, head_dim, layers: Architecture(
        hidden_size=64 * d,
        intermediate_size=64 * f,
        num_hidden_layers=layers,
        num_attention_heads=kv * group,
        num_key_value_heads=kv,
        head_dim=head_dim,
        vocab_size=32_000,
    ),
    d=st.integers(1, 64),
    f=st.integers(1, 256),
    kv=st.sampled_from((1, 2, 4, 8)),
    group=st.sampled_from((1, 2, 4, 8)),
    head_dim=st.sampled_from((32, 64, 128)),
    layers=st.integers(1, 40),
)


@given(shape=shapes, batch=st.integers(1, 5000), kind=st.sampled_from(("fp8", "fp8_e4m3", "fp8_e5m2")))
def test_an_fp8_cache_holds_twice_the_tokens_and_is_never_slower(shape, batch, kind):
    load = Workload(batch_size=batch)
    for hardware in ("h200", "a100-40gb"):
        full = predicted(shape, hardware, load)
        half = predicted(shape, hardware, load, kv_cache_dtype=kind)
        capacities = [one.kv_capacity_tokens.value for one in (full, half)]
        assert capacities[1] in (2 * capacities[0], 2 * capacities[0] + 1)
        assert rate(half) >= rate(full) * (1 - 1e-12)


@given(shape=shapes, batch=st.integers(1, 5000), name=st.sampled_from(sorted(WEIGHT_FORMATS)))
def test_quantised_weights_are_never_slower_on_a_board_whose_narrow_products_are_faster(shape, batch, name):
    load = Workload(batch_size=batch)
    assert rate(predicted(shape, "h200", load, quantization=name)) >= rate(predicted(shape, "h200", load)) * (1 - 1e-12)


@given(shape=shapes, devices=st.sampled_from((2, 4, 8)))
def test_shares_sum_to_the_whole_but_for_norms_and_repeated_key_heads(shape, devices):
    if shape.num_attention_heads % devices:
        return
    whole, part = device_share(shape, recipe()), device_share(shape, recipe(tensor_parallel_size=devices))
    repeats = max(1, devices // shape.num_key_value_heads)
    assert devices * part.key_value_bytes_per_token == pytest.approx(repeats * whole.key_value_bytes_per_token)
    keys = 2 * shape.num_hidden_layers * shape.hidden_size * shape.key_value_width
    extra = 2 * ((repeats - 1) * keys + (devices - 1) * shape.num_norm_parameters)
    assert devices * part.weight_bytes == pytest.approx(whole.weight_bytes + extra)


def test_one_device_holds_every_parameter():
    share = device_share(LLAMA_3B, recipe())
    assert share.weight_bytes == 2 * LLAMA_3B.num_total_parameters
    assert share.key_value_bytes_per_token == LLAMA_3B.key_value_bytes_per_token(2)


def test_matrices_of_the_blocks_alone_are_quantised():
    share = device_share(LLAMA_3B, recipe(quantization="awq"))
    others = LLAMA_3B.num_embedding_parameters + LLAMA_3B.num_norm_parameters
    assert share.weight_bytes == 0.5 * LLAMA_3B.num_parameters + 2 * others


def test_one_sequence_decodes_at_the_speed_at_which_quantised_weights_are_read():
    load = Workload(batch_size=1, input_tokens=1, output_tokens=1000)
    for name, width in (("fp8", 1), ("int8_per_channel_weight_only", 1), ("gptq", 0.5)):
        itl = predicted(LLAMA_1B, "h200", load, quantization=name).itl_seconds
        weights = width * LLAMA_1B.num_parameters + 2 * 128256 * 2048
        assert itl.value == pytest.approx(weights / 4.8e12, rel=0.02), name


def test_long_prompts_run_at_the_peak_of_the_dtype_of_the_products():
    load = Workload(batch_size=16, input_tokens=2048, output_tokens=1)
    blocks = 16 * 2048 * 2 * LLAMA_1B.num_parameters

    def gemm_seconds(hardware, **changes):
        (gemm, *_) = predicted(LLAMA_1B, hardware, load, **changes).operations
        return gemm.prefill_seconds

    assert gemm_seconds("h200", quantization="fp8") == pytest.approx(blocks / 1978e12)
    assert gemm_seconds("h200", quantization="awq") == pytest.approx(blocks / 989e12)
    # No fp8 products on an A100: weights are unpacked.
    assert gemm_seconds("a100-80gb", quantization="fp8") == pytest.approx(blocks / 312e12)
    assert gemm_seconds("a100-80gb", quantization="w8a8_int8") == pytest.approx(blocks / 624e12)


def test_an_unknown_quantisation_has_no_data_and_a_reason():
    prediction = predicted(LLAMA_1B, "h200", quantization="compressed-tensors")
    for quantity in (prediction.output_tokens_per_second, prediction.kv_capacity_tokens, prediction.effective_batch):
        assert isinstance(quantity, NotMeasured)
        assert quantity.reason.startswith("no data: how many bits a weight has under quantization 'compressed-tensors'")
    with pytest.raises(ValueError, match="no data: how many bits"):
        bytes_per_weight(recipe(quantization="compressed-tensors"))
    assert np.isnan(throughputs(LLAMA_1B, quantization="compressed-tensors")).all()


def throughputs(*architectures, hardware="h200", **changes):
    class Shapes:
        pass

    for name in Architecture.model_fields:
        setattr(Shapes, name, np.array([getattr(architecture, name) for architecture in architectures]))
    return predict_throughput_array(
        Shapes,  # type: ignore[arg-type]
        vocab_size=128256,
        tie_word_embeddings=True,
        profile=load_profile(hardware),
        recipe=recipe(**changes),
        workload=Workload(batch_size=256),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": "fp8", "kv_cache_dtype": "fp8"},
        {"tensor_parallel_size": 4},
        {"tensor_parallel_size": 16, "quantization": "awq"},
    ],
)
def test_the_array_form_equals_the_single_form(changes):
    odd = LLAMA_1B.model_copy(update={"num_attention_heads": 15, "num_key_value_heads": 5})
    found = throughputs(LLAMA_1B, odd, **changes)
    load = Workload(batch_size=256)
    assert found[0] == pytest.approx(rate(predicted(LLAMA_1B, "h200", load, **changes)), rel=1e-12)
    single = predicted(odd, "h200", load, **changes).output_tokens_per_second
    assert np.isnan(found[1]) == isinstance(single, NotMeasured)


def test_heads_that_cannot_be_shared_have_a_reason():
    prediction = predicted(LLAMA_1B, "h200", tensor_parallel_size=3)
    assert "3 devices cannot share 32 heads, 8 KV heads" in prediction.output_tokens_per_second.reason


def test_devices_without_a_link_have_no_data():
    prediction = predicted(LLAMA_1B, "cpu-generic", Workload(batch_size=1), tensor_parallel_size=2)
    assert "has no link between devices" in prediction.output_tokens_per_second.reason
    assert isinstance(prediction.effective_batch, Predicted)


def test_the_exchange_is_that_of_a_ring_over_one_direction_of_the_link():
    devices, batch, steps = 4, 64, 49
    load = Workload(batch_size=batch, input_tokens=100, output_tokens=50)
    cost = pass_cost(LLAMA_1B, 128256, True, load_profile("h200"), recipe(tensor_parallel_size=devices), load)
    all_reduce = 2 * (devices - 1) / devices * (2 * batch * 2048) / 450e9
    all_gather = (devices - 1) / devices * (2 * batch * 128256) / 450e9
    assert float(cost.decode_exchange) == pytest.approx(steps * ((2 * 16 + 1) * all_reduce + all_gather), rel=1e-12)
    assert float(cost.prefill_exchange) == pytest.approx((2 * 16 + 1) * 100 * all_reduce + all_gather, rel=1e-12)
    alone = pass_cost(LLAMA_1B, 128256, True, load_profile("h200"), recipe(), load)
    assert float(alone.decode_exchange) == float(alone.prefill_exchange) == 0


def test_operations_of_a_group_add_up_to_the_whole():
    prediction = predicted(LLAMA_3B, "h200", Workload(batch_size=256), tensor_parallel_size=2)
    assert "exchange" in {operation.operation for operation in prediction.operations}
    seconds = sum(one.prefill_seconds + one.decode_seconds for one in prediction.operations)
    assert 256 * 1024 / seconds == pytest.approx(rate(prediction))


def test_more_devices_hold_what_one_cannot():
    large = LLAMA_3B.model_copy(update={"num_hidden_layers": 200})
    assert "does not fit" in predicted(large, "a100-40gb").output_tokens_per_second.reason
    assert rate(predicted(large, "a100-40gb", tensor_parallel_size=2)) > 0
    huge = LLAMA_3B.model_copy(update={"num_hidden_layers": 2000})
    reason = predicted(huge, "a100-40gb", tensor_parallel_size=2).output_tokens_per_second.reason
    assert "on each of 2 devices" in reason
