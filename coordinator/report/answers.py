"""The answers as cards: what is proposed for each hardware, beside the baseline, in measured numbers."""

from collections.abc import Sequence

from coordinator.answer_words import headline, verdict_words, why_panda
from coordinator.extra_run import ExtraRun, extra_run_of
from coordinator.figures.formats import count
from coordinator.figures.origin import kind_of_losses, kind_of_rates
from coordinator.figures.shown import Shown, shown
from coordinator.figures.standing import Standing, proposal
from coordinator.recommendation import HardwareAnswer, Recommendation
from coordinator.record import RunRecord
from coordinator.speedup import Speedup, speedup
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import NotMeasured


class Card(Value):
    """The proposed shape against the baseline in one measure, and the comparison of the two."""

    title: str
    proposed: Shown
    baseline: Shown
    comparison_name: str
    comparison: Shown


class ExtraRunCard(Value):
    """The one run beyond the study that would most likely change the answer. All of it is predicted."""

    shape: str
    architecture: Architecture
    num_tokens: int
    probability_of_change: float
    """That the answer is another one after it."""
    price: Shown
    """Accelerator-seconds."""
    sentence: str
    basis: str
    """What the price rests on, in a sentence."""


class AnswerCards(Value):
    """One answer in words and numbers."""

    hardware: str
    engine: str
    dtype: str
    headline: str
    """What to build, in a few words."""
    why_panda: str
    """Why the most accurate shape and not the fastest safe one; empty where the latter is proposed."""
    sentence: str
    verdicts: tuple[str, ...]
    """The answer in a few words."""
    standing: Standing
    """`refuted` where the proposed shape failed its check at the target: then the answer is the baseline."""
    role: str
    shape: str
    baseline: str
    built: str
    """What is to be built: the proposed shape, or where it was refuted the baseline."""
    shape_facts: tuple[tuple[str, str], ...]
    """Of what is to be built."""
    refuted_facts: tuple[tuple[str, str], ...]
    """Of the proposed shape, in the same order; empty where it stands."""
    loss: Card
    throughput: Card
    reasons: tuple[str, ...]
    ranking: str
    """How good predictions of throughput were there, and what those of the others rest on; empty where not kept."""
    extra_run: ExtraRunCard | None
    no_extra_run_because: str
    """A sentence; empty where there is one."""


def answer_cards(record: RunRecord, recommendation: Recommendation) -> list[AnswerCards]:
    """Every answer, in the study's order of hardware."""
    return [_cards(record, recommendation, answer) for answer in recommendation.answers]


def _cards(record: RunRecord, recommendation: Recommendation, answer: HardwareAnswer) -> AnswerCards:
    found = speedup(answer, recommendation.baseline, record.serving.values())
    ranking, extra = answer.throughput_ranking, extra_run_of(record, answer)
    built = answer.recommended if answer.stands else recommendation.baseline
    words = "" if ranking is None else f"{ranking.sentence()} Predictions of shapes not measured: {ranking.basis}."
    return AnswerCards(
        hardware=answer.hardware,
        engine=answer.engine,
        dtype=answer.dtype,
        headline=headline(answer, recommendation.baseline),
        why_panda=why_panda(answer, recommendation.baseline, found),
        sentence=answer.sentence(simulated=record.is_simulated),
        verdicts=tuple(verdict_words(answer, recommendation.baseline, found)),
        standing=proposal(answer),
        role=answer.role,
        shape=answer.recommended.label,
        baseline=recommendation.baseline.label,
        built=built.label,
        shape_facts=tuple(shape_facts(built)),
        refuted_facts=() if answer.stands else tuple(shape_facts(answer.recommended)),
        loss=_loss_card(recommendation, answer, simulated=kind_of_losses(record) == "simulated"),
        throughput=_throughput_card(answer, found, simulated=kind_of_rates(record) == "simulated"),
        reasons=answer.answer.reasons,
        ranking=words,
        extra_run=None if isinstance(extra, NotMeasured) else _extra_card(extra),
        no_extra_run_because=_sentence(extra.reason) if isinstance(extra, NotMeasured) else "",
    )


def _extra_card(extra: ExtraRun) -> ExtraRunCard:
    return ExtraRunCard(
        shape=extra.architecture.label,
        architecture=extra.architecture,
        num_tokens=round(extra.run.num_tokens),
        probability_of_change=extra.run.probability_of_change,
        price=shown(extra.seconds),
        sentence=extra.sentence(),
        basis=_sentence(f"its price follows from the {extra.seconds.basis}"),
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def verdicts(answers: Sequence[AnswerCards]) -> list[str]:
    """The answers in a few words: loss against the baseline's, then speed."""
    if not answers:
        return ["no answer"]
    return [
        verdict if len(answers) == 1 else f"{cards.hardware}: {verdict}"
        for cards in answers
        for verdict in cards.verdicts
    ]


def _ratio(found: Speedup, *, simulated: bool) -> Shown:
    """The ratio to three decimals, with its verdict."""
    ratio = shown(found.ratio, simulated=simulated)
    if isinstance(found.ratio, NotMeasured):
        return ratio
    return ratio.model_copy(update={"value": f"{found.ratio.value:.3f}", "note": f"{ratio.note}; {found.verdict}"})


def _loss_card(recommendation: Recommendation, answer: HardwareAnswer, *, simulated: bool) -> Card:
    """Measured losses at the target. A proposed shape that is the baseline itself has one measurement for both."""
    by_shape = {row.architecture: row.measured for row in recommendation.held_out}
    missing = NotMeasured(reason="no finished run at the target")
    return Card(
        title="Held-out loss at the target",
        proposed=shown(by_shape.get(answer.recommended, missing), simulated=simulated),
        baseline=shown(by_shape.get(recommendation.baseline, missing), simulated=simulated),
        comparison_name="difference",
        comparison=shown(answer.loss_difference, signed=True, simulated=simulated),
    )


def _throughput_card(answer: HardwareAnswer, found: Speedup, *, simulated: bool) -> Card:
    """Measured output tokens/s, and their ratio."""
    return Card(
        title=f"Serving throughput on {answer.hardware}",
        proposed=shown(answer.recommended_throughput, simulated=simulated),
        baseline=shown(answer.baseline_throughput, simulated=simulated),
        comparison_name="ratio",
        comparison=_ratio(found, simulated=simulated),
    )


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
