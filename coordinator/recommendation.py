"""The answers of a study: one for each hardware, engine and dtype, set beside what was measured.

Losses are the same on all hardware and told once; what is recommended, how fast it is and how it compares with the
baseline belongs to one hardware. An answer rests on throughput measured there, never on a prediction.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from coordinator.analysis import Analysis
from coordinator.choice import Choice, fastest_safe, measured_throughput, target_point
from coordinator.study import StudySpec
from coordinator.target_runs import loss_difference, run_noise, target_runs, verdict_of
from coordinator.throughput_ranking import ThroughputRanking, rank, valid_runs
from hwprofiles.catalog import load_profile
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.observations import Observation, ServingObservation, TrainingObservation
from scaling.pairing import mean_loss
from scaling.quantity import Interval, Measured, NotMeasured, Predicted, Quantity
from scaling.recipes import ServingRecipe
from scaling.recommend import Recommendation as HardwareRecommendation
from scaling.recommend import Verdict, recommended_shapes
from scaling.serving import ServingPrediction, predict_batches
from scaling.space import Candidates

NUM_NEXT_BEST = 5
"""Shapes that a ranking shows beyond the measured ones."""


class HeldOutLoss(Value):
    """One shape trained at the target: what the law predicted, and what came out."""

    role: Literal["recommended", "baseline", "worse"]
    architecture: Architecture
    predicted: Predicted | NotMeasured
    measured: Measured


class HardwareAnswer(Value):
    """What to build for one hardware, engine and dtype, and how it compares with the baseline there."""

    hardware: str
    """Profile id on which throughput was measured."""
    engine: str
    dtype: str
    role: Literal["surefire", "panda"]
    recommended: Architecture
    answer: HardwareRecommendation
    recommended_throughput: Quantity
    baseline_throughput: Quantity
    loss_difference: Measured | NotMeasured
    """Measured loss of the recommended shape minus the baseline's, at the target."""
    measured_verdict: Verdict | None
    """"better", "tie" or "worse" than the baseline by the measured difference."""
    throughput_ranking: ThroughputRanking | None = None
    """Predicted beside measured throughput; null in answers made before it was kept."""

    @property
    def stands(self) -> bool:
        """False where the proposed shape was trained at the target and its loss came out higher than the baseline's."""
        return self.measured_verdict != "worse"

    def sentence(self, *, simulated: bool) -> str:
        """The answer in one line; `simulated` where a simulated fleet told the losses. `fake` simulates rates alone."""
        of_losses, of_rates = _kind(simulated), _kind(simulated or self.engine == "fake")
        verdict = {"better": "lower than", "tie": "a tie with", "worse": "higher than", None: "not compared with"}
        lead, refuted = ("", "") if self.stands else ("Keep the baseline: the proposed ", " failed its check")
        return (
            f"{_warning(of_losses, of_rates)}{lead}{self.role.capitalize()} {self.recommended.label}{refuted}; its "
            f"{of_losses} loss at N = {self.answer.num_parameters:,} is {verdict[self.measured_verdict]} the baseline's"
            f"{_difference(self.loss_difference)}; throughput {_rate(self.recommended_throughput, of_rates)} against "
            f"{_rate(self.baseline_throughput, of_rates)} output tokens/s on {self.hardware}"
        )


_OF_AN_ANSWER = (
    *("hardware", "engine", "role", "recommended", "answer", "recommended_throughput", "baseline_throughput"),
    *("loss_difference", "measured_verdict", "throughput_ranking"),
)
"""Fields of an answer that schema 1, which had one answer, kept beside the rest."""


class Recommendation(Value):
    """The answers of a study, with the evidence for and against them."""

    schema_version: Literal[2] = 2
    baseline: Architecture
    answers: tuple[HardwareAnswer, ...] = Field(min_length=1)
    """One for each (hardware, engine, dtype), in the study's order."""
    held_out: tuple[HeldOutLoss, ...]
    heldout_error_ratio: float | None
    """Median of |predicted - measured| / measured over the shapes trained at the target."""
    agreement: str
    gpu_predictions: tuple[ServingPrediction, ...]
    """For hardware that was not at hand: predicted, uncalibrated."""
    made_unix: float

    @model_validator(mode="before")
    @classmethod
    def _from_schema_1(cls, given: Any) -> Any:
        return as_schema_2(given) if isinstance(given, dict) else given

    @property
    def recommended(self) -> tuple[Architecture, ...]:
        """The different shapes that are recommended anywhere, in order of the answers."""
        return tuple(dict.fromkeys(answer.recommended for answer in self.answers))

    def hardware_of(self, shape: Architecture) -> tuple[str, ...]:
        """The hardware for which a shape is recommended."""
        return tuple(answer.hardware for answer in self.answers if answer.recommended == shape)

    def sentence(self, *, simulated: bool) -> str:
        """The answers, one a line; `simulated` where a simulated fleet told the losses."""
        return "\n".join(answer.sentence(simulated=simulated) for answer in self.answers)


