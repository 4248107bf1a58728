"""Hardware: what each kind of device can do, how steady its canaries are, and how noisy its numbers."""

from coordinator.dashboard.pages.overview import AgentLine
from coordinator.dashboard.pages.page import Amount, Fact, Page
from hwprofiles.value import Value


class ProfileFact(Value):
    """One figure of a data sheet with its source."""

    name: str
    value: float | None
    """Null where it is not known."""
    unit: str
    text: str
    source: str


class CanaryLine(Value):
    """One canary: how fast an agent's machine was at a fixed task."""

    seq: int
    agent: str
    kind: str
    rate: float
    """In the kind's own unit per second."""
    deviation: float | None
    """Rate over the baseline of its hardware, minus 1; null where there was no baseline yet."""
    unix: float


class CanarySummary(Value):
    """All canaries of one agent and kind."""

    agent: str
    kind: str
    num: int
    newest_deviation: float | None
    largest_deviation: float | None
    """The one farthest from 0."""
    newest_unix: float
    level: str
    """ok within 5 % of the baseline, warning beyond, unknown without a baseline."""


class NoiseFloor(Value):
    """How far equal measurements differ on this hardware."""

    engine: str
    num_benchmarks: int
    variation: Amount
    """Mean coefficient of variation of a benchmark's repeats, as a share."""


class BenchLine(Value):
    """One benchmark that ended here."""

    trial_id: str
    shape: str
    engine: str
    batch_size: int
    rate: Amount
    variation: float
    flags: tuple[str, ...]
    is_valid: bool


class HardwareLine(Value):
    """One kind of hardware."""

    hardware: str
    """Profile id."""
    name: str
    device: str
    """What the drivers of its agents call it; empty before any told."""
    profile: tuple[ProfileFact, ...]
    """Empty where there is no data sheet."""
    profile_note: str
    is_calibrated: bool
    """Whether efficiencies were measured; else predictions rest on peaks alone."""
    agents: tuple[AgentLine, ...]
    canaries: tuple[CanaryLine, ...]
    """The newest, oldest of them first."""
    canary_summaries: tuple[CanarySummary, ...]
    noise: tuple[NoiseFloor, ...]
    """By engine."""
    num_benchmarks: int
    num_valid_benchmarks: int
    flags: dict[str, int]
    """How many benchmarks carry each flag."""
    benchmarks: tuple[BenchLine, ...]
    """The newest."""
    num_succeeded: int
    num_failed_attempts: int
    failures: dict[str, int]
    """Failed attempts by kind."""
    spent_seconds: float


class HardwarePage(Page):
    """Every kind of hardware that the run has seen or asks for."""

    hardware: tuple[HardwareLine, ...]
    training_noise: Amount
    """Sd of a training run over its seeds, in nats per token; the same on all hardware as far as is known."""
    notes: tuple[Fact, ...]
