"""What to run next: the runs that tell most, per second, about the loss of the shapes that may be chosen.

The first round of a study in one cell fills the space (`propose` without a fit). Later rounds, and studies over several
sizes and tokens-per-parameter ratios from their first run on, take the linear Gaussian belief of scaling/belief.py,
condition it on all that was run or is pending, and greedily take the run with the largest

    (drop of the weighted variance of ln loss at the target) / seconds^gamma,

where a target shape weighs as much as its chance of being near the best: V-optimal design for the decision, not for the
coefficients or for the loss of shapes that nobody would choose. Every pick counts as observed for the next, so a batch
is diverse (scaling/design.py).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from scaling.belief import DEFAULT_NOISE, Belief, RunMenu, ShapeModel, Target, condition, make_model
from scaling.design import DesignRules, Guard, Knowledge
from scaling.law import Floats
from scaling.law_fit import LawFit
from scaling.space import Candidates, Mask

_EVERYWHERE = 0.05
"""Share of the target weight that is spread evenly: a shortlist by few draws may be wrong."""
_NUM_DRAWS = 256
_MIN_REPLICATES, _MAX_SAMPLES = 32, 4_000_000
"""A weight needs a few dozen replicates; 32 MB of losses are enough for a shortlist."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Run candidate `index` as its replicate `num_replicate` (0 = first run of this shape), because `reason`.

    `gain` is the reduction of the weighted target variance of ln loss per second (to the power gamma); None where the
    run was not chosen for it: in a space-filling round, or by a policy that has another aim.
    """

    index: int
    num_replicate: int
    reason: str
    gain: float | None


_NO_RULES = DesignRules(min_runs=sys.maxsize)
"""Within one cell: the study's planner sees to ratios and replicates."""


def propose_runs(
    model: ShapeModel,
    *,
    existing: Sequence[int],
    losses: Floats,
    pending: Sequence[int] = (),
    num: int,
    gamma: float = 1.0,
    rules: DesignRules | None = None,
    tolerance: float = 0.001,
    seed: int = 0,
) -> list[Proposal]:
    """The next `num` runs of a menu over several sizes and ratios, for the decision at the target.

    Args:
        model: the study's menu and target (`scaling.belief.make_model`).
        existing: menu rows that were run, once for each run.
        losses: of these runs, (n,) in nats per token.
        pending: menu rows that are running or queued.
        num: how many to propose.
        gamma: 1 for most knowledge per second; less where time matters more than cost; 0 ignores cost.
        rules: what the design must hold besides.
        tolerance: target shapes count by their chance of being this near to the best.
        seed: of the draws and of ties.
    """
    generator = np.random.default_rng(seed)
    # The shortlist is by the losses that are in: a pending run narrows what is known, but has ruled nothing out yet.
    weights = near_optimal(model.belief(existing, losses), tolerance=tolerance, generator=generator)
    belief = model.belief(existing, losses, pending=pending)
    knowledge = Knowledge(belief, belief.target_moment(weights, level=False))
    taken = [*existing, *pending]
    return _take_best(
        knowledge,
        model.menu.seconds**gamma,
        num,
        guard=Guard(model, rules if rules is not None else DesignRules(), taken),
        taken=taken,
        generator=generator,
        describe=partial(_run_reason, model),
    )


def propose_informative(
    model: ShapeModel,
    *,
    existing: Sequence[int],
    losses: Floats,
    pending: Sequence[int] = (),
    num: int,
    gamma: float = 1.0,
    seed: int = 0,
) -> list[Proposal]:
    """The runs that shrink the volume of all coefficients' posterior most per second^gamma: D-optimal, a baseline.

    The log determinant of S drops by ln(1 + φᵀ S φ / noise²) with a run of features φ. Arguments as `propose_runs`.
    """
    knowledge = Knowledge(model.belief(existing, losses, pending=pending), np.zeros(2 * (len(model.prior_sd),)))
    cost, taken = model.menu.seconds**gamma, [*existing, *pending]
    tie_break = 1.0 + 1e-9 * np.random.default_rng(seed).random(len(cost))
    chosen: list[Proposal] = []
    for _ in range(num):
        row = int(np.argmax(knowledge.volume_drops() / cost * tie_break))
        knowledge.observe(row)
        reason = "Shrinks the posterior of all coefficients most per cost."
        chosen.append(Proposal(index=row, num_replicate=taken.count(row), reason=reason, gain=None))
        taken.append(row)
    return chosen


def near_optimal(belief: Belief, *, tolerance: float, generator: np.random.Generator) -> Floats:
    """Chance of each target shape to be within `tolerance` of the best, mostly; (T,), sums to one."""
    draws = belief.target_draws(_NUM_DRAWS, generator)
    close = (draws <= draws.min(axis=1, keepdims=True) + tolerance).mean(axis=0)
    return np.asarray((1 - _EVERYWHERE) * close / close.sum() + _EVERYWHERE / len(close), dtype=float)


