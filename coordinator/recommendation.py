"""From fits and measurements to the answer: which shapes to measure, which to recommend, and how well it held.

The choice is `scaling.recommend`'s; here it is fed from a study's state and set beside what was measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coordinator.analysis import Analysis, same_size
from coordinator.study import StudySpec
from coordinator.throughput_ranking import HOST_PROFILE, ThroughputRanking, fit_runs, predicted_rates, rank, valid_runs
from hwprofiles.catalog import load_profile
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.observations import INVALIDATING_FLAGS, Observation, ServingObservation, TrainingObservation
from scaling.pairing import RunNoise, mean_loss, paired_difference
from scaling.quantity import Interval, Measured, NotMeasured, Predicted, Quantity
from scaling.recipes import ServingRecipe
from scaling.recommend import Recommendation as HardwareRecommendation
from scaling.recommend import Shortlist, Throughput, Verdict, recommend, recommended_shapes
from scaling.serving import ServingPrediction, predict_batches
from scaling.space import Candidates
from scaling.throughput_fit import NoThroughputFit, ThroughputFit

NUM_FIRST_SERVED = 4
"""Shapes measured before any is chosen by a fitted prediction: a host term and a scale need four runs."""
NUM_NEXT_BEST = 5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A shortlist with measured throughput, and which of its shapes is recommended."""

    shortlist: Shortlist
    recommended_index: int
    role: Literal["surefire", "panda"]

    @property
    def recommended(self) -> Architecture:
        """The architecture to build."""
        return self.shortlist.candidates.architecture(self.recommended_index)

    def sentence(self) -> str:
        """The choice in one line."""
        return f"Recommended is {self.role.capitalize()}, {self.recommended.label}."


class HeldOutLoss(Value):
    """One shape trained at the target: what the law predicted, and what came out."""

    role: Literal["recommended", "baseline", "worse"]
    architecture: Architecture
    predicted: Predicted | NotMeasured
    measured: Measured


class Recommendation(Value):
    """The answer of a study, with the evidence for and against it."""

    schema_version: Literal[1] = 1
    role: Literal["surefire", "panda"]
    recommended: Architecture
    baseline: Architecture
    hardware: str
    engine: str
    answer: HardwareRecommendation
    recommended_throughput: Quantity
    baseline_throughput: Quantity
    held_out: tuple[HeldOutLoss, ...]
    heldout_error_ratio: float | None
    """Median of |predicted - measured| / measured over the shapes trained at the target."""
    loss_difference: Measured | NotMeasured
    """Measured loss of the recommended shape minus the baseline's, at the target."""
    measured_verdict: Verdict | None
    """"better", "tie" or "worse" than the baseline by the measured difference."""
    agreement: str
    gpu_predictions: tuple[ServingPrediction, ...]
    """For hardware that was not at hand: predicted, uncalibrated."""
    throughput_ranking: ThroughputRanking | None = None
    """Predicted beside measured throughput; null in answers made before it was kept."""
    made_unix: float

    def sentence(self) -> str:
        """The answer in one line."""
        verdict = {"better": "lower than", "tie": "a tie with", "worse": "higher than", None: "not compared with"}
        return (
            f"{self.role.capitalize()} {self.recommended.label}; its measured loss at N = "
            f"{self.answer.num_parameters:,} is {verdict[self.measured_verdict]} the baseline's"
            f"{_difference(self.loss_difference)}; throughput {_rate(self.recommended_throughput)} against "
            f"{_rate(self.baseline_throughput)} output tokens/s on {self.hardware}"
        )


def _difference(difference: Measured | NotMeasured) -> str:
    if isinstance(difference, NotMeasured):
        return f" ({difference.reason})"
    if difference.interval is None:
        return f" ({difference.value:+.4f} nats/token, no interval: {difference.no_interval_because})"
    interval = difference.interval
    between = f"{interval.level:.0%} interval {interval.low:+.4f} to {interval.high:+.4f}"
    return f" ({difference.value:+.4f} nats/token, {between})"


def _rate(quantity: Quantity) -> str:
    if isinstance(quantity, NotMeasured):
        return f"not measured ({quantity.reason})"
    interval = f" [{quantity.interval.low:,.0f}, {quantity.interval.high:,.0f}]" if quantity.interval else ""
    return f"{quantity.value:,.0f}{interval} ({quantity.kind})"


def shortlist(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    throughput: dict[Architecture, Measured] | None,
    *,
    token_scale: float,
) -> Shortlist:
    """Choose at the target's size; by measured throughput, or by the roofline where nothing was measured yet.

    Where the reference law does not reach the target, losses are stated at the fit's own cell: differences between
    shapes are the same, their level is not the target's.
    """
    everything, index = candidates.including(baseline)
    N, D = target_point(study, token_scale)
    if analysis.reference.samples(N, D) is None:
        cell = analysis.law_fit.cells[-1]
        N, D = cell.num_parameters, cell.num_tokens
    rates = _predicted(study, everything, None) if throughput is None else _measured(everything, throughput)
    return _shortlist(study, analysis, everything, index, rates, N=N, D=D)


