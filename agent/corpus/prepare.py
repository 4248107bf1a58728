"""Text → a prepared corpus: a tokenizer, token shards and a manifest, by several processes, resumable.

    sample   where no tokenizer is given: one pass over the text for the documents to train one on
    encode   each part of the sources becomes sorted runs of tokens in OUT/.work
    merge    each shard is gathered from all runs; equal documents are kept once
    manifest written last: a folder without it is not finished

Every file is written under another name and renamed, and nothing depends on time or order: a preparation that was
killed goes on with what is missing, and any number of processes gives the same corpus.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import Field, PositiveInt

from agent.blobs import write_atomically
from agent.corpus.bpe import Vocabulary, describe_vocabulary, tokenizer_json, train_bpe
from agent.corpus.manifest import CorpusManifest, Shard
from agent.corpus.prepared import TOKENIZER, CorpusFolder, is_corpus_folder
from agent.corpus.runs import (
    ALL_HASHES,
    Encoding,
    PartRecord,
    Runs,
    ShardRange,
    encode_part,
    held_out_bound,
    plan_shards,
    read_record,
    write_shard,
)
from agent.corpus.sample import SAMPLE_BYTES, Sample, sample_part
from agent.corpus.sources import Part, Reading, SourceFile, find_files, plan_parts
from agent.failures import CorpusError
from hwprofiles.value import Value

WORK = ".work"
FEW_DOCUMENTS = 30
_Result = TypeVar("_Result")


class Preparation(Value):
    """What is to be prepared, and how."""

    sources: tuple[str, ...]
    tokenizer: Path | None = None
    """A tokenizer.json; without one, a byte-level BPE is trained on the text."""
    vocab_size: PositiveInt = 1024
    """Of the BPE that is trained."""
    end_of_text: str | None = None
    """Name of the token before each document, where the tokenizer has none of the usual names."""
    text_key: str = "text"
    validation_share: float = Field(0.01, gt=0, lt=1)
    """Share of the hashes whose documents are held out."""
    validation_tokens: PositiveInt | None = None
    """Hold out this many tokens instead."""
    max_document_bytes: int = Field(65_536, ge=0)
    """A longer text file is cut at blank lines; 0 leaves it whole."""
    shard_tokens: PositiveInt = 100_000_000
    part_bytes: PositiveInt | None = None
    sample_bytes: PositiveInt = SAMPLE_BYTES

    @property
    def reading(self) -> Reading:
        """How documents are found."""
        return Reading(self.text_key, self.max_document_bytes)

    @property
    def settings(self) -> str:
        """Hash of all that the result depends on beside the text."""
        table = self.model_dump(mode="json", exclude={"sources", "tokenizer", "part_bytes"})
        table["tokenizer"] = _hash_of(self.tokenizer) if self.tokenizer is not None else None
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


class Progress(Protocol):
    """Whoever tells people how far it is."""

    def stage(self, name: str, num_bytes: int) -> None:
        """A part of the work begins, over this many bytes of sources or text."""

    def advance(self, num_bytes: int) -> None:
        """So many of them are done."""

    def note(self, sentence: str) -> None:
        """Something worth knowing."""


@dataclass(frozen=True)
class Prepared:
    """A finished corpus, and what became of the text."""

    folder: CorpusFolder
    num_read: int
    """Documents that were read, empty and repeated ones included."""
    num_empty: int
    num_copies: int
    num_parts: int
    num_parts_before: int
    """Parts that an earlier call had finished."""
    seconds: float
    was_finished: bool = False
    """Whether the folder held this corpus already."""


def prepare(
    preparation: Preparation,
    out: Path,
    *,
    progress: Progress,
    num_processes: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Prepared:
    """Prepare a corpus in the folder `out`, or go on with what is there.

    Args:
        preparation: what, and how.
        out: the folder; it is left unchanged where it holds this corpus already.
        progress: is told how far it is.
        num_processes: that work at a time; 0 works in this process. A script that calls this with processes needs the
            usual `if __name__ == "__main__":`.
        clock: seconds, for the time it took.

    Raises:
        CorpusError: the sources or the tokenizer cannot be used, the text is too little, or `out` holds another corpus.
    """
    started = clock()
    found = find_files(preparation.sources)
    if found.num_ignored:
        progress.note(f"{found.num_ignored} files of other kinds are left out")
    if is_corpus_folder(out):
        folder = _require_same(CorpusFolder.open(out), preparation, found.files)
        return Prepared(folder, 0, 0, 0, 0, 0, clock() - started, was_finished=True)
    parts = plan_parts(found.files, part_bytes=preparation.part_bytes)
    with _alone(out) as work, _workers(num_processes, preparation.sources) as pool:
        tokenizer = _tokenizer(preparation, parts, out, pool, progress)
        vocabulary = describe_vocabulary(tokenizer, end_of_text=preparation.end_of_text)
        encoding = Encoding(preparation.reading, tokenizer, vocabulary)
        records, num_before = _encode(parts, encoding, work, pool, progress)
        _require_unchanged(preparation.sources, found.files)
        runs = Runs(records, work, dtype=vocabulary.dtype)
        shards = _write_shards(preparation, runs, vocabulary, out, pool, progress)
        folder = _finish(preparation, out, shards, vocabulary, found.files)
    num_held_out = sum(shard.num_documents for shard, _ in shards if shard.role == "validation")
    if num_held_out < FEW_DOCUMENTS:
        progress.note(
            f"only {num_held_out} documents are held out: a loss on them says little about others; add documents, hold "
            "out more, or cut long texts into shorter ones (--max-document-bytes)"
        )
    shutil.rmtree(work)
    kept = sum(shard.num_documents for shard, _ in shards)
    num_read, num_empty = (sum(getattr(r, name) for r in records) for name in ("num_documents", "num_empty"))
    return Prepared(folder, num_read, num_empty, num_read - num_empty - kept, len(parts), num_before, clock() - started)


def _require_same(folder: CorpusFolder, preparation: Preparation, files: Iterable[SourceFile]) -> CorpusFolder:
    """The folder, if it was made from the same files in the same way: what runs refer to is never changed."""
    then = {file.url: file for file in folder.record.sources}
    now = {file.url: file for file in files}
    differing = sorted(url for url in then.keys() | now.keys() if then.get(url) != now.get(url))
    if differing:
        why = f"{len(differing)} of its sources are new, gone or changed since, {differing[0]} first"
    elif folder.record.settings != preparation.settings:
        why = "it was prepared with other options"
    else:
        return folder
    raise CorpusError(
        f"{folder.path} holds a finished corpus, and {why}. Prepare into another --out, or delete that folder first"
    )


@contextmanager
def _alone(out: Path) -> Iterator[Path]:
    """The folder of unfinished work, held by one preparation at a time."""
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(
                f"another process prepares a corpus in {out}; wait for it, or take another --out"
            ) from None
        yield work


class _Workers:
    """Calls in worker processes, or here where sources live in this process alone."""

    def __init__(self, executor: ProcessPoolExecutor | None) -> None:
        self._executor = executor

    def each(self, calls: Iterable[tuple[Callable[..., _Result], tuple[Any, ...]]], most: int) -> Iterator[_Result]:
        """Results as they come, at most `most` calls ahead. Calls are asked for when there is room."""
        if self._executor is None:
            yield from (function(*arguments) for function, arguments in calls)
            return
        pending: set[Future[_Result]] = set()
        waiting = iter(calls)
        try:
            while True:
                while len(pending) < most and (call := next(waiting, None)) is not None:
                    pending.add(self._executor.submit(call[0], *call[1]))
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise CorpusError(
                "a worker process died, most likely for lack of memory; the same command with fewer --processes "
                "or a smaller --shard-tokens goes on"
            ) from None
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def _workers(num_processes: int, sources: Iterable[str]) -> Iterator[_Workers]:
    if not num_processes or any(source.startswith("memory://") for source in sources):  # only we have that memory
        yield _Workers(None)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin_worker) as executor:
        try:
            yield _Workers(executor)
        except BaseException:
            for process in list((executor._processes or {}).values()):  # a part may take minutes
                process.terminate()
            raise


def _begin_worker() -> None:
    """One thread a process; Ctrl-C is the parent's business; and nobody outlives a parent that was killed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _tokenizer(
    preparation: Preparation, parts: tuple[Part, ...], out: Path, pool: _Workers, progress: Progress
) -> Path:
    """tokenizer.json in the folder: the user's, one that is there, or one that is trained now."""
    path, made_for = out / TOKENIZER, out / WORK / "tokenizer-of"
    wanted = f"{preparation.settings} {hashlib.sha256(repr(parts).encode()).hexdigest()}"
    if path.is_file() and made_for.is_file() and made_for.read_text() == wanted:
        return path
    if preparation.tokenizer is not None:
        describe_vocabulary(preparation.tokenizer, end_of_text=preparation.end_of_text)
        content = preparation.tokenizer.read_bytes()
    else:
        sample = _sample(preparation, parts, pool, progress)
        progress.note(f"training a {preparation.vocab_size}-token BPE on {len(sample)} documents")
        content = tokenizer_json(train_bpe(sample.texts(), preparation.vocab_size))
    write_atomically(path, content)
    write_atomically(made_for, wanted.encode())
    return path


