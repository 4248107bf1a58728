"""Choice: which shapes are worth measuring on a hardware, and which one is recommended there.

The choosing is `scaling.recommend`'s; here it is fed from a study's state. Losses are the same on all hardware;
throughput belongs to one hardware and one serving recipe, so every hardware has a choice of its own. What is measured
is measured on each hardware of the study, so that the answers can be set side by side.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np

from coordinator.analysis import Analysis
from coordinator.study import StudySpec
from coordinator.throughput_ranking import GENERIC_HARDWARE, fit_runs, predicted_rates, roofline_basis, valid_runs
from scaling.architecture import Architecture
from scaling.observations import Observation, ServingObservation
from scaling.quantity import Measured
from scaling.recommend import Shortlist, Throughput, Verdict, recommend
from scaling.space import Candidates
from scaling.throughput_fit import NoThroughputFit, ThroughputFit

NUM_FIRST_SERVED = 4
"""Shapes measured before any is chosen by a fitted prediction: a host term and a scale need four runs."""

Reasoned = tuple[Architecture, str]
"""A shape, and why it is to be measured."""


def answered_hardware(
    study: StudySpec, observations: Iterable[Observation], bench_hardware: str | None = None
) -> tuple[str, ...]:
    """Profile ids for which a study gives an answer.

    Those that it names; else the one on which serving was measured, the commonest where there are several; before
    anything was measured `bench_hardware`, on which it will be.
    """
    if study.serving.hardware:
        return study.serving.hardware
    measured = Counter(one.provenance.hardware for one in observations if isinstance(one, ServingObservation))
    if measured:
        return (min(measured, key=lambda hardware: (-measured[hardware], hardware)),)
    return (study.budget.bench_hardware or bench_hardware or GENERIC_HARDWARE,)


def num_first_served(study: StudySpec) -> int:
    """How many shapes are measured before a fit: the baseline, Panda and a Surefire for each hardware at least."""
    return max(NUM_FIRST_SERVED, 2 + len(study.serving.hardware))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A shortlist with throughput measured on one hardware, and which of its shapes is recommended there."""

    hardware: str
    shortlist: Shortlist
    recommended_index: int
    role: Literal["surefire", "panda"]

    @property
    def recommended(self) -> Architecture:
        """The architecture to build."""
        return self.shortlist.candidates.architecture(self.recommended_index)

    @property
    def challenger(self) -> Architecture | None:
        """A faster shape, measured here, that the law allows where no run is near: a check at the target tells."""
        beyond = self.shortlist.unsupported()
        return self.shortlist.candidates.architecture(int(beyond[0])) if len(beyond) else None

    def sentence(self) -> str:
        """The choice in one line."""
        return f"Recommended for {self.hardware} is {self.role.capitalize()}, {self.recommended.label}."


def shortlist(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    throughput: dict[Architecture, Measured] | None,
    *,
    hardware: str,
    token_scale: float,
    checked: Mapping[Architecture, Verdict] | None = None,
) -> Shortlist:
    """Choose at the target's size; by measured throughput, or by this hardware's roofline where none is given.

    `checked` holds the shapes that were trained at the target, and how they compare with the baseline there.

    Where the reference law does not reach the target, losses are stated at the fit's own cell: differences between
    shapes are the same, their level is not the target's.
    """
    everything, index = candidates.including(baseline)
    N, D = target_point(study, token_scale)
    if analysis.reference.samples(N, D) is None:
        cell = analysis.law_fit.cells[-1]
        N, D = cell.num_parameters, cell.num_tokens
    rates = _predicted(study, everything, hardware, None) if throughput is None else _measured(everything, throughput)
    at = {everything.index_of(shape): verdict for shape, verdict in (checked or {}).items()}
    return recommend(
        analysis.law_fit,
        everything,
        num_parameters=N,
        num_tokens=D,
        baseline=index,
        throughput=rates,
        reference=analysis.reference,
        probability=study.target.probability,
        checked={place: verdict for place, verdict in at.items() if place is not None},
    )


def target_point(study: StudySpec, token_scale: float) -> tuple[float, float]:
    """N and D of the target, D as scaled to the budget."""
    target = study.target
    return target.num_parameters, target.num_parameters * target.tokens_per_parameter * token_scale


def _predicted(study: StudySpec, candidates: Candidates, hardware: str, fit: ThroughputFit | None) -> Throughput:
    rates = predicted_rates(candidates, study.serving.recipe, study.serving.workload, hardware, fit)
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
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    *,
    hardware: Sequence[str],
    token_scale: float,
) -> list[Reasoned]:
    """What to measure first on each of these: baseline, Panda, the rooflines' Surefires, safe parts of their fronts."""
    wanted = {
        one: _first_wanted(study, analysis, candidates, baseline, one, token_scale=token_scale) for one in hardware
    }
    return in_turn(wanted)[: min(num_first_served(study), study.serving.num_candidates + 1)]


