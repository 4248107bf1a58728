"""Content-addressed blobs: bytes named by their SHA-256, so that a name cannot mean two things.

The coordinator `put`s the shards of a corpus; an agent gets them through its `BlobCache`, whose `fetch` is the
fleet's business (a shared directory, an object store, Ray). Bytes are checked when they arrive and, once per
process, when they are found on disk. A large file that this machine sees is used where it lies: it is hashed once for
all processes that share a cache, and again when its size, its times or its inode are not what they were.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from agent.failures import BlobMismatchError, BlobMissingError

Fetch = Callable[[str], bytes | Path]
"""Gives a blob by its hex SHA-256: its bytes, or the file on this machine that holds them."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def put(directory: Path, content: bytes) -> str:
    """Store `content` under its hash and return the hash; storing the same bytes again changes nothing."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = directory / sha256
    if not path.is_file() or _hash_file(path) != sha256:
        write_atomically(path, content)
    return sha256


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a crash leaves the old bytes or the new ones: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `mkstemp`, which lets nobody else read: who may is the user's umask to say.
    name = path.parent / f".writing-{secrets.token_hex(8)}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name.replace(path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames inside a directory survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def directory_fetcher(directory: Path) -> Fetch:
    """A `Fetch` that reads from a directory which `put` wrote, e.g. on a shared file system."""

    def fetch(sha256: str) -> bytes:
        path = directory / sha256
        if not path.is_file():
            raise BlobMissingError(
                f"blob {sha256} is not in {directory}; expected a file of that name: "
                "build the corpus there (python -m agent corpus --out DIR) or name the folder that has it"
            )
        return path.read_bytes()

    return fetch


class BlobCache:
    """Blobs kept in a local directory and fetched when they are not there. Several processes may share one."""

    def __init__(self, directory: Path, fetch: Fetch) -> None:
        self._directory = directory
        self._fetch = fetch
        self._verified: dict[str, Path] = {}

    def get(self, sha256: str) -> Path:
        """Path of a file with this hash: in the cache, fetched if need be, or where the fetch says that it lies.

        Raises:
            BlobMissingError: it could not be fetched, or `sha256` is no hash.
            BlobMismatchError: the bytes fetched, or found on disk, are not the ones named.
        """
        if not _SHA256.fullmatch(sha256):
            raise BlobMissingError(f"{sha256!r:.80} is not a blob name; expected 64 lower-case hex digits (SHA-256)")
        known = self._verified.get(sha256)
        if known is not None and known.is_file():
            return known
        path = self._directory / sha256
        if path.is_file():
            self._check(sha256, _hash_file(path), f"{path} is corrupt; delete it and it is fetched again")
        else:
            content = self._fetch(sha256)
            if isinstance(content, Path):
                path = content
                verify_once(path, sha256, stamps=self._directory)
            else:
                self._check(sha256, hashlib.sha256(content).hexdigest(), "the bytes fetched are not those asked for")
                write_atomically(path, content)
        self._verified[sha256] = path
        return path

    def _check(self, expected: str, actual: str, what: str) -> None:
        if actual != expected:
            raise BlobMismatchError(f"{what}: expected SHA-256 {expected}, got {actual}")


def verify_once(path: Path, sha256: str, *, stamps: Path) -> None:
    """Hash a file, unless `stamps` tells that the file as it is now was hashed before.

    Raises:
        BlobMismatchError: its bytes are not the ones named; it was altered or truncated.
    """
    stamp = stamps / f"{sha256}.verified"
    before = _state(path)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == before:
        return
    actual = _hash_file(path)
    if actual != sha256:
        raise BlobMismatchError(
            f"{path} has {path.stat().st_size:,} bytes of SHA-256 {actual}, expected {sha256}: it was altered or "
            "truncated since it was named; restore it, or prepare the corpus again in another folder"
        )
    write_atomically(stamp, before.encode())


def _state(path: Path) -> str:
    """What changes when a file is written to or replaced."""
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
