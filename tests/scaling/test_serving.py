"""The roofline of serving: capacity, limits, agreement with a step-by-step sum."""

import numpy as np
import pytest

from hwprofiles.catalog import load_profile
from hwprofiles.roofline import least_seconds
from scaling.architecture import Architecture
from scaling.named import named_architecture
from scaling.quantity import NotMeasured, Predicted
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import (
    parse_batch_sizes,
    predict_batches,
    predict_serving,
    predict_throughput_array,
)

BF16 = ServingRecipe(engine="vllm", dtype="bfloat16")
LLAMA_1B = named_architecture("llama-3.2-1b")
LLAMA_3B = named_architecture("llama-3.2-3b")
LLAMA_8B = Architecture(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def value(quantity):
    assert isinstance(quantity, Predicted)
    return quantity.value


@pytest.mark.parametrize(
    ("architecture", "published"),
    [
        (LLAMA_1B, (507, 1093, 1983)),
        (LLAMA_1B.model_copy(update={"num_key_value_heads": 2}), (2033, 4379, 7939)),
        (LLAMA_3B, (128, 295, 550)),
        (LLAMA_8B, (76, 223, 445)),
    ],
    ids=["1B, 8 KV heads", "1B, 2 KV heads", "3B", "8B"],
)
def test_sequences_that_fit_agree_with_the_observed_table(architecture, published):
    workload = Workload(batch_size=100_000, input_tokens=1024, output_tokens=1024)
    capacities = [
        value(predict_serving(architecture, load_profile(hardware), BF16, workload).effective_batch)
        for hardware in ("a100-40gb", "a100-80gb", "h200")
    ]
    assert capacities == pytest.approx(published, rel=0.02)


def test_decode_integrated_in_closed_form_equals_the_sum_over_steps():
    profile, workload = load_profile("h200"), Workload(batch_size=64, input_tokens=100, output_tokens=50)
    d, f, heads, K, L, V = 2048, 8192, 2048, 512, 16, 128256

    def seconds(flops, elements):
        return float(least_seconds(flops, 2 * elements, profile, "bfloat16"))

    def gemm(p, q):
        return seconds(2 * 64 * p * q, p * q + 64 * (p + q))

    total = 0.0
    for context in range(101, 150):  # steps t = 1 .. 49
        layer = gemm(d, heads + 2 * K) + gemm(heads, d) + gemm(d, 2 * f) + gemm(f, d)
        attention = seconds(4 * heads * 64 * context, 2 * K * 64 * context)
        total += L * (layer + attention) + gemm(d, V)
    prediction = predict_serving(LLAMA_1B, profile, BF16, workload)
    assert value(prediction.itl_seconds) == pytest.approx(total / 49, rel=1e-12)


def test_one_sequence_decodes_at_the_speed_at_which_weights_are_read():
    profile, workload = load_profile("h200"), Workload(batch_size=1, input_tokens=1, output_tokens=1000)
    itl_seconds = value(predict_serving(LLAMA_1B, profile, BF16, workload).itl_seconds)
    weights = 2 * (LLAMA_1B.num_parameters + 128256 * 2048)
    assert itl_seconds == pytest.approx(weights / 4.8e12, rel=0.02)


def test_prefill_of_a_long_batch_runs_at_the_peak():
    profile, workload = load_profile("a100-80gb"), Workload(batch_size=16, input_tokens=2048, output_tokens=1)
    prediction = predict_serving(LLAMA_1B, profile, BF16, workload)
    flops = 16 * LLAMA_1B.prefill_flops(2048)
    assert value(prediction.ttft_seconds) == pytest.approx(flops / 312e12, rel=0.02)
    assert isinstance(prediction.itl_seconds, NotMeasured)


def test_operations_add_up_to_the_whole():
    prediction = predict_serving(LLAMA_3B, load_profile("h200"), BF16, Workload(batch_size=256))
    prefill = sum(operation.prefill_seconds for operation in prediction.operations)
    decode = sum(operation.decode_seconds for operation in prediction.operations)
    assert prefill == pytest.approx(value(prediction.ttft_seconds))
    assert 256 * 1024 / (prefill + decode) == pytest.approx(value(prediction.output_tokens_per_second))


def test_more_than_fits_runs_in_waves_at_the_throughput_of_what_fits():
    profile = load_profile("a100-40gb")
    most, asked = (
        predict_serving(LLAMA_1B, profile, BF16, Workload(batch_size=batch_size)) for batch_size in (507, 4096)
    )
    assert (most.num_waves, asked.num_waves) == (1, 9)
    assert asked.output_tokens_per_second == most.output_tokens_per_second
    assert value(asked.effective_batch) == 507


def test_the_baselines_are_ordered_as_published_on_the_h200():
    throughput = {
        name: value(
            predict_serving(
                named_architecture(name),
                load_profile("h200"),
                BF16,
                Workload(batch_size=256, input_tokens=4096, output_tokens=1024),
            ).output_tokens_per_second
        )
        for name in ("llama-3.2-1b", "surefire-1b", "llama-3.2-3b", "surefire-3b")
    }
    assert throughput["surefire-1b"] > throughput["llama-3.2-1b"]
    assert throughput["surefire-3b"] > throughput["llama-3.2-3b"]


def test_what_does_not_fit_has_a_reason_and_no_number():
    huge = LLAMA_8B.model_copy(update={"num_hidden_layers": 200})
    prediction = predict_serving(huge, load_profile("a100-40gb"), BF16, Workload(batch_size=1))
    assert isinstance(prediction.output_tokens_per_second, NotMeasured)
    assert "does not fit on a100-40gb: weights of" in prediction.output_tokens_per_second.reason
    assert prediction.num_waves is None


class Shapes:
    def __init__(self, *architectures):
        for name in Architecture.model_fields:
            setattr(self, name, np.array([getattr(architecture, name) for architecture in architectures]))


def test_the_array_form_equals_the_single_form_and_is_nan_where_it_does_not_fit():
    shapes = Shapes(LLAMA_1B, LLAMA_3B, LLAMA_1B.model_copy(update={"num_hidden_layers": 900}))
    profile, workload = load_profile("a100-40gb"), Workload(batch_size=512)
    throughput = predict_throughput_array(
        shapes, vocab_size=128256, tie_word_embeddings=True, profile=profile, recipe=BF16, workload=workload
    )
    singles = [predict_serving(architecture, profile, BF16, workload) for architecture in (LLAMA_1B, LLAMA_3B)]
    expected = [value(single.output_tokens_per_second) for single in singles]
    np.testing.assert_allclose(throughput, [*expected, np.nan])


def test_every_prediction_says_that_it_is_uncalibrated():
    predictions = predict_batches(LLAMA_1B, load_profile("h200"), BF16)
    assert [prediction.workload.batch_size for prediction in predictions] == [128, 256, 512, 1024, 2048, 4096]
    for prediction in predictions:
        throughput = prediction.output_tokens_per_second
        assert isinstance(throughput, Predicted)
        assert throughput.basis == "roofline, uncalibrated"
        assert throughput.no_interval_because


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("64", (64,)), ("64,96", (64, 96)), ("128..4096", (128, 256, 512, 1024, 2048, 4096)), ("3..20", (3, 6, 12))],
)
def test_batch_sizes_are_read(text, sizes):
    assert parse_batch_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", "a", "4..2", "0", "1...4", "8,"])
def test_batch_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"expected whole numbers such as 64"):
        parse_batch_sizes(text)
