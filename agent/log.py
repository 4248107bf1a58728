"""The log of an attempt: what it said while it worked, line by line, for whoever asks why it ended as it did.

    11:41:55    0%  loading
    11:41:57    3%  loss 5.412; 15,360 tokens, learning rate 0.0031, gradient norm 0.87, 12,400 tokens/s
    11:42:03   35%  vllm repeat 2/3: load
                 |  INFO model.py:34] loading weights took 0.41 s
    11:42:40  ended: held-out loss 3.6491 ± 0.0368 nats/token

Times are the agent's, UTC. A training says the same every second; of that, each hundredth part is kept.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator

from agent.log_file import readable_lines
from agent.redaction import Redaction
from scaling.observations import Failure, Observation, Progress, TrainingObservation, TrainingPoint
from scaling.quantity import Measured

MAX_BYTES = 16 * 1024
"""Of one attempt's log, its end."""
REPEAT_SECONDS = 60.0
REPEAT_FRACTION = 0.01
"""A line that differs from an earlier one in its numbers alone is kept once so much time has passed, or so much of the
work."""
_MAX_KINDS = 64
_NUMBER = re.compile(r"\d[\d.,e+-]*")


class AttemptLog:
    """Makes the lines of one attempt; what is to be kept of them is decided here, where they are made."""

    def __init__(
        self, beginning: str = "", *, unix_time: Callable[[], float] = time.time, redaction: Redaction | None = None
    ) -> None:
        """Begin a log.

        Args:
            beginning: its first line.
            unix_time: seconds since the epoch.
            redaction: takes secrets out of every line; by default those of this process.
        """
        self._beginning = beginning
        self._unix_time = unix_time
        self._redaction = redaction or Redaction()
        self._day = ""
        self._kinds: dict[str, tuple[float, float]] = {}
        """Lines without their numbers → when one was kept last, and how far the work was."""

    def of(self, item: Progress | Observation, said: Iterable[str] = ()) -> str:
        """The text that a report adds to the log: whole lines, without secrets; "" for nothing new.

        Args:
            item: the report.
            said: lines that the agent's own process has written meanwhile; of other programs the report has them.
        """
        text = "".join(f"{line}\n" for line in self._lines(item, list(said)))
        return text and ending(self._redaction(text))

    def _lines(self, item: Progress | Observation, said: list[str]) -> Iterator[str]:
        now = self._unix_time()
        clock = time.strftime("%H:%M:%S", time.gmtime(now))
        is_new = not isinstance(item, Progress) or (bool(item.message) and self._is_new(item, now))
        if is_new or said or (isinstance(item, Progress) and item.lines):
            yield from self._date(now)
        if not isinstance(item, Progress):
            yield from map(_under, said)
            yield f"{clock}  {_one_line(_ended(item))}"
            return
        if is_new:
            yield f"{clock}  {item.done_fraction:4.0%}  {_one_line(item.message)}{_measured(item.point)}"
        yield from map(_under, (*said, *item.lines))

    def _date(self, now: float) -> Iterator[str]:
        """The day, where it is another than that of the line before."""
        day = time.strftime("%Y-%m-%d UTC", time.gmtime(now))
        if day != self._day:
            yield f"{day}  {self._beginning}".rstrip()
            self._day, self._beginning = day, ""

    def _is_new(self, item: Progress, now: float) -> bool:
        kind = _NUMBER.sub("#", item.message)
        kept = self._kinds.get(kind)
        if kept is not None:
            seconds, fraction = now - kept[0], item.done_fraction - kept[1]
            if 0 <= seconds < REPEAT_SECONDS and abs(fraction) < REPEAT_FRACTION:
                return False
        if len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()
        self._kinds[kind] = (now, item.done_fraction)
        return True


def _under(line: str) -> str:
    return f"             |  {line}"


def _measured(point: TrainingPoint | None) -> str:
    """What a training measured beside its loss."""
    if point is None:
        return ""
    told = [
        f"{point.num_tokens:,} tokens",
        f"learning rate {point.learning_rate:.3g}",
        f"gradient norm {point.gradient_norm:.3g}",
    ]
    if point.tokens_per_second is not None:
        told.append(f"{point.tokens_per_second:,.0f} tokens/s")
    if point.mfu is not None:
        told.append(f"MFU {point.mfu:.1%}")
    if point.memory_bytes is not None:
        told.append(f"{point.memory_bytes / 2**30:.2f} GiB")
    if point.power_watts is not None:
        told.append(f"{point.power_watts:.0f} W")
    return f"; {', '.join(told)}"


def _ended(observation: Observation) -> str:
    if isinstance(observation, Failure):
        return f"failed, {observation.failure_kind}: {observation.message}"
    if isinstance(observation, TrainingObservation):
        return (
            f"ended: held-out loss {observation.loss:.4f} ± {observation.loss_standard_error:.4f} nats/token "
            f"(standard error over windows), {observation.tokens_per_second:,.0f} tokens/s"
        )
    rate = observation.output_tokens_per_second
    flags = f"; flags: {', '.join(observation.flags)}" if observation.flags else ""
    return f"ended: {_with_interval(rate)} output tokens/s{flags}"


def _with_interval(rate: Measured) -> str:
    if rate.interval is None:
        return f"{rate.value:,.1f}"
    return f"{rate.value:,.1f} [{rate.interval.low:,.1f}, {rate.interval.high:,.1f}] ({rate.interval.level:.0%})"


def _one_line(text: str) -> str:
    return " ".join(readable_lines(text.encode(errors="replace")))


def ending(text: str, max_bytes: int = MAX_BYTES) -> str:
    """The end of a text: whole lines, at most so many bytes of UTF-8."""
    data = text.encode(errors="replace")
    if len(data) <= max_bytes:
        return text
    return data[-max_bytes:].partition(b"\n")[2].decode(errors="replace")
