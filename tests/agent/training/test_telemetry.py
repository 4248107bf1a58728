"""What a run tells of its machine; a sensor that is slow or absent costs no step anything."""

import itertools
import threading

import pytest
import torch

from agent.power import Sample
from agent.training.telemetry import PowerMeter, mean_watts, memory_bytes, peak_flops_per_second
from hwprofiles.catalog import load_profile


class CountingSensor:
    """1 J more at every look, at a clock that the test moves."""

    name = "counter"
    boost_clock_mhz = None

    def __init__(self) -> None:
        self.looked = threading.Event()
        self._joules = itertools.count()

    def read(self, seconds: float) -> Sample:
        joules = float(next(self._joules))
        self.looked.set()
        return Sample(seconds=seconds, energy_joules=joules)


class StuckSensor(CountingSensor):
    """A driver that does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = threading.Event()

    def read(self, seconds: float) -> Sample:
        assert self.answer.wait(30)
        return super().read(seconds)


def test_the_peak_is_the_sheets_dense_bf16_and_a_cpu_has_none() -> None:
    assert peak_flops_per_second("h200") == load_profile("h200").peak_flops_per_second["bfloat16"] == 989e12
    assert peak_flops_per_second("cpu-generic") is None
    assert peak_flops_per_second("unknown") is None
    assert peak_flops_per_second("no-such-board") is None


def test_power_is_the_rise_of_a_counter_over_its_time_or_the_mean_of_powers() -> None:
    counted = [Sample(seconds=10.0, energy_joules=5.0), Sample(seconds=12.0, energy_joules=105.0)]
    assert mean_watts(counted) == 50.0
    assert mean_watts([Sample(seconds=0, power_watts=300.0), Sample(seconds=1, power_watts=500.0)]) == 400.0
    assert mean_watts(counted[:1]) is None
    assert mean_watts([]) is None


def test_the_meter_looks_by_itself() -> None:
    sensor = CountingSensor()
    times = itertools.count(0.0, 2.0)
    meter = PowerMeter(sensor, clock=lambda: next(times), period_seconds=0.01)
    watts = None
    while watts is None:
        assert sensor.looked.wait(30)
        watts = meter.watts()
    meter.close()
    assert watts == pytest.approx(0.5)


def test_a_sensor_that_does_not_answer_keeps_nobody_waiting() -> None:
    sensor = StuckSensor()
    meter = PowerMeter(sensor)
    assert meter.watts() is None
    sensor.answer.set()
    meter.close()


def test_without_a_sensor_there_is_no_power_and_a_reason() -> None:
    meter = PowerMeter("no power sensor was sampled: there is none")
    assert meter.watts() is None
    assert "there is none" in meter.why_not
    meter.close()


def test_the_memory_of_this_process_is_told() -> None:
    held = memory_bytes(torch.device("cpu"))
    assert held is not None
    assert 10 * 2**20 < held < 2**40
