"""Numbers that say what they are."""

import pytest
from pydantic import TypeAdapter, ValidationError

from scaling.quantity import Interval, Measured, NotMeasured, Predicted, Quantity


def test_an_interval_must_be_ordered() -> None:
    with pytest.raises(ValidationError, match="low <= high"):
        Interval(low=2.0, high=1.0, level=0.9, method="t")


def test_a_number_without_an_interval_must_say_why() -> None:
    with pytest.raises(ValidationError, match="interval or a reason"):
        Measured(value=1.0, unit="nats/token", num_samples=1)


def test_a_number_cannot_have_both_an_interval_and_an_excuse() -> None:
    with pytest.raises(ValidationError, match="interval or a reason"):
        Predicted(
            value=1.0,
            unit="s",
            basis="roofline",
            interval=Interval(low=0.5, high=2.0, level=0.9, method="t"),
            no_interval_because="one run",
        )


def test_kinds_survive_json() -> None:
    adapter: TypeAdapter[Quantity] = TypeAdapter(Quantity)
    numbers: tuple[Quantity, ...] = (
        Measured(value=1.0, unit="s", num_samples=1, no_interval_because="one run"),
        Predicted(value=1.0, unit="s", basis="roofline", no_interval_because="uncalibrated"),
        NotMeasured(reason="no power sensor"),
    )
    for number in numbers:
        assert adapter.validate_json(number.model_dump_json()) == number


def test_nan_is_no_number() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Measured(value=float("nan"), unit="s", num_samples=1, no_interval_because="one run")
