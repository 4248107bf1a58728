"""The report as one value: every fact and figure of a run. HTML, Markdown and JSON are written from it alone."""

from typing import Literal

from coordinator.caveats import Troubles, caveats
from coordinator.figures.absence import no_recommendation
from coordinator.figures.catalogue import FigurePage, entries
from coordinator.figures.figure import Figure, Kind
from coordinator.figures.formats import plural
from coordinator.figures.origin import kind_of_losses, kind_of_rates
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
    kind_of_losses: Kind
    kind_of_rates: Kind
    """Of throughput: simulated by a simulated fleet, and by the engine `fake`."""
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
        kind_of_losses=kind_of_losses(record),
        kind_of_rates=kind_of_rates(record),
        verdicts=tuple(verdicts(answers)),
        no_answer="" if recommendation else no_recommendation(record),
        answers=tuple(answers),
        caveats=tuple(_caveats(record)),
        figures=tuple(PlacedFigure(page=entry.page, figure=entry.make(record)) for entry in entries(record)),
        fit_facts=() if analysis is None else tuple(fit_facts(analysis, error)),
        fit_messages=() if analysis is None else tuple(analysis.messages()),
        agreement="" if analysis is None else analysis.agreement(),
        held_out=tuple(held_out_rows(record)),
        plans=tuple(plan_rows(record)),
        runs=tuple(run_rows(record)),
        load=f"batch {load.batch_size}, {load.input_tokens} input and {load.output_tokens} output tokens",
        serving=tuple(serving_rows(record)),
        rates=tuple(rate_rows(record)),
        roofline=tuple(roofline_rows(record)),
        failures=tuple(record.failures),
        provenance=tuple(provenance_facts(record)),
        recommendation=recommendation,
    )


def _caveats(record: RunRecord) -> list[str]:
    troubles = Troubles(
        num_failed_attempts=len(record.failures),
        num_retries=sum(max(0, trial.attempts - 1) for trial in record.trials),
        num_given_up=sum(trial.state == "failed" for trial in record.trials),
        num_refused=record.num_rejections,
    )
    return caveats(record.study, token_scale=record.token_scale, is_simulated=record.is_simulated, troubles=troubles)
