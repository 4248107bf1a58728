"""Bits per byte: a loss that does not depend on the tokenizer.

    bits per byte = nats per token / ln 2 · tokens / bytes of text

Tokens include the marks between documents, bytes do not: the length of the whole code over that of the text.
"""

import math

from scaling.quantity import Interval, Measured, NotMeasured

UNIT = "bits/byte"
NO_BYTES = "the corpus does not say how many bytes of text its held-out tokens are"


def bits_per_byte(nats_per_token: float, *, bytes_per_token: float) -> float:
    """A loss, or a difference of losses, in bits per byte of text.

    Args:
        nats_per_token: mean over held-out tokens.
        bytes_per_token: UTF-8 bytes of the held-out text over its tokens.

    Raises:
        ValueError: `bytes_per_token` is not positive.
    """
    if not bytes_per_token > 0:
        raise ValueError(f"bytes_per_token is {bytes_per_token:g}; expected bytes of text over tokens, above 0")
    return nats_per_token / math.log(2) / bytes_per_token


def in_bits_per_byte(nats: Measured | NotMeasured, bytes_per_token: float | None) -> Measured | NotMeasured:
    """A measured loss, or a difference of losses, with its interval; not measured where the bytes are not known."""
    if isinstance(nats, NotMeasured):
        return nats
    if bytes_per_token is None:
        return NotMeasured(reason=NO_BYTES)
    factor = bits_per_byte(1.0, bytes_per_token=bytes_per_token)
    interval = nats.interval and Interval(
        low=factor * nats.interval.low,
        high=factor * nats.interval.high,
        level=nats.interval.level,
        method=nats.interval.method,
    )
    return Measured(
        value=factor * nats.value,
        unit=UNIT,
        num_samples=nats.num_samples,
        interval=interval,
        no_interval_because=nats.no_interval_because,
    )
