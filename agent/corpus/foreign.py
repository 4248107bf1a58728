r"""Token files of other tools, used where they lie: a manifest is written over them, no token is copied.

raw           little-endian uint16 or uint32 without header (nanoGPT, datatrove)
llm.c         256 int32 of header: magic 20240520 (uint16, GPT-2) or 20240801 (uint32, Llama 3), version, tokens
              (llm.c, modded-nanogpt)
Megatron      raw tokens in .bin; .idx: b"MMIDIDX\0\0", version 1 (u64), dtype code (u8), sequences (u64), documents
              (u64), then the sequences' lengths (i32) and byte offsets (i64) and the documents' first sequences (i64)
NumPy         .npy of one dimension
"""

import glob
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from agent.blobs import write_atomically
from agent.corpus.bpe import TokenDtype, Vocabulary, describe_vocabulary, token_num_bytes
from agent.corpus.manifest import CorpusManifest, Shard, ShardRole
from agent.corpus.prepared import TOKENIZER, CorpusFolder, is_corpus_folder
from agent.failures import CorpusError

_HEADER_BYTES = 256 * 4
_MAGIC_NUMBERS: dict[int, tuple[TokenDtype, int, int]] = {
    20240520: ("uint16", 50_257, 50_256),
    20240801: ("uint32", 128_256, 128_000),
}
"""Magic number → dtype, vocabulary size, end-of-text id."""
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_HEAD = struct.Struct("<9sQBQQ")
_MEGATRON_DTYPES: dict[int, TokenDtype] = {4: "uint32", 8: "uint16"}  # 4 is int32: no token is negative
_TOKENS_AT_A_TIME = 2**24
_Told = TypeVar("_Told")


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens, as its header tells."""

    path: Path
    kind: str
    dtype: TokenDtype | None
    """None where the file does not tell."""
    header_bytes: int = 0
    vocab_size: int | None = None
    end_of_text_id: int | None = None


class ImportOptions(NamedTuple):
    """What the files do not tell."""

    tokenizer: Path | None = None
    vocab_size: int | None = None
    end_of_text_id: int | None = None
    end_of_text: str | None = None
    dtype: TokenDtype | None = None


def import_tokens(
    train: Sequence[str],
    validation: Sequence[str],
    out: Path,
    options: ImportOptions,
    *,
    num_threads: int = 1,
    progress: Callable[[Path], None] = lambda _: None,
) -> CorpusFolder:
    """Write a manifest in `out` over token files.

    Args:
        train: files or globs.
        validation: files or globs; without any, those of `train` whose names hold "val".
        out: a folder without a corpus.
        options: what the files do not tell.
        num_threads: files that are hashed at a time.
        progress: called with each file once it was read.

    Raises:
        CorpusError: a file is truncated or no tokens, holds one beyond the vocabulary, or nothing is held out.
    """
    if is_corpus_folder(out):
        raise CorpusError(f"{out} holds a corpus already; name another --out")
    roles = _roles(
        [path for each in train for path in _files(each)], [path for each in validation for path in _files(each)]
    )
    files = [describe_file(path) for path, _ in roles]
    vocabulary, dtype = _vocabulary(files, options)
    bytes_of = token_num_bytes(options.tokenizer) if options.tokenizer is not None else None

    def scan(number: int) -> Shard:
        shard = _scan(files[number], roles[number][1], vocabulary, dtype, bytes_of)
        progress(files[number].path)
        return shard

    with ThreadPoolExecutor(num_threads) as pool:
        shards = tuple(pool.map(scan, range(len(files))))
    names = {shard.sha256: str(file.path) for shard, file in zip(shards, files, strict=True)}
    if options.tokenizer is not None:
        write_atomically(out / TOKENIZER, options.tokenizer.read_bytes())
        names[vocabulary.tokenizer_sha256] = TOKENIZER
    manifest = CorpusManifest(
        dtype=dtype,
        vocab_size=vocabulary.vocab_size,
        end_of_text_id=vocabulary.end_of_text_id,
        tokenizer_sha256=vocabulary.tokenizer_sha256 or None,
        shards=shards,
        description=f"{' and '.join(sorted({file.kind for file in files}))} files: {len(files)}, "
        f"{sum(shard.num_tokens for shard in shards)} tokens",
    )
    return CorpusFolder.write(out, manifest, names)


def _files(pattern: str) -> list[Path]:
    """The token files that a path or a glob names; Megatron's pairs also by their common prefix."""
    matches = [Path(match) for match in sorted(glob.glob(pattern))]  # noqa: PTH207 (a pattern may be absolute)
    found = {
        path.with_suffix(".bin") if path.suffix == ".idx" else path for path in matches or [Path(f"{pattern}.bin")]
    }
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise CorpusError(f"no such token file: {pattern}; expected a file, a glob that matches, or a Megatron prefix")
    return sorted(path.resolve() for path in found)


