"""Hardware: what each kind of device can do, how steady its canaries are, and how noisy its numbers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from coordinator.analysis import Analysis
from coordinator.dashboard.pages.health import CANARY_DEVIATION
from coordinator.dashboard.pages.overview import (
    MAX_OPEN_READ,
    AgentLine,
    agent_lines,
    failure_counts,
    hardware_name,
    hardware_of,
    newest_deviations,
    run_state,
)
from coordinator.dashboard.pages.page import Amount, AmountKind, Health, Page, amount, missing, page_facts, stated
from coordinator.dashboard.pages.study import FigureEntry, figure_entry
from coordinator.dashboard.reads import PageReader
from coordinator.figures.catalogue import Entry
from coordinator.figures.formats import NATS, digits, plural
from coordinator.record import is_simulated
from coordinator.store_rows import AttemptCount, CanaryRow, Tallied
from hwprofiles.catalog import all_profiles
from hwprofiles.profile import HardwareProfile
from hwprofiles.value import Value
from scaling.observations import INVALIDATING_FLAGS, ServingObservation

NUM_CANARIES = 500
NUM_BENCHMARKS = 500
"""Of each hardware, the newest."""


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
    level: Health
    """ok within 5 % of the baseline, warning beyond, unknown without a baseline."""


class NoiseFloor(Value):
    """How far equal measurements differ on this hardware."""

    engine: str
    num_benchmarks: int
    variation: Amount
    """Mean coefficient of variation of a benchmark's repeats, in per cent."""


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
    figures: tuple[FigureEntry, ...]


def read_hardware(
    store: PageReader, *, analysis: Analysis | None, figures: Iterable[Entry], is_held: bool, now_unix: float
) -> HardwarePage:
    """Every kind of hardware as it is now.

    Args:
        store: within a snapshot.
        analysis: the newest fit.
        figures: of the run.
        is_held: whether a living coordinator holds the run.
        now_unix: of the answer.
    """
    study, counts, attempts = store.study(), store.counts(), store.attempt_counts()
    running = {row.agent: row for row in store.trials_page(after_position=0, limit=MAX_OPEN_READ, state="running")}
    state = run_state(store.meta("state"), is_held=is_held)
    agents = list(agent_lines(store, store.agents(), state, running, newest_deviations(store)))
    benchmarks = [one.observation for one in store.benchmarks(newest=NUM_BENCHMARKS)]
    served = [one for one in benchmarks if isinstance(one, ServingObservation)]
    simulated = is_simulated(store)
    return HardwarePage(
        **page_facts(store, now_unix=now_unix),
        hardware=tuple(
            _line(
                hardware,
                agents=[one for one in agents if one.hardware == hardware],
                canaries=store.canaries_of(hardware, newest=NUM_CANARIES),
                benchmarks=[one for one in served if one.provenance.hardware == hardware],
                variation=[one for one in store.tallied("bench_variation") if one.hardware == hardware],
                attempts=[one for one in attempts if one.hardware == hardware],
                simulated=simulated,
            )
            for hardware in hardware_of(study, agents, counts)
        ),
        training_noise=_training_noise(analysis, simulated=simulated),
        figures=tuple(figure_entry(entry) for entry in figures if entry.page == "hardware"),
    )


def _line(
    hardware: str,
    *,
    agents: Sequence[AgentLine],
    canaries: Sequence[CanaryRow],
    benchmarks: Sequence[ServingObservation],
    variation: Sequence[Tallied],
    attempts: Sequence[AttemptCount],
    simulated: bool,
) -> HardwareLine:
    sheet = next((profile for profile in all_profiles() if profile.id == hardware), None)
    failed = Counter[str]()
    for one in failure_counts(attempts):
        failed[one.kind] += one.num
    return HardwareLine(
        hardware=hardware,
        name=hardware_name(hardware),
        device=", ".join(dict.fromkeys(one.provenance.device for one in benchmarks)),
        profile=() if sheet is None else tuple(_profile(sheet)),
        profile_note=f"There is no data sheet of {hardware}." if sheet is None else sheet.notes,
        is_calibrated=sheet is not None and sheet.calibration is not None,
        agents=tuple(agents),
        canaries=tuple(CanaryLine(**_without_hardware(one)) for one in canaries),
        canary_summaries=tuple(_summaries(canaries)),
        noise=tuple(_noise(one, simulated=simulated) for one in variation),
        num_benchmarks=len(benchmarks),
        num_valid_benchmarks=sum(map(is_valid, benchmarks)),
        flags=dict(Counter(flag for one in benchmarks for flag in one.flags)),
        benchmarks=tuple(_benchmark(one, simulated=simulated) for one in benchmarks),
        num_succeeded=sum(one.num for one in attempts if one.outcome == "succeeded"),
        num_failed_attempts=failed.total(),
        failures=dict(failed),
        spent_seconds=sum(one.spent_seconds for one in attempts),
    )


