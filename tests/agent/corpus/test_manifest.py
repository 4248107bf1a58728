import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from agent.blobs import BlobCache, directory_fetcher, put
from agent.corpus.manifest import Corpus, CorpusManifest, build_stdlib_corpus, load_corpus
from agent.failures import CorpusError


def _documents(corpus: Corpus, blob_directory: Path, role: str) -> list[str]:
    shard = corpus.manifest.shard(role)  # type: ignore[arg-type]
    tokenizer = Tokenizer.from_file(str(blob_directory / corpus.manifest.tokenizer_sha256))
    tokens = np.frombuffer((blob_directory / shard.sha256).read_bytes(), dtype="<u2")
    assert len(tokens) == shard.num_tokens
    starts = np.flatnonzero(tokens == corpus.manifest.end_of_text_id)
    assert len(starts) == shard.num_documents
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts)[1:]]


def test_the_shards_hold_every_document_once_and_whole(corpus: Corpus, blob_directory: Path, texts: Path) -> None:
    train = _documents(corpus, blob_directory, "train")
    validation = _documents(corpus, blob_directory, "validation")
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(path.read_text() for path in texts.iterdir())


def test_the_same_texts_elsewhere_under_other_names_give_the_same_id(
    corpus: Corpus, texts: Path, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted(texts.iterdir(), reverse=True)):
        (tmp_path / "copy" / f"part-{number % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "copy" / f"part-{number % 3}" / f"{number}.md")
    again = build_stdlib_corpus(tmp_path / "blobs", vocab_size=corpus.manifest.vocab_size, source=tmp_path / "copy")
    assert again == corpus


def test_copies_binary_files_and_empty_files_are_left_out(corpus: Corpus, texts: Path, tmp_path: Path) -> None:
    source = shutil.copytree(texts, tmp_path / "source")
    shutil.copy(source / "document-0.txt", source / "copy.txt")
    (source / "image.bin").write_bytes(b"\xff\xfe\x00")
    (source / "empty.txt").write_text(" \n")
    assert build_stdlib_corpus(tmp_path, vocab_size=corpus.manifest.vocab_size, source=source) == corpus


def test_another_text_gives_another_id(corpus: Corpus, texts: Path, tmp_path: Path) -> None:
    source = shutil.copytree(texts, tmp_path / "source")
    (source / "document-0.txt").write_text("changed " * 100)
    assert build_stdlib_corpus(tmp_path, vocab_size=corpus.manifest.vocab_size, source=source).id != corpus.id


def test_a_document_that_spells_out_the_end_of_text_mark_does_not_end(texts: Path, tmp_path: Path) -> None:
    source = shutil.copytree(texts, tmp_path / "source")
    (source / "document-0.txt").write_text("before <|endoftext|> after")
    built = build_stdlib_corpus(tmp_path / "blobs", vocab_size=300, source=source)
    documents = [*_documents(built, tmp_path / "blobs", "train"), *_documents(built, tmp_path / "blobs", "validation")]
    assert "before <|endoftext|> after" in documents


@pytest.mark.parametrize("num_files", [0, 1])
def test_a_source_without_enough_text_is_refused(tmp_path: Path, num_files: int) -> None:
    for number in range(num_files):
        (tmp_path / f"{number}.txt").write_text("text")
    with pytest.raises(CorpusError, match="expected at least two"):
        build_stdlib_corpus(tmp_path / "blobs", source=tmp_path)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere is not a directory"):
        build_stdlib_corpus(tmp_path, source=tmp_path / "nowhere")


def test_a_vocabulary_below_the_bytes_is_refused(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="expected at least 257"):
        build_stdlib_corpus(tmp_path, vocab_size=256, source=texts)


def test_a_text_too_small_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"a b {number}")
    with pytest.raises(CorpusError, match="too little text"):
        build_stdlib_corpus(tmp_path / "blobs", vocab_size=1024, source=tmp_path)


def test_a_manifest_is_read_back_by_its_id(corpus: Corpus, blobs: BlobCache) -> None:
    assert load_corpus(blobs, corpus.id) == corpus


def test_a_blob_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    sha256 = put(tmp_path, b"{}")
    with pytest.raises(CorpusError, match="not a corpus manifest"):
        load_corpus(BlobCache(tmp_path / "cache", directory_fetcher(tmp_path)), sha256)


def test_a_manifest_of_an_earlier_version_keeps_its_id() -> None:
    written = (
        '{"schema_version":1,"dtype":"uint16","vocab_size":300,"end_of_text_id":0,"tokenizer_sha256":"ab","shards":['
        '{"role":"train","sha256":"cd","num_tokens":9,"num_documents":2},'
        '{"role":"validation","sha256":"ef","num_tokens":5,"num_documents":1}],"description":"text files"}'
    )
    manifest = CorpusManifest.model_validate_json(written)
    assert manifest.model_dump_json() == written
    assert manifest.shard("train").num_bytes is None


def test_shards_tell_the_bytes_of_their_text(corpus: Corpus, texts: Path) -> None:
    num_bytes = sum(shard.num_bytes or 0 for shard in corpus.manifest.shards)
    assert num_bytes == sum(path.stat().st_size for path in texts.iterdir())


def test_long_files_are_cut_so_that_parts_of_them_can_be_held_out(texts: Path, tmp_path: Path) -> None:
    source = shutil.copytree(texts, tmp_path / "source")
    long = "\n\n".join(f"paragraph {number} " * 20 for number in range(200))
    (source / "long.txt").write_text(long)
    built = build_stdlib_corpus(tmp_path / "blobs", vocab_size=300, source=source)
    documents = [text for role in ("train", "validation") for text in _documents(built, tmp_path / "blobs", role)]
    pieces = [text for text in documents if text in long]
    assert len(pieces) > len(long) / 8192
    assert max(map(len, pieces)) <= 8192
    assert sum(map(len, pieces)) == len(long)


@pytest.mark.slow
def test_the_standard_library_gives_a_held_out_part_of_1024_windows(tmp_path: Path) -> None:
    sentences: list[str] = []
    corpus = build_stdlib_corpus(tmp_path, progress=sentences.append)
    assert corpus.manifest.vocab_size == 1024
    assert corpus.manifest.shard("validation").num_tokens >= 1024 * 129
    assert corpus.manifest.shard("validation").num_documents > 50
    assert corpus.manifest.shard("train").num_tokens > 1_000_000
    assert len(sentences) == 3
