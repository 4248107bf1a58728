"""Rate guard: is each shape trained at its own best learning rate, as far as a fit over shapes needs it to be?

The fan-in rule gives every shape a rate from one base rate. Where a shape would do better at another rate, the fit
takes the loss that this costs for an effect of the shape. So the shapes with the extreme fan-ins, and the centre, are
trained at a few factors on the rate:

    gain(factor) = mean loss at factor 1 - mean loss at that factor      nats per token, paired over held-out windows

with an interval that holds the noise over seeds (scaling/pairing.py). A shape is off where that interval lies above the
limit, and holds where those of all factors lie below it; in between, more seeds would have to tell.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.observations import Failure, TrainingObservation
from scaling.pairing import UNIT, RunNoise, paired_difference
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import TrainingRecipe
from scaling.replicates import pooled_noise

GAIN_LIMIT = 0.003
"""Nats per token that a shape may lose to its own best rate: about a tenth of the effects that are fitted."""
FALSE_ALARM = 0.05
"""Chance that a guard finds some shape off where none gains more than the limit."""
Outcome = Literal["holds", "off", "undecided", "diverged"]
Results = Mapping[float, Sequence[TrainingObservation | Failure]]
"""Factor on the rate → the runs of one shape, by seed."""
Kind = Literal["all", "hidden", "attention", "mlp"]
"""Which rates a factor multiplies: all, or those of one kind of hidden matrices, by the fields of `FanIns`."""


def at_factor(recipe: TrainingRecipe, factor: float, kind: Kind = "all") -> TrainingRecipe:
    """The recipe with the rates of a kind multiplied; of one kind by way of its base fan-in, to a whole number."""
    if kind == "all":
        return recipe.model_copy(update={"base_learning_rate": factor * recipe.base_learning_rate})
    base = recipe.base_fan_ins
    fan_in = max(1, round(factor * getattr(base, kind)))
    return recipe.model_copy(update={"base_fan_ins": base.model_copy(update={kind: fan_in})})


class RateGain(Value):
    """What a shape gains at a factor on its rate; negative is a loss."""

    factor: float
    gain: Measured | NotMeasured


class ShapeVerdict(Value):
    """One shape of the guard: its loss at the study's own rate, its gains, what follows and what to change."""

    architecture: Architecture
    reason: str
    multipliers: dict[str, float]
    """Rate of its kinds of hidden matrices over the base rate."""
    loss: float | None
    """Mean over seeds at factor 1, nats per token."""
    gains: tuple[RateGain, ...]
    outcome: Outcome
    best_factor: float
    """Of the largest gain, 1 where there is none."""
    advice: str = ""


def run_noise(results: Sequence[Results]) -> RunNoise:
    """Scatter of one run's loss over seeds, pooled over all shapes and factors."""
    return pooled_noise(*([run.loss for run in _finished(runs)] for one in results for runs in one.values()))


def level_for(num_comparisons: int) -> float:
    """Two-sided coverage of each of so many intervals, for `FALSE_ALARM` on one side of all of them (Bonferroni)."""
    return 1 - 2 * FALSE_ALARM / max(1, num_comparisons)


def judge(
    architecture: Architecture,
    reason: str,
    results: Results,
    recipe: TrainingRecipe,
    noise: RunNoise,
    *,
    level: float = 0.9,
) -> ShapeVerdict:
    """Hold one shape's runs against each other.

    Args:
        architecture: the shape.
        reason: why it is among the guard's.
        results: its runs by factor, factor 1 included.
        recipe: of factor 1.
        noise: of one run.
        level: nominal coverage of each gain's interval.

    Raises:
        ValueError: the runs were evaluated on different windows.
    """
    base = _finished(results[1.0])
    gains = tuple(
        RateGain(factor=factor, gain=_gain(base, runs, noise, level))
        for factor, runs in sorted(results.items())
        if factor != 1
    )
    measured = [one for one in gains if isinstance(one.gain, Measured)]
    best = max(measured, key=_value, default=None)
    return ShapeVerdict(
        architecture=architecture,
        reason=reason,
        multipliers=recipe.rate_multipliers(architecture),
        loss=sum(run.loss for run in base) / len(base) if base else None,
        gains=gains,
        outcome=_outcome(base, measured),
        best_factor=1.0 if best is None or _value(best) <= 0 else best.factor,
    )


