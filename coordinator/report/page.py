"""The page: a RunRecord as one self-contained HTML document. Everything on it comes from the record."""

from dataclasses import dataclass
from typing import Any

from coordinator.recommendation import Recommendation
from coordinator.record import RunRecord
from coordinator.report import formats
from coordinator.report.canvas import FigureBlock
from coordinator.report.environment import render
from coordinator.report.formats import Shown, count, plural, shown
from coordinator.report.run_figures import roofline, timeline
from coordinator.report.shape_figures import loss_against, optima_by_size
from coordinator.report.tables import (
    fit_facts,
    fit_messages,
    held_out_rows,
    not_measured,
    provenance_facts,
    roofline_rows,
    run_rows,
    serving_rows,
)
from coordinator.report.target_figures import held_out, no_recommendation, pareto, reference
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
    throughput = None if recommendation is None else throughput_card(record, recommendation)
    error = None if recommendation is None else recommendation.heldout_error_ratio
    return {
        "record": record,
        "study": record.study,
        "recommendation": recommendation,
        "verdicts": verdicts(recommendation, throughput),
        "no_answer": None if recommendation else no_recommendation(record),
        "progress": f"{ended} of {plural(len(record.trials), 'trial')} ended",
        "loss": None if recommendation is None else loss_card(recommendation),
        "throughput": throughput,
        "shape": None if recommendation is None else shape_facts(recommendation.recommended),
        "caveats": caveats(record),
        "figures": _figures(record),
        "fit_facts": fit_facts(record.analysis, error) if record.analysis else [],
        "fit_messages": fit_messages(record.analysis) if record.analysis else [],
        "held_out": held_out_rows(recommendation),
        "runs": run_rows(record),
        "serving": serving_rows(record),
        "roofline": roofline_rows(record),
        "provenance": provenance_facts(record),
    }


def _figures(record: RunRecord) -> dict[str, FigureBlock]:
    blocks = (
        loss_against(record, "x"),
        loss_against(record, "r"),
        held_out(record),
        pareto(record),
        reference(record),
        optima_by_size(record),
        roofline(record),
        timeline(record),
    )
    return {block.name: block for block in blocks}


def verdicts(recommendation: Recommendation | None, throughput: "Card | None") -> list[str]:
    """The answer in a few words: loss against the baseline's, then speed."""
    if recommendation is None or throughput is None:
        return ["no answer"]
    if recommendation.recommended == recommendation.baseline:
        return ["the baseline itself"]
    losses = {
        "better": "lower loss than the baseline",
        "tie": "a tie with the baseline in loss",
        "worse": "higher loss than the baseline",
        None: "loss not compared",
    }
    ratio = throughput.comparison
    speeds = {"faster": "faster than the baseline", "slower": "slower than the baseline"}
    speed = "speed not compared" if ratio.kind == "not measured" else speeds.get(ratio.note, "a tie in speed")
    return [losses[recommendation.measured_verdict], speed]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Recommended against baseline in one measure, and the comparison of the two."""

    recommended: Shown
    baseline: Shown
    comparison_name: str
    comparison: Shown


def loss_card(recommendation: Recommendation) -> Card:
    """Measured losses at the target. A recommended shape that is the baseline itself has one measurement for both."""
    by_shape = {row.architecture: row.measured for row in recommendation.held_out}
    missing = NotMeasured(reason="no finished run at the target")
    return Card(
        recommended=shown(by_shape.get(recommendation.recommended, missing)),
        baseline=shown(by_shape.get(recommendation.baseline, missing)),
        comparison_name="difference",
        comparison=shown(recommendation.loss_difference, signed=True),
    )


def throughput_card(record: RunRecord, recommendation: Recommendation) -> Card:
    """Measured output tokens/s, and their ratio."""
    return Card(
        recommended=shown(recommendation.recommended_throughput),
        baseline=shown(recommendation.baseline_throughput),
        comparison_name="ratio",
        comparison=_throughput_ratio(record, recommendation),
    )


def _throughput_ratio(record: RunRecord, recommendation: Recommendation) -> Shown:
    if recommendation.recommended == recommendation.baseline:
        return not_measured("the recommended shape is the baseline itself")
    newest = {one.architecture: one for one in record.serving.values()}
    pair = [newest.get(shape) for shape in (recommendation.baseline, recommendation.recommended)]
    found = [one for one in pair if one is not None]
    if len(found) < 2 or not all(isinstance(q, Measured) for q in _throughputs(recommendation)):
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


def _throughputs(recommendation: Recommendation) -> tuple[object, object]:
    return recommendation.recommended_throughput, recommendation.baseline_throughput


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
        f"Losses were measured by training, and serving on this machine with {study.serving.recipe.engine}. Numbers "
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
