"""The report as one value: every fact and figure of a run. HTML, Markdown and JSON are written from it alone."""

from typing import Literal

from coordinator.figures.absence import no_recommendation
from coordinator.figures.catalogue import FigurePage, entries
from coordinator.figures.figure import Figure
from coordinator.figures.formats import plural, short
from coordinator.recommendation import Recommendation
from coordinator.record import RunRecord
from coordinator.report.answers import AnswerCards, answer_cards, verdicts
from coordinator.report.tables import (
    Fact,
    HeldOutRow,
    PlanRow,
    RateRow,
    RooflineRow,
    RunRow,
    ServingRow,
    fit_facts,
    fit_messages,
    held_out_rows,
    plan_rows,
    provenance_facts,
    rate_rows,
    roofline_rows,
    run_rows,
    serving_rows,
)
from hwprofiles.value import Value
from scaling.observations import Failure


class PlacedFigure(Value):
    """A figure and the part of the report that it belongs to."""

    page: FigurePage
    figure: Figure


class Report(Value):
    """One run, finished or not. Numbers as text have numbers for programs beside them or in `recommendation`."""

    schema_version: Literal[1] = 1
    study: str
    state: str
    progress: str
    is_simulated: bool
    """Whether the fleet was simulated, so that nothing here was measured on a device."""
    verdicts: tuple[str, ...]
    no_answer: str
    """Why there is no recommendation; empty where there is one."""
    answers: tuple[AnswerCards, ...]
    caveats: tuple[str, ...]
    figures: tuple[PlacedFigure, ...]
    fit_facts: tuple[Fact, ...]
    fit_messages: tuple[str, ...]
    agreement: str
    """Whether x* and r* agree between sizes; empty before the first fit."""
    held_out: tuple[HeldOutRow, ...]
    plans: tuple[PlanRow, ...]
    runs: tuple[RunRow, ...]
    load: str
    """The load under which serving was measured."""
    serving: tuple[ServingRow, ...]
    rates: tuple[RateRow, ...]
    roofline: tuple[RooflineRow, ...]
    failures: tuple[Failure, ...]
    provenance: tuple[Fact, ...]
    recommendation: Recommendation | None


def report_of(record: RunRecord) -> Report:
    """Everything that a reader or a program is told of a run."""
    recommendation, analysis = record.recommendation, record.analysis
    ended = sum(trial.state in ("succeeded", "failed") for trial in record.trials)
    answers = [] if recommendation is None else answer_cards(record, recommendation)
    error = None if recommendation is None else recommendation.heldout_error_ratio
    load = record.study.serving.workload
    return Report(
        study=record.study.name,
        state=record.state,
        progress=f"{ended} of {plural(len(record.trials), 'trial')} ended",
        is_simulated=record.is_simulated,
        verdicts=tuple(verdicts(answers)),
        no_answer="" if recommendation else no_recommendation(record),
        answers=tuple(answers),
        caveats=tuple(caveats(record)),
        figures=tuple(PlacedFigure(page=entry.page, figure=entry.make(record)) for entry in entries(record)),
        fit_facts=() if analysis is None else tuple(fit_facts(analysis, error)),
        fit_messages=() if analysis is None else tuple(fit_messages(analysis)),
        agreement="" if analysis is None else analysis.agreement(),
        held_out=tuple(held_out_rows(record)),
        plans=tuple(plan_rows(record)),
        runs=tuple(run_rows(record)),
        load=f"batch {load.batch_size}, {load.input_tokens} input and {load.output_tokens} output tokens",
        serving=tuple(serving_rows(record)),
        rates=tuple(rate_rows(recommendation)),
        roofline=tuple(roofline_rows(record)),
        failures=tuple(record.failures),
        provenance=tuple(provenance_facts(record)),
        recommendation=recommendation,
    )


def caveats(record: RunRecord) -> list[str]:
    """What a reader must know before believing anything of the report."""
    study = record.study
    sizes = [study.fit.num_parameters, study.target.num_parameters, *(c.num_parameters for c in study.reference)]
    words = [
        f"These are proxies of {short(min(sizes))} to {short(max(sizes))} non-embedding parameters. "
        "The answer holds at this size, on this text and with this recipe. Nothing at this size carries over to "
        "models of 1 B parameters: the run shows the method, not an architecture to build large."
        if max(sizes) < 1e8
        else f"The law was fitted at {short(study.fit.num_parameters)} and checked at "
        f"{short(study.target.num_parameters)} non-embedding parameters; beyond the larger it is untested.",
        f"Losses were measured by training, and serving on {', '.join(study.serving.hardware) or 'this machine'} with "
        f"{study.serving.recipe.engine}. Numbers "
        f"for {', '.join(study.serving.predict_hardware) or 'other hardware'} are roofline predictions, uncalibrated: "
        "no such device was measured.",
    ]
    if record.is_simulated:
        words[1] = "The fleet was simulated: no loss and no throughput here was measured; a formula made them up."
    elif study.serving.recipe.engine == "fake":
        words.append("The engine `fake` is a simulation: its throughputs are invented by a roofline, not measured.")
    if record.token_scale is not None and record.token_scale < 1:
        words.append(
            f"Every run used {record.token_scale:.0%} of the study's tokens, so that the run kept its budget of "
            f"{study.budget.wall_minutes:g} minutes. All shapes were cut alike."
        )
    words.append(_troubles(record))
    return words


def _troubles(record: RunRecord) -> str:
    retries = sum(max(0, trial.attempts - 1) for trial in record.trials)
    lost = sum(trial.state == "failed" for trial in record.trials)
    return (
        f"{plural(len(record.failures), 'failed attempt')}, {plural(retries, 'retry')}, "
        f"{plural(lost, 'trial')} given up, {plural(record.num_rejections, 'late or repeated report')} refused."
    )
