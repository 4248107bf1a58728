"""History checker: what happened to the trials of a run, in order, and whether all of it was allowed.

Its facts come from a test that watches a fleet, or from a store. The promises it looks after:

- each trial's result counts once, and nothing follows a trial's end;
- epochs of a trial rise, and no two leases of one trial are live together; of one agent no more than it may hold, which
  is one unless trials are handed ahead;
- only a live lease can end: what an old epoch reports counts for nothing;
- no attempt is started when what was spent, what is reserved and what it will cost exceed the granted seconds:
  spend stays within the budget and the work in flight;
- what was acknowledged is still there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from coordinator.store import AttemptRow, StoreReader

AttemptOutcome = Literal["succeeded", "failed", "retried", "interrupted"]
"""How an attempt ended: its result counts; it was the last; the trial is queued again; the coordinator went away."""

ROUNDING_SECONDS = 1e-6
"""Sums of seconds in another order differ by this much at most."""


@dataclass(frozen=True)
class Leased:
    """A trial was given to an agent; `seconds` of accelerator time were reserved for it, 0 where nobody said."""

    trial_id: str
    epoch: int
    agent: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """An attempt ended, after `seconds` of accelerator time."""

    trial_id: str
    epoch: int
    outcome: AttemptOutcome
    seconds: float = 0.0


Fact = Leased | Ended


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the checker found. A history without violations kept every promise that its facts can tell of."""

    violations: tuple[str, ...]
    num_attempts: int
    num_succeeded: int
    num_failed: int
    num_open: int
    """Leases that are live at the end of the history."""
    spent_seconds: float

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.violations

    def sentence(self) -> str:
        """The verdict in one line."""
        what = f"{self.num_attempts} attempts, {self.num_succeeded} trials succeeded, {self.num_failed} failed"
        if self.kept:
            return f"every promise kept: {what}, {self.spent_seconds:,.0f} accelerator-seconds"
        return f"{len(self.violations)} promises broken ({what}); the first: {self.violations[0]}"


def check_history(
    facts: Iterable[Fact],
    *,
    granted_seconds: float | None = None,
    acknowledged: Mapping[str, int] | None = None,
    max_hand: int = 1,
) -> Verdict:
    """Look through a history in its order.

    Args:
        facts: leases and ends, oldest first.
        granted_seconds: accelerator time that the study may use; null when it is not limited.
        acknowledged: epoch of every result that somebody was told is safe, by trial.
        max_hand: how many trials an agent may hold.
    """
    checker = _Checker(granted_seconds=granted_seconds, max_hand=max_hand)
    for fact in facts:
        if isinstance(fact, Leased):
            checker.leased(fact)
        else:
            checker.ended(fact)
    for trial_id, epoch in (acknowledged or {}).items():
        if checker.succeeded.get(trial_id) != epoch:
            checker.complain(f"{trial_id}: the acknowledged result of epoch {epoch} is lost")
    return checker.verdict()


def history_of(store: StoreReader) -> list[Fact]:
    """The attempts of a run as facts. Wall times order what different trials and agents did, and nothing else: an
    attempt that has ended did so before the next lease of its trial, or of its agent, whatever the clock did meanwhile.
    """
    facts: list[Fact] = []
    pending: list[AttemptRow] = []
    for attempt in store.attempts():
        over = [one for one in pending if _ended_before(one, attempt)]
        pending = [one for one in pending if not _ended_before(one, attempt)]
        facts += [_end_of(one) for one in over]
        facts.append(Leased(attempt.trial_id, attempt.epoch, attempt.agent))
        pending.append(attempt)
    facts += [_end_of(one) for one in pending if one.outcome is not None]
    return facts


def _ended_before(attempt: AttemptRow, later: AttemptRow) -> bool:
    if attempt.outcome is None or attempt.ended_unix is None:
        return False
    related = attempt.trial_id == later.trial_id or attempt.agent == later.agent
    return related or attempt.ended_unix <= later.leased_unix


def _end_of(attempt: AttemptRow) -> Ended:
    outcome = cast("AttemptOutcome", attempt.outcome)
    return Ended(attempt.trial_id, attempt.epoch, outcome, attempt.spent_seconds)


@dataclass
class _Checker:
    granted_seconds: float | None
    max_hand: int
    violations: list[str] = field(default_factory=list)
    live: dict[str, Leased] = field(default_factory=dict)
    holding: dict[str, list[str]] = field(default_factory=dict)
    """Trials by the agent that holds them."""
    last_epoch: dict[str, int] = field(default_factory=dict)
    succeeded: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    num_attempts: int = 0
    spent: float = 0.0
    reserved: float = 0.0

    def complain(self, sentence: str) -> None:
        self.violations.append(sentence)

    def leased(self, fact: Leased) -> None:
        trial_id, epoch = fact.trial_id, fact.epoch
        self.num_attempts += 1
        if epoch <= self.last_epoch.get(trial_id, 0):
            self.complain(f"{trial_id}: epoch {epoch} follows epoch {self.last_epoch[trial_id]}")
        if (other := self.live.get(trial_id)) is not None:
            self.complain(f"{trial_id}: leased to {fact.agent} while {other.agent} holds it under epoch {other.epoch}")
        if trial_id in self.succeeded or trial_id in self.failed:
            self.complain(f"{trial_id}: leased after its end")
        held = self.holding.setdefault(fact.agent, [])
        if len(held) >= self.max_hand:
            self.complain(f"{fact.agent}: given {trial_id} while it holds {', '.join(held)}")
        if self.granted_seconds is not None:
            committed = self.spent + self.reserved + fact.seconds
            if committed > self.granted_seconds + ROUNDING_SECONDS:
                self.complain(
                    f"{trial_id}: started with {committed:,.1f} accelerator-seconds spent or promised "
                    f"of {self.granted_seconds:,.1f}"
                )
        self.last_epoch[trial_id] = epoch
        self.live[trial_id] = fact
        held.append(trial_id)
        self.reserved += fact.seconds

    def ended(self, fact: Ended) -> None:
        trial_id, epoch = fact.trial_id, fact.epoch
        self.spent += fact.seconds
        lease = self.live.get(trial_id)
        if lease is None or lease.epoch != epoch:
            self.complain(f"{trial_id}: epoch {epoch} ended ({fact.outcome}) without a live lease")
        else:
            del self.live[trial_id]
            self.holding[lease.agent].remove(trial_id)
            self.reserved -= lease.seconds
        if fact.outcome == "succeeded":
            if trial_id in self.succeeded:
                self.complain(f"{trial_id}: two results count, of epochs {self.succeeded[trial_id]} and {epoch}")
            self.succeeded[trial_id] = epoch
        elif fact.outcome == "failed":
            self.failed.add(trial_id)

    def verdict(self) -> Verdict:
        return Verdict(
            violations=tuple(self.violations),
            num_attempts=self.num_attempts,
            num_succeeded=len(self.succeeded),
            num_failed=len(self.failed),
            num_open=len(self.live),
            spent_seconds=self.spent,
        )
