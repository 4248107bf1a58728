"""Numbers as text: unit, interval or the reason for none, and whether measured or predicted."""

import pytest

from coordinator.figures.formats import between, digits, duration, plural, short
from coordinator.figures.shown import shown
from scaling.quantity import Interval, Measured, NotMeasured, Predicted

INTERVAL = Interval(low=1200.4, high=1310.2, level=0.95, method="t over repeats")


def test_a_measured_number_shows_unit_interval_and_repeats() -> None:
    one = shown(Measured(value=1255.2, unit="tokens/s", interval=INTERVAL, num_samples=3))
    assert (one.kind, one.value, one.unit) == ("measured", "1,255", "tokens/s")
    assert one.interval == "[1,200, 1,310] 95%, t over repeats"
    assert one.note == "3 repeats"


def test_a_predicted_number_without_interval_says_why() -> None:
    one = shown(Predicted(value=2.5, unit="s", basis="roofline", no_interval_because="it is a bound"))
    assert (one.kind, one.interval) == ("predicted", "")
    assert one.note == "roofline; no interval: it is a bound"


def test_an_absent_number_is_its_reason_and_never_zero() -> None:
    one = shown(NotMeasured(reason="no power sensor"))
    assert (one.kind, one.value, one.note) == ("not measured", "", "no power sensor")


def test_differences_carry_their_sign() -> None:
    interval = Interval(low=-0.01, high=0.03, level=0.9, method="t")
    one = shown(Measured(value=0.01, unit="nats/token", interval=interval, num_samples=4), signed=True)
    assert one.value == "+0.0100"
    assert one.interval == "[-0.0100, +0.0300] 90%, t"
    assert one.note == "4 runs"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(3.61749, "nats/token", "3.6175"), (12345.6, "", "12,346"), (0.27345, "", "0.2735"), (8, "sequences", "8")],
)
def test_numbers_have_the_digits_their_unit_deserves(value: float, unit: str, text: str) -> None:
    assert digits(value, unit) == text


def test_intervals_state_level_and_method() -> None:
    assert (
        between(Interval(low=0.2613, high=0.2866, level=0.9, method="bootstrap")) == "[0.2613, 0.2866] 90%, bootstrap"
    )


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (99_840, "99.8 k"), (999_900, "1 M"), (2_500_000, "2.5 M"), (7e9, "7 B")]
)
def test_axis_counts_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (552, "9 min 12 s"), (7500, "2 h 05 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plurals() -> None:
    assert [plural(1, "retry"), plural(2, "retry"), plural(0, "run")] == ["1 retry", "2 retries", "0 runs"]
