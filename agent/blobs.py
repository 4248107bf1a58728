"""Content-addressed blobs: bytes named by their SHA-256, so that a name cannot mean two things.

The coordinator `put`s the shards of a corpus; an agent gets them through its `BlobCache`, whose `fetch` is the
fleet's business (a shared directory, an object store, Ray). Bytes are checked when they arrive and, once per
process, when they are found on disk.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from agent.failures import BlobMismatchError, BlobMissingError

Fetch = Callable[[str], bytes]
"""Gives the bytes of a blob by its hex SHA-256."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def put(directory: Path, content: bytes) -> str:
    """Store `content` under its hash and return the hash; storing the same bytes again changes nothing."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = directory / sha256
    if not path.is_file() or _hash_file(path) != sha256:
        write_atomically(path, content)
    return sha256


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old bytes or the new ones: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
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
        self._verified: set[str] = set()

    def get(self, sha256: str) -> Path:
        """Path of the blob with this hash, fetched if need be.

        Raises:
            BlobMissingError: it could not be fetched, or `sha256` is no hash.
            BlobMismatchError: the bytes fetched, or found on disk, are not the ones named.
        """
        if not _SHA256.fullmatch(sha256):
            raise BlobMissingError(f"{sha256!r} is not a blob name; expected 64 lower-case hex digits (SHA-256)")
        path = self._directory / sha256
        if sha256 in self._verified and path.is_file():
            return path
        if path.is_file():
            self._check(sha256, _hash_file(path), f"{path} is corrupt; delete it and it is fetched again")
        else:
            content = self._fetch(sha256)
            self._check(sha256, hashlib.sha256(content).hexdigest(), "the bytes fetched are not those asked for")
            write_atomically(path, content)
        self._verified.add(sha256)
        return path

    def _check(self, expected: str, actual: str, what: str) -> None:
        if actual != expected:
            raise BlobMismatchError(f"{what}: expected SHA-256 {expected}, got {actual}")


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