def advise(verdicts: Sequence[ShapeVerdict], recipe: TrainingRecipe, kind: Kind = "all") -> tuple[ShapeVerdict, ...]:
    """Say of every shape what to change. The first is the centre: what it gains is the base rate's.

    Args:
        verdicts: of all shapes, the centre first.
        recipe: of factor 1.
        kind: whose rates were multiplied.
    """
    centre, *extremes = verdicts
    moved = centre.best_factor if centre.outcome == "off" else 1.0
    return (
        centre.model_copy(update={"advice": _advice_for_centre(centre, recipe, kind)}),
        *(one.model_copy(update={"advice": _advice_for_extreme(one, moved, kind)}) for one in extremes),
    )


def _gain(
    base: Sequence[TrainingObservation], runs: Sequence[TrainingObservation | Failure], noise: RunNoise, level: float
) -> Measured | NotMeasured:
    finished = _finished(runs)
    if len(finished) < len(runs) or not base:
        failed = next((run for run in runs if isinstance(run, Failure)), None)
        return NotMeasured(reason=failed.message if failed else "no run at the study's own rate finished")
    return paired_difference(base, finished, noise, level=level)


def _outcome(base: Sequence[TrainingObservation], gains: Sequence[RateGain]) -> Outcome:
    if not base:
        return "diverged"
    if any(_low(one) > GAIN_LIMIT for one in gains):
        return "off"
    return "holds" if all(_high(one) <= GAIN_LIMIT for one in gains) else "undecided"


def _advice_for_centre(centre: ShapeVerdict, recipe: TrainingRecipe, kind: Kind) -> str:
    if centre.outcome not in ("off", "diverged"):
        return _unless_off(centre)
    factor = 0.5 if centre.outcome == "diverged" else centre.best_factor
    better = at_factor(recipe, factor, kind)
    if kind == "all":
        return f"set training.base_learning_rate = {better.base_learning_rate:.3g}"
    return f"set training.base_fan_ins.{kind} = {getattr(better.base_fan_ins, kind)}"


def _advice_for_extreme(shape: ShapeVerdict, moved: float, kind: Kind) -> str:
    if shape.outcome not in ("off", "diverged"):
        return _unless_off(shape)
    if shape.outcome == "off" and shape.best_factor == moved:
        return "what the centre needs helps this shape too"
    is_fast = shape.outcome == "diverged" or shape.best_factor < 1
    if kind == "all":
        return (
            f"it learns too {'fast' if is_fast else 'slowly'}; archfleet guard --kind hidden, attention or mlp tells "
            "which of its matrices do, or narrow [space] so that this shape is not in it"
        )
    multiplier = shape.multipliers[kind]
    way = f"lower training.base_fan_ins.{kind}" if is_fast else f"raise training.base_fan_ins.{kind}"
    if is_fast and multiplier > 1:
        way += f" or set training.max_rate_multiplier = {max(1.0, min(shape.best_factor, 0.7) * multiplier):.2g}"
    return (
        f"these matrices learn at {multiplier:.2g} times the base rate, too {'fast' if is_fast else 'slowly'} for it: "
        f"{way}, or narrow [space] so that this shape is not in it"
    )


def _unless_off(shape: ShapeVerdict) -> str:
    if shape.outcome == "holds":
        return ""
    hidden = max((_high(one) for one in shape.gains if isinstance(one.gain, Measured)), default=float("inf"))
    if hidden == float("inf"):
        return "one seed a run tells nothing of the noise: give two or more"
    return f"no gain beyond noise; a gain of up to {hidden:.3f} {UNIT} is not ruled out: more seeds would tell"


def _finished(runs: Sequence[TrainingObservation | Failure]) -> list[TrainingObservation]:
    return [run for run in runs if isinstance(run, TrainingObservation)]


def _value(one: RateGain) -> float:
    return one.gain.value if isinstance(one.gain, Measured) else float("-inf")


def _low(one: RateGain) -> float:
    interval = one.gain.interval if isinstance(one.gain, Measured) else None
    return interval.low if interval else float("-inf")


def _high(one: RateGain) -> float:
    interval = one.gain.interval if isinstance(one.gain, Measured) else None
    return interval.high if interval else float("inf")