def propose(
    fit: LawFit | None,
    candidates: Candidates,
    *,
    existing: Sequence[int],
    pending: Sequence[int],
    num: int,
    seconds_per_run: Floats,
    target_weights: Floats | None = None,
    r_range: tuple[float, float] = (0.5, 5.0),
    gamma: float = 1.0,
    seed: int = 0,
) -> list[Proposal]:
    """The next `num` runs at one size and ratio, most informative first.

    Args:
        fit: the fit so far; None, or one without a law, gives a space-filling round.
        candidates: the legal shapes, (M,).
        existing: indices of candidates that were run, once for each run.
        pending: indices of candidates that are running or queued, once for each.
        num: how many to propose.
        seconds_per_run: expected cost of a run of each candidate, (M,).
        target_weights: how much the loss of each candidate matters, (M,); by default its chance, under the
            fit's replicates, of being within one noise sd of the best.
        r_range: what the fit uses; a run outside would teach it nothing, so none is proposed there.
        gamma: knowledge is bought per second^gamma.
        seed: breaks ties.

    Raises:
        ValueError: no candidate has r within `r_range`, or costs are not positive or do not match the candidates.
    """
    cost = np.asarray(seconds_per_run, dtype=float)
    if cost.shape != (len(candidates),) or not (np.isfinite(cost) & (cost > 0)).all():
        raise ValueError(f"seconds_per_run must be {len(candidates)} positive numbers, one a candidate")
    taken = [*existing, *pending]
    useful = (candidates.r >= r_range[0]) & (candidates.r <= r_range[1])
    if not useful.any():
        raise ValueError(
            f"no candidate has r within {r_range[0]:g} to {r_range[1]:g} (theirs are {candidates.r.min():.3g} to "
            f"{candidates.r.max():.3g}); widen r_range here and in the fit, or the space"
        )
    if fit is None or fit.law is None:
        return _fill_space(candidates, useful, taken, num)
    weights = _near_optimal_by(fit, candidates) if target_weights is None else np.asarray(target_weights, dtype=float)
    belief = condition(_one_cell(fit, candidates, cost), [], np.zeros(0), pending=taken, noise=_noise_of(fit))
    knowledge = Knowledge(belief, belief.target_moment(weights, level=True))
    # An unusable shape costs for ever.
    priced = np.where(useful, cost**gamma, np.inf)
    return _take_best(
        knowledge,
        priced,
        num,
        guard=Guard(belief.model, _NO_RULES, taken),
        taken=taken,
        generator=np.random.default_rng(seed),
        describe=partial(_shape_reason, fit, candidates),
    )


def _one_cell(fit: LawFit, candidates: Candidates, seconds: Floats) -> ShapeModel:
    """The model of a study whose menu and target are the same shapes in the deciding cell of a fit."""
    cell, x, r = fit.cells[0], candidates.x, candidates.r
    N, D = (np.full(len(candidates), value) for value in (cell.num_parameters, cell.num_tokens))
    menu = RunMenu(x=x, r=r, num_parameters=N, num_tokens=D, seconds=seconds)
    return make_model(menu, Target(x=x, r=r, num_parameters=cell.num_parameters, num_tokens=cell.num_tokens))


