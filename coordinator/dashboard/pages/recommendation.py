"""Recommendation: what to build for each hardware, why, on what evidence, how sure, and what would change it most."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from coordinator.analysis import Analysis
from coordinator.answer_words import LOSS_WORDS, SPEED_WORDS, headline, verdict_words, why_panda
from coordinator.dashboard.pages.page import Amount, Page, Shape, amount, page_facts, shape_of
from coordinator.dashboard.pages.study import FigureEntry, figure_entry, heldout_error, read_caveats
from coordinator.dashboard.reads import PageReader, Result
from coordinator.extra_run import NUM_TIMED, extra_run
from coordinator.extra_run import ExtraRun as FoundRun
from coordinator.figures.catalogue import entries
from coordinator.figures.formats import NATS, plural
from coordinator.forecast import slowdown
from coordinator.outputs import named_shapes
from coordinator.recommendation import HardwareAnswer, Recommendation
from coordinator.record import RunRecord
from coordinator.speedup import Speedup, speedup
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import Measured, NotMeasured
from scaling.recommend import RecommendedShape


class Comparison(Value):
    """Recommended against baseline in one measure."""

    title: str
    recommended: Amount
    baseline: Amount
    comparison_name: str
    """difference or ratio."""
    comparison: Amount
    verdict: str
    """In words, e.g. "lower than the baseline's", "a tie", "not compared"."""


class ShapeLine(Value):
    """One shape that an answer knows of: Panda, Surefire, the baseline, the front, and what was measured."""

    roles: tuple[str, ...]
    shape: Shape
    predicted_loss: Amount
    measured_loss: Amount
    throughput: Amount
    """Output tokens per second."""
    probability_within_limit: float
    """Predicted chance that its loss is at most the baseline's."""
    config_name: str | None
    """For `/api/configs/{name}`; null where it has none."""


class EvidenceRun(Value):
    """One run that an answer rests on."""

    trial_id: str
    what: str
    """held-out loss, throughput ..."""
    shape: str
    result: Amount


class ExtraRun(Value):
    """The one run that would most likely change an answer, and its price. All predicted."""

    shape: Shape
    config: dict[str, Any]
    """config.json of the shape."""
    x: float
    r: float
    num_parameters: float
    num_tokens: float
    probability_of_change: float
    """That the answer is another one after it."""
    price: Amount
    """Accelerator-seconds."""
    sentence: str


class Answer(Value):
    """What to build for one hardware, engine and dtype."""

    hardware: str
    engine: str
    dtype: str
    role: str
    """surefire or panda."""
    stands: bool
    """False where the proposed shape was trained at the target and lost to the baseline: keep the baseline."""
    is_baseline: bool
    """Whether the baseline itself was proposed."""
    headline: str
    """What to build, in a few words."""
    recommended: Shape
    """The proposed shape, whether or not it stands."""
    baseline: Shape
    sentence: str
    verdicts: tuple[str, ...]
    """The answer in a few words: loss against the baseline's, then speed."""
    why: tuple[str, ...]
    """Reasons, one sentence each."""
    loss: Comparison
    throughput: Comparison
    shapes: tuple[ShapeLine, ...]
    evidence: tuple[EvidenceRun, ...]
    uncertainty: tuple[str, ...]
    """What is not known, or not sure, one sentence each."""
    extra_run: ExtraRun | None
    no_extra_run_because: str
    """Empty where there is one."""
    config_name: str
    """For `/api/configs/{name}`."""
    config: dict[str, Any]
    """config.json of what is to be built: the baseline's where the proposal does not stand."""


class ConfigEntry(Value):
    """A named architecture that `/api/configs/{name}` gives."""

    name: str
    label: str


class Prediction(Value):
    """A roofline's throughput on hardware that was not at hand: uncalibrated, a bound rather than a level."""

    hardware: str
    shape: str
    roles: str
    batch_size: int
    output_tokens_per_second: Amount
    effective_batch: Amount


class RecommendationPage(Page):
    """The answers."""

    answers: tuple[Answer, ...]
    no_answer_because: str
    """Empty where there is an answer."""
    made_unix: float | None
    agreement: str
    """Whether the optima agree between sizes."""
    heldout_error: Amount
    """Median of |predicted - measured| / measured at the target, in per cent."""
    predictions: tuple[Prediction, ...]
    caveats: tuple[str, ...]
    configs: tuple[ConfigEntry, ...]
    figures: tuple[FigureEntry, ...]


