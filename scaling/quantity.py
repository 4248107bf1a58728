"""Numbers that say what they are: measured, predicted, or absent for a stated reason.

Measured and predicted numbers are different types, so that no face of archfleet can confuse them, and a
number without an uncertainty has to say why.
"""

from typing import Literal, Self

from pydantic import model_validator

from hwprofiles.value import Value


class Interval(Value):
    """A two-sided interval in the unit of the number it belongs to.

    `level` is its nominal coverage, e.g. 0.9; `method` says how it was made (t, bootstrap, profile ...).
    """

    low: float
    high: float
    level: float
    method: str

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high or not 0 < self.level < 1:
            raise ValueError(
                f"an interval needs low <= high and 0 < level < 1, got {self.low}, {self.high}, {self.level}"
            )
        return self


class _Number(Value):
    """A value with its unit; `interval` is null only where `no_interval_because` says why."""

    value: float
    unit: str
    interval: Interval | None = None
    no_interval_because: str | None = None

    @model_validator(mode="after")
    def _explains_itself(self) -> Self:
        if (self.interval is None) == (self.no_interval_because is None):
            raise ValueError("a number has either an interval or a reason for having none")
        return self


class Measured(_Number):
    """A number that was observed, over `num_samples` repeats."""

    kind: Literal["measured"] = "measured"
    num_samples: int


class Predicted(_Number):
    """A number that a model computed; `basis` names the model and what it was calibrated on, if anything."""

    kind: Literal["predicted"] = "predicted"
    basis: str


class NotMeasured(Value):
    """An absent number and the reason: never 0, never an invented constant."""

    kind: Literal["not-measured"] = "not-measured"
    reason: str


Quantity = Measured | Predicted | NotMeasured
