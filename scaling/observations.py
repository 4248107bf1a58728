"""What came back from the fleet. Append-only facts: a failed run is knowledge, not an exception."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, TypeAdapter

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import ServingRecipe, TrainingRecipe, Workload

FailureKind = Literal[
    "out-of-memory",
    "engine-start",
    "nan-loss",
    "timeout",
    "preempted",
    "hardware",
    "validation",
    "agent-lost",
    "unknown",
]


class Provenance(Value):
    """Where, when and by what a number was made. Wall times are the agent's, in seconds since the epoch."""

    agent: str
    hostname: str
    device: str
    hardware: str
    """Profile id of the device (`hwprofiles`), e.g. cpu-generic or h200."""
    started_at_unix: float
    seconds: NonNegativeFloat
    versions: dict[str, str]
    """archfleet, python, torch, engine ... and the platform."""


class TrainingPoint(Value):
    """One point of a training curve; `loss` is the running training loss in nats per token.

    What the machine did is told while a run reports, and left out of the curve that is kept: a curve is the same
    wherever it was trained.
    """

    num_tokens: PositiveInt
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: NonNegativeFloat | None = Field(None, exclude_if=lambda rate: rate is None)
    """Trained since the point before, pauses excluded; null where no whole step was."""
    mfu: NonNegativeFloat | None = Field(None, exclude_if=lambda mfu: mfu is None)
    """Model FLOPs utilisation, PaLM's: tokens/s · (6 · parameters + 12 · L · A · T) over the dense bf16 peak of the
    data sheet; null on a CPU, whose sheet has no peak, and on a device without a sheet."""
    memory_bytes: NonNegativeInt | None = Field(None, exclude_if=lambda size: size is None)
    """Most that the allocator held on a GPU, the first of several; what the process holds on a CPU; null where the
    system does not tell."""
    power_watts: NonNegativeFloat | None = Field(None, exclude_if=lambda power: power is None)
    """Mean since the point before, of the whole board or the processors' packages, others' work on them included; null
    where there is no sensor."""


class TrainingObservation(Value):
    """A finished training run.

    `loss` is the mean over the fixed held-out windows in nats per token; `loss_standard_error` is over windows
    (it shrinks to the paired error of a difference when two runs share their windows). `window_losses` keeps
    the mean loss of every window, in the corpus's fixed order, so that any two runs can be paired.
    """

    kind: Literal["training"] = "training"
    schema_version: Literal[1] = 1
    assignment_id: str
    architecture: Architecture
    recipe: TrainingRecipe
    corpus_id: str
    loss: float
    loss_standard_error: NonNegativeFloat
    window_losses: tuple[float, ...]
    num_tokens: PositiveInt
    inherited_tokens: NonNegativeInt = Field(0, exclude_if=lambda tokens: tokens == 0)
    """Of `num_tokens`, those that were trained by another run, whose trunk this one went on from."""
    tokens_per_second: float
    """Training tokens per second of training time, evaluation, loading and what was inherited excluded; over resumed
    segments."""
    train_seconds: NonNegativeFloat
    num_resumes: NonNegativeInt = 0
    num_devices: PositiveInt = Field(1, exclude_if=lambda number: number == 1)
    """That trained together when the run ended; each took its share of every batch."""
    strategy: Literal["ddp", "fsdp"] | None = Field(None, exclude_if=lambda strategy: strategy is None)
    """How several devices shared the work: whole copies of the model, or shards of it. Null for one device; both are
    left out of the JSON then."""
    curve: tuple[TrainingPoint, ...]
    provenance: Provenance


class ServingRepeat(Value):
    """One measured pass of one engine process. Durations in seconds, rates in tokens per second."""

    output_tokens_per_second: float
    seconds: float
    num_output_tokens: int
    processor_seconds: NonNegativeFloat | None = None
    """Processor time of the engine within `seconds`: on a CPU shared with others it varies less than the wall time."""
    joules: NonNegativeFloat | None = None
    """Energy of the devices within `seconds`, others' work on them included; null where no sensor told it."""
    sm_clock_mhz: NonNegativeFloat | None = None
    """Median SM clock within `seconds`; of the slowest device."""


LatencyName = Literal["ttft", "tpot", "itl"]


class Latency(Value):
    """A latency of single requests while the whole batch is served: percentiles over requests, mean over repeats.

    TTFT: arrival to first token, the queue included. TPOT: mean time of a request's further tokens. ITL: time between
    two tokens. In seconds.
    """

    name: LatencyName
    p50: Measured | NotMeasured
    p90: Measured | NotMeasured
    p99: Measured | NotMeasured


class ServingObservation(Value):
    """A finished serving benchmark: repeats, their mean with a t-interval, and every doubt as a flag."""

    kind: Literal["serving"] = "serving"
    schema_version: Literal[1] = 1
    assignment_id: str
    architecture: Architecture
    recipe: ServingRecipe
    workload: Workload
    engine_version: str
    repeats: tuple[ServingRepeat, ...]
    output_tokens_per_second: Measured
    total_tokens_per_second: Measured
    coefficient_of_variation: float
    mean_running_sequences: Measured | NotMeasured
    joules_per_output_token: Measured | NotMeasured
    latencies: tuple[Latency, ...] = ()
    kv_cache_tokens: Measured | NotMeasured = NotMeasured(reason="the engine was not asked")
    """Tokens that the engine's cache of keys and values holds, as the engine sized it."""
    num_preemptions: NonNegativeInt | None = None
    """Over all repeats; null where the engine does not tell."""
    flags: tuple[str, ...] = ()
    """Validity flags; a row with one of `INVALIDATING_FLAGS` is kept and never recommended from."""
    provenance: Provenance


INVALIDATING_FLAGS = frozenset({"wrong-token-count", "nan", "too-few-repeats"})


class Failure(Value):
    """An assignment that ended badly, classified; `message` is for people, `detail` holds the last log lines."""

    kind: Literal["failure"] = "failure"
    schema_version: Literal[1] = 1
    assignment_id: str
    failure_kind: FailureKind
    message: str
    detail: str = ""
    provenance: Provenance


Observation = TrainingObservation | ServingObservation | Failure
ObservationAdapter: TypeAdapter[Observation] = TypeAdapter(Annotated[Observation, Field(discriminator="kind")])


class Progress(Value):
    """A sign of life from a running assignment, worth a heartbeat and a line on a progress bar."""

    assignment_id: str
    done_fraction: float
    message: str = ""
    point: TrainingPoint | None = None
    lines: tuple[str, ...] = Field((), exclude_if=lambda lines: not lines)
    """What a program that does the work, such as an engine, has written to its log since the last sign of life; each
    line printable. Left out of the JSON when empty."""
