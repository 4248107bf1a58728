"""Drawing: scalable inline SVG in the page's colours, without touching anybody's matplotlib."""

import math
import subprocess
import sys

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.report.canvas import COLOURS, draw, round_ticks, set_log_axis, spans


def _line(figure) -> None:
    axes = figure.subplots()
    axes.plot([1, 10], [1, 2], color=COLOURS["recommended"])
    axes.set_title("loss $x < y$ & more")
    set_log_axis(axes, "x", [1, 10], label="D (tokens)")


def test_a_drawing_scales_and_keeps_its_text_as_text() -> None:
    svg = draw(_line, name="one", label='a "label"')
    head = svg[: svg.index(">")]
    assert "viewBox" in head
    assert "width=" not in head
    assert 'aria-label="a &#34;label&#34;"' in head
    assert "loss $x &lt; y$ &amp; more</text>" in svg


def test_identifiers_carry_the_figures_name() -> None:
    svg = draw(_line, name="one", label="")
    assert 'id="one-' in svg
    assert svg.count('id="') == svg.count('id="one-')
    assert svg.count("url(#") == svg.count("url(#one-")


def test_colours_become_css_variables() -> None:
    svg = draw(_line, name="one", label="")
    assert "var(--recommended)" in svg
    assert not any(placeholder in svg for placeholder in COLOURS.values())


def test_the_callers_matplotlib_settings_stay_as_they_are() -> None:
    before = dict(mpl.rcParams)
    draw(_line, name="one", label="")
    assert dict(mpl.rcParams) == before


def test_importing_the_report_needs_no_matplotlib() -> None:
    code = "import sys, coordinator.report; sys.exit('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(low=st.floats(1e-6, 1e9), factor=st.floats(1.02, 1e6))
def test_ticks_are_few_ordered_and_inside(low: float, factor: float) -> None:
    high = low * factor
    ticks = round_ticks(low, high)
    assert ticks == sorted(ticks)
    assert all(low <= tick <= high for tick in ticks)
    assert len(ticks) <= 16
    assert len(ticks) >= 4 or math.log10(factor) < 1


@pytest.mark.parametrize(("low", "high", "expected"), [(0.5, 5, [0.5, 1, 2, 5]), (90, 5000, [100, 300, 1000, 3000])])
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(expected)


def test_spans_are_distances_and_never_negative() -> None:
    assert spans([1.0, 2.0], [1.5, 2.0], [2.0, 2.0 - 1e-16]).tolist() == [[0.5, 0.0], [0.5, 0.0]]
