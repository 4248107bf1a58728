"""What the vLLM driver decides and computes, without vLLM."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from agent.engines import driver_kit
from agent.engines.base import EngineResult, MessageAdapter, engine_named

REQUEST = {
    "config_directory": "/somewhere",
    "dtype": "bfloat16",
    "quantization": None,
    "kv_cache_dtype": "auto",
    "tensor_parallel_size": 1,
    "num_threads": 1,
    "batch_size": 64,
    "input_tokens": 64,
    "output_tokens": 32,
    "min_window_seconds": 1.0,
    "seed": 3,
}


def request_times(*, scheduled, first, last, arrived=0.0, num_tokens=11):
    return SimpleNamespace(
        scheduled_ts=scheduled,
        first_token_ts=first,
        last_token_ts=last,
        first_token_latency=first - arrived,
        num_generation_tokens=num_tokens,
    )


def test_every_option_that_differs_between_machines_is_pinned(vllm_driver):
    arguments = vllm_driver.engine_arguments(REQUEST, "0.32.0", on_gpu=True)
    assert arguments["max_num_seqs"] == 64
    assert arguments["max_num_batched_tokens"] == 8192
    assert arguments["max_model_len"] == 96
    assert arguments["enable_prefix_caching"] is False
    assert arguments["disable_log_stats"] is False
    assert arguments["load_format"] == "dummy"
    assert arguments["gpu_memory_utilization"] == 0.92
    assert arguments["max_cudagraph_capture_size"] == 64


def test_a_cpu_is_asked_for_no_graphs_and_no_share_of_a_gpu(vllm_driver):
    arguments = vllm_driver.engine_arguments(REQUEST, "0.32.0", on_gpu=False)
    assert not {"gpu_memory_utilization", "max_cudagraph_capture_size"} & set(arguments)
    assert arguments["enforce_eager"] is True


def test_a_step_has_room_for_one_token_of_every_sequence(vllm_driver):
    arguments = vllm_driver.engine_arguments(REQUEST | {"batch_size": 10_000}, "0.32.0", on_gpu=False)
    assert arguments["max_num_batched_tokens"] == 10_000


def test_the_recipes_weights_cache_and_devices_reach_the_engine(vllm_driver):
    asked = {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3", "tensor_parallel_size": 2}
    arguments = vllm_driver.engine_arguments(REQUEST | asked, "0.32.0", on_gpu=True)
    assert asked.items() <= arguments.items()
    assert arguments["distributed_executor_backend"] == "mp"
    assert "distributed_executor_backend" not in vllm_driver.engine_arguments(REQUEST, "0.32.0", on_gpu=True)


def test_several_devices_are_refused_on_a_cpu(vllm_driver):
    with pytest.raises(driver_kit.RefusedError, match="tensor_parallel_size 2 was asked for"):
        vllm_driver.engine_arguments(REQUEST | {"tensor_parallel_size": 2}, "0.32.0", on_gpu=False)


def test_a_cache_of_one_byte_an_element_needs_half_of_the_room(vllm_driver):
    config = {"num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64}
    request = REQUEST | {"batch_size": 16, "input_tokens": 1024, "output_tokens": 1024, "kv_cache_dtype": "fp8_e5m2"}
    # 16 sequences of 2,048 tokens at 16,384 bytes a token are half a GiB; in bfloat16 they would be one and a tenth.
    assert vllm_driver.cpu_cache_gibibytes(request, config) == 1
    if driver_kit.memory_bytes() > 4 * 2**30:
        assert vllm_driver.cpu_cache_gibibytes(request | {"kv_cache_dtype": "auto"}, config) == 2


def test_gaps_are_kept_from_every_step_that_has_statistics(vllm_driver):
    gaps = vllm_driver.TokenGaps("gaps")
    for step in (SimpleNamespace(gaps=[0.1, 0.2]), None, SimpleNamespace(gaps=[0.3]), SimpleNamespace()):
        gaps.record(None, step, mm_cache_stats=None, engine_idx=0)
    assert list(gaps.seconds) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(("batch", "graph"), [(1, 8), (8, 8), (250, 256), (257, 272), (512, 512), (4096, 4096)])
def test_graphs_are_captured_up_to_the_batch(vllm_driver, batch, graph):
    assert vllm_driver.graph_size(batch) == graph


def test_cpu_cache_has_room_for_the_batch(vllm_driver):
    config = {"num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64}
    request = REQUEST | {"batch_size": 32, "input_tokens": 1024, "output_tokens": 1024}
    assert vllm_driver.cpu_cache_gibibytes(REQUEST, config) == 1
    # 32 sequences of 2,048 tokens at 32,768 bytes a token are 2 GiB; a tenth more rounds up to 3.
    if driver_kit.memory_bytes() > 6 * 2**30:
        assert vllm_driver.cpu_cache_gibibytes(request, config) == 3
    huge = vllm_driver.cpu_cache_gibibytes(request | {"batch_size": 10**6}, config)
    assert huge <= driver_kit.memory_bytes() / 2 / 2**30 + 1


def test_mean_running_is_the_time_integral_over_the_window(vllm_driver):
    # Two run all 10 s, one runs for 5 s of them: on a grid of instants the mean is (2 · 10 + 5) / 10.
    times = [
        request_times(scheduled=0, first=1, last=10),
        request_times(scheduled=0, first=2, last=10),
        request_times(scheduled=5, first=6, last=10),
    ]
    summary = vllm_driver.summarise_times(times, None, 10.0)
    instants = np.linspace(0, 10, 10_001)
    running = sum((instants >= t.scheduled_ts) & (instants <= t.last_token_ts) for t in times)
    assert summary["mean_running_sequences"] == pytest.approx(running.mean(), rel=1e-3)


def test_latencies_are_percentiles_over_requests(vllm_driver):
    times = [request_times(scheduled=0, first=first, last=first + 5) for first in (1.0, 2.0, 3.0)]
    summary = vllm_driver.summarise_times(times, [0.1, 0.3, 0.2], 8.0)
    assert summary["latencies"]["ttft"]["p50"] == 2.0
    assert summary["latencies"]["ttft"]["p90"] == pytest.approx(np.quantile([1, 2, 3], 0.9))
    assert summary["latencies"]["tpot"]["p99"] == pytest.approx(0.5)  # ten further tokens in 5 s
    assert summary["latencies"]["itl"]["p50"] == pytest.approx(0.2)
    assert summary["not_measured"] == {}


@pytest.mark.parametrize("gaps", [None, []])
def test_tokens_whose_times_vllm_hides_have_a_reason(vllm_driver, gaps):
    summary = vllm_driver.summarise_times([request_times(scheduled=0, first=1, last=6)], gaps, 8.0)
    assert set(summary["latencies"]) == {"ttft", "tpot"}
    assert summary["not_measured"] == {"itl": "this version of vLLM gives no times of single tokens"}


def test_one_output_token_has_no_pace(vllm_driver):
    summary = vllm_driver.summarise_times([request_times(scheduled=0, first=1, last=1, num_tokens=1)], [], 1.0)
    assert set(summary["latencies"]) == {"ttft"}
    assert "single output token" in summary["not_measured"]["tpot"]
    assert "single output token" in summary["not_measured"]["itl"]


def test_absent_times_are_absent_with_a_reason_and_fit_the_protocol(vllm_driver):
    summary = vllm_driver.summarise_times([None], [0.1], 1.0)
    assert set(summary["not_measured"]) == {"mean_running_sequences", "ttft", "tpot", "itl"}
    fields = {"window_seconds": 1, "cpu_seconds": 1, "num_batches": 1, "num_output_tokens": 1, "logits_finite": True}
    message = MessageAdapter.validate_python({"event": "result", **fields, **summary})
    assert isinstance(message, EngineResult)
    assert message.mean_running_sequences is None


def test_the_driver_ends_with_its_group_when_the_agent_is_gone(tmp_path):
    fifo = tmp_path / "request.json"
    os.mkfifo(fifo)  # nobody writes it: the driver would wait for ever
    driver = str(engine_named("vllm").driver)
    process = subprocess.Popen([sys.executable, driver, str(fifo)], stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    process.stdin.close()  # as a dying agent does
    assert process.wait(timeout=20) == -signal.SIGKILL


def test_an_interpreter_without_vllm_is_told_as_an_error(tmp_path):
    config = '{"vocab_size": 9, "num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 2}'
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "request.json").write_text(json.dumps(REQUEST | {"config_directory": str(tmp_path)}))
    command = [sys.executable, "-I", "-S", str(engine_named("vllm").driver), str(tmp_path / "request.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        message = process.stdout.readline()
        assert process.wait(timeout=20) == 1
    assert '"failure_kind": "engine-start", "message": "ModuleNotFoundError: No module named' in message
