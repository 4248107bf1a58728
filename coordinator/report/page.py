"""The page: a RunRecord as one self-contained HTML document. Everything on it comes from the record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.recommendation import HardwareAnswer, Recommendation
from coordinator.record import RunRecord
from coordinator.report import formats
from coordinator.report.canvas import FigureBlock
from coordinator.report.environment import render
from coordinator.report.formats import Shown, count, plural, shown
from coordinator.report.run_figures import colour_of, roofline, timeline
from coordinator.report.shape_figures import loss_against, optima_by_size
from coordinator.report.tables import (
    fit_facts,
    fit_messages,
    held_out_rows,
    not_measured,
    provenance_facts,
    rate_rows,
    roofline_rows,
    run_rows,
    serving_rows,
)
from coordinator.report.target_figures import held_out, no_recommendation, paretos, reference
from scaling.architecture import Architecture
from scaling.quantity import Measured, NotMeasured
from scaling.throughput_comparison import compare_throughput

TEMPLATE = "page.html.j2"


def render_report(record: RunRecord) -> str:
    """The report of a run, finished or not, as one HTML document without any external request.

    Raises:
        UserError: matplotlib or jinja2 is not installed.
    """
    return render(TEMPLATE, lambda: _context(record))


def _context(record: RunRecord) -> dict[str, Any]:
    recommendation = record.recommendation
    ended = sum(trial.state in ("succeeded", "failed") for trial in record.trials)
    answers = [] if recommendation is None else answer_cards(record, recommendation)
    pareto_figures = paretos(record)
    error = None if recommendation is None else recommendation.heldout_error_ratio
    return {
        "record": record,
        "study": record.study,
        "recommendation": recommendation,
        "answers": answers,
        "verdicts": verdicts(answers),
        "no_answer": None if recommendation else no_recommendation(record),
        "progress": f"{ended} of {plural(len(record.trials), 'trial')} ended",
        "caveats": caveats(record),
        "figures": _figures(record),
        "paretos": pareto_figures,
        "fit_facts": fit_facts(record.analysis, error) if record.analysis else [],
        "fit_messages": fit_messages(record.analysis) if record.analysis else [],
        "held_out": held_out_rows(recommendation),
        "runs": run_rows(record),
        "serving": serving_rows(record),
        "rates": rate_rows(recommendation),
        "colour_of": colour_of,
        "roofline": roofline_rows(record),
        "provenance": provenance_facts(record),
    }


def _figures(record: RunRecord) -> dict[str, FigureBlock]:
    blocks = (
        loss_against(record, "x"),
        loss_against(record, "r"),
        held_out(record),
        reference(record),
        optima_by_size(record),
        roofline(record),
        timeline(record),
    )
    return {block.name: block for block in blocks}


@dataclass(frozen=True, kw_only=True)
class Card:
    """Recommended against baseline in one measure, and the comparison of the two."""

    title: str
    recommended: Shown
    baseline: Shown
    comparison_name: str
    comparison: Shown


@dataclass(frozen=True, kw_only=True)
class AnswerCards:
    """One answer in words and numbers."""

    answer: HardwareAnswer
    baseline: Architecture
    shape: list[tuple[str, str]]
    loss: Card
    throughput: Card
    alone: bool
    """Whether it is the study's only one, so that its hardware goes without saying."""


def answer_cards(record: RunRecord, recommendation: Recommendation) -> list[AnswerCards]:
    """Every answer, in the study's order of hardware."""
    return [
        AnswerCards(
            answer=answer,
            baseline=recommendation.baseline,
            shape=shape_facts(answer.recommended),
            loss=_loss_card(recommendation, answer),
            throughput=_throughput_card(record, recommendation, answer),
            alone=len(recommendation.answers) == 1,
        )
        for answer in recommendation.answers
    ]


def verdicts(answers: Sequence[AnswerCards]) -> list[str]:
    """The answers in a few words: loss against the baseline's, then speed."""
    if not answers:
        return ["no answer"]
    return [
        verdict if cards.alone else f"{cards.answer.hardware}: {verdict}"
        for cards in answers
        for verdict in _verdicts(cards)
    ]


def _verdicts(cards: AnswerCards) -> list[str]:
    if cards.answer.recommended == cards.baseline:
        return ["the baseline itself"]
    losses = {
        "better": "lower loss than the baseline",
        "tie": "a tie with the baseline in loss",
        "worse": "higher loss than the baseline",
        None: "loss not compared",
    }
    ratio = cards.throughput.comparison
    speeds = {"faster": "faster than the baseline", "slower": "slower than the baseline"}
    speed = "speed not compared" if ratio.kind == "not measured" else speeds.get(ratio.note, "a tie in speed")
    return [losses[cards.answer.measured_verdict], speed]


