"""Panda, the Pareto front and Surefire: which shapes to build, how sure that is, and why.

- Panda: the shape with the lowest expected loss at (N, D).
- Pareto front: the shapes that no other beats in both expected loss and throughput.
- Surefire: the fastest shape whose loss stays within the limit with the wanted probability.

All three only among shapes that runs support (`scaling/support.py`), those that were trained at (N, D) themselves and
not refuted there, and the baseline: elsewhere the law is extended, and its intervals do not know how wrong it is there.

Probabilities are shares of the fit's bootstrap replicates. Losses are compared within a replicate: what two shapes
share (the level of the loss, above all) cancels, so a difference is known far better than either loss.

Where no run reaches the target, L_opt(N, D) cannot be predicted but differences can: with `RelativeLevel` as the
reference every loss is stated as a ratio to L_opt, and the choice is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.law_fit import LawFit, Prediction, ReferenceSamples
from scaling.named import named_architecture
from scaling.points import Integers
from scaling.quantity import Interval, Measured, NotMeasured, Predicted, Quantity
from scaling.space import Candidates, Mask
from scaling.support import MARGIN, supported

Verdict = Literal["better", "tie", "worse"]
Role = Literal["surefire", "panda", "baseline", "front"]
LossUnit = Literal["nats/token", "L_opt"]
LossLimit = float | str
"""Nats per token, "baseline", or the name of an architecture of about the target's size (`scaling.named`)."""
_SAME_SIZE = 0.1


class RelativeLevel:
    """A reference law that says 1 everywhere: losses come out as ratios to L_opt(N, D). Multiplicative laws only."""

    def __init__(self, fit: LawFit) -> None:
        """Take the number of draws from the fit."""
        if fit.form != "multiplicative":
            raise ValueError(f"only a multiplicative law gives ratios to L_opt, this one is {fit.form}")
        self._ones = np.ones(len(fit.bootstrap))

    def samples(self, num_parameters: float, num_tokens: float) -> Floats:
        """Ones, (B,)."""
        return self._ones


