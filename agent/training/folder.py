"""Where a run's checkpoint lies: a local directory, or a folder of any store that fsspec knows (s3://, gs://, memory://).

    <folder>/state-<step>.safetensors      tensors
    <folder>/checkpoint.json               names that file and its hash: written last, it is the commit

A local file is written aside, synchronised and renamed, its directory synchronised too. An object store makes an
object visible when it is whole. Either way a crash at any moment leaves the old checkpoint or the new one.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from agent.blobs import sync_directory
from agent.failures import InvalidInputError


class Folder(Protocol):
    """The files of one checkpoint. Its text is what people are told."""

    def read(self, name: str) -> bytes | None:
        """A file's contents; None where there is no such file."""

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file, whole or not at all."""

    def names(self) -> list[str]:
        """Of the files."""

    def remove(self, name: str) -> None:
        """Delete a file, if there is one."""

    def discard(self) -> None:
        """Delete everything."""


class LocalFolder:
    """A directory, made when first written to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __str__(self) -> str:
        return str(self._directory)

    def read(self, name: str) -> bytes | None:
        path = self._directory / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=self._directory, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            Path(aside).replace(self._directory / name)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        sync_directory(self._directory)

    def names(self) -> list[str]:
        return sorted(path.name for path in self._directory.glob("*") if path.is_file())

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def discard(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class RemoteFolder:
    """A folder of an fsspec file system whose objects appear whole."""

    def __init__(self, file_system: Any, path: str) -> None:
        self._file_system = file_system
        self._path = path.rstrip("/")

    def __str__(self) -> str:
        return str(self._file_system.unstrip_protocol(self._path))

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._file_system.cat_file(f"{self._path}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        self._file_system.makedirs(self._path, exist_ok=True)
        with self._file_system.open(f"{self._path}/{name}", "wb") as file:
            for part in parts:
                file.write(part)

    def names(self) -> list[str]:
        self._file_system.invalidate_cache(self._path)
        try:
            return sorted(path.rsplit("/", 1)[-1] for path in self._file_system.ls(self._path, detail=False))
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file_system.rm_file(f"{self._path}/{name}")

    def discard(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file_system.rm(self._path, recursive=True)


def open_folder(place: Path | str) -> Folder:
    """The folder at a path or URL; nothing is made yet.

    Raises:
        InvalidInputError: fsspec, or its driver of that kind of URL, is not installed.
    """
    if isinstance(place, Path) or "://" not in place:
        return LocalFolder(Path(place))
    try:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        file_system, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise InvalidInputError(
            f"checkpoints cannot be kept at {place}: {error}; expected a directory or a URL that fsspec knows, and its "
            "driver installed (s3:// needs s3fs, gs:// needs gcsfs)"
        ) from None
    return LocalFolder(Path(path)) if isinstance(file_system, LocalFileSystem) else RemoteFolder(file_system, path)


def below(place: Path | str, name: str) -> Path | str:
    """A folder inside another, both by path or URL."""
    return place / name if isinstance(place, Path) else f"{place.rstrip('/')}/{name}"
