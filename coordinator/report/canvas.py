"""Figures as inline SVG: one style for all, no pyplot, one drawing for light and dark by colours as CSS variables.

matplotlib knows no CSS, so every colour is drawn as a placeholder that no figure uses otherwise and becomes
`var(--name)` afterwards. Identifiers are prefixed with the figure's name: many drawings share one document.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coordinator.report.formats import short

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = (
    *("ink", "soft", "hair", "law", "band"),
    *("recommended", "baseline", "worse", "front", "bad"),
    *("scale-1", "scale-2", "scale-3", "scale-4", "scale-5"),
    *("space", "replicate", "reference", "proposed", "validation", "serving"),
)
COLOURS = {name: f"#01{number:02x}fe" for number, name in enumerate(_NAMES, start=16)}
"""Placeholder of each CSS variable; the values for light and dark stand in page.css."""
NUM_SCALE_STEPS = 5

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["hair"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "lines.linewidth": 1.6,
    "lines.markersize": 6.5,
    "hatch.linewidth": 0.7,
}

Glyph = Literal["dot", "ring", "line", "dashes", "band", "cross", "diamond", "hollow-diamond", "swatch", "bar"]


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """One line of a figure's legend, drawn by the page beside the figure."""

    glyph: Glyph
    colour: str
    text: str
    kind: Literal["measured", "predicted", ""] = ""


@dataclass(frozen=True, kw_only=True)
class FigureBlock:
    """A figure with its words; where there is nothing to draw, `reason` says why and `svg` is None."""

    name: str
    title: str
    caption: str = ""
    svg: "Markup | None" = None
    legend: tuple[LegendEntry, ...] = ()
    reason: str = ""


def draw(
    paint: "Callable[[Figure], None]", *, name: str, label: str, size: tuple[float, float] = (6.2, 3.9)
) -> "Markup":
    """Let `paint` fill a fresh figure and return it as an SVG element that scales to its column.

    Args:
        paint: draws on the figure with the colours of `COLOURS`.
        name: unique in the document.
        label: what the figure shows, for those who do not see it.
        size: width and height in inches; ten-point text fits a column of 440 to 600 px.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # The context restores the settings: a caller's own style stays as it is.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        drawing = Figure(figsize=size, layout="constrained", facecolor="none")
        paint(drawing)
        for axes in drawing.axes:
            axes.set_facecolor("none")
        FigureCanvasSVG(drawing).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> "Markup":
    from markupsafe import Markup, escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its only rule is `*{...}`, which would reach the whole document.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif")
    for colour, placeholder in COLOURS.items():
        svg = svg.replace(placeholder, f"var(--{colour})")
    head = f'<svg role="img" aria-label="{escape(label)}" '
    return Markup(svg.replace("<svg ", head, 1).rstrip())


def set_log_axis(axes: "Axes", which: Literal["x", "y"], values: ArrayLike, *, label: str) -> None:
    """A logarithmic axis over `values` with a margin, and a few round ticks in plain digits."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = float(np.min(values)), float(np.max(values))
    margin = max((high / low) ** 0.06, 1.05)
    limits = (low / margin, high * margin)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    axis.set_major_locator(FixedLocator(round_ticks(*limits)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_label_text(label)


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high for a logarithmic axis: the coarsest series with at least four."""
    from matplotlib.ticker import MaxNLocator

    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for series in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.25, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [step * 10.0**decade for decade in decades for step in series]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def spans(low: ArrayLike, value: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """Distances below and above, (2, n), as error bars want them; never negative by rounding."""
    middle = np.atleast_1d(np.asarray(value, dtype=float))
    return np.asarray(np.maximum(0.0, np.stack([middle - np.atleast_1d(low), np.atleast_1d(high) - middle])))
