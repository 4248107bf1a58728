"""Microbenchmarks time what they say, in the sizes of their plan, within their time."""

import dataclasses
import time

import pytest

from agent.engines.microbenchmarks import CPU_PLAN, GPU_PLAN, Plan, num_timings, run_microbenchmarks
from hwprofiles.profile import AXES

torch = pytest.importorskip("torch", reason="microbenchmarks run torch (extra: train)")

SMALL = dataclasses.replace(
    CPU_PLAN,
    rows=(1, 64),
    weights=(2**10, 2**16),
    max_gemm_flops=2 * 64 * 2**10,
    query_group_sizes=(1, 4),
    head_dims=(16,),
    decode_batch=2,
    prefill_batch=2,
    copy_bytes=(2**16,),
)


@pytest.fixture(scope="module")
def timings():
    return list(run_microbenchmarks(SMALL, dtype="float32", on_gpu=False, seconds=0.5, num_repeats=3))


def test_every_announced_result_comes_once_per_aspect_ratio(timings):
    assert len(timings) == num_timings(SMALL, "float32")
    sizes = [timing.size for timing in timings if timing.operation == "gemm"]
    # 64 rows times 65,536 weights costs more than the plan allows.
    assert sorted(sizes) == sorted([(1, 2**10), (1, 2**16), (64, 2**10)] * len(SMALL.aspect_ratios))


def test_sizes_lie_on_the_operations_axes(timings):
    assert all(len(t.size) == len(AXES[t.operation]) for t in timings if t.operation != "launch")
    assert {t.operation for t in timings} == {*AXES, "launch"}


def test_work_is_counted_as_the_roofline_counts_it(timings):
    gemm = next(t for t in timings if (t.operation, t.size) == ("gemm", (64, 2**10)))
    assert gemm.flops == 2 * 64 * 2**10
    attention = next(t for t in timings if (t.operation, t.size) == ("decode_attention", (4, 16)))
    kv_heads, context = 64 // 16, SMALL.decode_context_tokens
    assert attention.num_bytes == 4 * 2 * 2 * context * kv_heads * 16  # float32, keys and values, batch, tokens, width
    assert attention.flops == 4 * (4 * kv_heads * 16) * 2 * context


def test_more_work_takes_longer(timings):
    seconds = {t.size: min(t.seconds) for t in timings if t.operation == "gemm"}
    assert seconds[1, 2**16] > seconds[1, 2**10]


def test_the_number_of_threads_is_put_back(timings):
    before = torch.get_num_threads()
    run = run_microbenchmarks(SMALL, dtype="float32", on_gpu=False, seconds=0.1, num_threads=before + 1)
    next(run)
    assert torch.get_num_threads() == before + 1
    run.close()
    assert torch.get_num_threads() == before


def test_time_spent_follows_the_time_given():
    spent = []
    for seconds in (0.2, 2.0):
        started = time.process_time()
        list(run_microbenchmarks(SMALL, dtype="float32", on_gpu=False, seconds=seconds, num_repeats=3))
        spent.append(time.process_time() - started)
    assert spent[0] < spent[1] < 10


def test_a_gpu_that_is_not_there_is_an_error_with_a_way_out():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match="sees no GPU"):
        next(run_microbenchmarks(GPU_PLAN, dtype="bfloat16", on_gpu=True, seconds=1))


@pytest.mark.parametrize("plan", [CPU_PLAN, GPU_PLAN], ids=["cpu", "gpu"])
def test_plans_hold_the_rows_where_matrix_products_dip(plan: Plan):
    assert {128, 192, 256, 512} <= set(plan.rows)


@pytest.mark.gpu
def test_a_gpus_microbenchmarks_run_and_are_of_a_plausible_speed():
    if not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    small = dataclasses.replace(GPU_PLAN, rows=(1, 4096), weights=(2**18, 2**24), copy_bytes=(2**28,))
    timings = list(run_microbenchmarks(small, dtype="bfloat16", on_gpu=True, seconds=5, num_repeats=3))
    rates = [t.flops / min(t.seconds) for t in timings if t.operation == "gemm" and t.size == (4096, 2**24)]
    assert max(rates) > 2e13
    (copy,) = (t for t in timings if t.operation == "copy")
    assert copy.num_bytes / min(copy.seconds) > 1e11
