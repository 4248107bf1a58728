"""PageReader: a run's store as the pages ask it: one trial, some trials, the newest facts, all as of one moment."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from pydantic_core import from_json

from coordinator.course import Spent, Stint
from coordinator.database import Value
from coordinator.events import Fitted, event_of
from coordinator.plan import Role
from coordinator.store import StoreReader
from coordinator.store_rows import AttemptRow, CanaryRow, TrialRow, Work, WorkTexts
from scaling.observations import Observation, ObservationAdapter

_CHUNK = 500
"""SQLite takes some thousands of bindings at a time."""
_ROLE = re.compile(r'\{"role":"([a-z]+)"')
_ROLE_LETTERS = 32
"""Of a planned trial as it is written: more than its role takes, with which it begins."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """An observation with the lease that it ended, and when."""

    seq: int
    epoch: int
    unix: float
    observation: Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The numbers of a result that a list of trials shows; null where there is none."""

    loss: float | None = None
    loss_error: float | None = None
    rate: float | None = None
    rate_low: float | None = None
    rate_high: float | None = None
    flags: tuple[str, ...] = ()


class Standing(NamedTuple):
    """Where a trial stands, in words in lower case: its state, its agent and its hardware."""

    position: int
    told: str


class _Begun(Work):
    """A trial's work of which only the beginning was read: its role stands there. The rest is read when asked for."""

    __slots__ = ()

    def __init__(self, position: int, trial_id: str, begin: str, texts: WorkTexts) -> None:
        super().__init__(position, trial_id, None, texts)
        found = _ROLE.match(begin)
        self._role = cast("Role", found[1]) if found else None