def _sample(preparation: Preparation, parts: tuple[Part, ...], pool: _Workers, progress: Progress) -> Sample:
    """Training documents for the tokenizer. With `validation_tokens`, the half that nothing is held out from."""
    floor = ALL_HASHES // 2 if preparation.validation_tokens is not None else _share_bound(preparation)
    sample = Sample(preparation.sample_bytes, floor=floor)
    progress.stage("sampling", sum(part.num_bytes for part in parts))

    def calls() -> Iterator[tuple[Callable[..., tuple[int, list[str]]], tuple[Any, ...]]]:
        for part in parts:
            yield _sample_call, (part, preparation.reading, preparation.sample_bytes, sample.floor)

    for num_bytes, texts in pool.each(calls(), most=2 * (os.cpu_count() or 1)):
        for text in texts:
            sample.add(text)
        progress.advance(num_bytes)
    if not len(sample):
        raise CorpusError(f"there is no text to train a tokenizer on in {_named(preparation.sources)}; add text")
    return sample


def _sample_call(part: Part, reading: Reading, num_bytes: int, floor: int) -> tuple[int, list[str]]:
    return part.num_bytes, sample_part(part, reading, num_bytes, floor)


def _encode(
    parts: tuple[Part, ...], encoding: Encoding, work: Path, pool: _Workers, progress: Progress
) -> tuple[list[PartRecord], int]:
    """Records of all parts, in their order; and how many were there before."""
    before = {part.name: record for part in parts if (record := read_record(part, work)) is not None}
    records = {part.name: before[part.name] for part in parts if _is_done(part, before, encoding)}
    missing = [part for part in parts if part.name not in records]
    num_before = len(records)
    if before:
        progress.note(f"{num_before} of {len(parts)} parts were done before")
    if any(record.settings != encoding.settings for record in before.values()):
        progress.note("parts that were done with another tokenizer or other options are read again")
    for part in missing:
        if part.name in before and before[part.name].part != part:
            progress.note(f"{_changed(before[part.name].part, part)} changed since it was read and is read again")
    progress.stage("tokenising", sum(part.num_bytes for part in missing))
    calls = ((encode_part, (part, encoding, work, before.get(part.name))) for part in missing)
    for record in pool.each(calls, most=2 * (os.cpu_count() or 1)):
        records[record.part.name] = record
        progress.advance(record.part.num_bytes)
    return [records[part.name] for part in parts], num_before


