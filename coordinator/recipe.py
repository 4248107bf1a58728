"""The recipe of a study's runs at one size and data ratio: its words become numbers, its D is scaled to the budget.

All shapes of a size train by one recipe. At a size whose runs of several D share trunks, rate, batch and warm-up follow
one D for all of them, that of the fit's ratio: else they would share nothing.
"""

from functools import lru_cache
from typing import NamedTuple

from coordinator.shapes import centre_shape
from coordinator.study import StudySpec
from scaling.recipes import FanIns, TrainingRecipe
from scaling.step_law import outside_fitted_range, step_law_batch_tokens, step_law_rate


class Cell(NamedTuple):
    """A size N (non-embedding parameters) and a data ratio D/N."""

    num_parameters: float
    tokens_per_parameter: float

    @property
    def num_tokens(self) -> float:
        """D, before it is scaled to the budget."""
        return self.num_parameters * self.tokens_per_parameter


def recipe_of(study: StudySpec, cell: Cell, *, token_scale: float, seed: int = 0) -> TrainingRecipe:
    """How a cell's runs are trained; D in whole batches.

    Args:
        study: its `[training]` table, with numbers or "step-law".
        cell: N and D/N as the study names them.
        token_scale: share of D that the budget allows.
        seed: of the initial weights.
    """
    training = study.training
    shares = cell.num_parameters in study.trunk_sizes
    leading = cell._replace(tokens_per_parameter=study.fit.tokens_per_parameter) if shares else cell
    leading_tokens = leading.num_tokens * token_scale
    batch_tokens = training.batch_tokens
    if batch_tokens == "step-law":
        batch_tokens = step_law_batch_tokens(leading_tokens, sequence_length=training.sequence_length)
    rate = training.base_learning_rate
    if rate == "step-law":
        rate = step_law_rate(cell.num_parameters, leading_tokens)
    fan_ins = training.base_fan_ins
    if fan_ins == "centre":
        fan_ins = centre_fan_ins(study, cell.num_parameters)
    resolved = {
        "num_tokens": max(1, round(cell.num_tokens * token_scale / batch_tokens)) * batch_tokens,
        "batch_tokens": batch_tokens,
        "base_learning_rate": rate,
        "base_fan_ins": fan_ins,
        "warmup_tokens": None,
        "seed": seed,
    }
    recipe = TrainingRecipe(**{**dict(training), **resolved})
    if training.warmup_tokens is not None:
        warmup_tokens = training.warmup_tokens * token_scale
    elif shares:
        warmup_tokens = training.warmup_fraction * leading_tokens
    else:
        return recipe
    return recipe.model_copy(update={"warmup_tokens": _whole(warmup_tokens, recipe, study, cell, token_scale)})


def _whole(wanted: float, recipe: TrainingRecipe, study: StudySpec, cell: Cell, token_scale: float) -> int:
    """Warm-up tokens in whole batches, over before the shortest run of this size decays."""
    shortest = min(study.ratios_at(cell.num_parameters), default=cell.tokens_per_parameter)
    num_tokens = cell._replace(tokens_per_parameter=min(shortest, cell.tokens_per_parameter)).num_tokens * token_scale
    stable = recipe.model_copy(update={"num_tokens": max(1, round(num_tokens))}).trunk_tokens
    return max(1, round(min(wanted, stable) / recipe.batch_tokens)) * recipe.batch_tokens


@lru_cache(maxsize=64)
def centre_fan_ins(study: StudySpec, num_parameters: float) -> FanIns:
    """Fan-ins of the centre shape of one size: there every matrix learns at the base rate."""
    centre = centre_shape(study, num_parameters)
    return FanIns(hidden=centre.hidden_size, attention=centre.query_width, mlp=centre.intermediate_size)


def step_law_note(study: StudySpec, *, token_scale: float) -> str:
    """A sentence where the step law is asked for outside the N and D that it was fitted to; else ""."""
    if "step-law" not in (study.training.base_learning_rate, study.training.batch_tokens):
        return ""
    fit = study.fit
    return outside_fitted_range(fit.num_parameters, fit.num_parameters * fit.tokens_per_parameter * token_scale)
