"""Shown: a quantity as text. Value, unit, interval or the reason for none, and whether it was measured or predicted."""

from typing import Literal

from coordinator.figures.formats import NATS, between, digits, plural
from hwprofiles.value import Value
from scaling.quantity import Measured, NotMeasured, Quantity

ShownKind = Literal["measured", "predicted", "simulated", "not measured"]


class Shown(Value):
    """A quantity as people read it. `value` is empty for what was not measured; `note` is then the reason."""

    kind: ShownKind
    value: str = ""
    unit: str = ""
    interval: str = ""
    """Both ends with level and method; empty where there is none, and `note` then says why."""
    note: str = ""


def shown(quantity: Quantity, *, signed: bool = False, simulated: bool = False) -> Shown:
    """A quantity with everything that a reader has to know of it; `signed` writes a plus sign.

    What a `simulated` fleet or engine reports stands in place of a measurement, and says so.
    """
    if isinstance(quantity, NotMeasured):
        return Shown(kind="not measured", note=quantity.reason)
    if isinstance(quantity, Measured):
        kind: ShownKind = "simulated" if simulated else "measured"
        origin = plural(quantity.num_samples, "run" if quantity.unit == NATS else "repeat")
    else:
        kind, origin = "predicted", quantity.basis
    absent = f"no interval: {quantity.no_interval_because}" if quantity.interval is None else ""
    return Shown(
        kind=kind,
        value=digits(quantity.value, quantity.unit, signed=signed),
        unit=quantity.unit,
        interval="" if quantity.interval is None else between(quantity.interval, quantity.unit, signed=signed),
        note="; ".join(part for part in (origin, absent) if part),
    )
