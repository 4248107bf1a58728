"""The SGLang engine for real, on a CPU with stand-ins for its GPU kernels."""

import json
import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from agent.assignment import BenchAssignment
from agent.benchmark.run import run_benchmark
from agent.engines.base import EngineReady, EngineRequest
from agent.engines.descendants import running_members
from agent.engines.interpreters import find_engine
from agent.engines.process import EngineFailure, Tick, run_process
from scaling.observations import ServingObservation
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import ServingRecipe, Workload

pytestmark = [pytest.mark.sglang, pytest.mark.slow]
ROOT = Path(__file__).parents[3]
# Three processes import SGLang one after the other: 20 s on an idle machine, over two minutes on one that is shared.
LOAD_DEADLINE_SECONDS = 400.0


@pytest.fixture
def sglang(sglang_python):
    """The engine in that interpreter."""
    return find_engine("sglang", environment={"ARCHFLEET_SGLANG_PYTHON": sglang_python})


def command_of(pid):
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_sglang_measures_a_shape_whose_heads_do_not_divide_its_width(sglang, padded_shape, tmp_path):
    assignment = BenchAssignment(
        architecture=padded_shape.model_copy(update={"tie_word_embeddings": False}),
        recipe=ServingRecipe(engine="sglang"),
        workload=Workload(batch_size=4, input_tokens=8, output_tokens=8),
        num_repeats=1,
        min_window_seconds=0.2,
        load_deadline_seconds=LOAD_DEADLINE_SECONDS,
    )
    *_, observation = run_benchmark(assignment, agent="a", work_directory=tmp_path, engine=sglang)
    assert isinstance(observation, ServingObservation), observation
    assert not {"wrong-token-count", "nan", "preempted", "prefix-hits", "unknown-engine-version"} & {*observation.flags}
    assert observation.repeats[0].output_tokens_per_second > 0
    assert observation.num_preemptions == 0
    assert isinstance(observation.mean_running_sequences, Measured)
    assert 0 < observation.mean_running_sequences.value <= 4
    assert isinstance(observation.kv_cache_tokens, Measured)
    assert observation.kv_cache_tokens.value >= 64
    ttft, tpot, itl = observation.latencies
    assert isinstance(ttft.p50, Measured)
    assert isinstance(tpot.p50, Measured)
    assert 0 < tpot.p50.value < observation.repeats[0].seconds
    assert isinstance(itl.p50, NotMeasured)


def test_nothing_of_sglang_outlives_its_driver_that_was_killed_alone(sglang, padded_shape, tmp_path):
    shape = padded_shape.model_copy(update={"tie_word_embeddings": True})
    # Room for exactly these tokens, as a model has whose longest sequence is measured: SGLang wants a little more.
    (tmp_path / "config.json").write_text(json.dumps(shape.to_hf_config(max_position_embeddings=16)), "utf-8")
    request = EngineRequest(
        config_directory=str(tmp_path),
        dtype="float32",
        num_threads=1,
        batch_size=4,
        input_tokens=8,
        output_tokens=8,
        min_window_seconds=3600,
        seed=0,
    )
    request_file = tmp_path / "request.json"
    request_file.write_text(request.model_dump_json(), "utf-8")
    messages = run_process(
        sglang.command(request_file),
        log_file=tmp_path / "log",
        load_deadline_seconds=LOAD_DEADLINE_SECONDS,
        run_deadline_seconds=LOAD_DEADLINE_SECONDS,
        environment={**sglang.environment, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    with closing(messages):
        ready = next(message for message in messages if not isinstance(message, Tick))
        assert isinstance(ready, EngineReady), ready
        assert ready.num_total_parameters == shape.num_total_parameters
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        (driver,) = [pid for pid in pids if os.fsencode(request_file) in command_of(pid)]
        titles = b"".join(map(command_of, running_members(driver)))
        assert b"sglang::scheduler" in titles
        assert b"sglang::detokenizer" in titles
        os.kill(driver, signal.SIGKILL)
        *_, end = messages
    assert isinstance(end, EngineFailure)
    assert running_members(driver) == []
