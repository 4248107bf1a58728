"""Sensors are read through small protocols; a recorded NVML is replayed here."""

from types import SimpleNamespace

import pytest

from agent.power import Sample
from agent.sensors import GpuSensor, NvmlBoard, Sampler, Usage, open_boards, open_rapl, sampling, visible_devices


class RecordedNvml:
    """NVML's functions by name, with what an H200 would say; `replies` changes or removes some."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, **replies):
        memory = SimpleNamespace(used=2 * 2**30)
        self.replies = {
            "nvmlInit": None,
            "nvmlDeviceGetHandleByIndex": "board",
            "nvmlDeviceGetPowerUsage": 612_345,
            "nvmlDeviceGetClockInfo": 1965,
            "nvmlDeviceGetMaxCustomerBoostClock": 1980,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x40 | 0x1,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=71)],
            "nvmlDeviceGetMemoryInfo": memory,
        } | replies

    def __getattr__(self, name):
        if name not in self.replies:
            raise AttributeError(name)

        def ask(*arguments):
            if isinstance(self.replies[name], Exception):
                raise self.replies[name]
            return self.replies[name]

        return ask


def test_a_board_tells_power_clock_reasons_processes_and_memory():
    (board,) = open_boards(nvml=RecordedNvml())
    assert (board.power_watts(), board.sm_clock_mhz(), board.boost_clock_mhz()) == (612.345, 1965, 1980)
    assert (board.pids(), board.used_bytes()) == ({71}, 2 * 2**30)
    sample = GpuSensor([board]).read(3.0)
    assert sample == Sample(
        seconds=3.0,
        power_watts=612.345,
        sm_clocks_mhz=(1965.0,),
        throttles=frozenset({"power-cap", "thermal"}),
    )


def test_what_a_board_does_not_support_is_none_and_older_names_are_tried():
    replies = {
        "nvmlDeviceGetPowerUsage": RecordedNvml.NVMLError("Not Supported"),
        "nvmlDeviceGetMaxCustomerBoostClock": RecordedNvml.NVMLError("Not Supported"),
        "nvmlDeviceGetMaxClockInfo": 1410,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x20,
    }
    nvml = RecordedNvml(**replies)
    del nvml.replies["nvmlDeviceGetCurrentClocksEventReasons"]
    board = NvmlBoard(nvml, "board")
    assert (board.power_watts(), board.boost_clock_mhz(), board.event_reasons()) == (None, 1410, 0x20)
    assert GpuSensor([board]).read(0.0).power_watts is None


def test_power_of_several_boards_is_their_sum_and_absent_if_one_is_silent():
    silent = RecordedNvml(nvmlDeviceGetPowerUsage=RecordedNvml.NVMLError("GPU is lost"))
    boards = [NvmlBoard(RecordedNvml(), 0), NvmlBoard(RecordedNvml(), 1)]
    assert GpuSensor(boards).read(0.0).power_watts == pytest.approx(2 * 612.345)
    assert GpuSensor([*boards, NvmlBoard(silent, 2)]).read(0.0).power_watts is None


def test_a_driver_that_does_not_answer_is_a_reason():
    reason = open_boards(nvml=RecordedNvml(nvmlInit=RecordedNvml.NVMLError("Driver Not Loaded")))
    assert reason == "no power sensor was sampled: NVML does not answer: Driver Not Loaded"


def test_the_first_visible_devices_are_sampled():
    assert visible_devices(2, {}) == ("0", "1")
    assert visible_devices(1, {"CUDA_VISIBLE_DEVICES": "3, GPU-8f"}) == ("3",)
    assert visible_devices(2, {"CUDA_VISIBLE_DEVICES": "3, GPU-8f"}) == ("3", "GPU-8f")
    with pytest.raises(ValueError, match="shows 1 device"):
        visible_devices(2, {"CUDA_VISIBLE_DEVICES": "3"})


def package(root, name, energy, largest=1000):
    directory = root / name
    directory.mkdir()
    (directory / "energy_uj").write_text(f"{energy}\n")
    (directory / "max_energy_range_uj").write_text(f"{largest}\n")
    return directory / "energy_uj"


def test_packages_of_rapl_are_added_and_unwrapped_and_their_parts_left_out(tmp_path):
    first = package(tmp_path, "intel-rapl:0", 100)
    second = package(tmp_path, "intel-rapl:1", 900)
    package(tmp_path, "intel-rapl:0:0", 1)
    sensor = open_rapl(tmp_path)
    assert not isinstance(sensor, str)
    first.write_text("400")
    second.write_text("50")
    assert sensor.read(1.0).energy_joules == pytest.approx((300 + 150) * 1e-6)


def test_a_processor_without_readable_counters_says_so(tmp_path):
    assert "shows no processor package" in open_rapl(tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    assert "cannot be read by this user" in open_rapl(tmp_path)


class Counting:
    """A sensor whose energy is its time, and that fails now and then."""

    name, boost_clock_mhz = "counting", None

    def __init__(self):
        self.looks = 0

    def read(self, seconds):
        self.looks += 1
        if self.looks % 3 == 0:
            raise OSError("gone")
        return Sample(seconds=seconds, energy_joules=seconds)


def test_a_sampler_covers_a_window_that_begins_after_it_and_ends_before_it_is_asked():
    ticks = iter(range(10_000))
    with sampling(Counting()) as _, sampling("no sensor") as reason:
        assert reason == "no sensor"
    sampler = Sampler(Counting(), clock=lambda: float(next(ticks)), period_seconds=1e-3)
    while len(sampler._samples) < 5:  # the thread samples on
        sampler._stopped.wait(1e-3)
    sampler.stop()
    reading = sampler.read_window(0.0, 3.0)
    assert reading.joules == pytest.approx(3.0)
    assert reading.sensor == "counting"


class Occupied:
    """A board whose last run lets go step by step."""

    def __init__(self, *states):
        self.states = list(states)

    def pids(self):
        return frozenset(self.states[0][0])

    def used_bytes(self):
        used = self.states[0][1]
        if len(self.states) > 1:
            self.states.pop(0)
        return used


def release(*states):
    times = iter(range(100))
    usage = Usage([Occupied(*states)])
    return usage, usage.wait_until_released(
        timeout_seconds=10, clock=lambda: float(next(times)), sleep=lambda seconds: None
    )


def test_a_gpu_is_released_once_its_processes_are_gone_and_its_memory_is_back():
    usage, held = release(((), 10**9), ((), 60 * 10**9), ((), 30 * 10**9), ((), 10**9))
    assert held is None
    assert usage.doubts == {}


def test_what_is_still_held_when_the_time_is_over_is_told():
    assert release(((), 10**9), ((), 60 * 10**9))[1] == "59.00 GB of the GPU's memory are not back"
    assert release(((5,), 10**9), ((5, 7), 10**9))[1] == "the GPU's driver still lists processes 7"


def test_others_on_the_gpu_before_an_engine_are_a_doubt():
    usage, held = release(((5,), 10**9), ((5,), 10**9))
    assert held is None
    assert usage.doubts == {"gpu-shared": "other processes computed on the GPU: 5"}
