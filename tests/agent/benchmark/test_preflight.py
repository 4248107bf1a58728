"""What is refused before an engine is started, with the numbers that decided it."""

import os

import pytest

from agent.benchmark.campaign import Campaign, Candidate
from agent.benchmark.machine import Machine, free_bytes_of_visible, group_available_bytes, this_machine
from agent.benchmark.preflight import check_campaign
from scaling.architecture import Architecture
from scaling.named import named_architecture
from scaling.recipes import ServingRecipe, Workload

LLAMA_1B = named_architecture("llama-3.2-1b")


def campaign(*, engine="transformers", batch_size=128, architecture=LLAMA_1B, input_tokens=1024, **recipe):
    return Campaign(
        candidates=(Candidate(name="one", architecture=architecture),),
        recipe=ServingRecipe(**{"engine": engine, "dtype": "bfloat16"} | recipe),
        workloads=(Workload(batch_size=batch_size, input_tokens=input_tokens),),
    )


def memory(available_bytes, **fields):
    return Machine(**{"available_bytes": available_bytes, "place": "a machine", "on_gpu": False} | fields)


def gpus(number, available_bytes=1e12):
    return memory(available_bytes, on_gpu=True, num_devices=number)


WEIGHTS = 2 * LLAMA_1B.num_total_parameters
SEQUENCE = 2048 * 32_768
"""KV bytes of one sequence: 16 layers, 8 KV heads of 64, keys and values in bfloat16."""


def test_a_batch_fits_to_the_byte_where_the_engine_holds_it_whole():
    needed = WEIGHTS + 128 * SEQUENCE
    check_campaign(campaign(), memory(needed))
    with pytest.raises(ValueError, match="does not fit in the memory of a machine") as refusal:
        check_campaign(campaign(), memory(needed - 1))
    text = str(refusal.value)
    assert f"weights of {WEIGHTS / 1e9:.2f} GB" in text
    assert f"{128 * SEQUENCE / 1e9:.2f} GB of KV cache (batch 128 of 2048 tokens, bfloat16)" in text
    assert f"at least {needed / 1e9:.2f} GB" in text
    assert "a smaller --batch" in text


def test_an_engine_that_queues_needs_memory_for_one_sequence():
    plan = campaign(engine="vllm", batch_size=4096)
    check_campaign(plan, memory(WEIGHTS + SEQUENCE))
    with pytest.raises(ValueError, match="one sequence of 2048 tokens"):
        check_campaign(plan, memory(WEIGHTS + SEQUENCE - 1))


def test_head_sizes_that_vllm_lacks_on_a_cpu_are_refused_there_alone():
    odd = LLAMA_1B.model_copy(update={"head_dim": 48})
    with pytest.raises(ValueError, match="head_dim 48 does not run in vLLM on a CPU"):
        check_campaign(campaign(engine="vllm", architecture=odd), memory(1e12))
    check_campaign(campaign(engine="vllm", architecture=odd), memory(1e12, on_gpu=True))
    check_campaign(campaign(engine="transformers", architecture=odd), memory(1e12))


def test_sizes_that_sglang_pads_on_a_cpu_are_refused_there_alone():
    odd = LLAMA_1B.model_copy(update={"intermediate_size": 300})
    with pytest.raises(ValueError, match="SGLang on a CPU pads intermediate_size 300 to 320"):
        check_campaign(campaign(engine="sglang", architecture=odd), memory(1e12))
    check_campaign(campaign(engine="sglang", architecture=odd), memory(1e12, on_gpu=True))
    check_campaign(campaign(engine="vllm", architecture=odd), memory(1e12))


def test_the_fake_engine_refuses_what_its_pretended_machine_cannot_hold():
    check_campaign(campaign(engine="fake"), memory(0))
    with pytest.raises(ValueError, match="the fake engine cannot serve this"):
        check_campaign(campaign(engine="fake", input_tokens=10_000_000), memory(1e15))


def test_every_batch_size_and_candidate_is_checked():
    small = Architecture(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=64,
    )
    plan = Campaign(
        candidates=(Candidate(name="small", architecture=small), Candidate(name="large", architecture=LLAMA_1B)),
        recipe=ServingRecipe(dtype="bfloat16"),
        workloads=(Workload(batch_size=1), Workload(batch_size=64)),
    )
    with pytest.raises(ValueError, match=r"large does not fit .*batch 64"):
        check_campaign(plan, memory(WEIGHTS + 2 * SEQUENCE))


