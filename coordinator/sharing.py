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


def lean(value: V) -> V:
    """The same value; the names of the fields it was given are held once for all values that were given the same.

    Of a value of a dozen small fields the set of their names is a third of what it holds in memory.
    """
    names = value.model_fields_set
    object.__setattr__(value, "__pydantic_fields_set__", _names.setdefault(frozenset(names), names))
    return value


_names: dict[frozenset[str], set[str]] = {}


def with_shared_parts(planned: PlannedTrial) -> PlannedTrial:
    """The same trial, its architecture and its recipe shared, and lean itself. It must be new: nobody else has it."""
    assignment = lean(planned.assignment)
    object.__setattr__(assignment, "architecture", shared(assignment.architecture))
    if isinstance(assignment, TrainAssignment):
        object.__setattr__(assignment, "recipe", shared(assignment.recipe))
    return lean(planned)
