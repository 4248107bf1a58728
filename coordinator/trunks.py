"""Trunks in a plan: of runs that differ in D alone the longest is trained first, and the others branch off it.

A branch trains only its decay, 30 % of its D, where its trunk's state is at hand: D = {5, 10, 20} N cost
20 + 3 + 1.5 = 24.5 N of tokens instead of 35 N (Hägele et al., arXiv 2405.18392). Its losses do not depend on that: an
agent that has no such state trains from scratch, which takes longer.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agent.assignment import TrainAssignment
from coordinator.plan import PlannedTrial


class Branch(NamedTuple):
    """A run that branches off another, and the trial id of that one."""

    trial: PlannedTrial
    trunk: str


class Shared(NamedTuple):
    """Runs to train first, in their order, and those that branch off them."""

    first: tuple[PlannedTrial, ...]
    branches: tuple[Branch, ...]


def share_trunks(trials: Iterable[PlannedTrial]) -> Shared:
    """Let runs that have the steps before their decays in common share them. Of equal runs only the first is kept.

    Runs whose warm-up is a fraction of their D are left as they are.
    """
    groups: dict[str, list[PlannedTrial]] = {}
    for trial in trials:
        groups.setdefault(_trunk_of(trial), []).append(trial)
    first, branches = [], []
    for group in groups.values():
        by_length = {_tokens(trial): trial for trial in reversed(group)}
        longest = by_length.pop(max(by_length))
        trunk = _changed(longest, branch_tokens=tuple(sorted(by_length))) if by_length else longest
        first.append(trunk)
        branches += [_branch(by_length[tokens], trunk) for tokens in sorted(by_length, reverse=True)]
    return Shared(tuple(first), tuple(branches))


def _trunk_of(trial: PlannedTrial) -> str:
    """A name that trials share if they share a trunk."""
    assignment = _train(trial)
    if assignment.recipe.warmup_tokens is None:
        return trial.trial_id
    shape = assignment.architecture.model_dump(mode="json")
    return json.dumps([shape, assignment.recipe.trunk_identity(), assignment.corpus_id], sort_keys=True)


def _branch(trial: PlannedTrial, trunk: PlannedTrial) -> Branch:
    inherited = _train(trial).recipe.trunk_tokens
    share = inherited / _tokens(trial)
    branched = _changed(trial, trunk_tokens=inherited)
    reason = f"{trial.reason} Branches off a run of {_tokens(trunk):,} tokens, {share:.0%} on its way."
    return Branch(branched.model_copy(update={"reason": reason}), trunk.trial_id)


def _changed(trial: PlannedTrial, **fields: object) -> PlannedTrial:
    return trial.model_copy(update={"assignment": _train(trial).model_copy(update=fields)})


def _tokens(trial: PlannedTrial) -> int:
    return _train(trial).recipe.num_tokens


def _train(trial: PlannedTrial) -> TrainAssignment:
    assert isinstance(trial.assignment, TrainAssignment), "only training runs have trunks"
    return trial.assignment


def trained_tokens(trials: Sequence[PlannedTrial]) -> int:
    """Tokens that these runs train themselves, what branches inherit left out."""
    return sum(_tokens(trial) - _train(trial).trunk_tokens for trial in trials)
