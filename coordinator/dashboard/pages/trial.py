"""Trial: one trial with its assignment, its attempts over time, its raw numbers, and what went wrong."""

from typing import Any

from coordinator.dashboard.pages.page import Amount, Page, Shape
from coordinator.dashboard.pages.trials import TrialLine
from coordinator.figures.figure import Figure
from hwprofiles.value import Value


class AttemptLine(Value):
    """One lease and how it ended."""

    seq: int
    epoch: int
    agent: str
    hardware: str
    leased_unix: float
    ended_unix: float | None
    """Null while it is held."""
    outcome: str | None
    """succeeded, failed, retried (and queued again) or interrupted; null while it is held."""
    failure_kind: str | None
    spent_seconds: float | None
    """Null while it is held."""


class Provenance(Value):
    """Where and by what numbers were made."""

    agent: str
    hostname: str
    device: str
    hardware: str
    started_at_unix: float
    seconds: float
    versions: dict[str, str]


class FailureReport(Value):
    """What an attempt left that failed."""

    epoch: int
    unix: float
    kind: str
    message: str
    log_tail: str
    """The last lines of its log, as the agent sent them; empty where it could not send any."""
    provenance: Provenance


class CurvePoint(Value):
    """One point of a training curve."""

    num_tokens: int
    loss: float
    """Running training loss in nats per token."""
    learning_rate: float
    gradient_norm: float


class TrainingNumbers(Value):
    """Everything that a training run measured."""

    loss: Amount
    """Held-out, in nats per token; its interval is over windows."""
    num_tokens: int
    inherited_tokens: int
    """Of those, trained by the trunk that it went on from."""
    tokens_per_second: Amount
    train_seconds: float
    num_resumes: int
    num_devices: int
    strategy: str | None
    curve: tuple[CurvePoint, ...]
    window_losses: tuple[float, ...]
    """Mean loss of every held-out window in nats per token, in the corpus' fixed order."""


class RepeatLine(Value):
    """One measured pass of one engine process."""

    output_tokens_per_second: float
    seconds: float
    num_output_tokens: int
    processor_seconds: float | None
    joules: float | None
    sm_clock_mhz: float | None


class LatencyLine(Value):
    """Percentiles of one latency over requests, in seconds."""

    name: str
    """ttft (to the first token), tpot (mean per further token) or itl (between two tokens)."""
    p50: Amount
    p90: Amount
    p99: Amount


class ServingNumbers(Value):
    """Everything that a benchmark measured."""

    engine: str
    engine_version: str
    dtype: str
    batch_size: int
    input_tokens: int
    output_tokens: int
    repeats: tuple[RepeatLine, ...]
    output_tokens_per_second: Amount
    total_tokens_per_second: Amount
    coefficient_of_variation: float
    """Of the repeats' rates: standard deviation over mean."""
    mean_running_sequences: Amount
    joules_per_output_token: Amount
    latencies: tuple[LatencyLine, ...]
    kv_cache_tokens: Amount
    num_preemptions: int | None
    """Null where the engine does not tell."""
    flags: tuple[str, ...]
    is_valid: bool
    """Whether a recommendation may rest on it."""


class TrialPage(Page):
    """One trial."""

    trial: TrialLine
    description: str
    """The trial in a few words."""
    shape: Shape
    config: dict[str, Any]
    """config.json of its architecture."""
    assignment: dict[str, Any]
    """The whole input that its agent gets."""
    attempts: tuple[AttemptLine, ...]
    failures: tuple[FailureReport, ...]
    provenance: Provenance | None
    """Of its result; null while there is none."""
    training: TrainingNumbers | None
    serving: ServingNumbers | None
    no_numbers_because: str
    """Empty where it has a result."""
    figures: tuple[Figure, ...]
    """Its attempts over time, its training curve and windows, or its repeats."""
    previous_id: str | None
    """Its neighbours in planned order."""
    next_id: str | None