def _shortlist(
    study: StudySpec,
    analysis: Analysis,
    everything: Candidates,
    baseline: int,
    rates: Throughput,
    *,
    N: float,
    D: float,
) -> Shortlist:
    return recommend(
        analysis.law_fit,
        everything,
        num_parameters=N,
        num_tokens=D,
        baseline=baseline,
        throughput=rates,
        reference=analysis.reference,
        probability=study.target.probability,
    )


def target_point(study: StudySpec, token_scale: float) -> tuple[float, float]:
    """N and D of the target, D as scaled to the budget."""
    target = study.target
    return target.num_parameters, target.num_parameters * target.tokens_per_parameter * token_scale


def _predicted(study: StudySpec, candidates: Candidates, fit: ThroughputFit | None) -> Throughput:
    rates = predicted_rates(candidates, study.serving.recipe, study.serving.workload, fit)
    return Throughput(mean=rates, low=rates, high=rates)


def _measured(candidates: Candidates, throughput: dict[Architecture, Measured]) -> Throughput:
    mean, low, high = (np.full(len(candidates), np.nan) for _ in range(3))
    for architecture, rate in throughput.items():
        index = candidates.index_of(architecture)
        if index is not None:
            mean[index] = rate.value
            low[index] = rate.interval.low if rate.interval else rate.value
            high[index] = rate.interval.high if rate.interval else rate.value
    return Throughput(mean=mean, low=low, high=high)


def serving_candidates(
    study: StudySpec, analysis: Analysis, candidates: Candidates, baseline: Architecture, *, token_scale: float
) -> list[tuple[Architecture, str]]:
    """What to measure first: the baseline, Panda, the roofline's Surefire, then the safe part of its front."""
    found = shortlist(study, analysis, candidates, baseline, None, token_scale=token_scale)
    wanted: dict[int, str] = {found.baseline: "the baseline", found.panda: "Panda: lowest predicted loss"}
    if found.surefire is not None:
        wanted.setdefault(found.surefire, "the predicted Surefire: fastest within the loss limit")
    for index in _spread_front(found, study.target.probability):
        wanted.setdefault(index, "on the predicted Pareto front of loss and throughput")
    chosen = list(wanted.items())[: min(NUM_FIRST_SERVED, study.serving.num_candidates + 1)]
    return [(found.candidates.architecture(index), reason) for index, reason in chosen]


@dataclass(frozen=True, kw_only=True)
class FastestSafe:
    """Shapes that keep the loss limit and were not tried, the fastest predicted first, and what that rests on."""

    shapes: tuple[Architecture, ...]
    num_candidates: int
    """How many were ranked, those tried included."""
    basis: str
    is_fitted: bool


def fastest_safe(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    observations: Iterable[Observation],
    *,
    tried: Iterable[Architecture],
    num: int,
    token_scale: float,
) -> FastestSafe:
    """Rank by the throughput that the study's own runs predict, fitted anew; by the roofline where they are too few.

    Args:
        study: its serving recipe, workload and probability.
        analysis: the losses.
        candidates: shapes of the target's size.
        baseline: whose loss is the limit.
        observations: all so far.
        tried: shapes whose benchmark was planned before, whatever became of it.
        num: how many to give at most.
        token_scale: by which D was scaled.
    """
    fit = fit_runs(valid_runs(observations, study.serving.recipe, study.serving.workload))
    rates = _predicted(study, candidates.including(baseline)[0], fit if isinstance(fit, ThroughputFit) else None)
    # Whether a shape keeps the loss limit does not depend on its throughput.
    found = shortlist(study, analysis, candidates, baseline, None, token_scale=token_scale)
    safe = (found.probability_within_limit >= study.target.probability) & np.isfinite(rates.mean)
    not_again = set(tried)
    shapes: list[Architecture] = []
    for index in np.argsort(-rates.mean, kind="stable"):
        if len(shapes) == num:
            break
        if safe[index] and (shape := found.candidates.architecture(int(index))) not in not_again:
            shapes.append(shape)
    basis = f"the roofline alone; {fit.reason}" if isinstance(fit, NoThroughputFit) else fit.basis
    return FastestSafe(
        shapes=tuple(shapes),
        num_candidates=int(np.isfinite(rates.mean).sum()),
        basis=basis,
        is_fitted=isinstance(fit, ThroughputFit),
    )


def _spread_front(found: Shortlist, probability: float) -> Sequence[int]:
    """The front, its middle first; shapes that keep the loss limit before those that do not."""
    front = np.array(found.front)
    middle = np.abs(np.arange(len(front)) - (len(front) - 1) / 2)
    safe = found.probability_within_limit[front] >= probability
    return [int(index) for index in front[np.lexsort((middle, ~safe))]]


def measured_throughput(observations: Iterable[Observation]) -> dict[Architecture, Measured]:
    """Output tokens/s by architecture, valid rows only."""
    return {
        o.architecture: o.output_tokens_per_second
        for o in observations
        if isinstance(o, ServingObservation) and not INVALIDATING_FLAGS & set(o.flags)
    }


