import hashlib
import os
from pathlib import Path

import pytest

from agent.blobs import BlobCache, directory_fetcher, put, verify_once, write_atomically
from agent.failures import BlobMismatchError, BlobMissingError

CONTENT = b"sixteen tokens  "
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_blob_is_a_file_named_by_its_hash_and_nothing_else_is_left(tmp_path: Path) -> None:
    assert put(tmp_path, CONTENT) == SHA256
    assert put(tmp_path, CONTENT) == SHA256
    assert [path.name for path in tmp_path.iterdir()] == [SHA256]
    assert (tmp_path / SHA256).read_bytes() == CONTENT


def test_putting_again_repairs_a_corrupt_blob(tmp_path: Path) -> None:
    (tmp_path / SHA256).write_bytes(b"torn")
    put(tmp_path, CONTENT)
    assert (tmp_path / SHA256).read_bytes() == CONTENT


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    write_atomically(tmp_path / "state", b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "state", "not bytes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == b"old"


def test_a_blob_is_fetched_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(sha256: str) -> bytes:
        asked.append(sha256)
        return CONTENT

    cache = BlobCache(tmp_path, fetch)
    assert cache.get(SHA256).read_bytes() == CONTENT
    assert cache.get(SHA256) == tmp_path / SHA256
    assert BlobCache(tmp_path, fetch).get(SHA256) == tmp_path / SHA256
    assert asked == [SHA256]


def test_wrong_bytes_on_arrival_are_refused_and_not_kept(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", lambda _: b"something else")
    with pytest.raises(BlobMismatchError, match=f"expected SHA-256 {SHA256}"):
        cache.get(SHA256)
    assert not (tmp_path / "cache" / SHA256).exists()


def test_a_blob_that_went_bad_on_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / SHA256).write_bytes(CONTENT[:-1])
    with pytest.raises(BlobMismatchError, match="corrupt; delete it"):
        BlobCache(tmp_path, lambda _: CONTENT).get(SHA256)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", SHA256.upper(), SHA256 + "\n"])
def test_a_name_that_is_no_hash_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BlobMissingError, match="64 lower-case hex digits"):
        BlobCache(tmp_path, lambda _: CONTENT).get(name)


def test_a_missing_blob_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BlobMissingError, match=f"{SHA256} is not in {tmp_path}"):
        directory_fetcher(tmp_path)(SHA256)


def test_a_file_that_this_machine_sees_is_used_where_it_lies(tmp_path: Path) -> None:
    shard = tmp_path / "train-00000.bin"
    shard.write_bytes(CONTENT)
    cache = BlobCache(tmp_path / "cache", lambda _: shard)
    assert cache.get(SHA256) == cache.get(SHA256) == shard
    assert not (tmp_path / "cache" / SHA256).exists()


def test_an_altered_file_is_refused_by_a_cache_that_trusted_it_before(tmp_path: Path) -> None:
    shard = tmp_path / "train-00000.bin"
    shard.write_bytes(CONTENT)
    BlobCache(tmp_path / "cache", lambda _: shard).get(SHA256)
    shard.write_bytes(CONTENT[::-1])
    with pytest.raises(BlobMismatchError, match="altered or truncated"):
        BlobCache(tmp_path / "cache", lambda _: shard).get(SHA256)


def test_a_file_is_hashed_once_for_all_who_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def hash_file(path: Path) -> str:
        hashed.append(path)
        return SHA256

    monkeypatch.setattr("agent.blobs._hash_file", hash_file)
    shard = tmp_path / "train-00000.bin"
    shard.write_bytes(CONTENT)
    for _ in range(3):
        verify_once(shard, SHA256, stamps=tmp_path / "stamps")
    assert hashed == [shard]
    shard.touch()
    verify_once(shard, SHA256, stamps=tmp_path / "stamps")
    assert hashed == [shard, shard]


def test_who_may_read_a_file_is_the_umasks_to_say(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "shared", CONTENT)
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640
