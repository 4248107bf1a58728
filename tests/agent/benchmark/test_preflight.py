"""What is refused before an engine is started, with the numbers that decided it."""

import os

import pytest

from agent.benchmark.campaign import Campaign, Candidate
from agent.benchmark.preflight import Memory, available_memory, check_campaign, group_available_bytes
from scaling.architecture import Architecture
from scaling.named import named_architecture
from scaling.recipes import ServingRecipe, Workload

LLAMA_1B = named_architecture("llama-3.2-1b")


def campaign(*, engine="transformers", batch_size=128, architecture=LLAMA_1B, input_tokens=1024):
    return Campaign(
        candidates=(Candidate(name="one", architecture=architecture),),
        recipe=ServingRecipe(engine=engine, dtype="bfloat16"),
        workloads=(Workload(batch_size=batch_size, input_tokens=input_tokens),),
    )


def memory(available_bytes, *, on_gpu=False):
    return Memory(available_bytes=available_bytes, place="a machine", on_gpu=on_gpu)


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
    found = available_memory()
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
