"""Energy, clocks and flags of a window, from samples."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.power import (
    MAX_GAP_SECONDS,
    Sample,
    WindowReading,
    integrate,
    read_window,
    reading_flags,
    slowest_median_clock,
    unwrap,
)


def powers(*points):
    return [Sample(seconds=seconds, power_watts=watts) for seconds, watts in points]


def read(samples, start=1.0, seconds=2.0, **more):
    return read_window(samples, start, seconds, sensor="test", **more)


def test_constant_power_is_power_times_the_window_wherever_the_samples_lie():
    assert read(powers((0.3, 50), (1.7, 50), (2.2, 50), (3.9, 50))).joules == pytest.approx(100)


def test_the_power_at_the_ends_of_the_window_is_interpolated():
    # P(t) = 10 t, so the energy from 1 to 3 s is 5 · (9 - 1).
    assert read(powers((0.5, 5), (2.5, 25), (3.5, 35))).joules == pytest.approx(40)


def test_a_counter_of_energy_is_interpolated_and_subtracted():
    samples = [Sample(seconds=float(t), energy_joules=7.0 + 30 * t) for t in (0, 2, 4)]
    assert read(samples).joules == pytest.approx(60)


@given(
    cuts=st.lists(st.floats(0, 10), min_size=0, max_size=5),
    points=st.lists(st.floats(0, 700), min_size=11, max_size=11),
    start=st.floats(0, 9.5),
    share=st.floats(0, 1),
)
def test_energy_is_additive_over_parts_and_between_its_bounds(cuts, points, start, share):
    samples = list(enumerate(points))
    end = start + share * (10 - start)
    corners = [start, *sorted(cut for cut in cuts if start < cut < end), end]
    parts = [integrate(samples, a, b) for a, b in pairwise(corners)]
    whole = integrate(samples, start, end)
    assert math.fsum(parts) == pytest.approx(whole, abs=1e-6)
    assert min(points) * (end - start) - 1e-6 <= whole <= max(points) * (end - start) + 1e-6


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "the sensor gave no power"),
        (powers((1.5, 50), (4, 50)), "samples of power do not cover the window"),
        (powers((0, 50), (2.9, 50)), "samples of power do not cover the window"),
        (powers((0.5, 50), (0.5 + MAX_GAP_SECONDS, 50)), None),
        (powers((0.4, 50), (0.4 + MAX_GAP_SECONDS + 0.8, 50)), "a gap of 3.8 s between samples of power, over 3 s"),
    ],
)
def test_a_window_that_is_not_covered_has_no_energy_and_says_why(samples, reason):
    reading = read(samples)
    assert reading.not_measured.get("joules") == reason
    assert (reading.joules is None) == (reason is not None)


def test_a_gap_outside_of_the_window_does_no_harm():
    assert read(powers((-20, 9), (0.9, 50), (3.1, 50), (30, 9))).joules == pytest.approx(100)


def test_without_the_start_of_the_window_nothing_is_measured():
    reading = read(powers((0, 50), (4, 50)), start=None)
    assert reading.joules is None
    assert reading.not_measured["joules"] == "the engine does not tell when its window began"


def test_clocks_and_throttling_count_within_the_window_only():
    samples = [
        Sample(seconds=0.0, sm_clocks_mhz=(300.0,), throttles=frozenset({"thermal"})),
        Sample(seconds=1.5, sm_clocks_mhz=(1900.0,), throttles=frozenset({"power-cap"})),
        Sample(seconds=2.5, sm_clocks_mhz=(1980.0,)),
        Sample(seconds=2.8, sm_clocks_mhz=(1980.0,)),
    ]
    reading = read(samples, boost_clock_mhz=1980.0)
    assert (reading.sm_clock_mhz, reading.throttles, reading.num_samples) == (1980, ("power-cap",), 3)


def test_the_slowest_device_tells_the_clock():
    samples = [Sample(seconds=t, sm_clocks_mhz=(1980.0, 1700.0)) for t in (1.0, 2.0)]
    assert slowest_median_clock([*samples, Sample(seconds=3, sm_clocks_mhz=(1980.0,))]) == 1700
    assert slowest_median_clock([]) is None


def clocked(*clocks, boost=None):
    return [WindowReading(sm_clock_mhz=clock, boost_clock_mhz=boost) for clock in clocks]


@pytest.mark.parametrize(
    ("readings", "flags"),
    [
        (clocked(1980, 1950, boost=1980), set()),
        (clocked(1980, 1935, boost=1980), {"clocks-off"}),
        (clocked(1930, 1930, boost=1980), {"clocks-off"}),
        (clocked(1930, 1930), set()),
        (clocked(None, None, boost=1980), set()),
        ([WindowReading(throttles=("power-cap",))], {"throttled"}),
        ([WindowReading(doubts={"gpu-shared": "others"})], {"gpu-shared"}),
    ],
)
def test_flags_follow_from_the_readings(readings, flags):
    assert reading_flags(readings) == flags


@given(st.lists(st.floats(0, 40), max_size=20))
def test_a_counter_that_wraps_is_unwrapped(steps):
    raw, total, counted = 0.0, 0.0, 0.0
    for step in steps:
        new = (raw + step) % 100
        counted += unwrap(raw, new, 100)
        raw, total = new, total + step
    assert counted == pytest.approx(total, abs=1e-6)
