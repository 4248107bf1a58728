"""The vLLM engine for real, on its CPU build."""

import pytest

from agent.assignment import BenchAssignment
from agent.benchmark.run import run_benchmark
from agent.engines.base import Engine
from agent.engines.interpreters import find_engine
from scaling.observations import Failure, Progress, ServingObservation
from scaling.quantity import Measured
from scaling.recipes import ServingRecipe, Workload

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture
def measure(vllm_python, tmp_path):
    def run(shape):
        found = find_engine("vllm", environment={"ARCHFLEET_VLLM_PYTHON": vllm_python})
        # The driver and what lies beside it alone, far from our packages: its interpreter need not have them.
        alone = tmp_path / "alone" / "driver.py"
        alone.parent.mkdir()
        alone.write_bytes(found.driver.read_bytes())
        (alone.parent / "driver_kit.py").write_bytes(found.driver.with_name("driver_kit.py").read_bytes())
        engine = Engine(name="vllm", driver=alone, interpreter=found.interpreter, environment=found.environment)
        assignment = BenchAssignment(
            architecture=shape,
            recipe=ServingRecipe(engine="vllm"),
            workload=Workload(batch_size=4, input_tokens=8, output_tokens=8),
            num_repeats=1,
            min_window_seconds=0.2,
        )
        *progress, end = run_benchmark(assignment, agent="a", work_directory=tmp_path, engine=engine)
        assert all(isinstance(each, Progress) for each in progress)
        return end

    return run


@pytest.mark.parametrize("tied", [True, False])
def test_vllm_measures_a_shape_whose_heads_do_not_divide_its_width(measure, padded_shape, tied):
    observation = measure(padded_shape.model_copy(update={"tie_word_embeddings": tied}))
    assert isinstance(observation, ServingObservation), observation
    assert not {"wrong-token-count", "nan", "preempted", "prefix-hits", "unknown-engine-version"} & {*observation.flags}
    assert observation.repeats[0].output_tokens_per_second > 0
    assert observation.repeats[0].seconds >= 0.2
    assert observation.num_preemptions == 0
    assert isinstance(observation.mean_running_sequences, Measured)
    assert 0 < observation.mean_running_sequences.value <= 4
    assert isinstance(observation.kv_cache_tokens, Measured)
    assert observation.kv_cache_tokens.value >= 64
    ttft, tpot, itl = observation.latencies
    assert isinstance(ttft.p50, Measured)
    assert isinstance(tpot.p50, Measured)
    assert 0 < tpot.p50.value < observation.repeats[0].seconds
    assert isinstance(itl.p50, Measured)
    assert 0 < itl.p50.value <= itl.p99.value < observation.repeats[0].seconds
    assert observation.provenance.versions["vllm"] == observation.engine_version


def test_a_head_size_that_vllm_does_not_run_is_a_validation_failure_in_its_own_words(measure, padded_shape):
    failure = measure(padded_shape.model_copy(update={"head_dim": 20}))
    assert isinstance(failure, Failure), failure
    assert failure.failure_kind == "validation", failure
    assert "head" in failure.message.lower()
    assert "20" in failure.message
