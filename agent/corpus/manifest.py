"""The corpus: text -> documents -> BPE tokens -> training and held-out shards, all named by content hash.

The shipped text is the "core" of the running Python's standard library, because every machine that can run
archfleet has it. Distributions ship different parts of it, so shards are built once (by the coordinator) and
agents fetch them by hash; the corpus id, the hash of the manifest, stands in every result.

A shard is raw little-endian uint16 (uint32 above 65,536 tokens of vocabulary) without header: what
`numpy.memmap` reads. Every document is preceded by the end-of-text token. Files are cut at blank lines into documents
of a few kilobytes, so that the held-out text comes from many files. Large corpora are prepared by `prepare.py`.
"""

import hashlib
import io
import os
import platform
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import (
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from agent.blobs import BlobCache, put
from agent.corpus.bpe import END_OF_TEXT, encode_documents, require_vocabulary, tokenizer_json, train_bpe
from agent.corpus.sources import cut_text
from agent.failures import CorpusError
from hwprofiles.value import Value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ShardRole = Literal["train", "validation"]

_EXCLUDED_DIRECTORIES = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "idle_test",
        "tkinter",
        "lib2to3",
        "distutils",
        "encodings",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "turtledemo",
        "ensurepip",
    }
)
_EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")
# 1,024 windows of 128 tokens and their targets; 4 bytes a token is above what a 1,024-token BPE reaches (2.7).
_VALIDATION_BYTES = 1024 * 129 * 4
_LARGEST_VALIDATION_SHARE = 0.1
# Measured at 100 k parameters and 1 M tokens, seed 0: whole files held out 27 documents, whose loss was 0.22 nats above
# that of training windows not seen yet; pieces of 8 kB hold out 81, at 0.08. Pieces of 2 kB gain no more.
_DOCUMENT_BYTES = 8192


class Shard(Value):
    """One token file of a corpus. What is not said is left out of the JSON, so that older ids stay what they were."""

    role: ShardRole
    sha256: str
    """Of the whole file, header included."""
    num_tokens: PositiveInt
    num_documents: PositiveInt
    num_bytes: PositiveInt | None = None
    """UTF-8 bytes of the text, end-of-text marks not counted: what bits per byte are over."""
    header_bytes: NonNegativeInt = 0
    """Bytes before the first token: other tools' files are used as they are."""
    largest_token: NonNegativeInt | None = None
    """Largest token id; who checked the hash need not look for it."""

    @model_serializer(mode="wrap")
    def _as_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said = write(self)
        optional = ("num_bytes", "header_bytes", "largest_token")
        return {key: value for key, value in said.items() if key not in optional or value not in (None, 0)}


class CorpusManifest(Value):
    """What a corpus is made of. Its content hash is the corpus id."""

    schema_version: Literal[1] = 1
    dtype: Literal["uint16", "uint32"]
    vocab_size: PositiveInt
    end_of_text_id: NonNegativeInt
    tokenizer_sha256: str | None
    """Of tokenizer.json; null where token files came without their tokenizer."""
    shards: tuple[Shard, ...]
    description: str

    def shards_of(self, role: ShardRole) -> tuple[Shard, ...]:
        """The shards with this role, in their order; at least one, or an error."""
        found = tuple(shard for shard in self.shards if shard.role == role)
        if not found:
            raise CorpusError(f"the corpus has no {role} shard; expected at least one of role train and of validation")
        return found

    def shard(self, role: ShardRole) -> Shard:
        """The only shard with this role."""
        found = self.shards_of(role)
        if len(found) > 1:
            raise CorpusError(f"the corpus has {len(found)} {role} shards; expected one")
        return found[0]


@dataclass(frozen=True)
class Corpus:
    """A manifest under its name."""

    id: str
    manifest: CorpusManifest


@dataclass(frozen=True)
class _Document:
    sha256: str
    text: str
    num_bytes: int


