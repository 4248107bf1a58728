"""Limits and ticks: few, round, in order, inside, and in words that tell them apart."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.figures.figure import Axis, Figure, Series
from coordinator.report.axes import axis_words, linear_ticks, plane_of, round_ticks, tick_words


@given(low=st.floats(1e-6, 1e9), factor=st.floats(1.02, 1e6))
def test_logarithmic_ticks_are_few_ordered_and_inside(low: float, factor: float) -> None:
    high = low * factor
    ticks = round_ticks(low, high)
    assert ticks == sorted(ticks)
    assert all(low <= tick <= high or math.isclose(tick, low) or math.isclose(tick, high) for tick in ticks)
    assert 2 <= len(ticks) <= 16


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_linear_ticks_are_few_ordered_inside_and_told_apart(low: float, width: float) -> None:
    ticks = linear_ticks(low, low + width)
    assert 2 <= len(ticks) <= 7
    slack = 1e-6 * max(abs(low), width)
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)
    words = tick_words(Axis(label="x"), ticks)
    assert len(set(words)) == len(ticks)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.5, 5, [0.5, 1, 2, 5]), (90, 5000, [100, 300, 1000, 3000])])
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(expected)


def test_whole_things_have_whole_ticks() -> None:
    assert linear_ticks(0.2, 3.1, whole=True) == [1, 2, 3]


def test_amounts_of_compute_are_powers_of_ten_and_others_have_prefixes() -> None:
    assert tick_words(Axis(label="C", unit="FLOPs", scale="log"), [1e12, 3e15]) == ["10¹²", "3×10¹⁵"]
    assert tick_words(Axis(label="D", unit="tokens", scale="log"), [5e4, 2e6]) == ["50 k", "2 M"]


def test_an_axis_says_its_unit_and_that_it_is_logarithmic() -> None:
    assert axis_words(Axis(label="D", unit="tokens", scale="log")) == "D (tokens, log scale)"
    assert axis_words(Axis(label="", categories=("a",))) == ""


@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(-1e3, 1e3)), min_size=1, max_size=20))
def test_every_point_lies_inside_the_plot(points: list[tuple[float, float]]) -> None:
    x, y = zip(*points, strict=True)
    drawn = Series(name="", kind="", mark="dot", colour="ink", x=x, y=y)
    figure = Figure(name="one", title="", x=Axis(label="x", scale="log"), y=Axis(label="y"), series=(drawn,))
    plane = plane_of(figure)
    for one, other in points:
        assert plane.left <= plane.x.at(one) <= plane.right + 1e-6
        assert plane.top - 1e-6 <= plane.y.at(other) <= plane.bottom + 1e-6


def test_lanes_make_room_for_their_names() -> None:
    names = tuple(f"d1024-f4096-h16kv4x64-L24-{number}" for number in range(12))
    drawn = Series(name="", kind="", mark="dot", colour="ink", x=(1.0,), y=(3.0,))
    axis = Axis(label="", low=-0.6, high=11.4, categories=names)
    plane = plane_of(Figure(name="one", title="", x=Axis(label="x"), y=axis, series=(drawn,)))
    assert plane.left >= 6 * len(names[0])
    assert plane.height > 12 * 20