def _near_optimal_by(fit: LawFit, candidates: Candidates) -> Floats:
    """Chance of each candidate to be within one run's noise of the best, under the replicates; sums to one."""
    cell, num = fit.cells[0], max(_MIN_REPLICATES, _MAX_SAMPLES // len(candidates))
    few = replace(fit, bootstrap=fit.bootstrap[:num], bootstrap_references=fit.bootstrap_references[:num])
    losses = few.sample_loss(candidates.x, candidates.r, cell.num_parameters, cell.num_tokens)
    if not len(losses):
        return np.full(len(candidates), 1.0 / len(candidates))
    margin = fit.pure_error_sd or fit.residual_sd or 0.0
    close = losses <= losses.min(axis=1, keepdims=True) + margin
    weight = close.mean(axis=0)
    return np.asarray(weight / weight.sum(), dtype=float)


def _noise_of(fit: LawFit) -> float:
    level = float(np.mean([cell.loss for cell in fit.cells]))
    return max((fit.pure_error_sd or fit.residual_sd or DEFAULT_NOISE * level) / level, 1e-5)


# Greedy choice


def _take_best(
    knowledge: Knowledge,
    cost: Floats,
    num: int,
    *,
    guard: Guard,
    taken: Sequence[int],
    generator: np.random.Generator,
    describe: Callable[[int, int, str, float, float], str],
) -> list[Proposal]:
    """Greedily: the best row, condition on it, the next best. `describe` makes the reason of each."""
    counts = np.bincount(np.asarray(taken, dtype=np.intp), minlength=len(cost))
    # Equal gains are common (mirror shapes); a seeded hair's breadth makes the choice reproducible, not positional.
    tie_break = 1.0 + 1e-9 * generator.random(len(cost))
    chosen = []
    for _ in range(num):
        gain = knowledge.gains() / cost * tie_break
        row, bound_by = guard.choose(gain)
        before = knowledge.target_sd()
        knowledge.observe(row)
        guard.taken.append(row)
        reason = describe(row, int(counts[row]), bound_by, before, knowledge.target_sd())
        chosen.append(Proposal(index=row, num_replicate=int(counts[row]), reason=reason, gain=float(gain[row])))
        counts[row] += 1
    return chosen


def _run_reason(model: ShapeModel, row: int, run_before: int, bound_by: str, before: float, after: float) -> str:
    menu = model.menu
    shape = f"x {menu.x[row]:.3g}, r {menu.r[row]:.3g}"
    what = f"one more seed of {shape}" if run_before else f"a new shape there, {shape}"
    where = f"N {menu.num_parameters[row]:.3g}, {menu.tokens_per_parameter[row]:.3g} tokens per parameter"
    why = f"A rule of the design ({bound_by})" if bound_by else "Most knowledge per cost about which shape is best"
    return (
        f"{why}: {what} at {where}; the sd of predicted differences between near-best shapes at the target goes from "
        f"{before:.3%} to {after:.3%}."
    )


def _shape_reason(
    fit: LawFit, candidates: Candidates, index: int, run_before: int, bound_by: str, before: float, after: float
) -> str:
    del bound_by  # no rules bind within one cell
    x, r = candidates.x[index], candidates.r[index]
    what = f"one more seed of x {x:.3g}, r {r:.3g}" if run_before else f"a new shape, x {x:.3g}, r {r:.3g}"
    outside = [
        f"{name} beyond the measured range"
        for name, value, limits in (("x", x, fit.x_range), ("r", r, fit.r_range))
        if not limits[0] * 0.99 <= value <= limits[1] * 1.01
    ]
    where = f" ({', '.join(outside)})" if outside else ""
    return (
        f"Most knowledge per second about the near-optimal shapes: {what}{where}; the sd of their predicted loss "
        f"goes from {before:.3%} to {after:.3%}."
    )


# The first round of a study in one cell


def _coordinates(candidates: Candidates) -> Floats:
    return np.stack([np.log(candidates.x), np.log(candidates.r)], axis=1)


def _fill_space(candidates: Candidates, useful: Mask, taken: Sequence[int], num: int) -> list[Proposal]:
    """The centre, both flanks of r and of x through the centre, then whatever is farthest from all runs."""
    raw = _coordinates(candidates)
    low, high = raw[useful].min(axis=0), raw[useful].max(axis=0)
    unit = (raw - low) / np.maximum(high - low, 1e-12)
    # Extreme in x and in r at once is where no model would be built, and where the law's form is least sure.
    inner = useful & ((np.abs(unit - 0.5) > 0.35).sum(axis=1) < 2)
    chosen: list[Proposal] = []
    used = list(taken)

    def choose(index: int, reason: str) -> None:
        chosen.append(Proposal(index=index, num_replicate=used.count(index), reason=reason, gain=None))
        used.append(index)

    for wanted, reason in _CROSS:
        nearest = int(np.argmin(np.where(useful, ((unit - wanted) ** 2).sum(axis=1), np.inf)))
        if len(chosen) < num and nearest not in used:
            choose(nearest, reason)
    while len(chosen) < num:
        gaps = np.where(inner, ((unit[:, None] - unit[used][None]) ** 2).sum(axis=2).min(axis=1), 0.0)
        farthest = int(np.argmax(gaps))
        if gaps[farthest] > 0:
            at = f"x {candidates.x[farthest]:.3g}, r {candidates.r[farthest]:.3g}"
            choose(farthest, f"Farthest from every shape run so far ({at}).")
        else:
            counts = np.where(useful, np.bincount(used, minlength=len(candidates)), len(used) + 1)
            choose(int(np.argmin(counts)), "Every shape has been run: one more seed tells the noise.")
    return chosen


_CROSS: tuple[tuple[tuple[float, float], str], ...] = (
    ((0.5, 0.5), "The centre of the space, from which both arms of x and of r start."),
    ((0.5, 0.1), "The low flank of r: without both flanks there is no minimum to find."),
    ((0.5, 0.9), "The high flank of r: without both flanks there is no minimum to find."),
    ((0.1, 0.5), "The low flank of x: without both flanks there is no minimum to find."),
    ((0.9, 0.5), "The high flank of x: without both flanks there is no minimum to find."),
)
