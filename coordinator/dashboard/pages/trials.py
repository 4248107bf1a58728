"""Trials: one line each, some at a time, in planned order."""

from collections.abc import Sequence
from typing import Literal

from coordinator.dashboard.pages.page import Page, page_facts
from coordinator.dashboard.reads import PageReader, Result
from coordinator.store_rows import TrialRow
from hwprofiles.value import Value

MAX_ROWS = 2_000
DEFAULT_ROWS = 200

TrialState = Literal["queued", "running", "succeeded", "failed"]
Phase = Literal["train", "bench"]


class TrialLine(Value):
    """One trial in short. Numbers that were not measured are null: `state` and `phase` say why."""

    position: int
    """In planned order, from 1; `after` takes it."""
    trial_id: str
    stage: str
    phase: Phase
    role: str
    """space, replicate, reference, proposed, validation or serving."""
    reason: str
    """Why it was planned."""
    state: TrialState
    done_fraction: float
    shape: str
    """Label of the architecture."""
    num_parameters: int
    """Non-embedding parameters, N."""
    x: float
    r: float
    num_tokens: int | None
    """Training tokens, D; null for benchmarks."""
    seed: int | None
    engine: str | None
    """Null for training."""
    hardware: str | None
    """Where it was leased last; what it asks for before that; null where any will do."""
    agent: str | None
    num_attempts: int
    loss: float | None
    """Measured held-out loss in nats per token."""
    loss_error: float | None
    """Standard error of `loss` over the held-out windows."""
    rate: float | None
    """Measured tokens per second: trained for a training run, output for a benchmark."""
    rate_low: float | None
    rate_high: float | None
    """Ends of the interval of a benchmark's rate."""
    flags: tuple[str, ...]
    """Doubts about a benchmark."""
    failure_kind: str | None
    """How its newest failed attempt ended."""
    queued_unix: float
    leased_unix: float | None
    ended_unix: float | None
    spent_seconds: float
    """Accelerator-seconds of all its ended attempts."""


class TrialList(Page):
    """Some of the trials; those behind `next_after` are asked for with `?after=`."""

    rows: tuple[TrialLine, ...]
    num_trials: int
    """Of the whole run."""
    num_matching: int
    """That match state, phase and query."""
    next_after: int | None
    """Position to ask on from; null where these rows are the last."""


class TrialWords:
    """What trials are found by, as far as it never changes: read once, and added to as trials are planned."""

    def __init__(self) -> None:
        self._words: dict[int, str] = {}

    def matching(self, store: PageReader, words: Sequence[str], *, state: str | None, phase: str | None) -> list[int]:
        """Positions of the trials of a state and a phase in whose line all words stand, in planned order.

        Args:
            store: within a snapshot; always one of the same run.
            words: in lower case.
            state: null for any.
            phase: likewise.
        """
        self._words |= {
            row.position: _words_of(row) for row in store.trials(after_position=max(self._words, default=0))
        }
        return [
            one.position
            for one in store.standings(state=state, phase=phase)
            if _holds(f"{self._words[one.position]} {one.told}", words)
        ]


def read_trials(
    store: PageReader,
    known: TrialWords,
    *,
    now_unix: float,
    after: int = 0,
    limit: int = DEFAULT_ROWS,
    state: TrialState | None = None,
    phase: Phase | None = None,
    query: str = "",
) -> TrialList:
    """The trials behind a position that match.

    Args:
        store: within a snapshot.
        known: of the same run's trials.
        now_unix: of the answer.
        after: position of the last trial that the asker has; 0 from the beginning on.
        limit: how many rows at most.
        state: of the trials that are wanted; null for any.
        phase: likewise.
        query: words that all stand somewhere in a trial's line, in whatever case.
    """
    words = query.casefold().split()
    if words:
        matching = known.matching(store, words, state=state, phase=phase)
        rows = store.trials_at([position for position in matching if position > after][: limit + 1])
        num_matching = len(matching)
    else:
        rows = store.trials_page(after_position=after, limit=limit + 1, state=state, phase=phase)
        num_matching = store.num_trials(state=state, phase=phase)
    shown = rows[:limit]
    return TrialList(
        **page_facts(store, now_unix=now_unix),
        rows=tuple(trial_lines(store, shown)),
        num_trials=store.num_trials(),
        num_matching=num_matching,
        next_after=shown[-1].position if len(rows) > limit else None,
    )


def trial_lines(store: PageReader, rows: Sequence[TrialRow]) -> list[TrialLine]:
    """Trials with what came of them."""
    results = store.results_of([row.trial_id for row in rows if row.state == "succeeded"])
    failures = store.failure_kinds([row.trial_id for row in rows if row.attempts > (row.state == "succeeded")])
    return [_line(row, results.get(row.trial_id, Result()), failures.get(row.trial_id)) for row in rows]


def _line(row: TrialRow, result: Result, failure_kind: str | None) -> TrialLine:
    asked = row.brief
    shape = asked.architecture
    return TrialLine(
        position=row.position,
        trial_id=row.trial_id,
        stage=row.stage,
        phase="train" if row.phase == "train" else "bench",
        role=asked.role,
        reason=asked.reason,
        state=row.state,
        done_fraction=row.done_fraction,
        shape=shape.label,
        num_parameters=shape.num_parameters,
        x=shape.width_ratio,
        r=shape.mlp_attention_ratio,
        num_tokens=asked.num_tokens,
        seed=asked.seed,
        engine=asked.engine,
        hardware=row.hardware or asked.hardware,
        agent=row.agent,
        num_attempts=row.attempts,
        loss=result.loss,
        loss_error=result.loss_error,
        rate=result.rate,
        rate_low=result.rate_low,
        rate_high=result.rate_high,
        flags=result.flags,
        failure_kind=failure_kind,
        queued_unix=row.queued_unix,
        leased_unix=row.leased_unix,
        ended_unix=row.ended_unix,
        spent_seconds=row.spent_seconds,
    )


def _holds(text: str, words: Sequence[str]) -> bool:
    return all(word in text for word in words)


def _words_of(row: TrialRow) -> str:
    asked = row.brief
    told = (row.trial_id, row.stage, row.phase, asked.role, asked.reason, asked.architecture.label, asked.engine or "")
    return " ".join(told).casefold()