def _loss_card(recommendation: Recommendation, answer: HardwareAnswer) -> Card:
    """Measured losses at the target. A recommended shape that is the baseline itself has one measurement for both."""
    by_shape = {row.architecture: row.measured for row in recommendation.held_out}
    missing = NotMeasured(reason="no finished run at the target")
    return Card(
        title="Held-out loss at the target",
        recommended=shown(by_shape.get(answer.recommended, missing)),
        baseline=shown(by_shape.get(recommendation.baseline, missing)),
        comparison_name="difference",
        comparison=shown(answer.loss_difference, signed=True),
    )


def _throughput_card(record: RunRecord, recommendation: Recommendation, answer: HardwareAnswer) -> Card:
    """Measured output tokens/s, and their ratio."""
    return Card(
        title=f"Serving throughput on {answer.hardware}",
        recommended=shown(answer.recommended_throughput),
        baseline=shown(answer.baseline_throughput),
        comparison_name="ratio",
        comparison=_throughput_ratio(record, recommendation.baseline, answer),
    )


def _throughput_ratio(record: RunRecord, baseline: Architecture, answer: HardwareAnswer) -> Shown:
    if answer.recommended == baseline:
        return not_measured("the recommended shape is the baseline itself")
    there = [one for one in record.serving.values() if one.provenance.hardware == answer.hardware]
    newest = {one.architecture: one for one in there}
    pair = [newest.get(shape) for shape in (baseline, answer.recommended)]
    found = [one for one in pair if one is not None]
    rates = (answer.recommended_throughput, answer.baseline_throughput)
    if len(found) < 2 or not all(isinstance(rate, Measured) for rate in rates):
        return not_measured("one of the two has no valid benchmark")
    try:
        comparison = compare_throughput(found)[0]
    except ValueError as error:
        return not_measured(str(error))
    note = comparison.verdict.partition(":")[0]
    if comparison.interval is None:
        return Shown(kind="measured", value=f"{comparison.ratio:.3f}", unit="×", note=f"no interval: {note}")
    interval = formats.between(comparison.interval)
    return Shown(kind="measured", value=f"{comparison.ratio:.3f}", unit="×", interval=interval, note=note)


def shape_facts(shape: Architecture) -> list[tuple[str, str]]:
    """The recommended shape in config.json's names, and what is counted from them."""
    return [
        ("N", count(shape.num_parameters)),
        ("x = d / √N", f"{shape.width_ratio:.3f}"),
        ("r = MLP / attention", f"{shape.mlp_attention_ratio:.2f}"),
        ("hidden_size", count(shape.hidden_size)),
        ("intermediate_size", count(shape.intermediate_size)),
        ("num_hidden_layers", count(shape.num_hidden_layers)),
        (
            "heads / kv heads × head_dim",
            f"{shape.num_attention_heads} / {shape.num_key_value_heads} × {shape.head_dim}",
        ),
        ("vocab_size", f"{count(shape.vocab_size)}{', tied' if shape.tie_word_embeddings else ''}"),
    ]


def caveats(record: RunRecord) -> list[str]:
    """What a reader must know before believing anything on the page."""
    study = record.study
    sizes = [study.fit.num_parameters, study.target.num_parameters, *(c.num_parameters for c in study.reference)]
    words = [
        f"These are proxies of {formats.short(min(sizes))} to {formats.short(max(sizes))} non-embedding parameters. "
        "The answer holds at this size, on this text and with this recipe. Nothing at this size carries over to "
        "models of 1 B parameters: the run shows the method, not an architecture to build large."
        if max(sizes) < 1e8
        else f"The law was fitted at {formats.short(study.fit.num_parameters)} and checked at "
        f"{formats.short(study.target.num_parameters)} non-embedding parameters; beyond the larger it is untested.",
        f"Losses were measured by training, and serving on {', '.join(study.serving.hardware) or 'this machine'} with "
        f"{study.serving.recipe.engine}. Numbers "
        f"for {', '.join(study.serving.predict_hardware) or 'other hardware'} are roofline predictions, uncalibrated: "
        "no such device was measured.",
    ]
    if study.serving.recipe.engine == "fake":
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
