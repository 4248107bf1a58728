"""Figure: points, curves and intervals with their units and words, drawn by whoever has something to draw with.

The report, the dashboard and `--format json` show the same figures because they are made from the same values. Whether
something was measured or predicted is part of every series: a painter must make the two look different.
"""

from typing import Literal, get_args

from pydantic import Field, model_validator

from hwprofiles.value import Value

Kind = Literal["measured", "predicted", "simulated", ""]
"""Simulated: made up by a pretended fleet or engine in place of a measurement. Empty for what is none of these: a
guide, a plan, a lane of time."""
Mark = Literal["dot", "ring", "cross", "diamond", "hollow-diamond", "line", "step", "band", "span", "bar"]
"""`line` and `step` join the points, a step holds each value until the next; a `band` fills `y_interval`; a `span` lies
along x over `x_interval`, as thick as its lane; a `bar` is an interval alone, without a mark at its point."""
Colour = Literal[
    "ink",
    "soft",
    "hair",
    "law",
    "band",
    "recommended",
    "baseline",
    "worse",
    "front",
    "bad",
    "scale-1",
    "scale-2",
    "scale-3",
    "scale-4",
    "scale-5",
    "space",
    "replicate",
    "reference",
    "proposed",
    "validation",
    "serving",
]
"""Roles of the palette; the values for light and dark stand in palette.css."""
COLOURS: tuple[Colour, ...] = get_args(Colour)


class Axis(Value):
    """One axis. `categories` names the places 0, 1, ... of an axis that counts things."""

    label: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"
    low: float | None = None
    """Limits; null follows the data."""
    high: float | None = None
    ticks: tuple[float, ...] = ()
    """Values to mark; empty leaves the choice to the painter."""
    categories: tuple[str, ...] = ()


class Series(Value):
    """Points of one look. All tuples have one length; intervals are (low, high), null where there is none."""

    name: str
    """For the legend; empty keeps it out of it."""
    kind: Kind
    mark: Mark
    colour: Colour
    dashed: bool = False
    """Broken lines; of a `span`, hollow: it had not ended."""
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_interval: tuple[tuple[float, float] | None, ...] = ()
    y_interval: tuple[tuple[float, float] | None, ...] = ()
    labels: tuple[str, ...] = ()
    """What a point is, told when it is pointed at. With `show_labels` what stands before the first colon is printed
    beside the point, and the whole in the legend."""
    show_labels: bool = False
    trial_ids: tuple[str, ...] = ()
    """The trial behind each point: where a click leads."""

    @model_validator(mode="after")
    def _one_length(self) -> "Series":
        for name in ("y", "x_interval", "y_interval", "labels", "trial_ids"):
            values = getattr(self, name)
            if (values or name == "y") and len(values) != len(self.x):
                raise ValueError(f"series {self.name!r} has {len(self.x)} x and {len(values)} {name}")
        return self


class Guide(Value):
    """A line (low = high) or a stripe across the figure at values of one axis; `diagonal` is y = x."""

    axis: Literal["x", "y", "diagonal"]
    low: float = 0.0
    high: float = 0.0
    colour: Colour = "soft"
    dashed: bool = False
    name: str = ""


class Figure(Value):
    """A figure with its words. Where there is nothing to draw, `series` is empty and `reason` says why."""

    name: str = Field(pattern=r"\A[a-z0-9][a-z0-9_-]{0,62}\z")
    title: str
    caption: str = ""
    """What the intervals are, how many runs, and what is not on the figure."""
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    guides: tuple[Guide, ...] = ()
    reason: str = ""
    is_wide: bool = False
