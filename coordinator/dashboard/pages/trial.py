"""Trial: one trial with its assignment, its attempts over time, its raw numbers, and what went wrong."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from coordinator.dashboard.pages.page import Amount, Page, Shape, amount, page_facts, shape_of, stated
from coordinator.dashboard.pages.trial_figures import attempts_figure, curve_figure, repeats_figure, windows_figure
from coordinator.dashboard.pages.trials import TrialLine, trial_lines
from coordinator.dashboard.reads import Ending, PageReader
from coordinator.figures.figure import Figure
from coordinator.figures.formats import NATS, plural
from coordinator.forecast import describe
from coordinator.logs import read_logs
from coordinator.record import is_simulated
from coordinator.store_rows import AttemptRow
from hwprofiles.value import Value
from scaling.observations import INVALIDATING_FLAGS, Failure, ServingObservation, TrainingObservation
from scaling.observations import Provenance as MadeBy
from scaling.quantity import Interval, Measured

MAX_LOGS = 8
"""Of the last attempts: one may be 16 KiB."""
NORMAL_90 = 1.6449
"""Half the width of a 90 % interval of a normal mean, in standard errors."""


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


class AttemptLog(Value):
    """What one attempt said while it worked."""

    epoch: int
    agent: str
    text: str
    """Lines, the last of at most 16 KiB; times are the agent's, UTC."""
    is_whole: bool
    """False where earlier lines were left out."""


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
    log: tuple[AttemptLog, ...]
    """Of its last attempts that said something, in order of epoch; of one that runs, up to now."""
    no_log_because: str
    """Empty where there is one."""
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


def read_trial(store: PageReader, trial_id: str, *, now_unix: float) -> TrialPage | None:
    """Everything about one trial; null where there is none of this name.

    Args:
        store: within a snapshot.
        trial_id: its name.
        now_unix: of the answer.
    """
    row = store.trial(trial_id)
    if row is None:
        return None
    (line,) = trial_lines(store, [row])
    attempts, endings = store.attempts_of(trial_id), store.endings_of(trial_id)
    result = next((one.observation for one in endings if not isinstance(one.observation, Failure)), None)
    assignment = row.planned.assignment
    log = tuple(_logs(store.run_directory, attempts))
    return TrialPage(
        **page_facts(store, now_unix=now_unix),
        trial=line,
        description=describe(row.planned),
        shape=shape_of(assignment.architecture),
        config=assignment.architecture.to_hf_config(),
        assignment=assignment.model_dump(mode="json"),
        attempts=tuple(_attempt(one) for one in attempts),
        failures=tuple(_failures(endings)),
        log=log,
        no_log_because="" if log else _why_no_log(attempts, simulated=is_simulated(store)),
        provenance=None if result is None else _provenance(result.provenance),
        training=_training(result, simulated=is_simulated(store)) if isinstance(result, TrainingObservation) else None,
        serving=_serving(result, simulated=is_simulated(store)) if isinstance(result, ServingObservation) else None,
        no_numbers_because="" if result is not None else _why_none(line),
        figures=tuple(_figures(attempts, result, now_unix)),
        previous_id=store.trial_id_at(row.position - 1),
        next_id=store.trial_id_at(row.position + 1),
    )


def _attempt(row: AttemptRow) -> AttemptLine:
    return AttemptLine(
        seq=row.seq,
        epoch=row.epoch,
        agent=row.agent,
        hardware=row.hardware,
        leased_unix=row.leased_unix,
        ended_unix=row.ended_unix,
        outcome=row.outcome,
        failure_kind=row.failure_kind,
        spent_seconds=None if row.outcome is None else row.spent_seconds,
    )


def _failures(endings: Sequence[Ending]) -> Iterator[FailureReport]:
    for one in endings:
        if isinstance(one.observation, Failure):
            failure = one.observation
            yield FailureReport(
                epoch=one.epoch,
                unix=one.unix,
                kind=failure.failure_kind,
                message=failure.message,
                log_tail=failure.detail,
                provenance=_provenance(failure.provenance),
            )


