"""The report's tables: every run, fit quality, serving, failures, provenance. Rows of text; the template draws them."""

from collections import defaultdict
from collections.abc import Iterable

from agent.assignment import TrainAssignment
from coordinator.analysis import Analysis
from coordinator.figures.formats import (
    NATS,
    between,
    count,
    digits,
    duration,
    moment,
    plural,
    short,
)
from coordinator.figures.origin import kind_of_rates
from coordinator.figures.roofline import predictions_by
from coordinator.figures.shown import Shown, shown
from coordinator.figures.standing import Standing, proposal, standing
from coordinator.recommendation import HardwareAnswer, HeldOutLoss
from coordinator.record import RunRecord
from coordinator.store import TrialRow
from coordinator.throughput_ranking import RankedShape
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law_fit import Optimum
from scaling.observations import Provenance, ServingObservation
from scaling.quantity import Interval, NotMeasured, Predicted

_MAX_VALUES_SHOWN = 4


class Fact(Value):
    """One named fact; `note` explains it or says why there is none."""

    name: str
    value: str
    note: str = ""
    number: float | None = None
    """The value for programs, in the unit of `unit`; null where it is none or no number."""
    unit: str = ""
    interval: Interval | None = None


class RunRow(Value):
    """One trial in the table of all runs; numbers come with the value to sort by."""

    trial_id: str
    stage: str
    role: str
    shape: str
    x: float
    r: float
    num_parameters: int
    num_tokens: int | None
    seed: int | None
    loss: float | None
    loss_text: str
    rate: float | None
    rate_text: str
    state: str
    attempts: int
    agent: str
    reason: str


class HeldOutRow(Value):
    """One shape trained at the target."""

    role: Standing
    shape: str
    predicted: Shown
    measured: Shown
    error: str


class ServingRow(Value):
    """One serving benchmark."""

    shape: str
    roles: str
    repeats: tuple[str, ...]
    rate: Shown
    variation: str
    running: Shown
    energy: Shown
    flags: tuple[str, ...]
    engine: str
    device: str


class RateCell(Value):
    """One shape on one hardware: measured, and predicted from the other shapes' runs there."""

    roles: str
    measured: Shown
    predicted: Shown


class RateRow(Value):
    """Throughput of one shape on every hardware, in the order of the answers."""

    shape: str
    cells: tuple[RateCell, ...]


class RooflineRow(Value):
    """One requested batch on one device: effective batch and predicted output tokens/s by role."""

    hardware: str
    batch: int
    cells: tuple[tuple[str, str, str], ...]


class PlannedRow(Value):
    """One trial of a plan, and why it was made."""

    trial_id: str
    role: str
    shape: str
    reason: str


class PlanRow(Value):
    """What one stage added to the queue."""

    stage: str
    notes: tuple[str, ...]
    trials: tuple[PlannedRow, ...]


def plan_rows(record: RunRecord) -> list[PlanRow]:
    """Every plan, in the order they were made."""
    return [
        PlanRow(
            stage=plan.stage,
            notes=plan.notes,
            trials=tuple(
                PlannedRow(
                    trial_id=trial.trial_id,
                    role=trial.role,
                    shape=trial.assignment.architecture.label,
                    reason=trial.reason,
                )
                for trial in plan.trials
            ),
        )
        for plan in record.plans
    ]


def run_rows(record: RunRecord) -> list[RunRow]:
    """Every trial in planned order."""
    return [_run_row(record, trial) for trial in record.trials]


def _run_row(record: RunRecord, trial: TrialRow) -> RunRow:
    assignment = trial.planned.assignment
    shape = assignment.architecture
    recipe = assignment.recipe if isinstance(assignment, TrainAssignment) else None
    run, benchmark = record.training.get(trial.trial_id), record.serving.get(trial.trial_id)
    rate = run.tokens_per_second if run else benchmark.output_tokens_per_second.value if benchmark else None
    loss_text = rate_text = "not measured: " + _why_missing(trial)
    if recipe is None:
        loss_text = "not measured: serving"
    if run:
        loss_text = f"{run.loss:.4f} ± {run.loss_standard_error:.4f}"
        rate_text = f"{run.tokens_per_second:,.0f} training"
    if benchmark:
        interval = benchmark.output_tokens_per_second.interval
        span = f" [{interval.low:,.0f}, {interval.high:,.0f}]" if interval else ""
        rate_text = f"{benchmark.output_tokens_per_second.value:,.0f}{span} output"
    return RunRow(
        trial_id=trial.trial_id,
        stage=trial.stage,
        role=trial.planned.role,
        shape=shape.label,
        x=shape.width_ratio,
        r=shape.mlp_attention_ratio,
        num_parameters=shape.num_parameters,
        num_tokens=recipe.num_tokens if recipe else None,
        seed=recipe.seed if recipe else None,
        loss=run.loss if run else None,
        loss_text=loss_text,
        rate=rate,
        rate_text=rate_text,
        state=trial.state,
        attempts=trial.attempts,
        agent=trial.agent or "none",
        reason=trial.planned.reason,
    )