def in_turn(wanted: Mapping[str, Sequence[Reasoned]]) -> list[Reasoned]:
    """What each hardware wants measured, taken in turn, every shape once; a reason names the hardware whose it is."""
    reasons: dict[Architecture, dict[str, list[str]]] = {}
    for place in zip_longest(*([(hardware, *one) for one in shapes] for hardware, shapes in wanted.items())):
        for entry in place:
            if entry is not None:
                hardware, shape, reason = entry
                reasons.setdefault(shape, {}).setdefault(reason, []).append(hardware)
    return [
        (
            shape,
            "; ".join(
                reason if len(whose) == len(wanted) else f"{reason} ({', '.join(whose)})"
                for reason, whose in by_reason.items()
            ),
        )
        for shape, by_reason in reasons.items()
    ]


def _first_wanted(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    hardware: str,
    *,
    token_scale: float,
) -> list[Reasoned]:
    found = shortlist(study, analysis, candidates, baseline, None, hardware=hardware, token_scale=token_scale)
    wanted: dict[int, str] = {found.baseline: "the baseline", found.panda: "Panda: lowest predicted loss"}
    if found.surefire is not None:
        wanted.setdefault(found.surefire, "the predicted Surefire: fastest within the loss limit")
    if len(beyond := found.unsupported()):
        wanted.setdefault(int(beyond[0]), "faster than Surefire, if the law holds where no run is near")
    for index in _spread_front(found, study.target.probability):
        wanted.setdefault(index, "on the predicted Pareto front of loss and throughput")
    return [
        (found.candidates.architecture(index), reason)
        for index, reason in list(wanted.items())[: study.serving.num_candidates + 1]
    ]


def fastest_unsupported(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    *,
    hardware: str,
    token_scale: float,
) -> Architecture | None:
    """The shape that the law, extended beyond its runs, would call Surefire by this hardware's roofline, if any."""
    found = shortlist(study, analysis, candidates, baseline, None, hardware=hardware, token_scale=token_scale)
    # What is not ruled out is worth a run: a first fit is seldom sure of anything.
    beyond = found.unsupported(probability=1 - found.probability)
    return found.candidates.architecture(int(beyond[0])) if len(beyond) else None


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
    hardware: str,
    tried: Iterable[Architecture],
    num: int,
    token_scale: float,
) -> FastestSafe:
    """Rank by the throughput that this hardware's own runs predict, fitted anew; by its roofline where too few.

    Args:
        study: its serving recipe, workload and probability.
        analysis: the losses.
        candidates: shapes of the target's size.
        baseline: whose loss is the limit.
        observations: all so far.
        hardware: profile id of what is to serve them.
        tried: shapes whose benchmark was planned before, whatever became of it.
        num: how many to give at most.
        token_scale: by which D was scaled.
    """
    recipe, workload = study.serving.recipe, study.serving.workload
    fit = fit_runs(valid_runs(observations, recipe, workload, hardware), recipe, hardware)
    fitted = fit if isinstance(fit, ThroughputFit) else None
    rates = _predicted(study, candidates.including(baseline)[0], hardware, fitted)
    # Whether a shape keeps the loss limit does not depend on its throughput.
    found = shortlist(study, analysis, candidates, baseline, None, hardware=hardware, token_scale=token_scale)
    safe = (found.probability_within_limit >= study.target.probability) & found.supported & np.isfinite(rates.mean)
    not_again = set(tried)
    shapes: list[Architecture] = []
    for index in np.argsort(-rates.mean, kind="stable"):
        if len(shapes) == num:
            break
        if safe[index] and (shape := found.candidates.architecture(int(index))) not in not_again:
            shapes.append(shape)
    basis = f"{roofline_basis(hardware, recipe)}; {fit.reason}" if isinstance(fit, NoThroughputFit) else fit.basis
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


def measured_throughput(
    study: StudySpec, observations: Iterable[Observation], hardware: str
) -> dict[Architecture, Measured]:
    """Output tokens/s by architecture, of valid runs on this hardware with the study's engine and load."""
    runs = valid_runs(observations, study.serving.recipe, study.serving.workload, hardware)
    return {run.architecture: run.output_tokens_per_second for run in runs}


def choose(
    study: StudySpec,
    analysis: Analysis,
    candidates: Candidates,
    baseline: Architecture,
    observations: Sequence[Observation],
    *,
    hardware: str,
    token_scale: float,
    checked: Mapping[Architecture, Verdict] | None = None,
) -> Choice:
    """The shape for this hardware: Surefire where there is one that is not the baseline itself, else Panda.

    `checked` shapes were trained at the target: those that are worse than the baseline there are out.
    """
    rates = measured_throughput(study, observations, hardware)
    found = shortlist(
        study, analysis, candidates, baseline, rates, hardware=hardware, token_scale=token_scale, checked=checked
    )
    if found.surefire is not None and found.surefire != found.baseline:
        return Choice(hardware=hardware, shortlist=found, recommended_index=found.surefire, role="surefire")
    return Choice(hardware=hardware, shortlist=found, recommended_index=found.panda, role="panda")
