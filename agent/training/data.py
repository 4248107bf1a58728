"""The token stream: which tokens a run sees at which step. A pure function of (shard, seed, step).

A shard is cut into windows of T tokens (each with the token after it, for the targets); an epoch is a seeded
permutation of the window numbers, the same for every architecture. There is no state besides the step, so a
resumed or moved run sees what it would have seen.

Shapes: B windows a batch, T tokens a window.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.failures import CorpusError
from agent.training.corpus import CorpusManifest, ShardRole


def open_shard(path: Path, manifest: CorpusManifest, role: ShardRole) -> NDArray[np.unsignedinteger]:
    """Map a shard into memory after checking its length and its vocabulary."""
    num_tokens = manifest.shard(role).num_tokens
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    expected_bytes, actual_bytes = num_tokens * dtype.itemsize, path.stat().st_size
    if actual_bytes != expected_bytes:
        raise CorpusError(
            f"the {role} shard {path} has {actual_bytes} bytes; its manifest promises {num_tokens} tokens "
            f"of {manifest.dtype}, {expected_bytes} bytes: it is truncated or not of this corpus, build it again"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r")
    largest = int(tokens.max())
    if largest >= manifest.vocab_size:
        raise CorpusError(
            f"the {role} shard {path} holds token {largest}, outside its vocabulary of {manifest.vocab_size}: "
            "it was written with another tokenizer, build the corpus again"
        )
    return tokens


class TokenStream:
    """Batches of windows in a seeded order; `batch(step)` may be called for any step in any order."""

    def __init__(
        self, tokens: NDArray[np.unsignedinteger], *, sequence_length: int, batch_tokens: int, order_seed: int
    ) -> None:
        if batch_tokens % sequence_length:
            raise CorpusError(
                f"batch_tokens ({batch_tokens}) must be a multiple of sequence_length ({sequence_length})"
            )
        self._tokens = tokens
        self._sequence_length = sequence_length
        self._batch_windows = batch_tokens // sequence_length
        self._order_seed = order_seed
        self.num_windows = count_windows(tokens, sequence_length)
        self._epoch_order = lru_cache(maxsize=2)(self._permute)  # a batch can straddle two epochs

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, each int64 of shape (B, T)."""
        first = step * self._batch_windows
        windows = [self._window_number(first + i) for i in range(self._batch_windows)]
        return gather_windows(self._tokens, np.array(windows) * self._sequence_length, self._sequence_length)

    def _window_number(self, position: int) -> int:
        epoch, index = divmod(position, self.num_windows)
        return int(self._epoch_order(epoch)[index])

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        return permutation(self.num_windows, seed=self._order_seed, epoch=epoch)


def count_windows(tokens: NDArray[np.unsignedinteger], sequence_length: int) -> int:
    """Whole windows in a shard, each with its last target; at least one, or an error."""
    num_windows = (len(tokens) - 1) // sequence_length
    if num_windows < 1:
        raise CorpusError(
            f"the shard has {len(tokens)} tokens, less than one window of {sequence_length} and its target; "
            "build the corpus from more text or shorten sequence_length"
        )
    return num_windows


def held_out_windows(
    tokens: NDArray[np.unsignedinteger], *, sequence_length: int, num_windows: int
) -> NDArray[np.int64]:
    """Offsets of the fixed evaluation windows: disjoint, spread evenly over the held-out shard."""
    available = count_windows(tokens, sequence_length)
    if num_windows > available:
        raise CorpusError(
            f"{num_windows} evaluation windows of {sequence_length} tokens were asked for; the held-out shard has "
            f"{available}: lower num_eval_windows or build the corpus from more text"
        )
    return np.arange(num_windows, dtype=np.int64) * available // num_windows * sequence_length


def gather_windows(
    tokens: NDArray[np.unsignedinteger], offsets: NDArray[np.int64], sequence_length: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 of shape (len(offsets), T): targets are the inputs one token later."""
    positions = offsets[:, None] + np.arange(sequence_length + 1)
    windows = torch.from_numpy(tokens[positions].astype(np.int64))
    return windows[:, :-1], windows[:, 1:]


def permutation(length: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(length) that depends on nothing but its arguments.

    Numbers are sorted by SplitMix64 hashes (Steele, Lea & Flood 2014) of (seed, epoch, number): unlike a
    library's shuffle this cannot change with the version of a library, and the order is part of a result.
    """
    stream = _splitmix64(_splitmix64(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    # Hashed again after the seed is mixed in: sorting by `key ^ seed` would only mirror blocks of one order.
    keys = _splitmix64(_splitmix64(np.arange(length, dtype=np.uint64)) ^ stream)
    return np.argsort(keys, kind="stable")


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = values + np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2**64, as intended
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