def _logs(run_directory: Path, attempts: Sequence[AttemptRow]) -> Iterator[AttemptLog]:
    kept = read_logs(run_directory, attempts[-1].trial_id) if attempts else {}
    for one in attempts[-MAX_LOGS:]:
        if (log := kept.get(one.epoch)) is not None:
            yield AttemptLog(epoch=one.epoch, agent=one.agent, text=log.text, is_whole=log.is_whole)


def _why_no_log(attempts: Sequence[AttemptRow], *, simulated: bool) -> str:
    if not attempts:
        return "No attempt has begun."
    if simulated:
        return "Simulated agents say nothing."
    return "No attempt has said anything yet, or it is not kept any more: the oldest logs of a run make room."


def _provenance(made: MadeBy) -> Provenance:
    return Provenance(**made.model_dump())


def _training(run: TrainingObservation, *, simulated: bool) -> TrainingNumbers:
    half = NORMAL_90 * run.loss_standard_error
    interval = Interval(low=run.loss - half, high=run.loss + half, level=0.9, method="normal, over held-out windows")
    return TrainingNumbers(
        loss=amount(Measured(value=run.loss, unit=NATS, interval=interval, num_samples=1), simulated=simulated),
        num_tokens=run.num_tokens,
        inherited_tokens=run.inherited_tokens,
        tokens_per_second=stated(
            "simulated" if simulated else "measured",
            run.tokens_per_second,
            "tokens/s",
            "all its tokens over its training time: one number, no interval",
        ),
        train_seconds=run.train_seconds,
        num_resumes=run.num_resumes,
        num_devices=run.num_devices,
        strategy=run.strategy,
        curve=tuple(
            CurvePoint(
                num_tokens=point.num_tokens,
                loss=point.loss,
                learning_rate=point.learning_rate,
                gradient_norm=point.gradient_norm,
            )
            for point in run.curve
        ),
        window_losses=run.window_losses,
    )


def _serving(run: ServingObservation, *, simulated: bool) -> ServingNumbers:
    told = partial(amount, simulated=simulated or run.recipe.engine == "fake")
    return ServingNumbers(
        engine=run.recipe.engine,
        engine_version=run.engine_version,
        dtype=run.recipe.dtype,
        batch_size=run.workload.batch_size,
        input_tokens=run.workload.input_tokens,
        output_tokens=run.workload.output_tokens,
        repeats=tuple(RepeatLine(**repeat.model_dump()) for repeat in run.repeats),
        output_tokens_per_second=told(run.output_tokens_per_second),
        total_tokens_per_second=told(run.total_tokens_per_second),
        coefficient_of_variation=run.coefficient_of_variation,
        mean_running_sequences=told(run.mean_running_sequences),
        joules_per_output_token=told(run.joules_per_output_token),
        latencies=tuple(
            LatencyLine(name=one.name, p50=told(one.p50), p90=told(one.p90), p99=told(one.p99)) for one in run.latencies
        ),
        kv_cache_tokens=told(run.kv_cache_tokens),
        num_preemptions=run.num_preemptions,
        flags=run.flags,
        is_valid=not INVALIDATING_FLAGS & set(run.flags),
    )


def _why_none(line: TrialLine) -> str:
    match line.state:
        case "queued":
            again = f" again after {plural(line.num_attempts, 'attempt')}" if line.num_attempts else ""
            return f"It waits{again}: no result yet."
        case "running":
            return f"It runs, {line.done_fraction:.0%} done: no result yet."
        case _:
            return "It was given up: no attempt brought a result."


def _figures(
    attempts: Sequence[AttemptRow], result: TrainingObservation | ServingObservation | None, now_unix: float
) -> Iterator[Figure]:
    if attempts:
        yield attempts_figure(attempts, now_unix=now_unix)
    if isinstance(result, TrainingObservation):
        yield curve_figure(result)
        yield windows_figure(result)
    elif isinstance(result, ServingObservation):
        yield repeats_figure(result)