def read_recommendation(
    store: PageReader, *, analysis: Analysis | None, record: RunRecord, now_unix: float
) -> RecommendationPage:
    """The answers as they are now.

    Args:
        store: within a snapshot.
        analysis: the newest fit.
        record: the run in outline, with its benchmarks.
        now_unix: of the answer.
    """
    told = record.recommendation
    figures = tuple(figure_entry(entry) for entry in entries(record) if entry.page == "recommendation")
    shapes = configs_of(record)
    return RecommendationPage(
        **page_facts(store, now_unix=now_unix),
        answers=() if told is None else tuple(_answers(store, told, analysis, record, shapes)),
        no_answer_because="" if told is not None else _why_none(store, record, analysis),
        made_unix=None if told is None else told.made_unix,
        agreement="" if told is None else told.agreement,
        heldout_error=heldout_error(told, origin="simulated" if record.is_simulated else "measured"),
        predictions=() if told is None else tuple(_predictions(told)),
        caveats=tuple(read_caveats(store)),
        configs=tuple(ConfigEntry(name=name, label=shape.label) for name, shape in shapes.items()),
        figures=figures,
    )


def configs_of(record: RunRecord) -> Mapping[str, Architecture]:
    """The architectures that have a config.json, by name; none before there is an answer."""
    return {} if record.recommendation is None else named_shapes(record)


def _why_none(store: PageReader, record: RunRecord, analysis: Analysis | None) -> str:
    counts = store.counts()
    ended = sum(one.num for one in counts if one.state in ("succeeded", "failed"))
    total = sum(one.num for one in counts)
    if record.state != "finished":
        return f"The run is {record.state}, {ended} of {plural(total, 'planned trial')} ended; the answer comes last."
    if analysis is None:
        return "No loss at the fit's size was measured, so nothing was fitted."
    if analysis.law_fit.law is None:
        return f"No law was fitted. {' '.join(analysis.law_fit.messages)}"
    return "The run finished without one."


def _answers(
    store: PageReader,
    told: Recommendation,
    analysis: Analysis | None,
    record: RunRecord,
    shapes: Mapping[str, Architecture],
) -> Iterator[Answer]:
    for answer in told.answers:
        suffix = f"-{answer.hardware}" if len(told.answers) > 1 else ""
        name = f"recommended{suffix}"
        ratio = speedup(answer, told.baseline, record.serving.values())
        extra = _extra(store, answer, analysis, record)
        found = extra if isinstance(extra, FoundRun) else None
        yield Answer(
            hardware=answer.hardware,
            engine=answer.engine,
            dtype=answer.dtype,
            role=answer.role,
            stands=answer.stands,
            is_baseline=answer.recommended == told.baseline,
            headline=headline(answer, told.baseline),
            recommended=shape_of(answer.recommended),
            baseline=shape_of(told.baseline),
            sentence=answer.sentence(simulated=record.is_simulated),
            verdicts=tuple(verdict_words(answer, told.baseline, ratio)),
            why=tuple(_why(answer, told.baseline, ratio)),
            loss=_loss(answer, told, simulated=record.is_simulated),
            throughput=_throughput(answer, ratio, simulated=_is_rate_simulated(answer, record)),
            shapes=tuple(_shapes(answer, shapes, record)),
            evidence=tuple(_evidence(store, answer, told, record)),
            uncertainty=tuple(_uncertainty(answer, told, analysis, simulated=record.is_simulated)),
            extra_run=None if found is None else _extra_line(found),
            no_extra_run_because=extra.reason if isinstance(extra, NotMeasured) else "",
            config_name=name,
            config=shapes[name].to_hf_config(),
        )


def _why(answer: HardwareAnswer, baseline: Architecture, ratio: Speedup) -> Iterator[str]:
    if words := why_panda(answer, baseline, ratio):
        yield words
    if not answer.stands:
        yield (
            f"{answer.recommended.label} was proposed by the law and trained at the target, where its loss came out "
            "higher than the baseline's beyond the interval: the proposal is refuted."
        )
    yield from answer.answer.reasons
    if answer.throughput_ranking is not None:
        yield answer.throughput_ranking.sentence()


def _loss(answer: HardwareAnswer, told: Recommendation, *, simulated: bool) -> Comparison:
    """At the target. A recommended shape that is the baseline itself has one measurement for both."""
    by_shape = {row.architecture: row.measured for row in told.held_out}
    none = NotMeasured(reason="no finished run at the target")
    of = partial(amount, simulated=simulated)
    return Comparison(
        title="Held-out loss at the target",
        recommended=of(by_shape.get(answer.recommended, none)),
        baseline=of(by_shape.get(told.baseline, none)),
        comparison_name="difference",
        comparison=of(answer.loss_difference, signed=True),
        verdict=LOSS_WORDS[answer.measured_verdict],
    )


def _throughput(answer: HardwareAnswer, ratio: Speedup, *, simulated: bool) -> Comparison:
    of = partial(amount, simulated=simulated)
    return Comparison(
        title=f"Serving throughput on {answer.hardware}, output tokens/s",
        recommended=of(answer.recommended_throughput),
        baseline=of(answer.baseline_throughput),
        comparison_name="ratio",
        comparison=of(ratio.ratio),
        verdict=SPEED_WORDS[ratio.verdict],
    )


def _is_rate_simulated(answer: HardwareAnswer, record: RunRecord) -> bool:
    return record.is_simulated or answer.engine == "fake"


