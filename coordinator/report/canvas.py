"""The painter: any Figure as inline SVG with its legend. One style for all, one drawing for light and dark.

Colours are the palette's CSS variables, so that a drawing follows its page. What is measured is filled and solid, what
is predicted hollow or broken: that is in the values, and drawn as it stands there. A point tells its label and numbers
when it is pointed at, and leads to its trial's row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from coordinator.figures.figure import Axis, Colour, Figure, Guide, Kind, Series
from coordinator.report.axes import Plane, axis_words, label_width, number_words, plane_of

if TYPE_CHECKING:
    from markupsafe import Markup

Glyph = (
    Literal["dot", "ring", "line", "dashes", "band", "cross", "diamond", "hollow-diamond", "swatch", "hollow-swatch"]
    | Literal["bar", "dashed-bar", "stripe"]
)
_KINDS: tuple[Kind, ...] = ("measured", "simulated", "predicted", "")
_CROWD = 150
"""Points of one series from which on marks are drawn smaller."""
_MOST_TOLD = 5_000
"""A series of more points than these is drawn without words for each."""
_FONT_SIZE = 12
_LANE = 0.32
"""Half the height of a span, as a share of its lane."""


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One line of a figure's legend, drawn by the page beside the figure."""

    glyph: Glyph
    colour: Colour
    text: str
    kind: Kind = ""


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A figure with its drawing; `svg` is None where there is nothing to draw, and the figure's `reason` says why."""

    figure: Figure
    svg: "Markup | None"
    legend: tuple[LegendEntry, ...]


def paint(figure: Figure) -> Painted:
    """Draw a figure as an SVG element that scales to its column, and make its legend."""
    from markupsafe import Markup

    if not figure.series:
        return Painted(figure=figure, svg=None, legend=())
    svg = Markup("\n".join(_svg(figure)))
    return Painted(figure=figure, svg=svg, legend=tuple(legend(figure)))


# Legend


def legend(figure: Figure) -> Iterator[LegendEntry]:
    """What the marks mean: named series by kind, the labels that are printed beside points, named guides."""
    for series in sorted(figure.series, key=lambda series: _KINDS.index(series.kind)):
        if series.name:
            yield LegendEntry(glyph=_glyph(series), colour=series.colour, text=series.name, kind=series.kind)
    for series in figure.series:
        for label in series.labels if series.show_labels else ():
            yield LegendEntry(glyph=_glyph(series), colour=series.colour, text=label, kind=series.kind)
    for guide in figure.guides:
        if guide.name:
            stripe = guide.axis != "diagonal" and guide.low < guide.high
            glyph: Glyph = "stripe" if stripe else "dashes" if guide.dashed else "line"
            yield LegendEntry(glyph=glyph, colour=guide.colour, text=guide.name)


def _glyph(series: Series) -> Glyph:
    match series.mark:
        case "line" | "step":
            return "dashes" if series.dashed else "line"
        case "span":
            return "hollow-swatch" if series.dashed else "swatch"
        case "bar":
            return "dashed-bar" if series.dashed else "bar"
        case mark:
            return mark


# Drawing


def _svg(figure: Figure) -> Iterator[str]:
    plane = plane_of(figure)
    label = escape(f"{figure.title}. {figure.caption}")
    yield f'<svg role="img" aria-label="{label}" viewBox="0 0 {plane.width} {plane.height}" font-size="{_FONT_SIZE}">'
    box = f'x="{plane.left}" y="{plane.top}" width="{plane.right - plane.left}" height="{plane.bottom - plane.top}"'
    yield f'<clipPath id="{figure.name}-plot"><rect {box}/></clipPath>'
    yield from _axes(figure, plane)
    yield f'<g clip-path="url(#{figure.name}-plot)">'
    for guide in figure.guides:
        yield from _guide(guide, plane)
    for mark in ("band", "line", "step"):
        for series in figure.series:
            if series.mark == mark:
                yield from _curve(series, plane)
    for series in figure.series:
        yield from _intervals(series, plane)
    yield "</g>"
    for series in figure.series:
        if series.mark == "span":
            yield from _spans(series, figure, plane)
        elif series.mark not in ("band", "line", "step", "bar"):
            yield from _points(series, figure, plane)
    yield from _names(figure, plane)
    yield "</svg>"


