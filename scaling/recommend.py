"""Panda, the Pareto front and Surefire: which shapes to build, how sure that is, and why.

- Panda: the shape with the lowest expected loss at (N, D).
- Pareto front: the shapes that no other beats in both expected loss and throughput.
- Surefire: the fastest shape whose loss stays within the limit with the wanted probability.

Probabilities are shares of the fit's bootstrap replicates. Losses are compared within a replicate: what two shapes
share (the level of the loss, above all) cancels, so a difference is known far better than either loss.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.law_fit import LawFit, Prediction, ReferenceSamples
from scaling.quantity import Interval, Measured, NotMeasured, Predicted, Quantity
from scaling.space import Candidates

Verdict = Literal["better", "tie", "worse"]
Role = Literal["surefire", "panda", "baseline", "front"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Throughput:
    """Output tokens/s of every candidate with the ends of its interval, (M,); NaN where it does not run."""

    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Loss of one shape minus that of another in nats per token, paired: "tie" where the interval includes 0.

    The interval holds for all candidates at once, since those compared were picked for their prediction.
    """

    difference: float
    low: float
    high: float
    level: float
    verdict: Verdict

    def sentence(self, *, name: str, other: str) -> str:
        """The comparison in words."""
        relation = {"better": "lower than", "tie": "not shown to differ from", "worse": "higher than"}[self.verdict]
        return (
            f"The predicted loss of {name} is {relation} that of {other}: difference {self.difference:+.4f} nats "
            f"({self.level:.0%} interval {self.low:+.4f} to {self.high:+.4f})."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Shortlist:
    """The choice among candidates at one N and D; indices are positions in `candidates`.

    `probability_within_limit` (M,) is the chance that a shape's expected loss is at most the limit.
    `front` runs from the lowest loss to the highest throughput. `surefire` is None where nothing is fast
    and safe enough, or no throughput is known; `reasons` say why.
    """

    candidates: Candidates
    num_parameters: float
    num_tokens: float
    baseline: int
    loss: Prediction
    loss_draws: Floats
    probability_within_limit: Floats
    level: float
    throughput: Throughput | None
    panda: int
    front: tuple[int, ...]
    surefire: int | None
    surefire_over_runner_up: float | None
    """Throughput of Surefire over that of the next fastest shape that is safe enough; 1.05 is five per cent."""
    panda_against_runner_up: Comparison | None
    panda_against_baseline: Comparison
    surefire_against_baseline: Comparison | None
    reasons: tuple[str, ...]

    def compare(self, index: int, other: int) -> Comparison:
        """Loss of one candidate against another's, paired within replicates."""
        return _compare(self.loss, self.loss_draws, index, other, self.level)

    def predicted_loss(self, index: int) -> Predicted:
        """The loss of one candidate as a boundary value."""
        interval = Interval(
            low=float(self.loss.low[index]), high=float(self.loss.high[index]), level=self.level, method="bootstrap"
        )
        return Predicted(
            value=float(self.loss.mean[index]), unit="nats/token", interval=interval, basis="conditional law"
        )

    def worst(self) -> int:
        """The candidate with the highest expected loss: what a validation can tell from the best."""
        return int(np.argmax(self.loss.mean))


def recommend(
    fit: LawFit,
    candidates: Candidates,
    *,
    num_parameters: float,
    num_tokens: float,
    baseline: int,
    throughput: Throughput | None = None,
    reference: ReferenceSamples | None = None,
    loss_limit: Literal["baseline"] | float = "baseline",
    probability: float = 0.8,
) -> Shortlist:
    """Choose among candidates at one size and one amount of data.

    Args:
        fit: a fit with a law.
        candidates: shapes near N, the baseline among them (`Candidates.including`).
        num_parameters: N.
        num_tokens: D.
        baseline: index of the shape to be as accurate as.
        throughput: output tokens/s of the candidates on one hardware and engine, if known.
        reference: reaches (N, D) where that is no fitted cell.
        loss_limit: "baseline", or nats per token.
        probability: how sure Surefire must be to stay within the limit.

    Raises:
        ValueError: there is no law, or no reference loss at (N, D).
    """
    loss = fit.predict_loss(candidates.x, candidates.r, num_parameters, num_tokens, reference=reference)
    draws = fit.sample_loss(candidates.x, candidates.r, num_parameters, num_tokens, reference=reference)
    limit = draws[:, [baseline]] if loss_limit == "baseline" else np.full((len(draws), 1), float(loss_limit))
    within = np.asarray((draws <= limit).mean(axis=0), dtype=float)
    panda = int(np.argmin(loss.mean))
    front = _pareto_front(loss.mean, throughput.mean) if throughput else (panda,)
    surefire, over_runner_up = _surefire(within, throughput, probability)
    against_baseline = _compare(loss, draws, panda, baseline, fit.level)
    runner_up = _runner_up(loss.mean, panda)
    found = Shortlist(
        candidates=candidates,
        num_parameters=num_parameters,
        num_tokens=num_tokens,
        baseline=baseline,
        loss=loss,
        loss_draws=draws,
        probability_within_limit=within,
        level=fit.level,
        throughput=throughput,
        panda=panda,
        front=front,
        surefire=surefire,
        surefire_over_runner_up=over_runner_up,
        panda_against_runner_up=None if runner_up is None else _compare(loss, draws, panda, runner_up, fit.level),
        panda_against_baseline=against_baseline,
        surefire_against_baseline=None if surefire is None else _compare(loss, draws, surefire, baseline, fit.level),
        reasons=(),
    )
    return _with_reasons(found, fit, loss_limit, probability)


def _compare(loss: Prediction, draws: Floats, index: int, other: int, level: float) -> Comparison:
    """Loss of `index` minus loss of `other`, with an interval that holds for all candidates at once.

    The shape that is compared was chosen for looking best, so an interval for one fixed pair would call it better far
    too often: the half width is q · sd of the paired difference, where q is the `level` quantile over replicates of
    the largest standardised deviation of any candidate's difference from `other`.
    """
    estimate = loss.mean - loss.mean[other]
    deviation = draws - draws[:, [other]] - estimate
    sd = np.sqrt((deviation**2).mean(axis=0))
    # Shapes with the same x and r as `other` differ from it by rounding alone.
    distinct = sd > 1e-9 * np.abs(loss.mean[other])
    critical = np.quantile((np.abs(deviation[:, distinct]) / sd[distinct]).max(axis=1, initial=0.0), level)
    difference, half = float(estimate[index]), float(critical * sd[index])
    low, high = difference - half, difference + half
    verdict: Verdict = "better" if high < 0 else "worse" if low > 0 else "tie"
    return Comparison(difference=difference, low=low, high=high, level=level, verdict=verdict)


def _runner_up(mean: Floats, best: int) -> int | None:
    order = np.argsort(mean, kind="stable")
    others = order[order != best]
    return int(others[0]) if len(others) else None


def _pareto_front(loss: Floats, throughput: Floats) -> tuple[int, ...]:
    """Indices that no other candidate beats in both; from the lowest loss on."""
    order = np.lexsort((-throughput, loss))
    fastest = -np.inf
    front = []
    for index in order:
        # NaN, a shape that does not run, is never greater and so never on the front.
        if throughput[index] > fastest:
            front.append(int(index))
            fastest = throughput[index]
    return tuple(front)


def _surefire(within: Floats, throughput: Throughput | None, probability: float) -> tuple[int | None, float | None]:
    if throughput is None:
        return None, None
    allowed = np.flatnonzero((within >= probability) & np.isfinite(throughput.mean))
    if not len(allowed):
        return None, None
    order = allowed[np.argsort(-throughput.mean[allowed], kind="stable")]
    margin = float(throughput.mean[order[0]] / throughput.mean[order[1]]) if len(order) > 1 else None
    return int(order[0]), margin


def _with_reasons(
    found: Shortlist, fit: LawFit, loss_limit: Literal["baseline"] | float, probability: float
) -> Shortlist:
    label = found.candidates.architecture
    reasons = [found.panda_against_baseline.sentence(name=f"Panda {label(found.panda).label}", other="the baseline")]
    against = found.panda_against_runner_up
    if against is not None and against.verdict == "tie":
        close = int((found.loss.mean <= found.loss.mean[found.panda] + (fit.residual_sd or 0.0)).sum())
        reasons.append(
            f"Panda is one of {close} shapes whose predicted losses lie within one run's noise of the lowest: the "
            "optimum is a region, not a point."
        )
    limit = "the baseline's" if loss_limit == "baseline" else f"{loss_limit:.4g} nats"
    if found.throughput is None:
        reasons.append("No throughput is known, so there is no Surefire and no Pareto front beyond Panda.")
    elif found.surefire is None:
        reasons.append(
            f"No Surefire: no shape that runs stays within {limit} loss with probability {probability:.0%}; the most "
            f"likely one has {found.probability_within_limit.max():.0%}."
        )
    else:
        reasons += _surefire_reasons(found, found.throughput, found.surefire, limit)
    for name, optimum, reason in (("x", fit.x_opt, fit.x_opt_reason), ("r", fit.r_opt, fit.r_opt_reason)):
        if optimum is None:
            reasons.append(
                f"The fit has no optimum of {name}, so predictions lean on the shapes that were run: {reason}"
            )
    return replace(found, reasons=tuple(reasons))


def _surefire_reasons(found: Shortlist, throughput: Throughput, surefire: int, limit: str) -> list[str]:
    name = found.candidates.architecture(surefire).label
    gain = throughput.mean[surefire] / throughput.mean[found.baseline]
    speed = "as fast as" if surefire == found.baseline else f"{gain:.2f} times as fast as"
    reasons = [
        f"Surefire {name} keeps {limit} loss with probability {found.probability_within_limit[surefire]:.0%} and is "
        f"{speed} the baseline."
    ]
    if surefire == found.baseline:
        reasons.append("Surefire is the baseline itself: nothing faster is safe enough.")
    elif throughput.low[surefire] <= throughput.high[found.baseline]:
        reasons.append("The two throughput intervals overlap: the gain in speed is not shown.")
    if found.surefire_over_runner_up is not None:
        reasons.append(
            f"It is {found.surefire_over_runner_up:.3f} times as fast as the next shape that is safe enough."
        )
    return reasons


class RecommendedShape(Value):
    """One architecture of a recommendation, with what was predicted and what was measured of it."""

    roles: tuple[Role, ...] = Field(min_length=1)
    """One shape may be Panda, Surefire and on the front at once."""
    architecture: Architecture
    predicted_loss: Predicted
    measured_loss: Measured | NotMeasured
    throughput: Quantity
    """Output tokens/s."""
    probability_within_limit: float = Field(ge=0, le=1)


class Recommendation(Value):
    """The answer for one hardware, engine and precision, at one N and D."""

    schema_version: Literal[1] = 1
    hardware: str
    engine: str
    dtype: str
    num_parameters: PositiveInt
    num_tokens: PositiveInt
    shapes: tuple[RecommendedShape, ...] = Field(min_length=1)
    verdict: Verdict
    """Loss of the recommended shape against the baseline's."""
    reasons: tuple[str, ...]


def recommended_shapes(
    found: Shortlist,
    *,
    throughputs: dict[int, Quantity],
    measured_losses: dict[int, Measured],
) -> tuple[RecommendedShape, ...]:
    """The shortlist as boundary values: Surefire, Panda, the baseline, then the rest of the front.

    Args:
        found: the shortlist.
        throughputs: output tokens/s by candidate index, where known.
        measured_losses: nats per token by candidate index, where trained.
    """
    named: list[tuple[Role, int | None]] = [
        ("surefire", found.surefire),
        ("panda", found.panda),
        ("baseline", found.baseline),
        *(("front", index) for index in found.front),
    ]
    roles: dict[int, tuple[Role, ...]] = {}
    for role, index in named:
        if index is not None:
            roles[index] = (*roles.get(index, ()), role)
    return tuple(
        RecommendedShape(
            roles=held,
            architecture=found.candidates.architecture(index),
            predicted_loss=found.predicted_loss(index),
            measured_loss=measured_losses.get(index) or NotMeasured(reason="not trained at this size"),
            throughput=throughputs.get(index) or NotMeasured(reason="not benchmarked"),
            probability_within_limit=float(found.probability_within_limit[index]),
        )
        for index, held in roles.items()
    )
