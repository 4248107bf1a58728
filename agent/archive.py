"""Archive: a run's checkpoint as bytes, so that it can go on at a machine that shares no disk with the first.

A plain tar of the checkpoint's files, which name and check their own contents (`agent/training/checkpoint.py`).
"""

import io
import os
import shutil
import tarfile
from pathlib import Path

from agent.blobs import write_atomically

_COMMIT = "checkpoint.json"
"""The file that makes a checkpoint count: packed, and unpacked, last."""
_LONGEST_NAME = 255
"""Bytes of a file's name on every common file system."""


def pack(directory: Path) -> bytes | None:
    """The files of a checkpoint's directory; None where there is no finished checkpoint."""
    if not (directory / _COMMIT).is_file():
        return None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(directory.iterdir(), key=lambda path: (path.name == _COMMIT, path.name)):
            if path.is_file():
                archive.add(path, arcname=path.name)
    return buffer.getvalue()


def unpack(content: bytes, directory: Path) -> None:
    """Write a packed checkpoint's files into `directory`, in place of what was there.

    Raises:
        ValueError: not an archive of plain files with plain names; nothing is written then.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            files = [(member.name, _read(archive, member)) for member in archive.getmembers()]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"a packed checkpoint cannot be read: {error}") from None
    shutil.rmtree(directory, ignore_errors=True)
    for name, file in files:
        write_atomically(directory / name, file)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    name = member.name
    is_plain = Path(name).name == name and name not in ("", ".", "..") and len(os.fsencode(name)) <= _LONGEST_NAME
    if not member.isfile() or not is_plain or "\0" in name:
        raise ValueError(f"a packed checkpoint holds {name!r:.80}, which is no plain file")
    file = archive.extractfile(member)
    assert file is not None, "a plain file has contents"
    return file.read()
