"""The answers as cards: what is proposed for each hardware, beside the baseline, in measured numbers."""

from collections.abc import Sequence

from coordinator.figures.formats import between, count
from coordinator.figures.shown import Shown, shown
from coordinator.figures.standing import Standing, proposal
from coordinator.recommendation import HardwareAnswer, Recommendation
from coordinator.record import RunRecord
from coordinator.report.tables import not_measured
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import Measured, NotMeasured
from scaling.throughput_comparison import compare_throughput


class Card(Value):
    """The proposed shape against the baseline in one measure, and the comparison of the two."""

    title: str
    proposed: Shown
    baseline: Shown
    comparison_name: str
    comparison: Shown


class AnswerCards(Value):
    """One answer in words and numbers."""

    hardware: str
    engine: str
    dtype: str
    sentence: str
    verdicts: tuple[str, ...]
    """The answer in a few words."""
    standing: Standing
    """`refuted` where the proposed shape failed its check at the target: then the answer is the baseline."""
    role: str
    shape: str
    baseline: str
    shape_facts: tuple[tuple[str, str], ...]
    loss: Card
    throughput: Card
    reasons: tuple[str, ...]
    ranking: str
    """How good predictions of throughput were there, and what those of the others rest on; empty where not kept."""


def answer_cards(record: RunRecord, recommendation: Recommendation) -> list[AnswerCards]:
    """Every answer, in the study's order of hardware."""
    return [_cards(record, recommendation, answer) for answer in recommendation.answers]


def _cards(record: RunRecord, recommendation: Recommendation, answer: HardwareAnswer) -> AnswerCards:
    throughput = _throughput_card(record, recommendation, answer)
    ranking = answer.throughput_ranking
    words = "" if ranking is None else f"{ranking.sentence()} Predictions of shapes not measured: {ranking.basis}."
    return AnswerCards(
        hardware=answer.hardware,
        engine=answer.engine,
        dtype=answer.dtype,
        sentence=answer.sentence(),
        verdicts=_verdicts(answer, recommendation.baseline, throughput.comparison),
        standing=proposal(answer),
        role=answer.role,
        shape=answer.recommended.label,
        baseline=recommendation.baseline.label,
        shape_facts=tuple(shape_facts(answer.recommended)),
        loss=_loss_card(recommendation, answer),
        throughput=throughput,
        reasons=answer.answer.reasons,
        ranking=words,
    )


def verdicts(answers: Sequence[AnswerCards]) -> list[str]:
    """The answers in a few words: loss against the baseline's, then speed."""
    if not answers:
        return ["no answer"]
    return [
        verdict if len(answers) == 1 else f"{cards.hardware}: {verdict}"
        for cards in answers
        for verdict in cards.verdicts
    ]


def _verdicts(answer: HardwareAnswer, baseline: Architecture, ratio: Shown) -> tuple[str, ...]:
    if answer.recommended == baseline:
        return ("the baseline itself",)
    losses = {
        "better": "lower loss than the baseline",
        "tie": "a tie with the baseline in loss",
        "worse": "keep the baseline: the proposed shape has a higher loss",
        None: "loss not compared",
    }
    speeds = {"faster": "faster than the baseline", "slower": "slower than the baseline"}
    speed = "speed not compared" if ratio.kind == "not measured" else speeds.get(ratio.note, "a tie in speed")
    return losses[answer.measured_verdict], speed


def _loss_card(recommendation: Recommendation, answer: HardwareAnswer) -> Card:
    """Measured losses at the target. A proposed shape that is the baseline itself has one measurement for both."""
    by_shape = {row.architecture: row.measured for row in recommendation.held_out}
    missing = NotMeasured(reason="no finished run at the target")
    return Card(
        title="Held-out loss at the target",
        proposed=shown(by_shape.get(answer.recommended, missing)),
        baseline=shown(by_shape.get(recommendation.baseline, missing)),
        comparison_name="difference",
        comparison=shown(answer.loss_difference, signed=True),
    )


def _throughput_card(record: RunRecord, recommendation: Recommendation, answer: HardwareAnswer) -> Card:
    """Measured output tokens/s, and their ratio."""
    return Card(
        title=f"Serving throughput on {answer.hardware}",
        proposed=shown(answer.recommended_throughput),
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
    interval = between(comparison.interval)
    return Shown(kind="measured", value=f"{comparison.ratio:.3f}", unit="×", interval=interval, note=note)


def shape_facts(shape: Architecture) -> list[tuple[str, str]]:
    """A shape in config.json's names, and what is counted from them."""
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