class PageReader(StoreReader):
    """Reads what pages show. Everything within `snapshot` is of one moment, whatever is written meanwhile."""

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read within is as it was when this began."""
        self._database.execute("BEGIN")
        try:
            yield
        finally:
            if self._database.is_in_transaction:
                self._database.execute("ROLLBACK")

    @property
    def is_copy(self) -> bool:
        """Whether an older store is read, from a migrated copy in memory that no longer follows it."""
        (name,) = self._database.rows("SELECT file FROM pragma_database_list WHERE name = 'main'")
        return name == ("",)

    # Trials

    def num_trials(self, *, state: str | None = None, phase: str | None = None) -> int:
        """How many trials there are, of a state and a phase where they are given."""
        wanted = (count for count in self.counts() if state in (None, count.state) and phase in (None, count.phase))
        return sum(count.num for count in wanted)

    def trials_page(
        self, *, after_position: int, limit: int, state: str | None = None, phase: str | None = None
    ) -> list[TrialRow]:
        """The next trials in planned order, of a state and a phase where they are given."""
        where = "position > ? AND (? IS NULL OR state = ?) AND (? IS NULL OR phase = ?)"
        bindings: list[Value] = [after_position, state, state, phase, phase, limit]
        found = self._database.rows(f"SELECT position FROM trials WHERE {where} ORDER BY position LIMIT ?", bindings)
        return self.trials_at([position for (position,) in found])

    def standings(self, *, state: str | None = None, phase: str | None = None) -> list[Standing]:
        """Where the trials stand, of a state and a phase where they are given, in planned order; to be searched."""
        found = self._database.rows(
            "SELECT position, lower(concat_ws(' ', state, agent, hardware)) FROM trials "
            "WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR phase = ?2) ORDER BY position",
            (state, phase),
        )
        return [Standing(*row) for row in found]

    def trials_at(self, positions: Sequence[int]) -> list[TrialRow]:
        """The trials at these positions, in planned order."""
        rows: list[TrialRow] = []
        for start in range(0, len(positions), _CHUNK):
            chunk = positions[start : start + _CHUNK]
            rows += self._trial_rows(f"WHERE position IN ({_places(chunk)})", *chunk)
        return rows

    def newest_trained(self, num: int) -> list[TrialRow]:
        """The last planned training trials that succeeded, in planned order."""
        found = self._database.rows(
            "SELECT position FROM trials WHERE state = 'succeeded' AND phase = 'train' ORDER BY position DESC LIMIT ?",
            (num,),
        )
        return self.trials_at([position for (position,) in reversed(found)])

    def trials_of_stages(self, *stages: str) -> list[TrialRow]:
        """The trials of some stages, in planned order."""
        found = self._database.rows(
            f"SELECT position FROM trials WHERE stage IN ({_places(stages)}) ORDER BY position", stages
        )
        return self.trials_at([position for (position,) in found])

    def unfinished_positions(self) -> list[int]:
        """Positions of the queued and running trials, in planned order."""
        tail = "WHERE state IN ('queued', 'running') ORDER BY position"
        return [position for (position,) in self._database.rows(f"SELECT position FROM trials {tail}")]

    def trial_id_at(self, position: int) -> str | None:
        """The trial at a position."""
        row = self._database.row("SELECT trial_id FROM trials WHERE position = ?", (position,))
        return None if row is None else str(row[0])

    # What became of them

    def attempts_of(self, trial_id: str) -> list[AttemptRow]:
        """The leases of one trial, in order."""
        return [AttemptRow(*row) for row in self._rows("attempts", "WHERE trial_id = ? ORDER BY epoch", (trial_id,))]

    def endings_of(self, trial_id: str) -> list[Ending]:
        """What came of one trial's leases, in order."""
        rows = self._rows("observations", "WHERE trial_id = ? ORDER BY epoch", (trial_id,))
        return [
            Ending(seq=seq, epoch=epoch, unix=unix, observation=ObservationAdapter.validate_json(record))
            for seq, _, epoch, _, record, unix in rows
        ]

    def results_of(self, trial_ids: Sequence[str]) -> dict[str, Result]:
        """The results that these trials have, failures left out."""
        found: dict[str, Result] = {}
        for start in range(0, len(trial_ids), _CHUNK):
            chunk = trial_ids[start : start + _CHUNK]
            tail = f"WHERE trial_id IN ({_places(chunk)}) AND kind != 'failure'"
            found |= {row[1]: _result(from_json(row[4])) for row in self._rows("observations", tail, chunk)}
        return found

    def failure_kinds(self, trial_ids: Sequence[str]) -> dict[str, str]:
        """How the newest failed attempt of each of these trials ended."""
        found: dict[str, str] = {}
        for start in range(0, len(trial_ids), _CHUNK):
            chunk = trial_ids[start : start + _CHUNK]
            tail = f"WHERE trial_id IN ({_places(chunk)}) AND failure_kind IS NOT NULL ORDER BY seq"
            found |= {row.trial_id: str(row.failure_kind) for row in self._attempts(tail, chunk)}
        return found

    def _attempts(self, tail: str, bindings: Sequence[Value]) -> list[AttemptRow]:
        return [AttemptRow(*row) for row in self._rows("attempts", tail, bindings)]

    def benchmarks(self, *, newest: int) -> list[Ending]:
        """The benchmarks that ended last, in order of arrival; all of them for -1."""
        rows = self._rows("observations", "WHERE kind = 'serving' ORDER BY seq DESC LIMIT ?", (newest,))
        return [
            Ending(seq=seq, epoch=epoch, unix=unix, observation=ObservationAdapter.validate_json(record))
            for seq, _, epoch, _, record, unix in reversed(rows)
        ]

    def newest_fit(self) -> Fitted | None:
        """The newest fit in short."""
        events = (event_of("fits", row) for row in self._rows("fits", "ORDER BY seq DESC LIMIT 1"))
        return next((event for event in events if isinstance(event, Fitted)), None)

    def num_retries(self) -> int:
        """Leases beyond the first of their trial."""
        return self._database.number("SELECT coalesce(sum(max(0, attempts - 1)), 0) FROM trials")

    # The run over time: rows as they are; who looks at one trial looks at their checksums

    def works(self, *, after_position: int) -> list[tuple[int, str, Work]]:
        """Position, id and work of the trials behind a position; of the work only the role is read at once."""
        found = self._database.rows(
            f"SELECT position, trial_id, substr(planned, 1, {_ROLE_LETTERS}) FROM work "
            "WHERE position > ? ORDER BY position",
            (after_position,),
        )
        return [(position, trial_id, _Begun(position, trial_id, begin, self)) for position, trial_id, begin in found]

    def stints(self, works: Mapping[str, Work], *, from_seq: int) -> list[Stint]:
        """Attempts that were begun, in the order of leasing, from a number on.

        Args:
            works: by trial id, of all the trials.
            from_seq: of the first attempt that is wanted.
        """
        found = self._database.rows(
            "SELECT seq, trial_id, agent, CASE WHEN ended_unix IS NULL THEN "
            "(SELECT leased_unix FROM trials WHERE trials.trial_id = attempts.trial_id) ELSE leased_unix END AS start, "
            "ended_unix, outcome, failure_kind FROM attempts WHERE seq >= ? AND start IS NOT NULL ORDER BY seq",
            (from_seq,),
        )
        return [Stint._make((*row, work.role, work)) for row in found for work in (works[row[1]],)]

    def spent(self) -> list[Spent]:
        """What the trials that have ended took, in planned order."""
        query = "SELECT ended_unix, phase, spent_seconds FROM trials WHERE ended_unix IS NOT NULL ORDER BY position"
        return [Spent._make(row) for row in self._database.rows(query)]

    def latest_unix(self) -> float:
        """When a trial was begun or ended last; 0 where none was."""
        ((begun, ended),) = self._database.rows("SELECT max(leased_unix), max(ended_unix) FROM trials")
        return max(begun or 0.0, ended or 0.0)

    def first_held(self) -> int | None:
        """Number of the first attempt that has not ended; null where all have."""
        ((seq,),) = self._database.rows("SELECT min(seq) FROM attempts WHERE ended_unix IS NULL")
        return None if seq is None else int(seq)

    # Canaries

    def canaries_of(self, hardware: str, *, newest: int) -> list[CanaryRow]:
        """The last canaries of one hardware, in order."""
        rows = self._rows("canaries", "WHERE hardware = ? ORDER BY seq DESC LIMIT ?", (hardware, newest))
        return [CanaryRow(*row) for row in reversed(rows)]


def _places(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)


def _result(record: dict[str, Any]) -> Result:
    if record["kind"] == "training":
        loss, error = record["loss"], record["loss_standard_error"]
        return Result(loss=loss, loss_error=error, rate=record["tokens_per_second"])
    rate = record["output_tokens_per_second"]
    interval = rate["interval"] or {"low": None, "high": None}
    flags = tuple(record.get("flags", ()))
    return Result(rate=rate["value"], rate_low=interval["low"], rate_high=interval["high"], flags=flags)
