"""How numbers read: digits by unit, intervals, counts, durations, moments."""

from datetime import UTC, datetime

from scaling.quantity import Interval

NATS = "nats/token"


def digits(value: float, unit: str = "", *, signed: bool = False) -> str:
    """A number with the digits that its unit deserves: nats to 1e-4, rates in whole tokens, else four digits."""
    sign = "+" if signed else ""
    if unit == NATS:
        return f"{value:{sign}.4f}"
    if abs(value) >= 1000 or (unit in ("tokens/s", "tokens", "sequences") and abs(value) >= 10):
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.4g}"


def between(interval: Interval, unit: str = "", *, signed: bool = False) -> str:
    """An interval in square brackets with its level and method."""
    ends = (digits(end, unit, signed=signed) for end in (interval.low, interval.high))
    return f"[{', '.join(ends)}] {interval.level:.0%}, {interval.method}"


def count(value: float) -> str:
    """A whole number in groups of three: 199,680."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """A count for an axis: 50 k, 1.5 M, 70 B."""
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 9 min 12 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(unix: float) -> str:
    """A wall-clock time in UTC."""
    return datetime.fromtimestamp(unix, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plural(number: int, noun: str) -> str:
    """1 run, 2 runs, 3 retries."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"
