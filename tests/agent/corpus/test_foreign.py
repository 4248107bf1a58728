"""Files of other tools, written here by hand as their formats say."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from agent.blobs import BlobCache
from agent.corpus.bpe import train_bpe
from agent.corpus.foreign import ImportOptions, import_tokens
from agent.corpus.prepared import CorpusFolder, corpus_fetcher
from agent.corpus.shards import open_tokens
from agent.failures import CorpusError

TRAIN = np.array([7, 1, 2, 3, 7, 4, 5, 6, 4, 7, 2, 2], dtype=np.uint16)
HELD_OUT = np.array([7, 5, 5, 6], dtype=np.uint16)
SMALL = ImportOptions(vocab_size=8, end_of_text_id=7)


def _raw(path: Path, tokens: np.ndarray) -> str:
    tokens.tofile(path)
    return str(path)


def _llm_c(path: Path, tokens: np.ndarray, *, magic: int = 20240520, version: int = 1) -> str:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())
    return str(path)


def _megatron(prefix: Path, documents: Sequence[Sequence[int]], *, code: int = 8) -> str:
    lengths = np.array([len(document) for document in documents], dtype="<i4")
    dtype = {4: "<i4", 8: "<u2", 6: "<f8"}[code]
    tokens = np.concatenate([np.array(document, dtype=dtype) for document in documents])
    pointers = (np.cumsum(lengths) - lengths).astype("<i8") * tokens.itemsize
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(lengths), len(lengths) + 1)
    first_sequences = np.arange(len(lengths) + 1, dtype="<i8")
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())
    Path(f"{prefix}.idx").write_bytes(head + lengths.tobytes() + pointers.tobytes() + first_sequences.tobytes())
    return str(prefix)


def _import(
    tmp_path: Path, train: Sequence[str], validation: Sequence[str] = (), options: ImportOptions = SMALL
) -> CorpusFolder:
    return import_tokens(train, validation, tmp_path / "corpus", options)


def _tokens(folder: CorpusFolder, tmp_path: Path, role: str) -> list[int]:
    manifest = folder.record.manifest
    blobs = BlobCache(tmp_path / "cache", corpus_fetcher(folder.path))
    tokens = open_tokens(manifest, role, blobs)  # type: ignore[arg-type]
    return tokens.gather(np.arange(len(tokens)), 1)[:, 0].tolist()


def test_raw_files_are_used_where_they_lie(tmp_path: Path) -> None:
    folder = _import(tmp_path, [_raw(tmp_path / "train.bin", TRAIN), _raw(tmp_path / "val.bin", HELD_OUT)])
    assert _tokens(folder, tmp_path, "train") == TRAIN.tolist()
    assert _tokens(folder, tmp_path, "validation") == HELD_OUT.tolist()
    (shard,) = folder.record.manifest.shards_of("train")
    assert (shard.num_documents, shard.largest_token, shard.num_bytes) == (3, 7, None)
    assert folder.path_of(shard.sha256) == tmp_path / "train.bin"
    assert [path.name for path in folder.path.iterdir()] == ["manifest.json"]
    folder.check()


def test_shards_of_llm_c_bring_their_vocabulary(tmp_path: Path) -> None:
    for number in range(3):
        _llm_c(tmp_path / f"fineweb_train_{number:06}.bin", TRAIN + number)
    _llm_c(tmp_path / "fineweb_val_000000.bin", HELD_OUT)
    folder = _import(tmp_path, [str(tmp_path / "fineweb_*.bin")], options=ImportOptions())
    manifest = folder.record.manifest
    assert (manifest.dtype, manifest.vocab_size, manifest.end_of_text_id) == ("uint16", 50_257, 50_256)
    assert _tokens(folder, tmp_path, "train") == [*TRAIN.tolist(), *(TRAIN + 1).tolist(), *(TRAIN + 2).tolist()]
    assert {shard.header_bytes for shard in manifest.shards} == {1024}
    folder.check()


def test_shards_of_llm_c_for_llama_3_are_uint32(tmp_path: Path) -> None:
    large = np.array([128_000, 100_000, 5], dtype=np.uint32)
    train = _llm_c(tmp_path / "train.bin", large, magic=20240801, version=7)
    held_out = _llm_c(tmp_path / "held-out.bin", large, magic=20240801, version=7)
    folder = _import(tmp_path, [train], [held_out], ImportOptions())
    assert (folder.record.manifest.dtype, folder.record.manifest.vocab_size) == ("uint32", 128_256)
    assert _tokens(folder, tmp_path, "train") == large.tolist()


@pytest.mark.parametrize(("code", "dtype"), [(8, "uint16"), (4, "uint32")])
@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_pairs_of_megatron_are_named_by_prefix_or_file(tmp_path: Path, code: int, dtype: str, suffix: str) -> None:
    train = _megatron(tmp_path / "train_document", [[7, 1, 2], [7, 3]], code=code)
    held_out = _megatron(tmp_path / "held_out_document", [[7, 4]], code=code)
    folder = _import(tmp_path, [train + suffix], [held_out + suffix])
    assert folder.record.manifest.dtype == dtype
    assert _tokens(folder, tmp_path, "train") == [7, 1, 2, 7, 3]


def test_numpy_files_are_read_after_their_header(tmp_path: Path) -> None:
    for name, tokens in (("train.npy", TRAIN), ("val.npy", HELD_OUT)):
        np.save(tmp_path / name, tokens)
    folder = _import(tmp_path, [str(tmp_path / "*.npy")])
    assert _tokens(folder, tmp_path, "train") == TRAIN.tolist()


def test_a_tokenizer_tells_vocabulary_and_bytes_of_text(tmp_path: Path) -> None:
    tokenizer = train_bpe(["some text " * 9, "other words é " * 9], 270)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    for name in ("train.bin", "val.bin"):
        _raw(
            tmp_path / name, np.array([0, *tokenizer.encode("some é").ids, 0, *tokenizer.encode("!").ids], dtype="<u2")
        )
    options = ImportOptions(tokenizer=tmp_path / "tokenizer.json")
    folder = _import(tmp_path, [str(tmp_path / "*.bin")], options=options)
    assert {shard.num_bytes for shard in folder.record.manifest.shards} == {len("some é!".encode())}
    assert folder.record.manifest.vocab_size == 270
    assert folder.facts()["tokenizer_sha256"] in folder.record.files


def _break(tmp_path: Path, what: str) -> tuple[list[str], ImportOptions]:
    """A train file that cannot be used, and the options to import it with."""
    path = tmp_path / "train.bin"
    match what:
        case "truncated llm.c":
            _llm_c(path, TRAIN)
            path.write_bytes(path.read_bytes()[:-2])
        case "truncated Megatron":
            _megatron(tmp_path / "train", [[1, 2], [3]])
            path.write_bytes(path.read_bytes()[:-2])
        case "truncated index":
            _megatron(tmp_path / "train", [[1, 2], [3]])
            (tmp_path / "train.idx").write_bytes((tmp_path / "train.idx").read_bytes()[:-9])
        case "floats of Megatron":
            _megatron(tmp_path / "train", [[1, 2]], code=6)
        case "no index":
            (tmp_path / "train.idx").write_text("an index of something else")
            _raw(path, TRAIN)
        case "empty":
            path.touch()
        case "odd":
            path.write_bytes(b"\x01\x00\x02")
        case "beyond":
            _raw(path, TRAIN + 1)
        case "unknown":
            _raw(path, TRAIN)
            return [str(path)], ImportOptions()
        case "mixed":
            np.save(tmp_path / "train.npy", TRAIN.astype(np.uint32))
            return [str(tmp_path / "train.npy"), _llm_c(tmp_path / "other.bin", TRAIN)], SMALL
        case "floats":
            np.save(tmp_path / "train.npy", TRAIN.astype(float))
            return [str(tmp_path / "train.npy")], SMALL
    return [str(path)], SMALL


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("truncated llm.c", r"has 1,046 bytes, its header promises 12 tokens, 1,048 bytes: it is truncated"),
        ("truncated Megatron", r"train\.bin has 4 bytes, train\.idx promises 6: it is truncated or another's"),
        ("truncated index", r"train\.idx has .* bytes, expected .*: it is truncated"),
        ("floats of Megatron", r"has version 1 and dtype code 6; expected 1, and 8 \(uint16\) or 4"),
        ("no index", r"train\.idx is no index of Megatron's"),
        ("empty", r"train\.bin is empty; expected tokens"),
        ("odd", r"has 3 bytes of tokens, no whole number of uint16; name its --dtype"),
        ("beyond", r"holds token 8, outside a vocabulary of 8: check --tokenizer, --vocab-size and --dtype"),
        ("unknown", r"do not tell their vocabulary; give --tokenizer FILE\.json, or --vocab-size N and --end-of"),
        ("mixed", r"the files disagree on the dtype: uint32, uint16; import one kind at a time"),
        ("floats", r"holds float64 of shape \(12,\); expected one row of uint16 or uint32"),
        ("missing", r"no such token file: .*train\.bin; expected a file, a glob that matches, or a Megatron prefix"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path: Path, what: str, words: str) -> None:
    train, options = _break(tmp_path, what)
    held_out = _raw(tmp_path / "held-out.bin", HELD_OUT)
    with pytest.raises(CorpusError, match=words):
        _import(tmp_path, train, [held_out], options)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


def test_something_must_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match="none of the 1 files is held-out text; name the held-out ones with --validation"
    ):
        _import(tmp_path, [_raw(tmp_path / "train.bin", TRAIN)])


def test_a_folder_with_a_corpus_is_not_overwritten(tmp_path: Path) -> None:
    files = [_raw(tmp_path / "train.bin", TRAIN), _raw(tmp_path / "val.bin", HELD_OUT)]
    _import(tmp_path, files)
    with pytest.raises(CorpusError, match="holds a corpus already; name another --out"):
        _import(tmp_path, files)
