"""A prepared corpus: a folder with `manifest.json` and token files, its own or those of other tools.

A study names it as its corpus, an agent on a machine that sees it maps its files where they lie.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ValidationError

from agent.blobs import Fetch, directory_fetcher, put, verify_once, write_atomically
from agent.corpus.manifest import Corpus, CorpusManifest, Shard
from agent.corpus.shards import open_shard
from agent.corpus.sources import SourceFile
from agent.failures import BlobMismatchError, CorpusError
from hwprofiles.value import Value

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"


class FolderRecord(Value):
    """What manifest.json says: the corpus, and what is known of it here and is no part of its name."""

    schema_version: Literal[1] = 1
    corpus_id: str
    manifest: CorpusManifest
    files: dict[str, str]
    """SHA-256 → file: a name in this folder, or the absolute path of another tool's file."""
    settings: str = ""
    """Hash of how it was prepared."""
    sources: tuple[SourceFile, ...] = ()
    """From which files, as they were then."""


@dataclass(frozen=True)
class CorpusFolder:
    """A folder that holds a prepared corpus."""

    path: Path
    record: FolderRecord

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a folder's manifest.

        Raises:
            CorpusError: there is none, or it was edited.
        """
        file = path / MANIFEST
        if not file.is_file():
            raise CorpusError(f"{path} holds no prepared corpus (no {MANIFEST}); archfleet data prepare writes one")
        try:
            record = FolderRecord.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise CorpusError(f"{file} is no manifest of a prepared corpus: {error}") from None
        if hashlib.sha256(_manifest_bytes(record.manifest)).hexdigest() != record.corpus_id:
            raise CorpusError(
                f"{file} was edited: its content is not what its corpus_id names; prepare the corpus again"
            )
        missing = {shard.sha256 for shard in record.manifest.shards} - record.files.keys()
        if missing:
            raise CorpusError(f"{file} names no file for shard {min(missing)}; prepare the corpus again")
        return cls(path, record)

    @classmethod
    def write(
        cls,
        path: Path,
        manifest: CorpusManifest,
        files: dict[str, str],
        *,
        settings: str = "",
        sources: Iterable[SourceFile] = (),
    ) -> Self:
        """Write a folder's manifest, last: a folder without it is not finished."""
        corpus_id = hashlib.sha256(_manifest_bytes(manifest)).hexdigest()
        record = FolderRecord(
            corpus_id=corpus_id, manifest=manifest, files=files, settings=settings, sources=tuple(sources)
        )
        write_atomically(path / MANIFEST, json.dumps(record.model_dump(mode="json"), indent=1).encode())
        return cls(path, record)

    @property
    def corpus(self) -> Corpus:
        """The corpus under its name."""
        return Corpus(id=self.record.corpus_id, manifest=self.record.manifest)

    def path_of(self, sha256: str) -> Path:
        """The file with this hash."""
        return self.path.resolve() / self.record.files[sha256]

    def check_sizes(self) -> None:
        """Every file is there and has its length; a matter of milliseconds.

        Raises:
            CorpusError: one is missing or truncated.
        """
        for shard in self.record.manifest.shards:
            self._require_size(shard)

    def check(self, *, stamps: Path | None = None, progress: Callable[[Path], None] = lambda _: None) -> None:
        """Hash every file, and look at the tokens.

        Args:
            stamps: a folder that remembers which files were hashed as they are now; those are not hashed again, and
                what the manifest says of their tokens is believed.
            progress: called with each file once it was hashed.

        Raises:
            CorpusError: one is missing, truncated or altered, or holds a token beyond the vocabulary.
        """
        self.check_sizes()
        for sha256 in self.record.files:
            file = self.path_of(sha256)
            try:
                _require_hash(file, sha256) if stamps is None else verify_once(file, sha256, stamps=stamps)
            except (BlobMismatchError, OSError) as error:
                raise CorpusError(str(error)) from None
            progress(file)
        for shard in self.record.manifest.shards:
            known = shard if stamps is not None else shard.model_copy(update={"largest_token": None})
            open_shard(self.path_of(shard.sha256), known, self.record.manifest)

    def publish(self, blob_directory: Path) -> None:
        """Make the corpus known in a folder of blobs: links to its files, and the manifest under its name."""
        put(blob_directory, _manifest_bytes(self.record.manifest))
        for sha256 in self.record.files:
            link = blob_directory / sha256
            link.unlink(missing_ok=True)
            link.symlink_to(self.path_of(sha256))

    def facts(self) -> dict[str, Any]:
        """What the folder holds, for people and programs."""
        manifest = self.record.manifest
        return {
            "path": str(self.path),
            "corpus_id": self.record.corpus_id,
            "description": manifest.description,
            "dtype": manifest.dtype,
            "vocab_size": manifest.vocab_size,
            "end_of_text_id": manifest.end_of_text_id,
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "train": _role_facts(manifest.shards_of("train")),
            "validation": _role_facts(manifest.shards_of("validation")),
        }

    def _require_size(self, shard: Shard) -> None:
        path = self.path_of(shard.sha256)
        expected = shard.header_bytes + shard.num_tokens * np.dtype(self.record.manifest.dtype).itemsize
        actual = path.stat().st_size if path.is_file() else None
        if actual != expected:
            found = "is missing" if actual is None else f"has {actual:,} bytes"
            raise CorpusError(
                f"the {shard.role} shard {path} {found}, {self.path / MANIFEST} promises {expected:,} bytes: "
                "it was truncated or replaced; restore it, or prepare the corpus again in another folder"
            )


def is_corpus_folder(path: Path) -> bool:
    """Whether a finished corpus is here."""
    return (path / MANIFEST).is_file()


def corpus_fetcher(directory: Path) -> Fetch:
    """A `Fetch` from a prepared corpus, or from any folder of blobs."""
    if not is_corpus_folder(directory):
        return directory_fetcher(directory)
    folder = CorpusFolder.open(directory)
    others = directory_fetcher(directory)

    def fetch(sha256: str) -> bytes | Path:
        if sha256 == folder.record.corpus_id:
            return _manifest_bytes(folder.record.manifest)
        return folder.path_of(sha256) if sha256 in folder.record.files else others(sha256)

    return fetch


def _role_facts(shards: tuple[Shard, ...]) -> dict[str, Any]:
    num_tokens = sum(shard.num_tokens for shard in shards)
    sizes = [shard.num_bytes for shard in shards if shard.num_bytes is not None]
    num_bytes = sum(sizes) if len(sizes) == len(shards) else None
    return {
        "num_shards": len(shards),
        "num_tokens": num_tokens,
        "num_documents": sum(shard.num_documents for shard in shards),
        "num_bytes": num_bytes,
        "bytes_per_token": None if num_bytes is None else num_bytes / num_tokens,
    }


def _require_hash(file: Path, sha256: str) -> None:
    with file.open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if actual != sha256:
        raise CorpusError(
            f"{file} has SHA-256 {actual}, its manifest says {sha256}: it was altered; restore it, or prepare the "
            "corpus again in another folder"
        )


def _manifest_bytes(manifest: CorpusManifest) -> bytes:
    return manifest.model_dump_json().encode()
