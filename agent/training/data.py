"""The token stream: which tokens a run sees at which step. A pure function of (shards, seed, step).

Each shard is cut into windows of T tokens (each with the token after it, for the targets); no window straddles two
shards, and the fewer than T tokens left at a shard's end are not seen. An epoch is a seeded permutation of the window
numbers, counted through all shards, the same for every architecture. There is no state besides the step, so a resumed
or moved run sees what it would have seen.

Shapes: B windows a batch, T tokens a window.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.blobs import BlobCache
from agent.failures import CorpusError
from agent.training.corpus import CorpusManifest, Shard, ShardRole
from agent.training.order import permuted


class TokenShards:
    """The shards of one role behind each other; positions of tokens count through all of them."""

    def __init__(self, shards: Sequence[NDArray[np.unsignedinteger]]) -> None:
        self._shards = [shard.view(np.ndarray) for shard in shards]  # slices of a memmap cost ten times those of a view
        lengths = np.array([len(shard) for shard in shards], dtype=np.int64)
        self._ends: NDArray[np.int64] = np.cumsum(lengths)
        self._starts: NDArray[np.int64] = self._ends - lengths

    def __len__(self) -> int:
        return int(self._ends[-1])

    def count_windows(self, sequence_length: int) -> int:
        """Whole windows in all shards, each with its last target."""
        return int(self._window_counts(sequence_length).sum())

    def window_offsets(self, numbers: NDArray[np.int64], sequence_length: int) -> NDArray[np.int64]:
        """Positions of the first tokens of these windows."""
        counts = self._window_counts(sequence_length)
        ends = np.cumsum(counts)
        shards = np.searchsorted(ends, numbers, side="right")
        offsets: NDArray[np.int64] = self._starts[shards] + (numbers - (ends - counts)[shards]) * sequence_length
        return offsets

    def gather(self, offsets: NDArray[np.int64], num_tokens: int) -> NDArray[np.int64]:
        """The `num_tokens` tokens from each offset on, within its shard; shape (len(offsets), num_tokens)."""
        rows = np.empty((len(offsets), num_tokens), dtype=np.int64)
        shards = np.searchsorted(self._ends, offsets, side="right")
        for row, shard, start in zip(rows, shards.tolist(), (offsets - self._starts[shards]).tolist(), strict=True):
            row[:] = self._shards[shard][start : start + num_tokens]
        return rows

    def _window_counts(self, sequence_length: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.maximum(0, (self._ends - self._starts - 1) // sequence_length)
        return counts


Tokens = NDArray[np.unsignedinteger] | TokenShards
"""The tokens of one shard, or of several."""


def open_tokens(manifest: CorpusManifest, role: ShardRole, blobs: BlobCache) -> TokenShards:
    """Map all shards of a role into memory; each was checked against its hash, its length and its vocabulary."""
    return TokenShards([open_shard(blobs.get(shard.sha256), shard, manifest) for shard in manifest.shards_of(role)])


def open_shard(path: Path, shard: Shard, manifest: CorpusManifest) -> NDArray[np.unsignedinteger]:
    """Map a shard into memory after checking its length and its vocabulary."""
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    expected_bytes, actual_bytes = shard.header_bytes + shard.num_tokens * dtype.itemsize, path.stat().st_size
    if actual_bytes != expected_bytes:
        raise CorpusError(
            f"the {shard.role} shard {path} has {actual_bytes} bytes; its manifest promises {shard.num_tokens} tokens "
            f"of {manifest.dtype}, {expected_bytes} bytes: it is truncated or not of this corpus, build it again"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r", offset=shard.header_bytes)
    # What the manifest says of a file whose hash was checked need not be looked up in it again.
    largest = shard.largest_token if shard.largest_token is not None else int(tokens.max())
    if largest >= manifest.vocab_size:
        raise CorpusError(
            f"the {shard.role} shard {path} holds token {largest}, outside its vocabulary of {manifest.vocab_size}: "
            "it was written with another tokenizer, build the corpus again"
        )
    return tokens


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
        positions = step * self._batch_windows + np.arange(self._batch_windows, dtype=np.int64)
        epochs, places = np.divmod(positions, self.num_windows)
        windows = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            now = epochs == epoch
            windows[now] = permuted(places[now], self.num_windows, seed=self._order_seed, epoch=epoch)
        offsets = self._tokens.window_offsets(windows, self._sequence_length)
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
