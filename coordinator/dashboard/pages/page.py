"""What all pages share: which run they are of and up to which event, numbers with their words, shapes in short."""

from typing import Any, Literal

from coordinator.figures.formats import digits
from coordinator.figures.shown import shown
from coordinator.record import is_simulated
from coordinator.store import StoreReader
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import Interval, NotMeasured, Quantity

AmountKind = Literal["measured", "predicted", "simulated", "not measured"]
"""Simulated is what a simulated fleet or the engine `fake` reports in place of a measurement."""
Health = Literal["ok", "warning", "problem", "unknown"]


class Page(Value):
    """Every page says which run it is of, and how new it is."""

    run: str
    """Name of the run directory."""
    study: str
    seq: int
    """Number of the newest event that the page knows: `/api/events?after=` this number tells what came after it."""
    unix: float
    """When the page was made, in seconds since the epoch by the server's clock."""
    simulated: bool
    """Whether fleet or engine are simulations, so that nothing here was measured on a device."""


def page_facts(store: StoreReader, *, now_unix: float) -> dict[str, Any]:
    """The fields of `Page`."""
    study = store.study()
    return {
        "run": store.run_directory.resolve().name,
        "study": study.name,
        "seq": store.last_seq(),
        "unix": now_unix,
        "simulated": is_simulated(store) or study.serving.recipe.engine == "fake",
    }


class Amount(Value):
    """A number with its unit and interval, or the reason why there is none; with the words to show it by."""

    kind: AmountKind
    value: float | None
    """Null where it was not measured: `note` says why."""
    unit: str
    low: float | None
    """Ends of the interval, in the same unit; null where there is none: `note` says why."""
    high: float | None
    level: float | None
    """Nominal coverage of the interval: 0.9 is 90 %."""
    text: str
    """The value with the digits that its unit deserves, without the unit; empty where there is none."""
    interval: str
    """The interval in brackets with level and method; empty where there is none."""
    note: str
    """What it rests on, and why value or interval are missing where they are."""


class Fact(Value):
    """One named fact of a study or a fit in words; `note` explains it or says why there is none."""

    name: str
    value: str
    note: str


class Shape(Value):
    """An architecture in short. The whole of it is in its config.json."""

    label: str
    num_parameters: int
    """Non-embedding parameters, N."""
    x: float
    """Width ratio d / √N, dimensionless."""
    r: float
    """MLP over attention parameters, dimensionless."""
    query_group_size: int
    """Query heads per key-value head."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


def amount(quantity: Quantity, *, signed: bool = False, simulated: bool = False) -> Amount:
    """A quantity as numbers and as words; `signed` writes a plus sign, `simulated` tells who has measured it."""
    words = shown(quantity, signed=signed)
    number = None if isinstance(quantity, NotMeasured) else quantity
    interval: Interval | None = None if number is None else number.interval
    return Amount(
        kind="simulated" if simulated and words.kind == "measured" else words.kind,
        value=None if number is None else number.value,
        unit="" if number is None else number.unit,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        level=None if interval is None else interval.level,
        text=words.value,
        interval=words.interval,
        note=words.note,
    )


def stated(kind: AmountKind, value: float, unit: str, note: str) -> Amount:
    """A number that has no interval; `note` says what it rests on, and why there is none."""
    text = digits(value, unit)
    return Amount(kind=kind, value=value, unit=unit, low=None, high=None, level=None, text=text, interval="", note=note)


def missing(reason: str) -> Amount:
    """What was not measured, and why."""
    return amount(NotMeasured(reason=reason))


def shape_of(architecture: Architecture) -> Shape:
    """An architecture in short."""
    return Shape(
        label=architecture.label,
        num_parameters=architecture.num_parameters,
        x=architecture.width_ratio,
        r=architecture.mlp_attention_ratio,
        query_group_size=architecture.query_group_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.num_hidden_layers,
        num_attention_heads=architecture.num_attention_heads,
        num_key_value_heads=architecture.num_key_value_heads,
        head_dim=architecture.head_dim,
    )