def _is_done(part: Part, before: dict[str, PartRecord], encoding: Encoding) -> bool:
    return part.name in before and before[part.name].part == part and before[part.name].settings == encoding.settings


def _changed(before: Part, now: Part) -> str:
    files = zip(before.pieces, now.pieces, strict=True)
    return next(new.file.url for old, new in files if old.file != new.file)


def _require_unchanged(sources: tuple[str, ...], files: tuple[SourceFile, ...]) -> None:
    """A file that grew while it was read is half of one state and half of another."""
    changed = {file.url for file in set(files) ^ set(find_files(sources).files)}
    if changed:
        raise CorpusError(
            f"{min(changed)} changed while it was read; run the same command again once nobody writes to it"
        )


def _write_shards(
    preparation: Preparation, runs: Runs, vocabulary: Vocabulary, out: Path, pool: _Workers, progress: Progress
) -> list[tuple[Shard, str]]:
    """Shards and the names of their files, in order."""
    progress.note("ordering the documents")
    if preparation.validation_tokens is None:
        bound = _share_bound(preparation)
    else:
        bound = held_out_bound(runs, preparation.validation_tokens)
    ranges = plan_shards(runs, bound=bound, shard_tokens=preparation.shard_tokens)
    _require_both_roles(ranges, runs, preparation)
    progress.stage("writing shards", runs.num_bytes)
    shards: dict[str, Shard] = {}
    calls = ((_shard_call, (wanted, runs, out, vocabulary.vocab_size)) for wanted in ranges)
    for name, shard in pool.each(calls, most=os.cpu_count() or 1):
        shards[name] = shard
        progress.advance(shard.num_bytes or 0)
    return [(shards[wanted.name], wanted.name) for wanted in ranges]


