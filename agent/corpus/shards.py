"""Token files as arrays: mapped into memory, checked, and several of them as one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.blobs import BlobCache
from agent.corpus.manifest import CorpusManifest, Shard, ShardRole
from agent.failures import CorpusError


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
        if len(self._shards) == 1:
            return numbers * sequence_length
        counts = self._window_counts(sequence_length)
        ends = np.cumsum(counts)
        shards = np.searchsorted(ends, numbers, side="right")
        offsets: NDArray[np.int64] = self._starts[shards] + (numbers - (ends - counts)[shards]) * sequence_length
        return offsets

    def gather(self, offsets: NDArray[np.int64], num_tokens: int) -> NDArray[np.int64]:
        """The `num_tokens` tokens from each offset on, within its shard; shape (len(offsets), num_tokens)."""
        rows = np.empty((len(offsets), num_tokens), dtype=np.int64)
        if len(self._shards) == 1:
            for row, start in zip(rows, offsets.tolist(), strict=True):
                row[:] = self._shards[0][start : start + num_tokens]
            return rows
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