def is_valid(benchmark: ServingObservation) -> bool:
    """Whether a recommendation may rest on it."""
    return not INVALIDATING_FLAGS & set(benchmark.flags)


def _without_hardware(canary: CanaryRow) -> dict[str, object]:
    return {name: value for name, value in canary._asdict().items() if name != "hardware"}


def _summaries(canaries: Sequence[CanaryRow]) -> Iterator[CanarySummary]:
    by_agent: dict[tuple[str, str], list[CanaryRow]] = {}
    for one in canaries:
        by_agent.setdefault((one.agent, one.kind), []).append(one)
    for (agent, kind), rows in sorted(by_agent.items()):
        deviations = [one.deviation for one in rows if one.deviation is not None]
        newest = rows[-1].deviation
        level: Health = "unknown" if newest is None else "warning" if abs(newest) > CANARY_DEVIATION else "ok"
        yield CanarySummary(
            agent=agent,
            kind=kind,
            num=len(rows),
            newest_deviation=newest,
            largest_deviation=max(deviations, key=abs, default=None),
            newest_unix=rows[-1].unix,
            level=level,
        )


def _noise(tally: Tallied, *, simulated: bool) -> NoiseFloor:
    """From the tally of all benchmarks, whose `seconds` are a sum of coefficients of variation."""
    kind: AmountKind = "simulated" if simulated or tally.name == "fake" else "measured"
    note = f"mean over {plural(tally.num, 'benchmark')} of different shapes: no interval"
    variation = stated(kind, 100 * tally.seconds / tally.num, "%", note)
    return NoiseFloor(engine=tally.name, num_benchmarks=tally.num, variation=variation)


def _benchmark(run: ServingObservation, *, simulated: bool) -> BenchLine:
    return BenchLine(
        trial_id=run.assignment_id,
        shape=run.architecture.label,
        engine=run.recipe.engine,
        batch_size=run.workload.batch_size,
        rate=amount(run.output_tokens_per_second, simulated=simulated or run.recipe.engine == "fake"),
        variation=run.coefficient_of_variation,
        flags=run.flags,
        is_valid=is_valid(run),
    )


def _training_noise(analysis: Analysis | None, *, simulated: bool) -> Amount:
    if analysis is None:
        return missing("nothing was fitted yet")
    fit = analysis.law_fit
    if fit.pure_error_sd is None:
        return missing(fit.pure_error_reason or "no law was fitted")
    kind: AmountKind = "simulated" if simulated else "measured"
    return stated(kind, fit.pure_error_sd, NATS, f"law of {plural(fit.num_points, 'run')}: few degrees of freedom")


_SCALES: tuple[tuple[str, str, float, str], ...] = (
    ("memory_bytes", "Memory", 2.0**30, "GiB"),
    ("memory_bandwidth_bytes_per_second", "Memory bandwidth", 1e9, "GB/s"),
    ("link_bytes_per_second", "Link bandwidth", 1e9, "GB/s"),
    ("power_watts", "Power", 1.0, "W"),
    ("num_multiprocessors", "Multiprocessors", 1.0, ""),
)


def _profile(sheet: HardwareProfile) -> Iterator[ProfileFact]:
    for dtype, peak in sheet.peak_flops_per_second.items():
        source = sheet.provenance.get(
            f"peak_flops_per_second.{dtype}", sheet.provenance.get("peak_flops_per_second", "")
        )
        yield _fact(f"Peak {dtype}, dense", peak / 1e12, "TFLOP/s", source)
    for field, name, scale, unit in _SCALES:
        value = getattr(sheet, field)
        source = sheet.provenance.get(field, "")
        yield _fact(name, None if value is None else value / scale, unit, source)


def _fact(name: str, value: float | None, unit: str, source: str) -> ProfileFact:
    text = "" if value is None else digits(value, unit)
    return ProfileFact(name=name, value=value, unit=unit, text=text, source=source or "not known")
