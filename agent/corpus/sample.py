"""A sample of documents to train a tokenizer on: those of the highest hashes, up to some bytes of text.

It does not depend on the order in which documents come, nor on how they are spread over files and processes; held-out
documents, those of the lowest hashes, are not in it.
"""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from agent.corpus.runs import digest, high_word
from agent.corpus.sources import Part, Reading, read_documents

SAMPLE_BYTES = 50_000_000


class _Taken(NamedTuple):
    name: bytes
    num_bytes: int
    text: str


class Sample:
    """The fewest documents of the highest hashes that have `num_bytes` bytes of text together, none below `floor`."""

    def __init__(self, num_bytes: int, *, floor: int) -> None:
        self.floor = floor
        """Documents whose hash begins with a smaller number are not in it."""
        self._limit = num_bytes
        self._heap: list[_Taken] = []
        self._names: set[bytes] = set()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, text: str) -> None:
        """Take a document in, if it belongs here and is not there."""
        name = digest(text)
        if high_word(name) < self.floor or name in self._names or not text.strip():
            return
        taken = _Taken(name, len(text.encode()), text)
        heapq.heappush(self._heap, taken)
        self._names.add(name)
        self._held_bytes += taken.num_bytes
        while self._held_bytes - self._heap[0].num_bytes >= self._limit:
            lowest = heapq.heappop(self._heap)
            self._names.remove(lowest.name)
            self._held_bytes -= lowest.num_bytes
        if self._held_bytes >= self._limit:
            self.floor = max(self.floor, high_word(self._heap[0].name))

    def texts(self) -> Iterator[str]:
        """The documents in the order of their hashes."""
        return (taken.text for taken in sorted(self._heap))


def sample_part(part: Part, reading: Reading, num_bytes: int, floor: int) -> list[str]:
    """What a part gives to the sample; `floor` is what is known by now to be too low."""
    sample = Sample(num_bytes, floor=floor)
    for text in read_documents(part, reading):
        sample.add(text)
    return list(sample.texts())
