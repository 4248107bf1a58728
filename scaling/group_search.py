"""Grouped-query local search with early stopping: with how few key-value heads a chosen shape still does.

The conditional law chooses d and r; it says nothing about g = heads / kv_heads, whose effect on the loss is small and
not smooth. So g is searched last and locally, around the shape that the law chose (arXiv 2510.18245, Algorithm 1: its
local search over g that stops early). Exactly what is done here:

- Layers, d and f stay. Attention keeps its parameters too: S = heads + kv_heads is held, so kv_heads runs over the
  divisors of S and g = S / kv_heads - 1. N, x and r do not move at all. (So do the paper's 3B models: S = 48 turns the
  36/12 heads of Panda into the 42/6 of Surefire.)
- From the g of the chosen shape the search walks towards fewer key-value heads, one grouping at a time.
- Throughput is asked for first: a benchmark costs less than a training run. Only where it rises above the best so far
  by more than `min_gain` is the loss asked for.
- A grouping that is not faster, or whose loss is above the limit, is a miss; anything else becomes the best so far.
- The search stops after `patience` misses in a row (1: at the first), or when no grouping is left.

Numbers come from callables, so that they may be measured when asked for or predicted; each is asked for at most once
a grouping. A loss that is not known neither passes nor fails: the search goes on, `loss_known` is False, and the shape
has to be trained before it is built.
"""

from collections.abc import Callable, Iterator
from typing import Literal

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.quantity import NotMeasured, Quantity

Outcome = Literal["start", "kept", "not-faster", "loss-above-limit", "does-not-run"]


class GroupStep(Value):
    """One grouping that was looked at; `loss` is not measured where the throughput already decided."""

    architecture: Architecture
    query_group_size: int
    throughput: Quantity
    """Output tokens/s."""
    loss: Quantity
    outcome: Outcome


class GroupSearch(Value):
    """The walk from the chosen shape, in order, and where it ended."""

    schema_version: Literal[1] = 1
    chosen: Architecture
    loss_known: bool
    """Whether the loss of `chosen` is known to keep the limit; else it must be trained first."""
    steps: tuple[GroupStep, ...]
    stopped_because: str

    def gain(self) -> float | None:
        """Throughput of `chosen` over that of the start; None where one of them is not known."""
        first = self.steps[0].throughput
        last = next(step.throughput for step in self.steps if step.architecture == self.chosen)
        if isinstance(first, NotMeasured) or isinstance(last, NotMeasured):
            return None
        return last.value / first.value


def groupings(architecture: Architecture, *, heads_multiple_of: int = 1) -> Iterator[Architecture]:
    """The same shape with ever fewer key-value heads and exactly the same attention parameters.

    Args:
        architecture: where to start; it is not yielded itself.
        heads_multiple_of: the number of query heads must be a multiple of it (e.g. of the tensor-parallel degree).
    """
    total = architecture.num_attention_heads + architecture.num_key_value_heads
    for kv_heads in range(architecture.num_key_value_heads - 1, 0, -1):
        heads = total - kv_heads
        if total % kv_heads == 0 and heads % heads_multiple_of == 0:
            yield architecture.model_copy(update={"num_attention_heads": heads, "num_key_value_heads": kv_heads})


def search_groups(
    start: Architecture,
    *,
    throughput: Callable[[Architecture], Quantity],
    loss: Callable[[Architecture], Quantity],
    loss_limit: float,
    min_gain: float = 0.0,
    patience: int = 1,
    heads_multiple_of: int = 1,
) -> GroupSearch:
    """Walk from `start` towards fewer key-value heads; see the module's text for the rule.

    Args:
        start: the shape that the law chose.
        throughput: output tokens/s of a shape on the target's hardware and engine.
        loss: its loss, in the unit of `loss_limit`.
        loss_limit: the highest loss allowed.
        min_gain: by how much a grouping must be faster than the best so far: 0.01 is one per cent.
        patience: misses in a row that end the search.
        heads_multiple_of: divisibility of the number of query heads.

    Raises:
        ValueError: `patience` is less than one.
    """
    if patience < 1:
        raise ValueError(f"patience is {patience}: the search stops after that many misses in a row, at least 1")
    best = _step(start, throughput(start), loss(start), "start")
    steps, misses = [best], 0
    broken = _broken_start(best, loss_limit)
    if broken:
        return _finished(best, steps, broken)
    for candidate in groupings(start, heads_multiple_of=heads_multiple_of):
        step = _look(candidate, best, throughput, loss, loss_limit, min_gain)
        steps.append(step)
        if step.outcome == "kept":
            best, misses = step, 0
            continue
        misses += 1
        if misses == patience:
            return _finished(best, steps, _why_stopped(step, patience))
    return _finished(best, steps, "no grouping with fewer key-value heads is left")


def _look(
    candidate: Architecture,
    best: GroupStep,
    throughput: Callable[[Architecture], Quantity],
    loss: Callable[[Architecture], Quantity],
    loss_limit: float,
    min_gain: float,
) -> GroupStep:
    not_asked = NotMeasured(reason="not needed: the throughput does not rise")
    rate = throughput(candidate)
    if isinstance(rate, NotMeasured):
        return _step(candidate, rate, not_asked, "does-not-run")
    assert not isinstance(best.throughput, NotMeasured)
    if rate.value <= best.throughput.value * (1 + min_gain):
        return _step(candidate, rate, not_asked, "not-faster")
    found = loss(candidate)
    return _step(candidate, rate, found, "loss-above-limit" if _breaks(found, loss_limit) else "kept")


def _step(architecture: Architecture, rate: Quantity, loss: Quantity, outcome: Outcome) -> GroupStep:
    return GroupStep(
        architecture=architecture,
        query_group_size=architecture.query_group_size,
        throughput=rate,
        loss=loss,
        outcome=outcome,
    )


def _breaks(loss: Quantity, limit: float) -> bool:
    return not isinstance(loss, NotMeasured) and loss.value > limit


def _broken_start(start: GroupStep, limit: float) -> str | None:
    if isinstance(start.throughput, NotMeasured):
        return f"the throughput of the chosen shape is not known: {start.throughput.reason}"
    if _breaks(start.loss, limit):
        return "the chosen shape itself is above the loss limit"
    return None


def _why_stopped(step: GroupStep, patience: int) -> str:
    reason = {
        "not-faster": "throughput no longer rises",
        "loss-above-limit": "the loss limit breaks",
        "does-not-run": "it does not run",
    }[step.outcome]
    misses = "" if patience == 1 else f", the last of {patience} misses in a row"
    return f"{reason} at {step.query_group_size} query heads per key-value head{misses}"


def _finished(best: GroupStep, steps: list[GroupStep], stopped_because: str) -> GroupSearch:
    return GroupSearch(
        chosen=best.architecture,
        loss_known=not isinstance(best.loss, NotMeasured),
        steps=tuple(steps),
        stopped_because=stopped_because,
    )
