"""Traffic: what the web listeners of this process were asked, counted in memory for the metrics to show.

Routes are templates of a fixed list, never the path that was asked for: a stranger cannot make series.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

ROUTES = (
    "/",
    "/study",
    "/trials",
    "/trials/{trial_id}",
    "/hardware",
    "/recommendation",
    "/login",
    "/logout",
    "/static/{path}",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/api/overview",
    "/api/study",
    "/api/trials",
    "/api/trials/{trial_id}",
    "/api/hardware",
    "/api/recommendation",
    "/api/figures",
    "/api/figures/{name}",
    "/api/configs/{name}",
    "/api/events",
    "/metrics",
    "/targets",
    "unknown",
)
METHODS = ("GET", "HEAD", "POST", "unknown")
CODES = ("200", "303", "304", "400", "401", "403", "404", "405", "413", "422", "429", "500", "503", "unknown")
AUTH_FAILURES = ("missing", "bad", "expired", "scope", "unknown")
BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets; what took longer counts in a last bucket without end."""


@dataclass
class Durations:
    """How long the answers of one route took, seconds."""

    nums: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    """How many fell into each bucket, the endless one last."""
    seconds: float = 0.0


@dataclass
class Traffic:
    """Of one process. Any thread may count and read."""

    requests: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """Answers by route, method and code."""
    durations: dict[str, Durations] = field(default_factory=dict)
    """By route; of a stream of events, which has no end, none."""
    auth_failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AUTH_FAILURES, 0))
    num_streams: int = 0
    """Streams of events that are open."""
    _lock: Lock = field(default_factory=Lock, repr=False)

    def answered(self, route: str, method: str, code: int, *, seconds: float | None) -> None:
        """A request was answered; `seconds` is null for a stream."""
        route, method = _known(route, ROUTES), _known(method, METHODS)
        key = (route, method, _known(str(code), CODES))
        with self._lock:
            self.requests[key] = self.requests.get(key, 0) + 1
            if seconds is not None:
                durations = self.durations.setdefault(route, Durations())
                durations.nums[bisect_left(BOUNDS_SECONDS, seconds)] += 1
                durations.seconds += seconds

    def refused(self, reason: str) -> None:
        """A credential was missing or not good enough."""
        with self._lock:
            self.auth_failures[_known(reason, AUTH_FAILURES)] += 1

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """A stream of events is open meanwhile."""
        with self._lock:
            self.num_streams += 1
        try:
            yield
        finally:
            with self._lock:
                self.num_streams -= 1

    def counted(self) -> "Traffic":
        """A copy that does not change."""
        with self._lock:
            return Traffic(
                requests=dict(self.requests),
                durations={route: Durations(list(took.nums), took.seconds) for route, took in self.durations.items()},
                auth_failures=dict(self.auth_failures),
                num_streams=self.num_streams,
            )


def _known(value: str, values: tuple[str, ...]) -> str:
    return value if value in values else "unknown"