def _roles(train: list[Path], validation: list[Path]) -> list[tuple[Path, ShardRole]]:
    held_out = validation or [path for path in train if "val" in path.name.lower()]
    rest = [path for path in train if path not in held_out]
    if not held_out or not rest:
        what = "held-out" if not held_out else "training"
        raise CorpusError(
            f"none of the {len(train)} files is {what} text; name the held-out ones with --validation FILE (or by "
            '"val" in their names), and others to train on'
        )
    return [*((path, "train") for path in rest), *((path, "validation") for path in held_out)]


def describe_file(path: Path) -> TokenFile:
    """What a token file tells of itself.

    Raises:
        CorpusError: it is empty, truncated, or of a dtype that is not for tokens.
    """
    size = path.stat().st_size
    if not size:
        raise CorpusError(f"{path} is empty; expected tokens")
    if path.with_suffix(".idx").is_file():
        return _describe_megatron(path, size)
    if path.suffix == ".npy":
        return _describe_numpy(path)
    head = _beginning(path, 12)
    magic, _, num_tokens = struct.unpack("<iii", head) if len(head) == 12 else (0, 0, 0)
    if magic in _MAGIC_NUMBERS and size >= _HEADER_BYTES:
        dtype, vocab_size, end_of_text_id = _MAGIC_NUMBERS[magic]
        expected = _HEADER_BYTES + num_tokens * np.dtype(dtype).itemsize
        if size != expected:
            raise CorpusError(
                f"{path} has {size:,} bytes, its header promises {num_tokens:,} tokens, {expected:,} bytes: it is "
                "truncated; fetch or write it again"
            )
        return TokenFile(path, "llm.c", dtype, _HEADER_BYTES, vocab_size, end_of_text_id)
    return TokenFile(path, "raw", None)


def _describe_megatron(path: Path, size: int) -> TokenFile:
    index = path.with_suffix(".idx")
    head = _beginning(index, _MEGATRON_HEAD.size)
    if len(head) < _MEGATRON_HEAD.size or not head.startswith(_MEGATRON_MAGIC):
        raise CorpusError(
            f"{index} is no index of Megatron's (it begins with {head[:9]!r}, expected {_MEGATRON_MAGIC!r})"
        )
    _, version, code, num_sequences, num_documents = _MEGATRON_HEAD.unpack(head)
    if version != 1 or code not in _MEGATRON_DTYPES:
        raise CorpusError(
            f"{index} has version {version} and dtype code {code}; expected 1, and 8 (uint16) or 4 (int32)"
        )
    expected_index = _MEGATRON_HEAD.size + num_sequences * (4 + 8) + num_documents * 8
    if index.stat().st_size < expected_index:
        raise CorpusError(f"{index} has {index.stat().st_size:,} bytes, expected {expected_index:,}: it is truncated")
    lengths = np.memmap(index, dtype="<i4", mode="r", offset=_MEGATRON_HEAD.size, shape=(num_sequences,))
    dtype = _MEGATRON_DTYPES[code]
    expected = int(lengths.sum(dtype=np.int64)) * np.dtype(dtype).itemsize
    if size != expected:
        raise CorpusError(
            f"{path} has {size:,} bytes, {index.name} promises {expected:,}: it is truncated or another's"
        )
    return TokenFile(path, "Megatron", dtype)


