"""Energy, clocks and release of the GPU in the rows of a benchmark: real engine processes, sensors that are given."""

import pytest

from agent.assignment import BenchAssignment
from agent.benchmark import run
from agent.engines.base import Engine
from agent.power import Sample
from scaling.architecture import Architecture
from scaling.observations import Failure, ServingObservation
from scaling.quantity import Measured
from scaling.recipes import ServingRecipe, Workload

SHAPE = Architecture(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=128,
)
DRIVER = """
import contextlib, json, os, time
with contextlib.suppress(OSError):
    os.remove("SIGN")
def tell(**fields):
    print(json.dumps(fields), flush=True)
device = {"kind": KIND, "name": "d", "memory_bytes": 1}
tell(event="ready", versions={}, device=device, num_total_parameters=PARAMETERS)
BETWEEN
started = time.perf_counter()
while (window := time.perf_counter() - started) < 0.3:
    pass
tell(event="result", window_seconds=window, STARTED cpu_seconds=window, num_batches=1, num_output_tokens=32,
     logits_finite=True)
"""


class SteadySensor:
    name, boost_clock_mhz = "steady", 1980.0

    def __init__(self, sign=None):
        self._sign = sign

    def read(self, seconds):
        if self._sign is not None:
            self._sign.touch()
        return Sample(seconds=seconds, power_watts=50.0, sm_clocks_mhz=(1900.0,), throttles=frozenset({"power-cap"}))


class Held:
    """A board on which each new engine's process stays, and somebody else was before."""

    def __init__(self):
        self.looks = 0

    def pids(self):
        self.looks += 1
        return frozenset({5} if self.looks == 1 else {5, 7})

    def used_bytes(self):
        return 10**9


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Runs a driver under the given sensor and boards; returns the row."""

    def measure_one(*, sensor, boards="none", kind="gpu", started="window_started_seconds=started,", between=""):
        monkeypatch.setattr(run, "open_sensor", lambda kind, num_devices: sensor)
        monkeypatch.setattr(run, "open_boards", lambda num_devices: boards)
        text = DRIVER.replace("KIND", repr(kind)).replace("PARAMETERS", str(SHAPE.num_total_parameters))
        driver = tmp_path / "driver.py"
        text = text.replace("SIGN", str(tmp_path / "sampled"))
        driver.write_text(text.replace("STARTED", started).replace("BETWEEN", between))
        assignment = BenchAssignment(
            architecture=SHAPE,
            recipe=ServingRecipe(engine="vllm"),
            workload=Workload(batch_size=4, input_tokens=8, output_tokens=8),
            min_window_seconds=0.1,
        )
        engine = Engine(name="vllm", driver=driver)
        *_, row = run.run_benchmark(assignment, agent="a", work_directory=tmp_path, engine=engine)
        return row

    return measure_one


def test_energy_is_that_of_the_engines_own_window(measure, tmp_path):
    sign = tmp_path / "sampled"  # a real engine warms up meanwhile
    wait = f"while not os.path.exists({str(sign)!r}): time.sleep(0.01)"
    row = measure(sensor=SteadySensor(sign), between=wait)
    assert isinstance(row, ServingObservation)
    assert isinstance(row.joules_per_output_token, Measured)
    windows = [repeat.seconds for repeat in row.repeats]
    assert [repeat.joules for repeat in row.repeats] == pytest.approx([50 * window for window in windows])
    assert row.joules_per_output_token.value == pytest.approx(50 * sum(windows) / 3 / 32)
    assert row.joules_per_output_token.unit == "J/token"
    assert {"throttled", "clocks-off"} <= set(row.flags)
    assert {repeat.sm_clock_mhz for repeat in row.repeats} == {1900.0}
    assert ServingObservation.model_validate_json(row.model_dump_json()) == row


def test_an_engine_that_does_not_tell_when_its_window_began_has_no_energy(measure):
    row = measure(sensor=SteadySensor(), started="")
    assert row.joules_per_output_token.reason == "the engine does not tell when its window began"


def test_without_a_sensor_energy_is_absent_with_the_reason(measure):
    row = measure(sensor="no power sensor was sampled: none here", kind="cpu")
    assert row.joules_per_output_token.reason == "no power sensor was sampled: none here"
    assert all(repeat.joules is None for repeat in row.repeats)


def test_a_gpu_that_is_shared_or_not_given_back_is_flagged(measure, monkeypatch):
    monkeypatch.setattr("agent.sensors.Usage.wait_until_released.__kwdefaults__", quick())
    row = measure(sensor=SteadySensor(), boards=(Held(),))
    assert {"gpu-shared", "gpu-not-released"} <= set(row.flags)


def test_a_failure_tells_that_the_gpu_was_not_given_back(measure, monkeypatch):
    monkeypatch.setattr("agent.sensors.Usage.wait_until_released.__kwdefaults__", quick())
    failure = measure(sensor=SteadySensor(), boards=(Held(),), between="raise SystemExit('no page')")
    assert isinstance(failure, Failure)
    assert failure.message.endswith("no page; afterwards the GPU's driver still lists processes 7")


def quick():
    """The defaults of waiting, under a clock that runs ten seconds a look."""
    times = iter(range(0, 10_000, 10))
    return {"timeout_seconds": 20, "clock": lambda: float(next(times)), "sleep": lambda seconds: None}
