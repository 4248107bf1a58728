import math

import pytest

from scaling.bits_per_byte import bits_per_byte, in_bits_per_byte
from scaling.quantity import Interval, Measured, NotMeasured


def test_guessing_bytes_blindly_costs_eight_bits_a_byte() -> None:
    assert bits_per_byte(math.log(256), bytes_per_token=1.0) == pytest.approx(8.0)


def test_longer_tokens_of_the_same_loss_are_a_better_code() -> None:
    assert bits_per_byte(3.6, bytes_per_token=4.0) == pytest.approx(bits_per_byte(3.6, bytes_per_token=2.0) / 2)


def test_a_token_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes_per_token is 0; expected bytes of text over tokens"):
        bits_per_byte(3.6, bytes_per_token=0.0)


def test_an_interval_is_converted_with_its_loss() -> None:
    loss = Measured(
        value=2 * math.log(2),
        unit="nats/token",
        num_samples=4,
        interval=Interval(low=math.log(2), high=3 * math.log(2), level=0.9, method="t over seeds"),
    )
    converted = in_bits_per_byte(loss, 2.0)
    assert isinstance(converted, Measured)
    assert converted.interval is not None
    assert (converted.interval.low, converted.value, converted.interval.high) == pytest.approx((0.5, 1.0, 1.5))
    assert converted.unit == "bits/byte"


def test_unknown_bytes_and_unmeasured_losses_stay_unmeasured_with_their_reason() -> None:
    loss = Measured(value=3.6, unit="nats/token", num_samples=1, no_interval_because="one run")
    unknown = in_bits_per_byte(loss, None)
    assert isinstance(unknown, NotMeasured)
    assert "how many bytes" in unknown.reason
    assert in_bits_per_byte(NotMeasured(reason="no run"), 2.0) == NotMeasured(reason="no run")