def test_memory_of_this_machine_is_some_and_not_more_than_there_is():
    found = this_machine()
    assert found.available_bytes > 0
    if not found.on_gpu:
        assert found.available_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_control_group_leaves_its_limit_less_what_is_taken(tmp_path):
    assert group_available_bytes(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    assert group_available_bytes(tmp_path) == 1000 - 700 + 200
    (tmp_path / "memory.max").write_text("max\n")
    assert group_available_bytes(tmp_path) == float("inf")


def test_weights_and_cache_are_counted_as_the_recipe_has_them():
    quantised = 1 * LLAMA_1B.num_parameters + WEIGHTS - 2 * LLAMA_1B.num_parameters
    plan = campaign(engine="vllm", quantization="fp8_per_channel", kv_cache_dtype="fp8")
    place = {"on_gpu": True}
    check_campaign(plan, memory(quantised + SEQUENCE / 2, **place))
    with pytest.raises(ValueError, match="bfloat16, weights in fp8_per_channel, KV cache in fp8"):
        check_campaign(plan, memory(quantised + SEQUENCE / 2 - 1, **place))


def test_a_quantisation_of_unknown_bits_is_left_to_the_engine():
    check_campaign(campaign(engine="vllm", quantization="torchao"), memory(SEQUENCE, on_gpu=True))


def test_devices_share_weights_and_cache():
    norms = 2 * LLAMA_1B.num_norm_parameters
    plan = campaign(engine="vllm", tensor_parallel_size=4)
    needed = (WEIGHTS - norms) / 4 + norms + SEQUENCE / 4
    check_campaign(plan, gpus(4, needed))
    with pytest.raises(ValueError, match="on each of 4 devices need at least"):
        check_campaign(plan, gpus(4, needed - 1))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_more_devices_than_are_visible_are_refused(engine):
    plan = campaign(engine=engine, tensor_parallel_size=4)
    with pytest.raises(
        ValueError, match="wants as many GPUs, but 2 of a machine visible; give --tensor-parallel-size 2"
    ):
        check_campaign(plan, gpus(2))
    with pytest.raises(ValueError, match="this machine has no GPU; give --tensor-parallel-size 1"):
        check_campaign(plan, memory(1e12))


@pytest.mark.parametrize(
    ("devices", "changes", "possible"),
    [
        (3, {}, "1 or 2"),
        (8, {"num_attention_heads": 12, "num_key_value_heads": 4}, "1 or 2 or 4"),
        (4, {"num_attention_heads": 24, "num_key_value_heads": 6, "intermediate_size": 8190}, "1 or 2 or 3"),
        (4, {"intermediate_size": 8194}, "1 or 2"),
    ],
)
def test_heads_that_the_devices_cannot_share_are_refused_with_what_they_can(devices, changes, possible):
    shape = LLAMA_1B.model_copy(update={"vocab_size": 192 * 64, **changes})
    plan = campaign(engine="vllm", architecture=shape, tensor_parallel_size=devices)
    with pytest.raises(ValueError, match=f"{devices} devices cannot share .* Give --tensor-parallel-size {possible}"):
        check_campaign(plan, gpus(8))


def test_fewer_kv_heads_than_devices_are_kept_more_than_once():
    shape = LLAMA_1B.model_copy(update={"num_key_value_heads": 2})
    check_campaign(campaign(engine="vllm", architecture=shape, tensor_parallel_size=8), gpus(8))


@pytest.mark.parametrize(
    "wish", [{"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}, {"tensor_parallel_size": 2}], ids=str
)
def test_transformers_refuses_what_its_driver_does_not_do(wish):
    with pytest.raises(ValueError, match=r"--[a-z-]+ \w+: the engine transformers runs here on one device"):
        check_campaign(campaign(**wish), gpus(8))


def test_quantised_checkpoints_have_no_random_weights():
    with pytest.raises(ValueError, match="--quantization awq belongs to a quantised checkpoint"):
        check_campaign(campaign(engine="vllm", quantization="awq"), gpus(1))


def test_quantisations_without_a_kernel_on_a_cpu_are_refused_there_alone():
    plan = campaign(engine="vllm", quantization="fp8")
    with pytest.raises(ValueError, match=r"no kernel for it .* give fp8_per_channel or int8"):
        check_campaign(plan, memory(1e12))
    check_campaign(plan, gpus(1))
    check_campaign(campaign(engine="vllm", quantization="fp8_per_channel"), memory(1e12))


def test_an_fp8_cache_on_a_cpu_wants_its_instructions_and_head_sizes():
    plan = campaign(engine="vllm", kv_cache_dtype="fp8")
    able = memory(1e12, cpu_flags=frozenset({"avx512f"}))
    check_campaign(plan, able)
    check_campaign(campaign(engine="vllm", kv_cache_dtype="bfloat16"), memory(1e12))
    with pytest.raises(ValueError, match="a CPU with AVX-512 or AMX"):
        check_campaign(plan, memory(1e12))
    odd = LLAMA_1B.model_copy(update={"head_dim": 80})
    check_campaign(campaign(engine="vllm", architecture=odd), able)
    with pytest.raises(
        ValueError, match=r"head_dim 80 does not run in vLLM on a CPU with --kv-cache-dtype fp8; .* 96,"
    ):
        check_campaign(campaign(engine="vllm", architecture=odd, kv_cache_dtype="fp8"), able)


@pytest.mark.parametrize(
    ("visible", "mebibytes"),
    [(None, (10, 20)), ("1", (20,)), ("1,0", (20, 10)), ("GPU-b", (20,)), ("0,7,1", (10,)), ("", ())],
)
def test_free_memory_is_that_of_the_visible_gpus(visible, mebibytes):
    answer = "0, GPU-a1, 10\n1, GPU-b2, 20\n"
    assert free_bytes_of_visible(answer, visible) == tuple(2**20 * amount for amount in mebibytes)