def choose(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    observations: Sequence[Observation],
    *,
    token_scale: float,
) -> Choice:
    """The recommended shape: Surefire where there is one that is not the baseline itself, else Panda."""
    rates = measured_throughput(observations)
    found = shortlist(study, analysis, candidates, baseline, rates, token_scale=token_scale)
    if found.surefire is not None and found.surefire != found.baseline:
        return Choice(shortlist=found, recommended_index=found.surefire, role="surefire")
    return Choice(shortlist=found, recommended_index=found.panda, role="panda")


def make_recommendation(
    study: StudySpec,
    analysis: Analysis,
    choice: Choice,
    observations: Sequence[Observation],
    *,
    token_scale: float,
    made_unix: float,
) -> Recommendation:
    """Set the choice beside what was measured at the target."""
    found = choice.shortlist
    baseline = found.candidates.architecture(found.baseline)
    rates = measured_throughput(observations)
    N, D = target_point(study, token_scale)
    runs = [o for o in observations if isinstance(o, TrainingObservation) and _is_at(o, N, D)]
    held_out = _held_out(analysis, choice, baseline, runs)
    difference = _loss_difference(analysis, choice.recommended, baseline, runs)
    recipe = study.serving.recipe
    answer = HardwareRecommendation(
        hardware=HOST_PROFILE,
        engine=recipe.engine,
        dtype=recipe.dtype,
        num_parameters=round(N),
        num_tokens=round(D),
        shapes=recommended_shapes(
            found,
            throughputs={i: q for a, q in rates.items() if (i := found.candidates.index_of(a)) is not None},
            measured_losses={
                i: row.measured for row in held_out if (i := found.candidates.index_of(row.architecture)) is not None
            },
        ),
        verdict=found.compare(choice.recommended_index, found.baseline).verdict,
        reasons=found.reasons,
    )
    return Recommendation(
        role=choice.role,
        recommended=choice.recommended,
        baseline=baseline,
        hardware=HOST_PROFILE,
        engine=recipe.engine,
        answer=answer,
        recommended_throughput=rates.get(choice.recommended, NotMeasured(reason="no valid benchmark")),
        baseline_throughput=rates.get(baseline, NotMeasured(reason="no valid benchmark")),
        held_out=held_out,
        heldout_error_ratio=_median_error(held_out),
        loss_difference=difference,
        measured_verdict=_verdict(difference),
        agreement=analysis.agreement(),
        gpu_predictions=_gpu_predictions(study, (choice.recommended, baseline), _benchmarked_hardware(observations)),
        throughput_ranking=_ranking(study, analysis, found.candidates, baseline, observations, token_scale),
        made_unix=made_unix,
    )


def _ranking(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    observations: Sequence[Observation],
    token_scale: float,
) -> ThroughputRanking:
    recipe, workload = study.serving.recipe, study.serving.workload
    runs = valid_runs(observations, recipe, workload)
    best = fastest_safe(
        study,
        analysis,
        candidates,
        baseline,
        observations,
        tried=[run.architecture for run in runs],
        num=NUM_NEXT_BEST,
        token_scale=token_scale,
    )
    next_best = best.shapes if best.is_fitted else ()
    return rank(runs, next_best, recipe=recipe, workload=workload, num_candidates=best.num_candidates)


def _is_at(run: TrainingObservation, N: float, D: float) -> bool:
    """Whether a run was made at the target: its size, and its D to within a batch."""
    return same_size(run.architecture.num_parameters, N) and abs(run.num_tokens - D) <= run.recipe.batch_tokens


def _held_out(
    analysis: Analysis, choice: Choice, baseline: Architecture, runs: Sequence[TrainingObservation]
) -> tuple[HeldOutLoss, ...]:
    rows = []
    by_architecture = {run.architecture: [r for r in runs if r.architecture == run.architecture] for run in runs}
    for architecture, group in by_architecture.items():
        role: Literal["recommended", "baseline", "worse"] = (
            "recommended" if architecture == choice.recommended else "baseline" if architecture == baseline else "worse"
        )
        measured = mean_loss(group, _noise(analysis))
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


def _loss_difference(
    analysis: Analysis, recommended: Architecture, baseline: Architecture, runs: Sequence[TrainingObservation]
) -> Measured | NotMeasured:
    ours = [run for run in runs if run.architecture == recommended]
    theirs = [run for run in runs if run.architecture == baseline]
    if recommended == baseline:
        return NotMeasured(reason="the recommended shape is the baseline itself")
    if not ours or not theirs:
        return NotMeasured(reason="one of the two has no finished run at the target")
    return paired_difference(ours, theirs, _noise(analysis))


def _noise(analysis: Analysis) -> RunNoise:
    """One run's spread: the fit's residual sd, which holds seed noise and the law's own misfit."""
    return RunNoise(sd=analysis.law_fit.residual_sd, degrees_of_freedom=analysis.law_fit.degrees_of_freedom)


def _verdict(difference: Measured | NotMeasured) -> Verdict | None:
    if isinstance(difference, NotMeasured) or difference.interval is None:
        return None
    if difference.interval.high < 0:
        return "better"
    return "worse" if difference.interval.low > 0 else "tie"


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
