"""The transformers driver by itself."""

import os
import signal
import subprocess
import sys

import pytest

from agent.engines import driver_kit, transformers_driver
from agent.engines.base import engine_named

REQUEST = {"dtype": "bfloat16", "quantization": None, "kv_cache_dtype": "auto", "tensor_parallel_size": 1}


@pytest.mark.parametrize("asked", [{}, {"kv_cache_dtype": "bfloat16"}])
def test_what_it_does_anyway_is_not_refused(asked):
    transformers_driver.refuse_unsupported(REQUEST | asked)


def test_what_it_cannot_do_is_refused_in_one_sentence():
    asked = {"quantization": "fp8", "kv_cache_dtype": "fp8", "tensor_parallel_size": 2}
    with pytest.raises(driver_kit.RefusedError) as refusal:
        transformers_driver.refuse_unsupported(REQUEST | asked)
    assert "cannot do quantization 'fp8' or kv_cache_dtype 'fp8' or tensor_parallel_size 2:" in str(refusal.value)
    assert "expected a recipe without these keys" in str(refusal.value)


def test_the_first_step_is_ttft_and_the_others_are_itl():
    summary = transformers_driver.summarise_steps([[1.0, 0.1, 0.3], [2.0, 0.2, 0.2]])
    assert summary["latencies"]["ttft"]["p50"] == pytest.approx(1.5)
    assert summary["latencies"]["tpot"]["p50"] == pytest.approx(0.2)
    assert summary["latencies"]["itl"]["p99"] == pytest.approx(0.297)  # linear between the last two of four
    assert summary["not_measured"] == {}


def test_one_token_has_no_further_step():
    summary = transformers_driver.summarise_steps([[1.0]])
    assert set(summary["latencies"]) == {"ttft"}
    assert summary["not_measured"] == dict.fromkeys(("tpot", "itl"), driver_kit.ONE_TOKEN)


def test_every_step_of_a_batch_is_timed_and_none_is_stopped():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=1, eos_token_id=None, pad_token_id=0, **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    clock = transformers_driver.new_clock(torch.device("cpu"))
    assert transformers_driver.generate(model, torch.zeros(3, 4, dtype=torch.long), 5, clock) == 15
    assert len(clock.step_seconds()) == 5
    assert min(clock.step_seconds()) > 0


def test_the_driver_ends_with_its_group_when_the_agent_is_gone(tmp_path):
    fifo = tmp_path / "request.json"
    os.mkfifo(fifo)  # nobody writes it: the driver would wait for ever
    driver = str(engine_named("transformers").driver)
    process = subprocess.Popen([sys.executable, driver, str(fifo)], stdin=subprocess.PIPE, start_new_session=True)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()  # as a dying agent does
    assert process.wait(timeout=20) == -signal.SIGKILL


def test_a_request_that_cannot_be_read_is_told_as_an_error(tmp_path):
    driver = str(engine_named("transformers").driver)
    command = [sys.executable, driver, str(tmp_path / "none.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        message = process.stdout.readline()
        assert process.wait(timeout=20) == 1
    assert message.startswith('{"event": "error", "failure_kind": "unknown", "message": "FileNotFoundError')
