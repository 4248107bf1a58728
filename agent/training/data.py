"""The token stream: which tokens a run sees at which step. A pure function of (shards, seed, step).

Each shard is cut into windows of T tokens (each with the token after it, for the targets); no window straddles two
shards, and the fewer than T tokens left at a shard's end are not seen. An epoch is a seeded permutation of the window
numbers, counted through all shards, the same for every architecture. There is no state besides the step, so a resumed
or moved run sees what it would have seen.

Shapes: B windows a batch, T tokens a window.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.corpus.order import permuted
from agent.corpus.shards import Tokens, TokenShards
from agent.failures import CorpusError


class TokenStream:
    """Batches of windows in a seeded order; `batch(step)` may be called for any step in any order."""

    def __init__(self, tokens: Tokens, *, sequence_length: int, batch_tokens: int, order_seed: int) -> None:
        if batch_tokens % sequence_length:
            raise CorpusError(
                f"batch_tokens ({batch_tokens}) must be a multiple of sequence_length ({sequence_length})"
            )
        self._tokens = _shards(tokens)
        self._sequence_length = sequence_length
        self._batch_windows = batch_tokens // sequence_length
        self._order_seed = order_seed
        self.num_windows = count_windows(tokens, sequence_length)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, each int64 of shape (B, T)."""
        first, end = step * self._batch_windows, (step + 1) * self._batch_windows
        windows = []
        while first < end:  # a batch can straddle epochs
            epoch, place = divmod(first, self.num_windows)
            places = np.arange(place, min(self.num_windows, place + end - first), dtype=np.int64)
            windows.append(permuted(places, self.num_windows, seed=self._order_seed, epoch=epoch))
            first += len(places)
        offsets = self._tokens.window_offsets(np.concatenate(windows), self._sequence_length)
        return gather_windows(self._tokens, offsets, self._sequence_length)


def count_windows(tokens: Tokens, sequence_length: int) -> int:
    """Whole windows in the shards, each with its last target; at least one, or an error."""
    num_windows = _shards(tokens).count_windows(sequence_length)
    if num_windows < 1:
        raise CorpusError(
            f"the shard has {len(tokens)} tokens, less than one window of {sequence_length} and its target; "
            "build the corpus from more text or shorten sequence_length"
        )
    return num_windows


def held_out_windows(tokens: Tokens, *, sequence_length: int, num_windows: int) -> NDArray[np.int64]:
    """Offsets of the fixed evaluation windows: disjoint, spread evenly over the held-out shards."""
    available = count_windows(tokens, sequence_length)
    if num_windows > available:
        raise CorpusError(
            f"{num_windows} evaluation windows of {sequence_length} tokens were asked for; the held-out shard has "
            f"{available}: lower num_eval_windows or build the corpus from more text"
        )
    numbers = np.arange(num_windows, dtype=np.int64) * available // num_windows
    return _shards(tokens).window_offsets(numbers, sequence_length)


def gather_windows(tokens: Tokens, offsets: NDArray[np.int64], sequence_length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 of shape (len(offsets), T): targets are the inputs one token later."""
    windows = torch.from_numpy(_shards(tokens).gather(offsets, sequence_length + 1))
    return windows[:, :-1], windows[:, 1:]


def _shards(tokens: Tokens) -> TokenShards:
    return tokens if isinstance(tokens, TokenShards) else TokenShards([tokens])