def as_schema_2(record: dict[str, Any]) -> dict[str, Any]:
    """A stored recommendation of any schema as JSON of schema 2; the fields of newer ones are left as they are."""
    if record.get("schema_version", 1) != 1 or "answers" in record:
        return record
    rest = {key: value for key, value in record.items() if key not in _OF_AN_ANSWER}
    answer = {key: record[key] for key in _OF_AN_ANSWER if key in record}
    dtype = (record.get("answer") or {}).get("dtype")
    return {**rest, "schema_version": 2, "answers": [{**answer, "dtype": dtype}]}


_Origin = Literal["measured", "simulated"]


def _kind(simulated: bool) -> _Origin:
    return "simulated" if simulated else "measured"


def _warning(of_losses: _Origin, of_rates: _Origin) -> str:
    """What the answer begins with where not all of it was measured."""
    if of_losses == "simulated":
        return "SIMULATED: "
    return "SIMULATED throughput, by the engine `fake`: " if of_rates == "simulated" else ""


def _difference(difference: Measured | NotMeasured) -> str:
    if isinstance(difference, NotMeasured):
        return f" ({difference.reason})"
    if difference.interval is None:
        return f" ({difference.value:+.4f} nats/token, no interval: {difference.no_interval_because})"
    interval = difference.interval
    between = f"{interval.level:.0%} interval {interval.low:+.4f} to {interval.high:+.4f}"
    return f" ({difference.value:+.4f} nats/token, {between})"


def _rate(quantity: Quantity, origin: _Origin) -> str:
    if isinstance(quantity, NotMeasured):
        return f"not measured ({quantity.reason})"
    interval = f" [{quantity.interval.low:,.0f}, {quantity.interval.high:,.0f}]" if quantity.interval else ""
    return f"{quantity.value:,.0f}{interval} ({origin if isinstance(quantity, Measured) else quantity.kind})"


def make_recommendation(
    study: StudySpec,
    analysis: Analysis,
    choices: Sequence[Choice],
    observations: Sequence[Observation],
    *,
    token_scale: float,
    made_unix: float,
) -> Recommendation:
    """Set the choices, one for each hardware, beside what was measured at the target."""
    found = choices[0].shortlist  # the baseline and the losses are the same in all
    baseline = found.candidates.architecture(found.baseline)
    runs = target_runs(study, observations, token_scale=token_scale)
    recommended = tuple(dict.fromkeys(choice.recommended for choice in choices))
    held_out = _held_out(analysis, recommended, baseline, runs)
    return Recommendation(
        baseline=baseline,
        answers=tuple(
            _answer(study, analysis, choice, baseline, observations, runs, held_out, token_scale) for choice in choices
        ),
        held_out=held_out,
        heldout_error_ratio=_median_error(held_out),
        agreement=analysis.agreement(),
        gpu_predictions=_gpu_predictions(study, (*recommended, baseline), _benchmarked_hardware(observations)),
        made_unix=made_unix,
    )


def _answer(
    study: StudySpec,
    analysis: Analysis,
    choice: Choice,
    baseline: Architecture,
    observations: Sequence[Observation],
    runs: Sequence[TrainingObservation],
    held_out: Sequence[HeldOutLoss],
    token_scale: float,
) -> HardwareAnswer:
    found, recipe = choice.shortlist, study.serving.recipe
    N, D = target_point(study, token_scale)
    rates = measured_throughput(study, observations, choice.hardware)
    difference = loss_difference(analysis, choice.recommended, baseline, runs)
    missing = NotMeasured(reason=f"no valid benchmark on {choice.hardware}")
    return HardwareAnswer(
        hardware=choice.hardware,
        engine=recipe.engine,
        dtype=recipe.dtype,
        role=choice.role,
        recommended=choice.recommended,
        answer=HardwareRecommendation(
            hardware=choice.hardware,
            engine=recipe.engine,
            dtype=recipe.dtype,
            num_parameters=round(N),
            num_tokens=round(D),
            shapes=recommended_shapes(
                found,
                throughputs={i: q for a, q in rates.items() if (i := found.candidates.index_of(a)) is not None},
                measured_losses={
                    i: row.measured
                    for row in held_out
                    if (i := found.candidates.index_of(row.architecture)) is not None
                },
            ),
            verdict=found.compare(choice.recommended_index, found.baseline).verdict,
            reasons=found.reasons,
        ),
        recommended_throughput=rates.get(choice.recommended, missing),
        baseline_throughput=rates.get(baseline, missing),
        loss_difference=difference,
        measured_verdict=verdict_of(difference),
        throughput_ranking=_ranking(
            study, analysis, found.candidates, baseline, observations, choice.hardware, token_scale
        ),
    )


