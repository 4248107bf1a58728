"""AdamW whose rates follow the fan-in rule, and the warm-up / stable / decay schedule.

A hidden matrix of fan-in n learns at

    rate(step) = base rate · min(base fan-in of its kind / n, cap of the recipe) · schedule(step)

embeddings, head and gains at base rate · schedule(step). One rate for all shapes would put shape-dependent errors
larger than the effects to be fitted on the extremes. Weight decay shrinks every matrix by base rate · schedule ·
weight_decay a step, whatever its multiplier; gains do not decay.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from agent.training.model import Decoder, MatrixKind, parameters_by_kind
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe

_EPSILON = 1e-8


def rate_multiplier(kind: MatrixKind, architecture: Architecture, recipe: TrainingRecipe) -> float:
    """Base fan-in / fan-in for the hidden matrices, at most the recipe's cap; 1 for everything else."""
    return recipe.rate_multipliers(architecture).get(kind, 1.0)


def schedule(step: int, recipe: TrainingRecipe) -> float:
    """Factor on the rate at a step: linear warm-up, 1, then 1 - sqrt(progress of the decay).

    The 1 - sqrt decay is Hägele et al. (arXiv 2405.18392).
    """
    if step < recipe.num_warmup_steps:
        return (step + 1) / recipe.num_warmup_steps
    first = recipe.first_decaying_step
    return 1.0 if step < first else 1 - math.sqrt((step - first) / (recipe.num_steps - first))


def make_optimizer(model: Decoder, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """AdamW with one parameter group per kind; each group remembers its full rate as `peak_lr`."""
    by_kind: dict[MatrixKind, list[nn.Parameter]] = {}
    for _, kind, parameter in parameters_by_kind(model):
        by_kind.setdefault(kind, []).append(parameter)
    groups = []
    for kind, parameters in by_kind.items():
        multiplier = rate_multiplier(kind, model.architecture, recipe)
        rate = recipe.base_learning_rate * multiplier
        # torch decays by lr · weight_decay: dividing by the multiplier leaves base rate · weight_decay.
        decay = 0.0 if kind == "gain" else recipe.weight_decay / multiplier
        groups.append({"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(recipe.adam_beta1, recipe.adam_beta2), eps=_EPSILON, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Put every group at `factor` of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients to a joint norm of at most `max_norm`; returns the norm before, on the device."""
    return nn.utils.clip_grad_norm_(parameters, max_norm)