@dataclass(frozen=True, kw_only=True, eq=False)
class Throughput:
    """Output tokens/s of every candidate with the ends of its interval, (M,); NaN where it does not run."""

    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Loss of one shape minus that of another, paired: "tie" where the interval includes 0.

    In nats per token, or in units of L_opt (0.01 is one per cent of it). The interval holds for all candidates at once,
    since those compared were picked for their prediction.
    """

    difference: float
    low: float
    high: float
    level: float
    verdict: Verdict
    unit: LossUnit = "nats/token"

    def sentence(self, *, name: str, other: str) -> str:
        """The comparison in words."""
        relation = {"better": "lower than", "tie": "not shown to differ from", "worse": "higher than"}[self.verdict]
        return (
            f"The predicted loss of {name} is {relation} that of {other}: difference {self._shown(self.difference)}"
            f"{' nats' if self.unit == 'nats/token' else ' of L_opt'} ({self.level:.0%} interval "
            f"{self._shown(self.low)} to {self._shown(self.high)})."
        )

    def _shown(self, difference: float) -> str:
        return f"{difference:+.4f}" if self.unit == "nats/token" else f"{difference:+.2%}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Shortlist:
    """The choice among candidates at one N and D; indices are positions in `candidates`.

    Losses are in `unit`. `probability_within_limit` (M,) is the chance that a shape's expected loss is at most the
    limit: `limit` as estimated, `limit_draws` (B, 1) in the replicates. Surefire needs `probability`.
    `supported` (M,) are the shapes that may be chosen. `front` runs from the lowest
    loss to the highest throughput. `surefire` is None where nothing is fast and safe enough, or no throughput is known;
    `reasons` say why.
    """

    candidates: Candidates
    num_parameters: float
    num_tokens: float
    baseline: int
    loss: Prediction
    loss_draws: Floats
    limit: float
    limit_draws: Floats
    probability_within_limit: Floats
    probability: float
    level: float
    unit: LossUnit
    throughput: Throughput | None
    supported: Mask
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
        return _compare(self.loss, self.loss_draws, index, other, self.level, self.unit)

    def predicted_loss(self, index: int) -> Predicted:
        """The loss of one candidate as a boundary value."""
        interval = Interval(
            low=float(self.loss.low[index]), high=float(self.loss.high[index]), level=self.level, method="bootstrap"
        )
        return Predicted(value=float(self.loss.mean[index]), unit=self.unit, interval=interval, basis="conditional law")

    def unsupported(self, *, probability: float | None = None) -> Integers:
        """Shapes that would be safe enough and faster than Surefire, were the law extended to them; fastest first.

        Safe enough is by the shortlist's own probability, unless another is given.
        """
        if self.throughput is None:
            return np.zeros(0, dtype=np.intp)
        rate = self.throughput.mean
        fastest = -np.inf if self.surefire is None else rate[self.surefire]
        wanted = self.probability if probability is None else probability
        indices = np.flatnonzero((self.probability_within_limit >= wanted) & ~self.supported & (rate > fastest))
        return np.asarray(indices[np.argsort(-rate[indices], kind="stable")], dtype=np.intp)

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
    loss_limit: LossLimit = "baseline",
    probability: float = 0.8,
    checked: Mapping[int, Verdict] | None = None,
    support_margin: float = MARGIN,
) -> Shortlist:
    """Choose among candidates at one size and one amount of data.

    Args:
        fit: a fit with a law.
        candidates: shapes near N, the baseline among them (`Candidates.including`).
        num_parameters: N.
        num_tokens: D.
        baseline: index of the shape to be as accurate as.
        throughput: output tokens/s of the candidates on one hardware and engine, if known.
        reference: reaches (N, D) where that is no fitted cell; a `RelativeLevel` states losses as ratios to L_opt.
        loss_limit: "baseline", the name of a published architecture of this size, or nats per token.
        probability: how sure Surefire must be to stay within the limit.
        checked: what shapes that were trained at (N, D) are, measured against the baseline: one that is worse is out,
            another one needs no other runs near it.
        support_margin: how far beyond the runs a shape may be, in ln x and ln r; infinity lets the law be extended.

    Raises:
        ValueError: there is no law, no reference loss at (N, D), or the loss limit is none at this size.
    """
    unit: LossUnit = "L_opt" if isinstance(reference, RelativeLevel) else "nats/token"
    loss, draws = _losses(fit, candidates, num_parameters, num_tokens, reference)
    if loss_limit == "baseline":
        limit, limit_draws = float(loss.mean[baseline]), draws[:, [baseline]]
    else:
        limit, limit_draws = _other_limit(loss_limit, fit, num_parameters, num_tokens, reference)
    within = np.asarray((draws <= limit_draws).mean(axis=0), dtype=float)
    may_be_chosen = supported(fit.hull, candidates.x, candidates.r, margin=support_margin)
    for index, verdict in (checked or {}).items():
        may_be_chosen[index] = verdict != "worse"
        within[index] = within[index] if may_be_chosen[index] else 0.0
    may_be_chosen[baseline] = True
    of_chosen = np.where(may_be_chosen, loss.mean, np.inf)
    panda = int(np.argmin(of_chosen))
    front = _pareto_front(of_chosen, np.where(may_be_chosen, throughput.mean, np.nan)) if throughput else (panda,)
    surefire, over_runner_up = _surefire(within, throughput, probability, may_be_chosen)
    runner_up = _runner_up(of_chosen, panda)

    def against(index: int | None, other: int | None) -> Comparison | None:
        if index is None or other is None:
            return None
        return _compare(loss, draws, index, other, fit.level, unit)

    against_baseline = against(panda, baseline)
    assert against_baseline is not None
    found = Shortlist(
        candidates=candidates,
        num_parameters=num_parameters,
        num_tokens=num_tokens,
        baseline=baseline,
        loss=loss,
        loss_draws=draws,
        limit=limit,
        limit_draws=limit_draws,
        probability_within_limit=within,
        probability=probability,
        level=fit.level,
        unit=unit,
        throughput=throughput,
        supported=may_be_chosen,
        panda=panda,
        front=front,
        surefire=surefire,
        surefire_over_runner_up=over_runner_up,
        panda_against_runner_up=against(panda, runner_up),
        panda_against_baseline=against_baseline,
        surefire_against_baseline=against(surefire, baseline),
        reasons=(),
    )
    return _with_reasons(found, fit, loss_limit)


def _losses(
    fit: LawFit, candidates: Candidates, N: float, D: float, reference: ReferenceSamples | None
) -> tuple[Prediction, Floats]:
    """Predicted losses and their draws (B, M), with the offset of each query group size where it was measured."""
    mean, low, high = (np.empty(len(candidates)) for _ in range(3))
    draws = np.empty((len(fit.bootstrap), len(candidates)))
    for g in np.unique(candidates.query_group_size):
        inside = candidates.query_group_size == g
        x, r = candidates.x[inside], candidates.r[inside]
        known = None if isinstance(fit.group_offset(float(g)), NotMeasured) else float(g)
        found = fit.predict_loss(x, r, N, D, reference=reference, query_group_size=known)
        mean[inside], low[inside], high[inside] = found
        draws[:, inside] = fit.sample_loss(x, r, N, D, reference=reference, query_group_size=known)
    return Prediction(mean, low, high), draws


def _unmeasured_groups(found: Shortlist, fit: LawFit) -> list[str]:
    """What is assumed of groupings that were never run against the law's own."""
    if fit.base_query_group_size is None:
        return []
    sizes = np.unique(found.candidates.query_group_size)
    unknown = [f"{g}" for g in sizes if isinstance(fit.group_offset(float(g)), NotMeasured)]
    if not unknown:
        return []
    return [
        f"Shapes with {', '.join(unknown)} query heads per key-value head were never run: their loss is taken as that "
        f"of {fit.base_query_group_size:g}."
    ]


