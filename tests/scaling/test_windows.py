import math

import numpy as np
import pytest

from scaling.windows import NUM_BLOCKS, block_means, degrees_of_freedom, standard_error


def test_few_windows_are_taken_one_by_one() -> None:
    losses = [3.0, 3.5, 4.0, 3.9]
    assert standard_error(losses) == pytest.approx(np.std(losses, ddof=1) / 2)
    assert degrees_of_freedom(losses) == 3
    assert standard_error([3.0]) == 0.0


def test_blocks_hold_every_window_once() -> None:
    losses = np.random.default_rng(0).normal(3.5, 0.5, 1000)
    sizes = [len(block) for block in np.array_split(losses, NUM_BLOCKS)]
    assert float(np.average(block_means(losses), weights=sizes)) == pytest.approx(losses.mean())


def test_windows_of_one_document_are_not_taken_for_independent_ones() -> None:
    """Losses that share a document's difficulty, 16 windows a document: the error is that of documents."""
    source = np.random.default_rng(1)
    errors, naive, means = [], [], []
    for _ in range(200):
        documents = np.repeat(source.normal(0, 0.3, 64), 16)
        losses = 3.5 + documents + source.normal(0, 0.3, 1024)
        means.append(losses.mean())
        errors.append(standard_error(losses))
        naive.append(losses.std(ddof=1) / math.sqrt(1024))
    true = float(np.std(means, ddof=1))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(true, rel=0.15)
    assert np.mean(naive) < 0.5 * true