def _axes(figure: Figure, plane: Plane) -> Iterator[str]:
    """Grid, ticks and their numbers, both lines, both labels."""
    left, right, top, bottom = plane.left, plane.right, plane.top, plane.bottom
    grid = [f"M{_n(at)} {top}V{bottom}" for at, _ in plane.x_ticks] if not figure.x.categories else []
    grid += [f"M{left} {_n(at)}H{right}" for at, _ in plane.y_ticks] if not figure.y.categories else []
    yield f'<path d="{"".join(grid)}" style="stroke:var(--hair)" stroke-width=".8" fill="none"/>'
    yield f'<path d="M{left} {top}V{bottom}H{right}" style="stroke:var(--soft)" fill="none"/>'
    yield '<g style="fill:var(--ink)">'
    for at, words in plane.x_ticks:
        turned = f' transform="rotate(-40 {_n(at)} {bottom + 12})"' if plane.turned else ""
        anchor, x = ("end", at + 4) if plane.turned else ("middle", at)
        yield f'<text x="{_n(x)}" y="{bottom + 17}" text-anchor="{anchor}"{turned}>{escape(words)}</text>'
    for at, words in plane.y_ticks:
        yield f'<text x="{left - 7}" y="{_n(at + 4)}" text-anchor="end">{escape(words)}</text>'
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    yield f'<text x="{_n(middle_x)}" y="{plane.height - 5}" text-anchor="middle">{escape(axis_words(figure.x))}</text>'
    if words := axis_words(figure.y):
        turn = f'transform="translate(13 {_n(middle_y)}) rotate(-90)"'
        yield f'<text {turn} text-anchor="middle">{escape(words)}</text>'
    yield "</g>"


def _guide(guide: Guide, plane: Plane) -> Iterator[str]:
    if guide.axis == "diagonal":
        low, high = max(plane.x.low, plane.y.low), min(plane.x.high, plane.y.high)
        path = f"M{_n(plane.x.at(low))} {_n(plane.y.at(low))}L{_n(plane.x.at(high))} {_n(plane.y.at(high))}"
        yield f'<path d="{path}" style="stroke:var(--{guide.colour})"/>'
        return
    scale = plane.x if guide.axis == "x" else plane.y
    first, last = sorted((scale.at(guide.low), scale.at(guide.high)))
    if guide.low < guide.high:
        box = (first, plane.top, last, plane.bottom) if guide.axis == "x" else (plane.left, first, plane.right, last)
        yield _rectangle(box, f'style="fill:var(--{guide.colour})" opacity=".13"')
        return
    along = (
        f"M{_n(first)} {plane.top}V{plane.bottom}" if guide.axis == "x" else f"M{plane.left} {_n(first)}H{plane.right}"
    )
    dashes = ' stroke-dasharray="4 3"' if guide.dashed else ""
    yield f'<path d="{along}" style="stroke:var(--{guide.colour})" stroke-width="1.2"{dashes}/>'


def _curve(series: Series, plane: Plane) -> Iterator[str]:
    """A band as an area, a line or step as a path; a step holds each value until the next point."""
    points = [(plane.x.at(x), plane.y.at(y)) for x, y in zip(series.x, series.y, strict=True)]
    if series.mark == "band":
        ends = [known or (y, y) for known, y in zip(series.y_interval, series.y, strict=True)]
        there = [(x, plane.y.at(high)) for (x, _), (_, high) in zip(points, ends, strict=True)]
        back = [(x, plane.y.at(low)) for (x, _), (low, _) in zip(points, ends, strict=True)]
        yield f'<path d="{_path([*there, *reversed(back)])}Z" style="fill:var(--{series.colour})" opacity=".17"/>'
        return
    path = _path(points)
    if series.mark == "step":
        path = f"M{_n(points[0][0])} {_n(points[0][1])}" + "".join(f"H{_n(x)}V{_n(y)}" for x, y in points[1:])
    dashes = ' stroke-dasharray="7 4"' if series.dashed else ""
    yield f'<path d="{path}" style="stroke:var(--{series.colour})" stroke-width="1.8" fill="none"{dashes}/>'


def _intervals(series: Series, plane: Plane) -> Iterator[str]:
    """Bars along both axes; capped where one stands alone as a scale."""
    if series.mark in ("band", "span"):
        return
    bars = []
    cap = series.mark == "bar" and not series.dashed
    for x, ends in zip(series.x, series.y_interval, strict=False):
        if ends is not None:
            at, low, high = plane.x.at(x), plane.y.at(ends[0]), plane.y.at(ends[1])
            bars.append(f"M{_n(at)} {_n(low)}V{_n(high)}")
            bars += [f"M{_n(at - 4)} {_n(end)}h8" for end in (low, high) if cap]
    for y, ends in zip(series.y, series.x_interval, strict=False):
        if ends is not None:
            bars.append(f"M{_n(plane.x.at(ends[0]))} {_n(plane.y.at(y))}H{_n(plane.x.at(ends[1]))}")
    if bars:
        dashes, path = ' stroke-dasharray="4 2.5"' if series.dashed else "", "".join(bars)
        yield f'<path d="{path}" style="stroke:var(--{series.colour})" stroke-width="1.7" fill="none"{dashes}/>'


