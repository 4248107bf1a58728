"""What the SGLang driver decides and computes, without SGLang."""

import json
import pickle

import pytest

from agent.engines import driver_kit as kit
from agent.engines import sglang_driver as driver

REQUEST = {
    "config_directory": "/somewhere",
    "dtype": "bfloat16",
    "quantization": "fp8",
    "kv_cache_dtype": "fp8_e4m3",
    "tensor_parallel_size": 2,
    "batch_size": 64,
    "input_tokens": 64,
    "output_tokens": 32,
    "seed": 3,
}
OPTIONS = frozenset({"cuda_graph_max_bs_decode"})


def meta(*, scheduled=0.0, first=1.0, last=11.0, tokens=11):
    return {
        "num_retractions": 1,
        "cached_tokens": 2,
        "request_received_ts": 0.0,
        "forward_entry_time": scheduled,
        "prefill_finished_time": first,
        "request_finished_ts": last,
        "completion_tokens": tokens,
    }


def test_every_option_that_differs_between_machines_is_pinned():
    arguments = driver.engine_arguments(REQUEST, OPTIONS, on_gpu=True)
    assert arguments["max_running_requests"] == 64
    assert arguments["chunked_prefill_size"] == arguments["max_prefill_tokens"] == 8192
    assert arguments["disable_radix_cache"] is True
    assert arguments["mem_fraction_static"] == 0.88
    assert arguments["cuda_graph_max_bs_decode"] == 64
    assert (arguments["quantization"], arguments["kv_cache_dtype"], arguments["tp_size"]) == ("fp8", "fp8_e4m3", 2)
    assert not {"device", "attention_backend", "disable_cuda_graph", "max_total_tokens"} & set(arguments)


def test_an_older_name_of_the_largest_graph_is_used_where_the_version_has_it():
    arguments = driver.engine_arguments(REQUEST, frozenset({"cuda_graph_max_bs"}), on_gpu=True)
    assert arguments["cuda_graph_max_bs"] == 64


def test_a_cpu_is_asked_for_no_graphs_and_has_room_for_the_batch():
    arguments = driver.engine_arguments(REQUEST | {"tensor_parallel_size": 1}, OPTIONS, on_gpu=False)
    assert arguments["disable_cuda_graph"] is True
    assert arguments["attention_backend"] == "torch_native"
    assert arguments["max_total_tokens"] >= 64 * 96
    assert "cuda_graph_max_bs_decode" not in arguments


def test_several_devices_are_refused_on_a_cpu():
    with pytest.raises(kit.RefusedError, match=r"tensor_parallel_size 2 .* expected tensor_parallel_size 1"):
        driver.engine_arguments(REQUEST, OPTIONS, on_gpu=False)


def test_mean_running_and_latencies_are_of_the_requests_times():
    metas = [meta(last=11.0), meta(scheduled=5.0, first=6.0, last=11.0)]
    summary = driver.summarise(metas, 11.0, "0.5.21")
    assert summary["mean_running_sequences"] == pytest.approx((11 + 6) / 11)
    assert summary["latencies"]["ttft"]["p50"] == pytest.approx(3.5)
    assert summary["latencies"]["tpot"]["p50"] == pytest.approx((1.0 + 0.5) / 2)
    assert "streaming" in summary["not_measured"]["itl"]
    assert (summary["num_preemptions"], summary["num_prefix_hits"]) == (2, 4)


def test_absent_times_are_absent_with_a_reason():
    summary = driver.summarise([{"num_retractions": 0}], 1.0, "0.5.21")
    assert summary["num_preemptions"] == 0
    assert "num_prefix_hits" not in summary
    assert set(summary["not_measured"]) == {"mean_running_sequences", "ttft", "tpot", "itl"}


@pytest.mark.parametrize("kind", ["validation", "out-of-memory", "unknown"])
def test_what_the_scheduler_noted_is_told_in_its_kind(tmp_path, monkeypatch, kind):
    file = tmp_path / "notes.json"
    monkeypatch.setenv(driver.NOTES_VARIABLE, str(file))
    assert driver.noted_error(str(file)) is None
    driver.note(failure_kind=kind, message="ValueError: no")
    error = driver.noted_error(str(file))
    assert kit.failure_kind(error) == kind
    assert "ValueError: no" in kit.own_words(error)
    assert json.loads(file.read_text())["failure_kind"] == kind


def test_the_handler_of_failures_travels_to_other_processes_without_its_messages():
    copy = pickle.loads(pickle.dumps(driver.ChildFailure(None, "/notes")))
    assert (copy.messages, copy.notes_file) == (None, "/notes")
