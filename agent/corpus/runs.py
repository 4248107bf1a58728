"""Tokenised parts: sorted runs of documents on disk, and their merge into shards.

A document's place in a corpus is its SHA-256: of two equal documents one is kept, and the order of documents does not
depend on how they were spread over files, or on how many processes read them. So each part becomes one or more *runs*
(tokens of its documents in hash order, and an index), and a shard is what lies in a range of hashes, gathered from
all runs. Memory is that of a run or a shard, however large the corpus is.

The lowest hashes are held out, so that a document is held out or not whatever else there is.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from agent.blobs import write_atomically
from agent.corpus.bpe import Vocabulary, encode_documents, load_tokenizer
from agent.corpus.manifest import Shard, ShardRole
from agent.corpus.sources import Part, Reading, read_documents
from agent.failures import CorpusError
from hwprofiles.value import Value

ALL_HASHES = 2**64
"""One above the largest of the first 64 bits of a hash, by which documents are ordered."""
_RUN_TOKENS = 2**25
_BATCH_BYTES = 2**20
_DOCUMENTS_AT_A_TIME = 2**21

_INDEX = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("start", "<u8"), ("num_tokens", "<u8"), ("num_bytes", "<u8"), ("run", "<u4")]
)
"""One document: the first 128 bits of its hash as two words, and where its tokens are."""


class PartRecord(Value):
    """What came of a part. It is written last: a part without it is read again."""

    part: Part
    settings: str
    """Of tokenizer and reading: other ones mean other tokens."""
    documents_sha256: str
    """Of the documents' hashes in their order: tells whether a file that was touched says the same as before."""
    num_runs: NonNegativeInt
    num_documents: NonNegativeInt
    num_empty: NonNegativeInt
    num_tokens: NonNegativeInt
    num_bytes: NonNegativeInt


class Encoding(NamedTuple):
    """How a part is read and tokenised."""

    reading: Reading
    tokenizer: Path
    vocabulary: Vocabulary

    @property
    def settings(self) -> str:
        """Hash of all that tokens depend on beside the text."""
        return hashlib.sha256(f"{self.reading} {self.vocabulary.model_dump_json()}".encode()).hexdigest()


def digest(text: str) -> bytes:
    """SHA-256 of a document."""
    return hashlib.sha256(text.encode()).digest()


def high_word(document: bytes) -> int:
    """The first 64 bits of a hash."""
    return int.from_bytes(document[:8], "big")


def read_record(part: Part, work: Path) -> PartRecord | None:
    """What came of this part before, if it was finished."""
    path = work / f"{part.name}.json"
    return PartRecord.model_validate_json(path.read_bytes()) if path.is_file() else None


def encode_part(part: Part, encoding: Encoding, work: Path, before: PartRecord | None = None) -> PartRecord:
    """Tokenise a part into sorted runs below `work`; what is there `before` is kept if the documents are the same.

    Raises:
        CorpusError: something cannot be read, or the tokenizer gives an id outside its vocabulary.
    """
    if (
        before is not None
        and before.settings == encoding.settings
        and before.documents_sha256 == _hash_all(part, encoding)
    ):
        record = before.model_copy(update={"part": part})
    else:
        record = _encode(part, encoding, work)
    write_atomically(work / f"{part.name}.json", record.model_dump_json().encode())
    return record


def _hash_all(part: Part, encoding: Encoding) -> str:
    hashes = hashlib.sha256()
    for text in read_documents(part, encoding.reading):
        hashes.update(digest(text))
    return hashes.hexdigest()


def _encode(part: Part, encoding: Encoding, work: Path) -> PartRecord:
    hashes = hashlib.sha256()
    run = _Run(encoding)
    num_runs = num_documents = num_empty = num_tokens = num_bytes = 0
    for text in read_documents(part, encoding.reading):
        name = digest(text)
        hashes.update(name)
        num_documents += 1
        if not text.strip():
            num_empty += 1
            continue
        num_bytes += run.add(name, text)
        if run.num_tokens >= _RUN_TOKENS:
            num_tokens += run.write(work / f"{part.name}-{num_runs}")
            num_runs, run = num_runs + 1, _Run(encoding)
    if tokens := run.write(work / f"{part.name}-{num_runs}"):
        num_tokens, num_runs = num_tokens + tokens, num_runs + 1
    return PartRecord(
        part=part,
        settings=encoding.settings,
        documents_sha256=hashes.hexdigest(),
        num_runs=num_runs,
        num_documents=num_documents,
        num_empty=num_empty,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
    )


