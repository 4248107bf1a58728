import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.blobs import BlobCache, directory_fetcher
from agent.corpus.foreign import ImportOptions, import_tokens
from agent.corpus.manifest import load_corpus
from agent.corpus.prepared import CorpusFolder, corpus_fetcher
from agent.corpus.shards import open_tokens
from agent.failures import BlobMissingError, CorpusError


@pytest.fixture
def folder(tmp_path: Path) -> CorpusFolder:
    for name in ("train-0", "train-1", "val"):
        np.arange(40, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    (tmp_path / "train-1.bin").write_bytes(np.full(30, 5, dtype=np.uint16).tobytes())
    (tmp_path / "val.bin").write_bytes(np.full(20, 6, dtype=np.uint16).tobytes())
    options = ImportOptions(vocab_size=40, end_of_text_id=0)
    return import_tokens([str(tmp_path / "*.bin")], [], tmp_path / "corpus", options)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)


def test_what_a_folder_holds_is_told_by_role(folder: CorpusFolder) -> None:
    facts = CorpusFolder.open(folder.path).facts()
    assert facts["train"] == {
        "num_shards": 2,
        "num_tokens": 70,
        "num_documents": 2,
        "num_bytes": None,
        "bytes_per_token": None,
    }
    assert facts["validation"]["num_tokens"] == 20


@pytest.mark.parametrize(
    ("damage", "words"),
    [(_truncate, "train-1.bin has 58 bytes, .*manifest.json promises 60"), (Path.unlink, "train-1.bin is missing")],
)
def test_a_truncated_or_missing_file_is_seen_without_reading(
    folder: CorpusFolder, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(tmp_path / "train-1.bin")
    with pytest.raises(CorpusError, match=words):
        folder.check_sizes()


@pytest.mark.parametrize("has_stamps", [True, False])
def test_an_altered_file_is_seen_by_a_check(folder: CorpusFolder, tmp_path: Path, has_stamps: bool) -> None:
    stamps = tmp_path / "stamps" if has_stamps else None
    folder.check(stamps=stamps)
    _alter(tmp_path / "train-1.bin")
    with pytest.raises(CorpusError, match=r"train-1\.bin .*it was altered"):
        folder.check(stamps=stamps)


def test_a_check_with_stamps_reads_nothing_twice(
    folder: CorpusFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.check(stamps=tmp_path / "stamps")
    monkeypatch.setattr("agent.blobs._hash_file", None)
    folder.check(stamps=tmp_path / "stamps")


def test_a_check_does_not_believe_what_the_manifest_says_of_tokens(folder: CorpusFolder) -> None:
    manifest = folder.record.manifest
    lying = manifest.model_copy(update={"vocab_size": 20})
    shards = tuple(shard.model_copy(update={"largest_token": 1}) for shard in manifest.shards)
    written = CorpusFolder.write(folder.path, lying.model_copy(update={"shards": shards}), folder.record.files)
    with pytest.raises(CorpusError, match="holds token 39, outside its vocabulary of 20"):
        written.check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table["manifest"].update(vocab_size=39), "was edited"),
        (lambda table: table.update(files={}), "names no file for shard"),
        (lambda table: table.pop("files"), "is no manifest of a prepared corpus"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(
    folder: CorpusFolder, change: Callable[[dict[str, object]], object], words: str
) -> None:
    file = folder.path / "manifest.json"
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))
    with pytest.raises(CorpusError, match=words):
        CorpusFolder.open(folder.path)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"holds no prepared corpus \(no manifest.json\); archfleet data prepare"):
        CorpusFolder.open(tmp_path)


def test_agents_find_manifest_and_files_by_their_hashes(folder: CorpusFolder, tmp_path: Path) -> None:
    blobs = BlobCache(tmp_path / "cache", corpus_fetcher(folder.path))
    assert load_corpus(blobs, folder.corpus.id) == folder.corpus
    assert len(open_tokens(folder.record.manifest, "train", blobs)) == 70
    with pytest.raises(BlobMissingError):
        blobs.get("0" * 64)


def test_a_published_corpus_is_linked_not_copied(folder: CorpusFolder, tmp_path: Path) -> None:
    for _ in range(2):
        folder.publish(tmp_path / "blobs")
    blobs = BlobCache(tmp_path / "cache", directory_fetcher(tmp_path / "blobs"))
    assert load_corpus(blobs, folder.corpus.id) == folder.corpus
    links = [path for path in (tmp_path / "blobs").iterdir() if path.is_symlink()]
    assert {link.resolve() for link in links} == set(tmp_path.glob("*.bin"))


def test_a_folder_of_blobs_is_still_a_place_to_fetch_from(tmp_path: Path) -> None:
    (tmp_path / ("a" * 64)).write_bytes(b"content")
    assert corpus_fetcher(tmp_path)("a" * 64) == b"content"