def _shard_call(wanted: ShardRange, runs: Runs, out: Path, vocab_size: int) -> tuple[str, Shard]:
    return wanted.name, write_shard(wanted, runs, out / wanted.name, vocab_size=vocab_size)


def _require_both_roles(ranges: tuple[ShardRange, ...], runs: Runs, preparation: Preparation) -> None:
    if not runs.num_documents:
        raise CorpusError(f"there is no text in {_named(preparation.sources)}: every document is empty; add text")
    roles = {wanted.role for wanted in ranges}
    if roles != {"train", "validation"}:
        kind = "held-out" if "train" in roles else "training"
        raise CorpusError(
            f"none of the {runs.num_documents} documents of {_named(preparation.sources)} became {kind} text with a "
            f"held-out share of {preparation.validation_share:g}; add documents, or give another --validation-share"
        )


def _share_bound(preparation: Preparation) -> int:
    return int(preparation.validation_share * ALL_HASHES)


def _named(sources: tuple[str, ...]) -> str:
    return ", ".join(sources[:3]) + (" and others" if len(sources) > 3 else "")


def _finish(
    preparation: Preparation,
    out: Path,
    shards: list[tuple[Shard, str]],
    vocabulary: Vocabulary,
    sources: tuple[SourceFile, ...],
) -> CorpusFolder:
    documents = sum(shard.num_documents for shard, _ in shards)
    manifest = CorpusManifest(
        dtype=vocabulary.dtype,
        vocab_size=vocabulary.vocab_size,
        end_of_text_id=vocabulary.end_of_text_id,
        tokenizer_sha256=vocabulary.tokenizer_sha256,
        shards=tuple(shard for shard, _ in shards),
        description=f"prepared text: {documents} documents, {sum(shard.num_bytes or 0 for shard, _ in shards)} bytes",
    )
    files = {shard.sha256: name for shard, name in shards} | {vocabulary.tokenizer_sha256: TOKENIZER}
    return CorpusFolder.write(out, manifest, files, settings=preparation.settings, sources=sources)


def _hash_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CorpusError(f"the tokenizer {path} cannot be read: {error.strerror}; expected a tokenizer.json") from None
