"""Trials: one line each, some at a time, in planned order."""

from typing import Literal

from coordinator.dashboard.pages.page import Page
from hwprofiles.value import Value

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