def _why_missing(trial: TrialRow) -> str:
    if trial.state == "running":
        return f"running, {trial.done_fraction:.0%} done"
    return trial.state


def fit_facts(analysis: Analysis, heldout_error_ratio: float | None) -> list[Fact]:
    """How good the deciding fit is: noise, misfit, conditioning, held-out error; reasons where one is missing."""
    fit = analysis.law_fit
    left_out = f"; {fit.num_left_out} more left out: r outside the law's range" if fit.num_left_out else ""
    freedom = f"{plural(fit.degrees_of_freedom, 'degree')} of freedom{left_out}"
    p, condition = fit.lack_of_fit_p, fit.condition_number
    no_law = "no law was fitted" if fit.law is None else "the fit did not give one"
    return [
        Fact(name="Law", value=fit.form, note=f"reference loss per cell: {fit.reference}"),
        Fact(name="Runs fitted", value=str(fit.num_points), note=freedom, number=fit.num_points, unit="runs"),
        Fact(name="Converged", value="yes" if fit.converged else "no"),
        _optimum("x*", fit.x_opt, fit.x_opt_reason or no_law),
        _optimum("r*", fit.r_opt, fit.r_opt_reason or no_law),
        _nats("Noise of one run (sd over seeds)", fit.pure_error_sd, _NOISE_NOTE, fit.pure_error_reason or no_law),
        _nats("Residual sd of the fit", fit.residual_sd, "noise and misfit together", no_law),
        _number("Lack of fit", p, f"p = {p or 0:.3g}", _lack_of_fit(p), _NO_TEST),
        _number("Condition number", condition, f"{condition or 0:.3g}", _CONDITION_NOTE, no_law),
        _number("Held-out error", heldout_error_ratio, f"{heldout_error_ratio or 0:.2%}", _ERROR_NOTE, _NO_ERROR),
    ]


_ERROR_NOTE = "median |prediction − outcome| / outcome at the target; no interval: too few shapes"
_NO_ERROR = "no shape has both a prediction and a finished run at the target"
_NOISE_NOTE = "from replicates that differ in the seed alone; no interval: few degrees of freedom"


_CONDITION_NOTE = "of the design: 1 is ideal; large means that the runs cannot tell the coefficients apart"
_NO_TEST = "no test: it needs replicates and more shapes than coefficients"


def _number(name: str, number: float | None, value: str, note: str, reason: str, *, unit: str = "") -> Fact:
    """A fact with its note, or "none" with the reason."""
    if number is None:
        return Fact(name=name, value="none", note=reason)
    return Fact(name=name, value=value, note=note, number=number, unit=unit)


def _optimum(name: str, optimum: Optimum | None, reason: str) -> Fact:
    if optimum is None:
        return Fact(name=name, value="none", note=reason)
    text = f"{optimum.value:.3g} {between(optimum.interval)}"
    return Fact(name=name, value=text, number=optimum.value, unit="dimensionless", interval=optimum.interval)


def _nats(name: str, value: float | None, note: str, reason: str) -> Fact:
    return _number(name, value, f"{digits(value or 0, NATS)} {NATS}", note, reason, unit=NATS)


def _lack_of_fit(p: float | None) -> str:
    if p is not None and p < 0.05:
        return "F test against the replicates: the law misses something that the runs repeat"
    return "F test against the replicates: no misfit beyond the noise is shown"


def held_out_rows(record: RunRecord) -> list[HeldOutRow]:
    """Predicted loss beside the outcome of every shape trained at the target."""
    return [
        HeldOutRow(
            role=standing(record, row),
            shape=row.architecture.label,
            predicted=shown(row.predicted),
            measured=shown(row.measured, simulated=record.is_simulated),
            error=_relative_error(row),
        )
        for row in (record.recommendation.held_out if record.recommendation else ())
    ]


def _relative_error(row: HeldOutLoss) -> str:
    if isinstance(row.predicted, NotMeasured):
        return "no prediction"
    return f"{row.predicted.value / row.measured.value - 1:+.2%}"


def serving_rows(record: RunRecord) -> list[ServingRow]:
    """Every finished benchmark."""
    answers = {} if record.recommendation is None else {one.hardware: one for one in record.recommendation.answers}
    simulated = kind_of_rates(record) == "simulated"

    def roles(one: ServingObservation) -> str:
        answer = answers.get(one.provenance.hardware)
        return "" if answer is None else roles_in(answer, one.architecture)

    return [
        ServingRow(
            shape=one.architecture.label,
            roles=roles(one),
            repeats=tuple(f"{repeat.output_tokens_per_second:,.0f}" for repeat in one.repeats),
            rate=shown(one.output_tokens_per_second, simulated=simulated),
            variation=f"{one.coefficient_of_variation:.1%}",
            running=shown(one.mean_running_sequences, simulated=simulated),
            energy=shown(one.joules_per_output_token, simulated=simulated),
            flags=one.flags,
            engine=f"{one.recipe.engine} {one.engine_version}, {one.recipe.dtype}",
            device=f"{one.provenance.device} ({one.provenance.hardware})",
        )
        for one in record.serving.values()
    ]