def build_stdlib_corpus(
    blob_directory: Path,
    *,
    vocab_size: int = 1024,
    source: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Corpus:
    """Build the corpus and store its blobs: two shards, tokenizer.json and the manifest.

    Deterministic: the same texts give the same id, wherever they lie. Documents, pieces of files, are deduplicated,
    ordered and split by content hash; the tokenizer sees training documents only.

    Args:
        blob_directory: where the blobs are put.
        vocab_size: tokens of the byte-level BPE, end-of-text included.
        source: a directory of UTF-8 text files; by default the core of this Python's standard library.
        progress: called with a sentence as each part begins.

    Raises:
        CorpusError: the source is missing, empty or too small for this vocabulary.
    """
    say = progress or (lambda _: None)
    require_vocabulary(vocab_size)
    root = source or Path(sysconfig.get_paths()["stdlib"])
    say(f"reading {root}")
    documents = _read_documents(_python_files(root) if source is None else _text_files(root), root)
    validation, train = _split(documents, root)
    say(f"training a {vocab_size}-token BPE on {len(train)} documents")
    tokenizer = train_bpe((document.text for document in train), vocab_size)
    say(f"encoding {sum(document.num_bytes for document in documents) / 1e6:.1f} MB")
    dtype: Literal["uint16", "uint32"] = "uint16" if vocab_size <= 2**16 else "uint32"
    shards = (
        _put_shard(blob_directory, "train", train, tokenizer, dtype),
        _put_shard(blob_directory, "validation", validation, tokenizer, dtype),
    )
    origin = f"Python {platform.python_version()} standard library, core" if source is None else "text files"
    manifest = CorpusManifest(
        dtype=dtype,
        vocab_size=vocab_size,
        end_of_text_id=tokenizer.token_to_id(END_OF_TEXT),
        tokenizer_sha256=put(blob_directory, tokenizer_json(tokenizer)),
        shards=shards,
        description=f"{origin}: {len(documents)} documents, {sum(d.num_bytes for d in documents)} bytes",
    )
    return Corpus(id=put(blob_directory, manifest.model_dump_json().encode()), manifest=manifest)


def load_corpus(blobs: BlobCache, corpus_id: str) -> Corpus:
    """Read the manifest that `corpus_id` names."""
    path = blobs.get(corpus_id)
    try:
        manifest = CorpusManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorpusError(f"blob {corpus_id} is not a corpus manifest: {error}") from error
    return Corpus(id=corpus_id, manifest=manifest)


def _python_files(root: Path) -> list[Path]:
    return [path for path in _walk(root, skip=_is_excluded) if path.suffix == ".py"]


def _is_excluded(directory: str) -> bool:
    return directory in _EXCLUDED_DIRECTORIES or directory.startswith(_EXCLUDED_PREFIXES)


def _text_files(root: Path) -> list[Path]:
    return [path for path in _walk(root, skip=lambda name: name.startswith(".")) if not path.name.startswith(".")]


def _walk(root: Path, *, skip: Callable[[str], bool]) -> list[Path]:
    """All files below `root`; directories to skip are not entered: site-packages can be huge."""
    if not root.is_dir():
        raise CorpusError(f"the corpus source {root} is not a directory; expected a directory of text files")
    files: list[Path] = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if not skip(name)]
        files.extend(Path(directory, name) for name in names)
    return [path for path in files if path.is_file() and not skip(path.stem)]


def _read_documents(paths: Sequence[Path], root: Path) -> list[_Document]:
    """Distinct, non-empty UTF-8 documents in the order of their hashes, which no file system can change."""
    documents: dict[str, _Document] = {}
    for path in paths:
        content = path.read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue  # a few stdlib files are Latin-1; binary files are no text
        for piece in cut_text(io.StringIO(text, newline=""), _DOCUMENT_BYTES):
            if piece.strip():
                content = piece.encode()
                sha256 = hashlib.sha256(content).hexdigest()
                documents[sha256] = _Document(sha256, piece, len(content))
    if len(documents) < 2:
        raise CorpusError(
            f"the corpus source {root} holds {len(documents)} distinct UTF-8 text documents among {len(paths)} files; "
            "expected at least two, so that one can be held out: name a directory with more text"
        )
    return [documents[sha256] for sha256 in sorted(documents)]


def _split(documents: list[_Document], root: Path) -> tuple[list[_Document], list[_Document]]:
    """Whole documents in hash order go to validation until it is large enough; the rest is for training."""
    total = sum(document.num_bytes for document in documents)
    wanted = min(_VALIDATION_BYTES, _LARGEST_VALIDATION_SHARE * total)
    taken, num_bytes = 0, 0
    while num_bytes < wanted and taken < len(documents) - 1:
        num_bytes += documents[taken].num_bytes
        taken += 1
    if num_bytes > 0.5 * total:
        raise CorpusError(
            f"one document of {root} is most of its text, so no part can be held out fairly; expected many documents"
        )
    return documents[:taken], documents[taken:]


def _put_shard(
    blob_directory: Path, role: ShardRole, documents: Sequence[_Document], tokenizer: "Tokenizer", dtype: str
) -> Shard:
    end_of_text_id = tokenizer.get_vocab()[END_OF_TEXT]
    texts = [document.text for document in documents]
    tokens = np.concatenate(encode_documents(texts, tokenizer, end_of_text_id=end_of_text_id, dtype=dtype))
    return Shard(
        role=role,
        sha256=put(blob_directory, tokens.tobytes()),
        num_tokens=len(tokens),
        num_documents=len(documents),
        num_bytes=sum(document.num_bytes for document in documents),
    )
