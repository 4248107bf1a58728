"""Errors over held-out windows: how a mean loss might be on other text of the same kind.

Neighbouring windows are often of one document, and their losses are alike: taken as independent they would claim too
small an error. So it is taken from the means of `NUM_BLOCKS` blocks of neighbouring windows:

    se = sd(block means) / sqrt(blocks),  t with blocks - 1 degrees of freedom
"""

import math
from collections.abc import Sequence

import numpy as np

from scaling.law import Floats

NUM_BLOCKS = 32


def block_means(window_losses: Sequence[float] | Floats) -> Floats:
    """Means of blocks of neighbouring windows, in order; the windows themselves where there are few of them."""
    values = np.asarray(window_losses, dtype=float)
    if len(values) < 2 * NUM_BLOCKS:
        return values
    return np.array([block.mean() for block in np.array_split(values, NUM_BLOCKS)])


def standard_error(window_losses: Sequence[float] | Floats) -> float:
    """Standard error of the mean over windows, in the unit of the losses; 0 for a single window."""
    means = block_means(window_losses)
    return float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def degrees_of_freedom(window_losses: Sequence[float] | Floats) -> int:
    """Of that standard error."""
    return len(block_means(window_losses)) - 1