class _Run:
    """Documents in memory until there are enough for a run."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._tokens: list[NDArray[np.unsignedinteger]] = []
        self._rows: dict[bytes, int] = {}
        self._num_bytes: list[int] = []
        self.num_tokens = 0

    def add(self, name: bytes, text: str) -> int:
        """Take a document in, unless it is there; returns its bytes."""
        num_bytes = len(text.encode())
        if name not in self._rows:
            self._rows[name] = len(self._rows)
            self._num_bytes.append(num_bytes)
            self._waiting.append(text)
            self._waiting_bytes += num_bytes
            if self._waiting_bytes >= _BATCH_BYTES:
                self._encode_waiting()
        return num_bytes

    def _encode_waiting(self) -> None:
        vocabulary = self._encoding.vocabulary
        tokenizer = load_tokenizer(self._encoding.tokenizer)
        tokens = encode_documents(
            self._waiting, tokenizer, end_of_text_id=vocabulary.end_of_text_id, dtype=vocabulary.dtype
        )
        self._tokens += tokens
        self.num_tokens += sum(map(len, tokens))
        self._waiting, self._waiting_bytes = [], 0

    def write(self, path: Path) -> int:
        """Write the run in hash order; returns its tokens, 0 where there is nothing to write."""
        if self._waiting:
            self._encode_waiting()
        if not self._rows:
            return 0
        names = sorted(self._rows)
        rows = [self._rows[name] for name in names]
        index = np.zeros(len(names), dtype=_INDEX)
        words = np.frombuffer(b"".join(name[:16] for name in names), dtype=">u8").reshape(-1, 2)
        index["high"], index["low"] = words[:, 0], words[:, 1]
        index["num_tokens"] = [len(self._tokens[row]) for row in rows]
        index["num_bytes"] = [self._num_bytes[row] for row in rows]
        index["start"] = np.cumsum(index["num_tokens"]) - index["num_tokens"]
        tokens = np.concatenate([self._tokens[row] for row in rows])
        write_atomically(path.with_suffix(".tokens"), tokens.tobytes())
        write_atomically(path.with_suffix(".index"), index.tobytes())
        return len(tokens)


class Runs:
    """All runs of all parts."""

    def __init__(self, records: Sequence[PartRecord], work: Path, *, dtype: str) -> None:
        self._paths = [work / f"{record.part.name}-{number}" for record in records for number in range(record.num_runs)]
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.num_documents = sum(self._num_documents(path) for path in self._paths)
        """Those that are in several runs are counted in each."""
        self.num_bytes = sum(record.num_bytes for record in records)

    def _num_documents(self, path: Path) -> int:
        return path.with_suffix(".index").stat().st_size // _INDEX.itemsize

    def documents(self, low: int, high: int) -> NDArray[Any]:
        """Index of the distinct documents whose hashes begin in [low, high), in their order."""
        found = []
        for number, path in enumerate(self._paths):
            index = np.memmap(path.with_suffix(".index"), dtype=_INDEX, mode="r")
            first, end = (_place(index, bound) for bound in (low, high))
            rows = np.array(index[first:end])
            rows["run"] = number
            found.append(rows)
        rows = np.concatenate(found) if found else np.zeros(0, dtype=_INDEX)
        rows = rows[np.lexsort((rows["low"], rows["high"]))]
        same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
        return rows[np.concatenate(([True], ~same))] if len(rows) else rows

    def ranges(self, low: int, high: int) -> Iterator[NDArray[Any]]:
        """The same, some documents at a time."""
        steps = max(1, -(-self.num_documents // _DOCUMENTS_AT_A_TIME))
        bounds = [low + (high - low) * step // steps for step in range(steps + 1)]
        for first, end in pairwise(bounds):
            yield self.documents(first, end)

    def tokens(self, rows: NDArray[Any]) -> NDArray[np.unsignedinteger]:
        """The tokens of these documents behind each other."""
        lengths = rows["num_tokens"].astype(np.int64)
        places = np.cumsum(lengths) - lengths
        tokens = np.empty(int(lengths.sum()), dtype=self._dtype)
        for run in np.unique(rows["run"]).tolist():
            source = np.memmap(self._paths[run].with_suffix(".tokens"), dtype=self._dtype, mode="r").view(np.ndarray)
            mine = np.flatnonzero(rows["run"] == run)
            starts = rows["start"][mine].tolist()
            for place, start, length in zip(places[mine].tolist(), starts, lengths[mine].tolist(), strict=True):
                tokens[place : place + length] = source[start : start + length]
        return tokens


def _place(index: NDArray[Any], bound: int) -> int:
    """Number of documents below a bound, by bisection: only a few pages of the index are read."""
    first, end = 0, len(index)
    while first < end:
        middle = (first + end) // 2
        if int(index[middle]["high"]) < bound:
            first = middle + 1
        else:
            end = middle
    return first


class ShardRange(NamedTuple):
    """A shard that is to be written: the documents whose hashes begin in [low, high)."""

    role: ShardRole
    number: int
    low: int
    high: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.role}-{self.number:05}.bin"


def held_out_bound(runs: Runs, num_tokens: int) -> int:
    """The lowest bound below which documents have at least this many tokens together.

    Raises:
        CorpusError: that would be most of the corpus.
    """
    total = 0
    for rows in runs.ranges(0, ALL_HASHES // 2):
        ends = total + np.cumsum(rows["num_tokens"].astype(np.int64))
        enough = int(np.searchsorted(ends, num_tokens))
        if enough < len(rows):
            return int(rows["high"][enough]) + 1
        total = int(ends[-1]) if len(rows) else total
    raise CorpusError(
        f"{num_tokens:,} held-out tokens were asked for, half of the corpus has {total:,}; hold out less or add text"
    )


def plan_shards(runs: Runs, *, bound: int, shard_tokens: int) -> tuple[ShardRange, ...]:
    """Cut the held-out hashes below `bound`, and the others, into shards of at most `shard_tokens` tokens.

    A document longer than that has a shard of its own.
    """
    return (
        *_cut(runs, "train", bound, ALL_HASHES, shard_tokens),
        *_cut(runs, "validation", 0, bound, shard_tokens),
    )


def _cut(runs: Runs, role: ShardRole, low: int, high: int, shard_tokens: int) -> list[ShardRange]:
    bounds, held = [low], 0
    num_documents = 0
    for rows in runs.ranges(low, high):
        lengths = rows["num_tokens"].astype(np.int64)
        ends = np.cumsum(lengths)
        first = 0
        while first < len(rows):
            before = int(ends[first] - lengths[first])
            room = shard_tokens - held
            end = int(np.searchsorted(ends, before + room, side="right"))
            if end == first and held == 0:
                end = first + 1
            if end > first:
                held += int(ends[end - 1]) - before
            if end < len(rows):
                bounds.append(int(rows["high"][end]))
                held = 0
            first = end
        num_documents += len(rows)
    if not num_documents:
        return []
    return [ShardRange(role, number, *pair) for number, pair in enumerate(pairwise([*bounds, high]))]


def write_shard(wanted: ShardRange, runs: Runs, path: Path, *, vocab_size: int) -> Shard:
    """Gather a shard from the runs and write it."""
    rows = runs.documents(wanted.low, wanted.high)
    tokens = runs.tokens(rows)
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise CorpusError(f"the tokenizer gave token {largest}, outside its vocabulary of {vocab_size}")
    content = tokens.data.cast("B")
    write_atomically(path, content)
    return Shard(
        role=wanted.role,
        sha256=hashlib.sha256(content).hexdigest(),
        num_tokens=len(tokens),
        num_documents=len(rows),
        num_bytes=int(rows["num_bytes"].sum()),
        largest_token=largest,
    )