def _other_limit(
    limit: LossLimit, fit: LawFit, N: float, D: float, reference: ReferenceSamples | None
) -> tuple[float, Floats]:
    """The highest loss allowed, where it is not a candidate's: as estimated, and in every replicate (B, 1)."""
    if isinstance(limit, str):
        named = named_architecture(limit)
        if abs(named.num_parameters / N - 1) > _SAME_SIZE:
            raise ValueError(
                f"the loss limit {limit} has N = {named.num_parameters:.4g}, the search {N:.4g}: name a model within "
                f"{_SAME_SIZE:.0%}, give nats per token, or take a shape like it at this size as the baseline"
            )
        x, r = named.width_ratio, named.mlp_attention_ratio
        estimate = fit.predict_loss(x, r, N, D, reference=reference).mean
        return float(estimate[0]), fit.sample_loss(x, r, N, D, reference=reference)
    if isinstance(reference, RelativeLevel):
        raise ValueError(
            f"a loss limit of {limit:g} nats needs L_opt at N = {N:.4g}, D = {D:.4g}, which cannot be predicted: name "
            "a baseline instead, or add runs at a second N and a second D"
        )
    return float(limit), np.full((len(fit.bootstrap), 1), float(limit))


def _compare(loss: Prediction, draws: Floats, index: int, other: int, level: float, unit: LossUnit) -> Comparison:
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
    return Comparison(difference=difference, low=low, high=high, level=level, verdict=verdict, unit=unit)


def _runner_up(mean: Floats, best: int) -> int | None:
    order = np.argsort(mean, kind="stable")
    others = order[(order != best) & np.isfinite(mean[order])]
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


def _surefire(
    within: Floats, throughput: Throughput | None, probability: float, may_be_chosen: Mask
) -> tuple[int | None, float | None]:
    if throughput is None:
        return None, None
    allowed = np.flatnonzero((within >= probability) & may_be_chosen & np.isfinite(throughput.mean))
    if not len(allowed):
        return None, None
    order = allowed[np.argsort(-throughput.mean[allowed], kind="stable")]
    margin = float(throughput.mean[order[0]] / throughput.mean[order[1]]) if len(order) > 1 else None
    return int(order[0]), margin


def _with_reasons(found: Shortlist, fit: LawFit, loss_limit: LossLimit) -> Shortlist:
    label = found.candidates.architecture
    reasons = [found.panda_against_baseline.sentence(name=f"Panda {label(found.panda).label}", other="the baseline")]
    against = found.panda_against_runner_up
    if against is not None and against.verdict == "tie":
        noise = _noise_in_unit(found, fit)
        close = int((found.loss.mean <= found.loss.mean[found.panda] + noise).sum())
        reasons.append(
            f"Panda is one of {close} shapes whose predicted losses lie within one run's noise of the lowest: the "
            "optimum is a region, not a point."
        )
    limit = _limit_in_words(loss_limit)
    if found.throughput is None:
        reasons.append("No throughput is known, so there is no Surefire and no Pareto front beyond Panda.")
    elif found.surefire is None:
        reasons.append(
            f"No Surefire: no shape that runs stays within {limit} loss with probability {found.probability:.0%}; the "
            f"most likely one has {found.probability_within_limit.max():.0%}."
        )
    else:
        reasons += _surefire_reasons(found, found.throughput, found.surefire, limit)
    reasons += left_out(found)
    for name, optimum, reason in (("x", fit.x_opt, fit.x_opt_reason), ("r", fit.r_opt, fit.r_opt_reason)):
        if optimum is None:
            reasons.append(
                f"The fit has no optimum of {name}, so predictions lean on the shapes that were run: {reason}"
            )
    return replace(found, reasons=tuple(reasons + _unmeasured_groups(found, fit)))


def left_out(found: Shortlist) -> list[str]:
    """How many faster shapes the law would allow where no run is near, and why they may not be chosen."""
    beyond = found.unsupported()
    if not len(beyond):
        return []
    fastest, candidates = int(beyond[0]), found.candidates
    at = f"x {candidates.x[fastest]:.3g}, r {candidates.r[fastest]:.3g}"
    shapes = "1 faster shape is" if len(beyond) == 1 else f"{len(beyond)} faster shapes are"
    return [
        f"{shapes} left out that the law, extended, would allow: no run is within {MARGIN:.0%} of their x and r (the "
        f"fastest: {candidates.architecture(fastest).label}, {at}). Train a shape like it to know."
    ]


def _limit_in_words(limit: LossLimit) -> str:
    if isinstance(limit, str):
        return "the baseline's" if limit == "baseline" else f"{limit}'s"
    return f"{limit:.4g} nats"


def _noise_in_unit(found: Shortlist, fit: LawFit) -> float:
    """One run's spread, in the unit of the shortlist's losses."""
    nats = fit.residual_sd or 0.0
    return nats if found.unit == "nats/token" else nats / float(np.mean([cell.loss for cell in fit.cells]))


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
