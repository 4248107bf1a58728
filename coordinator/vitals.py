"""Vitals: what the coordinator's loop measures of itself, kept until a commit takes it along.

How long a commit took can only be written down by a later one; so it is with everything here. A coordinator that is
killed loses the vitals since its last sign of life, never any that a scrape has shown.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal, get_args

from coordinator.store import Store
from scaling.observations import INVALIDATING_FLAGS, Observation, ServingObservation

Timing = Literal["loop_seconds", "decision_seconds", "commit_seconds"]
"""One turn without its waiting; one proposal round; the writing down of one turn."""
ReportKind = Literal["heartbeat", "progress", "result"]

TIMINGS: tuple[Timing, ...] = get_args(Timing)
REPORT_KINDS: tuple[ReportKind, ...] = get_args(ReportKind)
BOUNDS_SECONDS: dict[Timing, tuple[float, ...]] = {
    "loop_seconds": (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    "decision_seconds": (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    "commit_seconds": (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
}
"""Buckets; what took longer counts in a last bucket without end."""


@dataclass
class Vitals:
    """Of one coordinator process. Written by its loop; what is not private may be read from another thread."""

    is_writable: bool = True
    """Whether the last commit worked."""
    is_ready: bool = False
    """Whether the loop has taken up the run as the store has it."""
    _unwritten: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Number and seconds by kind and name of the tally."""
    _written: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """The same, written already and perhaps not committed."""

    def took(self, kind: Timing, seconds: float) -> None:
        """Something has taken so long."""
        bounds = (*BOUNDS_SECONDS[kind], math.inf)
        self._add(kind, repr(float(bounds[bisect_left(bounds, seconds)])), seconds)

    def heard(self, kind: ReportKind) -> None:
        """A report of an agent was taken that leaves no other trace."""
        self._add("reports", kind, 0.0)

    def committed(self, seconds: float) -> None:
        """A commit worked."""
        self.is_writable = True
        self.took("commit_seconds", seconds)

    def not_committed(self, reason: str) -> None:
        """A commit failed, for one of the reasons of `DatabaseError`."""
        self.is_writable = False
        self._add("store_errors", reason, 0.0)

    def _add(self, kind: str, name: str, seconds: float) -> None:
        _add_to(self._unwritten, (kind, name), 1, seconds)

    def write(self, store: Store) -> None:
        """Write down what the store does not know yet; call `written` when that was committed, else this again."""
        for key, (num, seconds) in self._unwritten.items():
            _add_to(self._written, key, num, seconds)
        self._unwritten.clear()
        for (kind, name), (num, seconds) in self._written.items():
            store.tally(kind, name, num=int(num), seconds=seconds)

    def written(self) -> None:
        """What `write` wrote is on the disk."""
        self._written.clear()


def _add_to(tallies: dict[tuple[str, str], list[float]], key: tuple[str, str], num: float, seconds: float) -> None:
    tally = tallies.setdefault(key, [0, 0.0])
    tally[0] += num
    tally[1] += seconds


def tally_result(store: Store, observation: Observation) -> None:
    """Count a result beside its record, and what a benchmark says of itself. Call it in the record's transaction.

    The tally `bench_variation` sums coefficients of variation, not seconds.
    """
    store.tally("reports", "result")
    if isinstance(observation, ServingObservation):
        hardware, engine = observation.provenance.hardware, observation.recipe.engine
        variation = observation.coefficient_of_variation
        if math.isfinite(variation):
            store.tally("bench_variation", engine, phase="bench", hardware=hardware, seconds=variation)
        if reasons := sorted(INVALIDATING_FLAGS.intersection(observation.flags)):
            store.tally("bench_invalid", f"{engine}/{reasons[0]}", phase="bench", hardware=hardware)
