"""The painter: scalable inline SVG in the page's colours that says what every mark is."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from coordinator.figures.figure import Axis, Figure, Guide, Mark, Series
from coordinator.report.canvas import legend, paint

SVG = "{http://www.w3.org/2000/svg}"


def series(mark: Mark = "dot", **changes: object) -> Series:
    values: dict[str, object] = {
        "name": "runs",
        "kind": "measured",
        "mark": mark,
        "colour": "recommended",
        "x": (1.0, 2.0, 3.0),
        "y": (10.0, 30.0, 20.0),
    }
    return Series.model_validate(values | changes)


def figure(*drawn: Series, **changes: object) -> Figure:
    values: dict[str, object] = {
        "name": "one",
        "title": 'a "title" <b>',
        "x": Axis(label="x & more", unit="tokens"),
        "y": Axis(label="loss", unit="nats/token"),
        "series": drawn,
    }
    return Figure.model_validate(values | changes)


def parsed(one: Figure) -> ElementTree.Element:
    svg = paint(one).svg
    assert svg is not None
    return ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_a_drawing_scales_and_its_text_is_escaped() -> None:
    root = parsed(figure(series()))
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("aria-label") == 'a "title" <b>. '
    assert "x & more (tokens)" in texts(root)


def test_every_identifier_carries_the_figures_name() -> None:
    svg = str(paint(figure(series())).svg)
    assert re.findall(r'id="([^"]+)"', svg) == ["one-plot"]
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) == {"one-plot"}


def test_nothing_to_draw_is_no_drawing() -> None:
    painted = paint(figure(reason="nothing ran."))
    assert (painted.svg, painted.legend) == (None, ())


@pytest.mark.parametrize(("mark", "hollow"), [("dot", False), ("diamond", False), ("ring", True)])
def test_predicted_marks_are_hollow(mark: Mark, hollow: bool) -> None:
    assert ("fill:var(--card)" in str(paint(figure(series(mark))).svg)) == hollow


@pytest.mark.parametrize("mark", ["dot", "ring", "cross", "diamond", "hollow-diamond", "span"])
def test_every_point_is_drawn_once_with_its_words_and_leads_to_its_trial(mark: Mark) -> None:
    spans = ((0.5, 1.5), (1.5, 2.5), None) if mark == "span" else ()
    root = parsed(figure(series(mark, labels=("a", "b", "c"), trial_ids=("t-1", "t-2", "t-3"), x_interval=spans)))
    links = list(root.iter(f"{SVG}a"))
    assert [link.get("href") for link in links] == ["#t-1", "#t-2", "#t-3"]
    titles = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert [title.split("\n")[0] for title in titles] == ["a", "b", "c"]
    assert all(title.endswith("measured") for title in titles)


def test_a_point_tells_value_unit_and_interval() -> None:
    root = parsed(figure(series(y_interval=((9.0, 11.0), None, None))))
    first, second, _ = (element.text or "" for element in root.iter(f"{SVG}title"))
    assert "loss: 10 [9, 11] nats/token" in first
    assert "loss: 30 nats/token" in second


def test_points_beyond_the_limits_of_an_axis_are_left_out() -> None:
    root = parsed(figure(series(), y=Axis(label="loss", low=0, high=25)))
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_names_stand_beside_their_points_up_to_the_colon_and_whole_in_the_legend() -> None:
    one = figure(series(labels=("a: d64", "b: d65", "Panda: d66"), show_labels=True))
    assert {"a", "b", "Panda"} <= set(texts(parsed(one)))
    assert [entry.text for entry in legend(one)] == ["runs", "a: d64", "b: d65", "Panda: d66"]


def test_crowded_names_do_not_lie_on_each_other() -> None:
    crowd = series(x=(1.0, 1.01, 1.02), y=(1.0, 1.0, 1.0), labels=("first", "second", "third"), show_labels=True)
    far = series(x=(5.0, 6.0, 7.0), y=(2.0, 3.0, 4.0))
    placed = [
        (float(element.get("x") or 0), float(element.get("y") or 0))
        for element in parsed(figure(crowd, far)).iter(f"{SVG}text")
        if element.text in ("first", "second", "third")
    ]
    for i, (x, y) in enumerate(placed):
        for other_x, other_y in placed[:i]:
            assert abs(y - other_y) >= 13 or abs(x - other_x) >= 30


def test_measured_comes_before_predicted_in_the_legend_and_guides_last() -> None:
    law = series("line", name="law", kind="predicted", dashed=True)
    one = figure(law, series(), guides=(Guide(axis="y", low=1, high=2, name="noise"),))
    assert [(entry.text, entry.kind, entry.glyph) for entry in legend(one)] == [
        ("runs", "measured", "dot"),
        ("law", "predicted", "dashes"),
        ("noise", "", "stripe"),
    ]


@pytest.mark.parametrize("mark", ["dot", "ring", "cross", "diamond", "hollow-diamond", "line", "step", "band", "bar"])
def test_every_mark_can_be_drawn_from_one_point(mark: Mark) -> None:
    alone = series(mark, x=(1.0,), y=(2.0,), y_interval=((1.5, 2.5),))
    assert "nan" not in str(paint(figure(alone)).svg)


def test_a_step_holds_each_value_until_the_next_point() -> None:
    svg = str(paint(figure(series("step"))).svg)
    (path,) = re.findall(r'd="(M[^"]*H[^"]*V[^"]*H[^"]*V[^"]*)" style="stroke:var\(--recommended', svg)
    assert [letter for letter in path if letter.isalpha()] == ["M", "H", "V", "H", "V"]


def test_the_painter_is_imported_without_what_it_writes_pages_with() -> None:
    code = "import sys, coordinator.report; sys.exit(any(n in sys.modules for n in ('matplotlib', 'jinja2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