def _describe_numpy(path: Path) -> TokenFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CorpusError(f"{path} is not whole: {error}") from None
    dtypes: dict[str, TokenDtype] = {"<u2": "uint16", "<u4": "uint32", "<i4": "uint32"}
    if array.ndim != 1 or array.dtype.str not in dtypes:
        raise CorpusError(f"{path} holds {array.dtype} of shape {array.shape}; expected one row of uint16 or uint32")
    return TokenFile(path, "NumPy", dtypes[array.dtype.str], path.stat().st_size - array.nbytes)


def _vocabulary(files: Sequence[TokenFile], options: ImportOptions) -> tuple[Vocabulary, TokenDtype]:
    """The options' word first, the tokenizer's next, the files' last."""
    known = None
    if options.tokenizer is not None and options.end_of_text_id is None:
        known = describe_vocabulary(options.tokenizer, end_of_text=options.end_of_text)
    vocab_size = options.vocab_size or _one(
        "vocabulary size", [known and known.vocab_size, *(f.vocab_size for f in files)]
    )
    end = options.end_of_text_id
    if end is None:
        end = known.end_of_text_id if known else _one("end-of-text id", [file.end_of_text_id for file in files])
    if vocab_size is None or end is None:
        raise CorpusError(
            "these files do not tell their vocabulary; give --tokenizer FILE.json, or --vocab-size N and "
            "--end-of-text-id N"
        )
    sha256 = hashlib.sha256(options.tokenizer.read_bytes()).hexdigest() if options.tokenizer is not None else ""
    vocabulary = Vocabulary(tokenizer_sha256=sha256, vocab_size=vocab_size, end_of_text_id=end)
    dtype = options.dtype or _one("dtype", [file.dtype for file in files]) or vocabulary.dtype
    if any(file.dtype not in (None, dtype) for file in files):
        raise CorpusError(f"the files are not all of {dtype}; import those of one dtype")
    return vocabulary, dtype


def _one(what: str, told: Sequence[_Told | None]) -> _Told | None:
    """What all that tell it agree on."""
    different = list(dict.fromkeys(each for each in told if each is not None))
    if len(different) > 1:
        raise CorpusError(
            f"the files disagree on the {what}: {', '.join(map(str, different))}; import one kind at a time"
        )
    return different[0] if different else None


def _scan(
    file: TokenFile, role: ShardRole, vocabulary: Vocabulary, dtype: TokenDtype, bytes_of: NDArray[np.int64] | None
) -> Shard:
    """Read a file once: its hash, its largest token, its documents and the bytes of its text."""
    kind = np.dtype(dtype).newbyteorder("<")
    size = file.path.stat().st_size - file.header_bytes
    if size % kind.itemsize or not size:
        raise CorpusError(f"{file.path} has {size:,} bytes of tokens, no whole number of {dtype}; name its --dtype")
    hashes = hashlib.sha256(_beginning(file.path, file.header_bytes))
    largest = num_documents = num_bytes = 0
    for tokens in _blocks(file, kind):
        hashes.update(tokens.data.cast("B"))
        largest = max(largest, int(tokens.max()))
        if largest >= vocabulary.vocab_size:
            raise CorpusError(
                f"{file.path} holds token {largest}, outside a vocabulary of {vocabulary.vocab_size}: "
                "check --tokenizer, --vocab-size and --dtype"
            )
        num_documents += int(np.count_nonzero(tokens == vocabulary.end_of_text_id))
        num_bytes += 0 if bytes_of is None else int(bytes_of[tokens].sum())
    return Shard(
        role=role,
        sha256=hashes.hexdigest(),
        num_tokens=size // kind.itemsize,
        num_documents=max(1, num_documents),
        num_bytes=num_bytes or None,
        header_bytes=file.header_bytes,
        largest_token=largest,
    )


def _beginning(path: Path, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(num_bytes)


def _blocks(file: TokenFile, kind: np.dtype[np.unsignedinteger]) -> Iterator[NDArray[np.unsignedinteger]]:
    with file.path.open("rb") as opened:
        opened.seek(file.header_bytes)
        while content := opened.read(_TOKENS_AT_A_TIME * kind.itemsize):
            yield np.frombuffer(content, dtype=kind)
