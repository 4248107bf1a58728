"""The plane of a drawing: limits and ticks of both axes, and where on the page their values lie, in user units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from coordinator.figures.figure import Axis, Figure
from coordinator.figures.formats import short

_WIDTHS = (520, 1100)
"""Of a plain and of a wide figure; text of 12 units reads well in columns from 430 px on."""
_HEIGHT = 330
_LANE_HEIGHT = 24
_CHARACTER = 6.6
"""Mean width of a character of 12 units, on the safe side: a page's own font is not known here."""
_MARGIN, _LABELLED_MARGIN = 0.06, 0.14
"""Room beyond the outermost values, as a share of their distance; more where names stand beside marks."""
Tick = tuple[float, str]
Ticks = tuple[Tick, ...]
Which = Literal["x", "y"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from low to high lie between start and end."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def at(self, value: float) -> float:
        """Where a value lies; at the nearer end of a logarithmic axis where it has no logarithm."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value) if value > 0 else math.log(low) - 1
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value is within the limits, to rounding."""
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A drawing's size, its plot's edges, both scales and their ticks as (place, words)."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x: Scale
    y: Scale
    x_ticks: Ticks
    y_ticks: Ticks
    turned: bool
    """Whether the numbers of the x axis are turned, because they would touch."""

    def leaves(self, box: tuple[float, float, float, float]) -> int:
        """Through how many edges of the plot a box (left, top, right, bottom) leaves; twice as bad as a clash."""
        left, top, right, bottom = box
        return 2 * ((left < self.left) + (right > self.width) + (top < 0) + (bottom > self.bottom))


def plane_of(figure: Figure) -> Plane:
    """Room for the labels first, then the scales in what is left."""
    width, lanes = _WIDTHS[figure.is_wide], len(figure.y.categories)
    x_limits, y_limits = _limits(figure, "x"), _limits(figure, "y")
    x_places, y_places = _tick_values(figure.x, x_limits), _tick_values(figure.y, y_limits)
    x_words, y_words = tick_words(figure.x, x_places), tick_words(figure.y, y_places)
    left = 14 + max(map(label_width, y_words), default=0) + (20 if axis_words(figure.y) else 0)
    left = min(left, 0.45 * width)
    right = width - 14
    turned = sum(label_width(words) + 8 for words in x_words) > right - left
    below = 44 + (max(map(label_width, x_words)) * 0.62 - 8 if turned else 0)
    height = round(10 + below + max(80, _LANE_HEIGHT * lanes)) if lanes else _HEIGHT
    bottom = round(height - below)
    x = Scale(low=x_limits[0], high=x_limits[1], start=left, end=right, is_log=figure.x.scale == "log")
    y = Scale(low=y_limits[0], high=y_limits[1], start=bottom, end=10, is_log=figure.y.scale == "log")
    return Plane(
        width=width,
        height=height,
        left=round(left),
        right=right,
        top=10,
        bottom=bottom,
        x=x,
        y=y,
        x_ticks=tuple((x.at(value), words) for value, words in zip(x_places, x_words, strict=True)),
        y_ticks=tuple((y.at(value), words) for value, words in zip(y_places, y_words, strict=True)),
        turned=turned,
    )


def label_width(text: str) -> float:
    """About how wide a text is."""
    return _CHARACTER * len(text)


def axis_words(axis: Axis) -> str:
    """An axis's label with its unit, and that it is logarithmic."""
    notes = [note for note in (axis.unit, "log scale" if axis.scale == "log" else "") if note]
    return f"{axis.label} ({', '.join(notes)})" if notes and axis.label else axis.label


def _limits(figure: Figure, which: Which) -> tuple[float, float]:
    """Of everything that the marks reach, with a margin; as the axis says where it does."""
    axis = figure.x if which == "x" else figure.y
    reached = [limit for limit in (axis.low, axis.high) if limit is not None]
    for series in figure.series:
        reached += series.x if which == "x" else series.y
        intervals = series.x_interval if which == "x" else series.y_interval
        reached += [end for ends in intervals if ends is not None for end in ends]
    for guide in figure.guides:
        if guide.axis == which:
            reached += [guide.low, guide.high]
    margin = _LABELLED_MARGIN if any(series.show_labels for series in figure.series) else _MARGIN
    if axis.scale == "log":
        reached = [value for value in reached if value > 0]
        factor = max((max(reached) / min(reached)) ** margin, 1.03)
        low, high = min(reached) / factor, max(reached) * factor
    else:
        room = margin * (max(reached) - min(reached)) or 0.05 * abs(max(reached)) or 1.0
        low, high = min(reached) - room, max(reached) + room
    return low if axis.low is None else axis.low, high if axis.high is None else axis.high


def _tick_values(axis: Axis, limits: tuple[float, float]) -> list[float]:
    if axis.categories:
        return [float(place) for place in range(len(axis.categories))]
    if axis.ticks:
        return [tick for tick in axis.ticks if limits[0] <= tick <= limits[1]]
    if axis.scale == "log":
        return round_ticks(*limits)
    return linear_ticks(*limits, whole=axis.unit in ("runs", "sequences"))


def linear_ticks(low: float, high: float, *, num: int = 5, whole: bool = False) -> list[float]:
    """About `num` round numbers from low to high; whole ones on request."""
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high for a logarithmic axis: the coarsest series with at least four."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for series in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.25, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [step * 10.0**decade for decade in decades for step in series]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks if len(ticks) <= 8 else ticks[:: math.ceil(len(ticks) / 8)]
    return linear_ticks(low, high, num=4)


def tick_words(axis: Axis, ticks: Sequence[float]) -> list[str]:
    """The numbers at an axis, with as many digits as tell them apart."""
    if axis.categories:
        return list(axis.categories)
    if axis.scale == "log" or axis.ticks:
        return [_power_words(tick) if axis.unit == "FLOPs" else short(tick) for tick in ticks]
    steps = [b - a for a, b in pairwise(ticks)] or [1.0]
    decimals = max(0, -math.floor(math.log10(min(steps)) + 1e-9))
    decimals += any(abs(round(step, decimals) - step) > 1e-9 * abs(step) for step in steps)
    return [f"{tick if abs(tick) > 1e-12 else 0.0:,.{decimals}f}".replace("-", "−") for tick in ticks]


def _power_words(value: float) -> str:
    """3×10¹⁴: amounts of compute go beyond all prefixes that people know."""
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    mantissa = f"{value / 10.0**exponent:.3g}"
    power = f"10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return power if mantissa == "1" else f"{mantissa}×{power}"


def number_words(value: float) -> str:
    """A number when it is pointed at: five digits, groups of three from 10,000 on."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.5g}"