def roles_in(answer: HardwareAnswer, shape: Architecture) -> str:
    """What a shape is for one hardware: recommended or refuted, Panda, Surefire, baseline; empty for any other."""
    roles: list[str] = [proposal(answer)] if shape == answer.recommended else []
    for one in answer.answer.shapes:
        if one.architecture == shape:
            roles += [role for role in ("panda", "surefire", "baseline") if role in one.roles]
    return ", ".join(roles)


def rate_rows(record: RunRecord) -> list[RateRow]:
    """Measured beside predicted throughput of every shape that some answer knows of, on all hardware side by side."""
    recommendation, simulated = record.recommendation, kind_of_rates(record) == "simulated"
    if recommendation is None or any(one.throughput_ranking is None for one in recommendation.answers):
        return []
    known = [
        (answer, {row.architecture: row for row in answer.throughput_ranking.shapes})
        for answer in recommendation.answers
        if answer.throughput_ranking is not None
    ]
    unknown = not_measured("neither measured here nor among the fastest predicted here")

    def cell(answer: HardwareAnswer, row: RankedShape | None, shape: Architecture) -> RateCell:
        return RateCell(
            roles=roles_in(answer, shape),
            measured=unknown if row is None else shown(row.measured, simulated=simulated),
            predicted=unknown if row is None else shown(row.predicted),
        )

    return [
        RateRow(shape=shape.label, cells=tuple(cell(answer, rows.get(shape), shape) for answer, rows in known))
        for shape in dict.fromkeys(shape for _, rows in known for shape in rows)
    ]


def roofline_rows(record: RunRecord) -> list[RooflineRow]:
    """Requested and effective batch with predicted throughput, by device."""
    if record.recommendation is None:
        return []
    rows = []
    for hardware, by_role in predictions_by(record).items():
        batches = sorted({one.workload.batch_size for row in by_role.values() for one in row})
        for batch in batches:
            cells = tuple(
                (role, shown(one.effective_batch).value or "none", _in_short(one.output_tokens_per_second))
                for role, row in by_role.items()
                for one in row
                if one.workload.batch_size == batch
            )
            rows.append(RooflineRow(hardware=hardware, batch=batch, cells=cells))
    return rows


def _in_short(quantity: Predicted | NotMeasured) -> str:
    return quantity.reason if isinstance(quantity, NotMeasured) else short(quantity.value)


def provenance_facts(record: RunRecord) -> list[Fact]:
    """Where, when, on what and by what versions the numbers were made."""
    made = [observation.provenance for observation in record.observations]
    wall = "none" if record.wall_seconds is None else duration(record.wall_seconds)
    corpus = record.corpus or {}
    shards = ", ".join(f"{count(s['num_tokens'])} {s['role']} tokens" for s in corpus.get("shards", ()))
    facts = [
        Fact(name="Study", value=record.study.name, note=record.study.description),
        Fact(name="Run directory", value=record.run_directory.name),
        Fact(name="Begun", value=moment(record.created_unix)),
        Fact(
            name="Wall time",
            value=wall,
            note="the first session has not ended" if record.wall_seconds is None else "all sessions together",
        ),
        Fact(name="Corpus", value=corpus.get("description") or "none", note=shards or "it was not built yet"),
        Fact(name="Corpus id", value=record.corpus_id or "none", note="SHA-256 of its manifest"),
        Fact(name="Vocabulary", value=f"{count(record.study.corpus.vocab_size)} tokens"),
        Fact(name="Agents", value=str(len(record.agents))),
    ]
    if not made:
        return [*facts, Fact(name="Versions", value="none", note="no observation has arrived yet")]
    facts += [
        Fact(name="Hosts", value=_listed(p.hostname for p in made)),
        Fact(name="Devices", value=_listed(p.device for p in made), note=_listed(p.hardware for p in made)),
    ]
    return [*facts, *_version_facts(made)]


def _version_facts(made: Iterable[Provenance]) -> list[Fact]:
    versions: dict[str, list[str]] = defaultdict(list)
    for provenance in made:
        for name, value in provenance.versions.items():
            versions[name].append(value)
    return [Fact(name=name, value=_listed(values)) for name, values in sorted(versions.items())]


def _listed(values: Iterable[str]) -> str:
    different = list(dict.fromkeys(values))
    if len(different) > _MAX_VALUES_SHOWN:
        return f"{len(different)} different values, the first: {different[0]}"
    return ", ".join(different)


def not_measured(reason: str) -> Shown:
    """An absent number with its reason."""
    return shown(NotMeasured(reason=reason))
