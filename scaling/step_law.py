"""Step law: the learning rate and the batch size at which a run of N parameters on D tokens does best.

    rate(N, D)  = 1.79 · N^-0.713 · D^0.307        peak AdamW rate of every matrix
    batch(D)    = 0.58 · D^0.571                   tokens a step

N are non-embedding parameters, D training tokens. Source: "Predictable Scale: Part I, Step Law" (arXiv 2503.04715),
fitted to 3,700 runs with N from 60 M to 1 B and D from 2 G to 100 G tokens, sequences of 2,048 tokens. On its 17 dense
cells the best rate of the grid lies within a factor of 1.8 of the law and the grid's point nearest the law loses at
most 0.008 nats to the best (`tests/scaling/test_step_law.py`). Below those N and D it is an extrapolation: the command
`archfleet guard` tells whether a study's own rate holds.
"""

import math
from typing import Any

from scaling.recipes import TrainingRecipe

RATE_FACTOR, RATE_N_EXPONENT, RATE_D_EXPONENT = 1.79, -0.713, 0.307
BATCH_FACTOR, BATCH_D_EXPONENT = 0.58, 0.571
FITTED_N = (60e6, 1.07e9)
"""Non-embedding parameters of the runs that the law was fitted to."""
FITTED_D = (2e9, 100e9)
"""Training tokens of the runs that the law was fitted to."""


def step_law_rate(num_parameters: float, num_tokens: float) -> float:
    """Peak learning rate of AdamW.

    Args:
        num_parameters: N, non-embedding.
        num_tokens: D, of the whole run.

    Raises:
        ValueError: N or D is not positive.
    """
    _require_positive(num_parameters=num_parameters, num_tokens=num_tokens)
    return RATE_FACTOR * math.pow(num_parameters, RATE_N_EXPONENT) * math.pow(num_tokens, RATE_D_EXPONENT)


def step_law_batch_tokens(num_tokens: float, *, sequence_length: int = 1) -> int:
    """Tokens a step, in whole sequences and at least one.

    Args:
        num_tokens: D, of the whole run.
        sequence_length: tokens a sequence.

    Raises:
        ValueError: D or the sequence length is not positive.
    """
    _require_positive(num_tokens=num_tokens, sequence_length=sequence_length)
    wanted = BATCH_FACTOR * math.pow(num_tokens, BATCH_D_EXPONENT)
    return max(1, round(wanted / sequence_length)) * sequence_length


def step_law_recipe(num_parameters: float, num_tokens: float, sequence_length: int, **overrides: Any) -> TrainingRecipe:
    """A recipe whose rate and batch follow the law.

    Args:
        num_parameters: N, non-embedding.
        num_tokens: D; in whole batches it becomes the recipe's.
        sequence_length: tokens a sequence.
        overrides: any field of the recipe, the rate and the batch included.

    Raises:
        ValueError: N, D or the sequence length is not positive, or an override is not valid.
    """
    batch = overrides.pop("batch_tokens", None) or step_law_batch_tokens(num_tokens, sequence_length=sequence_length)
    by_law = {
        "num_tokens": max(1, round(num_tokens / batch)) * batch,
        "sequence_length": sequence_length,
        "batch_tokens": batch,
        "base_learning_rate": step_law_rate(num_parameters, num_tokens),
    }
    return TrainingRecipe.model_validate(by_law | overrides)


def outside_fitted_range(num_parameters: float, num_tokens: float) -> str:
    """A sentence on how far the law is stretched; "" within the range that it was fitted to."""
    beyond = [
        f"{name} = {value:.3g} ({low:.3g} to {high:.3g})"
        for name, value, (low, high) in (("N", num_parameters, FITTED_N), ("D", num_tokens, FITTED_D))
        if not low <= value <= high
    ]
    return f"The step law is extrapolated to {', '.join(beyond)}; archfleet guard tests the rate." if beyond else ""


def _require_positive(**given: float) -> None:
    for name, value in given.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value:g}; the step law is for positive finite numbers")