def _ranking(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    observations: Sequence[Observation],
    hardware: str,
    token_scale: float,
) -> ThroughputRanking:
    recipe, workload = study.serving.recipe, study.serving.workload
    runs = valid_runs(observations, recipe, workload, hardware)
    best = fastest_safe(
        study,
        analysis,
        candidates,
        baseline,
        observations,
        hardware=hardware,
        tried=[run.architecture for run in runs],
        num=NUM_NEXT_BEST,
        token_scale=token_scale,
    )
    next_best = best.shapes if best.is_fitted else ()
    return rank(
        runs, next_best, recipe=recipe, workload=workload, hardware=hardware, num_candidates=best.num_candidates
    )


def _held_out(
    analysis: Analysis,
    recommended: Sequence[Architecture],
    baseline: Architecture,
    runs: Sequence[TrainingObservation],
) -> tuple[HeldOutLoss, ...]:
    rows = []
    by_architecture = {run.architecture: [r for r in runs if r.architecture == run.architecture] for run in runs}
    for architecture, group in by_architecture.items():
        role: Literal["recommended", "baseline", "worse"] = (
            "recommended" if architecture in recommended else "baseline" if architecture == baseline else "worse"
        )
        measured = mean_loss(group, run_noise(analysis))
        predicted = _predict_held_out(analysis, group[0])
        rows.append(HeldOutLoss(role=role, architecture=architecture, predicted=predicted, measured=measured))
    return tuple(sorted(rows, key=lambda row: ("recommended", "baseline", "worse").index(row.role)))


def _predict_held_out(analysis: Analysis, run: TrainingObservation) -> Predicted | NotMeasured:
    """What the law said of this very run, before it was made: at its own x, r and the target's cell."""
    architecture, fit = run.architecture, analysis.law_fit
    N, D = float(architecture.num_parameters), float(run.num_tokens)
    level = analysis.reference.predict(N, D)
    if isinstance(level, NotMeasured):
        return level
    loss = fit.predict_loss(
        architecture.width_ratio, architecture.mlp_attention_ratio, N, D, reference=analysis.reference
    )
    interval = Interval(low=float(loss.low[0]), high=float(loss.high[0]), level=fit.level, method="bootstrap")
    return Predicted(value=float(loss.mean[0]), unit="nats/token", interval=interval, basis="conditional law")


def _median_error(held_out: Iterable[HeldOutLoss]) -> float | None:
    errors: Floats = np.array(
        [
            abs(row.predicted.value - row.measured.value) / row.measured.value
            for row in held_out
            if isinstance(row.predicted, Predicted)
        ]
    )
    return float(np.median(errors)) if len(errors) else None


def _benchmarked_hardware(observations: Iterable[Observation]) -> frozenset[str]:
    """Profile ids of devices on which serving was measured."""
    return frozenset(o.provenance.hardware for o in observations if isinstance(o, ServingObservation))


def _gpu_predictions(
    study: StudySpec, architectures: Sequence[Architecture], measured_on: frozenset[str]
) -> tuple[ServingPrediction, ...]:
    """For hardware that was not at hand alone: where serving was measured, the measurement is the answer."""
    serving = study.serving
    recipe = ServingRecipe(engine="vllm", dtype="bfloat16")
    return tuple(
        prediction
        for hardware in serving.predict_hardware
        if hardware not in measured_on
        for architecture in architectures
        for prediction in predict_batches(
            architecture,
            load_profile(hardware),
            recipe,
            batch_sizes=serving.predict_batches,
            input_tokens=serving.predict_input_tokens,
            output_tokens=serving.predict_output_tokens,
        )
    )
