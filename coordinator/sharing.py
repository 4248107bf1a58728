"""Sharing: equal values are held once. Many trials of a study are of one shape, and many have one recipe."""

from functools import lru_cache
from typing import TypeVar, cast

from agent.assignment import TrainAssignment
from coordinator.plan import PlannedTrial
from hwprofiles.value import Value

V = TypeVar("V", bound=Value)

NUM_SHARED = 8192
"""So many different values are known at a time; a value that was forgotten is held once more, and nothing else."""


def shared(value: V) -> V:
    """The first value equal to this one."""
    return cast("V", _first(value))


@lru_cache(maxsize=NUM_SHARED)
def _first(value: Value) -> Value:
    return value


def with_shared_parts(planned: PlannedTrial) -> PlannedTrial:
    """The same trial, its architecture and its recipe shared."""
    assignment = planned.assignment
    parts: dict[str, Value] = {"architecture": shared(assignment.architecture)}
    if isinstance(assignment, TrainAssignment):
        parts["recipe"] = shared(assignment.recipe)
    return planned.model_copy(update={"assignment": assignment.model_copy(update=parts)})