def _points(series: Series, figure: Figure, plane: Plane) -> Iterator[str]:
    """Marks of one series; those beyond the limits of an axis are left out."""
    size = 3 if len(series.x) > _CROWD else 4.4
    hollow = series.mark in ("ring", "hollow-diamond")
    look = "fill:var(--card);stroke:var(--{0})" if hollow else "fill:var(--{0})"
    if series.mark == "cross":
        look = "fill:none;stroke:var(--{0})"
    yield f'<g style="{look.format(series.colour)}" stroke-width="{1.9 if hollow else 1.6}" opacity=".92">'
    for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        if plane.x.holds(x) and plane.y.holds(y):
            yield from _told(_shape(series, plane.x.at(x), plane.y.at(y), size), series, figure, place)
    yield "</g>"


def _shape(series: Series, x: float, y: float, size: float) -> str:
    """The beginning of an element, without its end."""
    match series.mark:
        case "cross":
            size *= 0.85
            d = f"M{_n(x - size)} {_n(y - size)}l{_n(2 * size)} {_n(2 * size)}M{_n(x - size)} {_n(y + size)}"
            return f'<path d="{d}l{_n(2 * size)} {_n(-2 * size)}"'
        case "diamond" | "hollow-diamond":
            size *= 1.35
            d = f"M{_n(x)} {_n(y - size)}l{_n(size)} {_n(size)}l{_n(-size)} {_n(size)}l{_n(-size)} {_n(-size)}z"
            return f'<path d="{d}"'
        case _:
            return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}"'


def _spans(series: Series, figure: Figure, plane: Plane) -> Iterator[str]:
    look = "fill:none;stroke:var(--{0})" if series.dashed else "fill:var(--{0})"
    yield f'<g style="{look.format(series.colour)}" stroke-width="1.3">'
    for place, (lane, ends) in enumerate(zip(series.y, series.x_interval, strict=True)):
        low, high = (plane.x.at(end) for end in ends or (series.x[place],) * 2)
        gap = min(1.0, 0.1 * (high - low))  # neighbours stay apart
        box = (low, plane.y.at(lane + _LANE), max(high - gap, low + 0.4), plane.y.at(lane - _LANE))
        yield from _told(_rectangle(box)[:-2], series, figure, place)
    yield "</g>"


def _told(element: str, series: Series, figure: Figure, place: int) -> Iterator[str]:
    """A mark with its words, and as a link where it has a trial; pointed at, not stepped through by keyboard."""
    if len(series.x) > _MOST_TOLD:
        yield f"{element}/>"
        return
    title = f"<title>{escape(_point_words(series, figure, place))}</title>"
    mark = f"{element}>{title}</{element[1:].partition(' ')[0]}>"
    if series.trial_ids:
        mark = f'<a href="#{escape(series.trial_ids[place])}" tabindex="-1">{mark}</a>'
    yield mark


def _point_words(series: Series, figure: Figure, place: int) -> str:
    """Label, both numbers with their intervals, and what kind of numbers they are."""
    words = [series.labels[place] if series.labels else series.name]
    if series.mark != "span":
        for axis, value, intervals in (
            (figure.x, series.x[place], series.x_interval),
            (figure.y, series.y[place], series.y_interval),
        ):
            if not axis.categories:
                words.append(_value_words(axis, value, intervals[place] if intervals else None))
    words.append(series.kind)
    return "\n".join(word for word in words if word)


def _value_words(axis: Axis, value: float, ends: tuple[float, float] | None) -> str:
    span = "" if ends is None else f" [{number_words(ends[0])}, {number_words(ends[1])}]"
    return f"{axis.label}: {number_words(value)}{span}{' ' if axis.unit else ''}{axis.unit}"


def _names(figure: Figure, plane: Plane) -> Iterator[str]:
    """Names beside the marks, each where it meets no other name and no mark, if there is such a place."""
    points = [
        (plane.x.at(x), plane.y.at(y), label.partition(":")[0])
        for series in figure.series
        if series.show_labels
        for x, y, label in zip(series.x, series.y, series.labels, strict=True)
    ]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in points]
    for x, y, name in points:
        width = label_width(name)
        places = [(x + dx if dx > 0 else x + dx - width, y + dy) for dy in (-8, 18, -22, 32, 4) for dx in (8, -8)]
        boxes = [(at, down - 10, at + width, down + 3) for at, down in places]
        best = min(range(len(boxes)), key=lambda k: (_clashes(boxes[k], taken) + plane.leaves(boxes[k]), k))
        taken.append(boxes[best])
        at, down = places[best]
        yield f'<text x="{_n(at)}" y="{_n(down)}" style="fill:var(--ink)">{escape(name)}</text>'


Box = tuple[float, float, float, float]


def _clashes(box: Box, others: Iterable[Box]) -> int:
    return sum(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def _rectangle(box: Box, rest: str = "") -> str:
    """Of left, top, right and bottom."""
    left, top, right, bottom = box
    size = f'width="{_n(right - left)}" height="{_n(bottom - top)}"'
    return f'<rect x="{_n(left)}" y="{_n(top)}" {size}{" " if rest else ""}{rest}/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _n(value: float) -> str:
    """A coordinate to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