def _shapes(answer: HardwareAnswer, configs: Mapping[str, Architecture], record: RunRecord) -> Iterator[ShapeLine]:
    """Named shapes before the rest of the front."""
    names = {shape: name for name, shape in configs.items()}

    def is_named(one: RecommendedShape) -> bool:
        return bool(set(one.roles) - {"front"})

    for one in sorted(answer.answer.shapes, key=is_named, reverse=True):
        yield ShapeLine(
            roles=one.roles,
            shape=shape_of(one.architecture),
            predicted_loss=amount(one.predicted_loss),
            measured_loss=amount(one.measured_loss, simulated=record.is_simulated),
            throughput=amount(one.throughput, simulated=_is_rate_simulated(answer, record)),
            probability_within_limit=one.probability_within_limit,
            config_name=names.get(one.architecture),
        )


def _evidence(
    store: PageReader, answer: HardwareAnswer, told: Recommendation, record: RunRecord
) -> Iterator[EvidenceRun]:
    """The runs at the target, and the benchmarks of the two shapes."""
    wanted = {answer.recommended, told.baseline}
    for row in store.trials_of_stages("check", "verdict"):
        shape = row.planned.assignment.architecture
        if shape in wanted and row.phase == "train":
            result = store.results_of([row.trial_id]).get(row.trial_id)
            yield EvidenceRun(
                trial_id=row.trial_id,
                what="held-out loss",
                shape=shape.label,
                result=amount(_run_loss(result), simulated=record.is_simulated),
            )
    for one in record.serving.values():
        if one.architecture in wanted and one.provenance.hardware == answer.hardware:
            yield EvidenceRun(
                trial_id=one.assignment_id,
                what="throughput",
                shape=one.architecture.label,
                result=amount(one.output_tokens_per_second, simulated=_is_rate_simulated(answer, record)),
            )


def _run_loss(result: Result | None) -> Measured | NotMeasured:
    if result is None or result.loss is None:
        return NotMeasured(reason="it has not ended well")
    return Measured(
        value=result.loss,
        unit=NATS,
        no_interval_because="its spread over seeds is told with the law",
        num_samples=1,
    )


def _uncertainty(
    answer: HardwareAnswer, told: Recommendation, analysis: Analysis | None, *, simulated: bool
) -> Iterator[str]:
    chance = next((one.probability_within_limit for one in answer.answer.shapes if _is(one, answer)), None)
    if chance is not None:
        yield f"Predicted chance that its loss is at most the baseline's: {chance:.0%}."
    if isinstance(answer.loss_difference, NotMeasured):
        yield f"The difference in loss was not measured: {answer.loss_difference.reason}."
    elif answer.loss_difference.interval is not None:
        difference = amount(answer.loss_difference, signed=True)
        origin = "Simulated" if simulated else "Measured"
        yield f"{origin} difference in loss: {difference.text} {difference.unit}, {difference.interval}."
    if analysis is not None and analysis.law_fit.residual_sd is not None:
        yield f"One run spreads about the law by {analysis.law_fit.residual_sd:.4f} nats/token (sd)."
    if told.heldout_error_ratio is not None:
        yield f"The law missed held-out losses at the target by {told.heldout_error_ratio:.2%} (median)."
    yield told.agreement


def _is(shape: RecommendedShape, answer: HardwareAnswer) -> bool:
    return shape.architecture == answer.recommended


# The extra run


def _extra(
    store: PageReader, answer: HardwareAnswer, analysis: Analysis | None, record: RunRecord
) -> FoundRun | NotMeasured:
    if analysis is None:
        return NotMeasured(reason="nothing was fitted")
    speed = record.speed
    slower = 1.0 if speed is None else slowdown(store.newest_trained(NUM_TIMED), speed)
    # Of the trainings those at the target alone: an answer rests on its check there.
    checks = [row.trial_id for row in store.trials_of_stages("check", "verdict") if row.phase == "train"]
    trained = [ending.observation for trial_id in checks for ending in store.endings_of(trial_id)]
    return extra_run(
        record.study,
        analysis,
        answer,
        (*record.observations, *trained),
        speed=speed,
        token_scale=record.token_scale or 1.0,
        slowdown=slower,
    )


def _extra_line(found: FoundRun) -> ExtraRun:
    run = found.run
    return ExtraRun(
        shape=shape_of(found.architecture),
        config=found.architecture.to_hf_config(),
        x=run.x,
        r=run.r,
        num_parameters=run.num_parameters,
        num_tokens=run.num_tokens,
        probability_of_change=run.probability_of_change,
        price=amount(found.seconds),
        sentence=found.sentence(),
    )


def _predictions(told: Recommendation) -> Iterator[Prediction]:
    for one in told.gpu_predictions:
        roles = ["recommended"] if one.architecture in told.recommended else []
        roles += ["baseline"] if one.architecture == told.baseline else []
        yield Prediction(
            hardware=one.hardware,
            shape=one.architecture.label,
            roles=", ".join(roles),
            batch_size=one.workload.batch_size,
            output_tokens_per_second=amount(one.output_tokens_per_second),
            effective_batch=amount(one.effective_batch),
        )
