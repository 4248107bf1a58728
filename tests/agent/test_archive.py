"""A packed checkpoint is the checkpoint; anything else is refused before a byte is written."""

import io
import tarfile
from pathlib import Path

import pytest

from agent.archive import pack, unpack


def a_checkpoint(directory: Path) -> Path:
    directory.mkdir()
    (directory / "state-3.safetensors").write_bytes(b"weights")
    (directory / "checkpoint.json").write_text("{}")
    return directory


def test_unpacking_gives_the_packed_files_back(tmp_path: Path) -> None:
    packed = pack(a_checkpoint(tmp_path / "there"))
    assert packed is not None

    unpack(packed, tmp_path / "here")

    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == {
        "state-3.safetensors": b"weights",
        "checkpoint.json": b"{}",
    }


def test_an_older_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    packed = pack(a_checkpoint(tmp_path / "there"))
    assert packed is not None
    here = a_checkpoint(tmp_path / "here")
    (here / "state-1.safetensors").write_bytes(b"older")

    unpack(packed, here)

    assert sorted(path.name for path in here.iterdir()) == ["checkpoint.json", "state-3.safetensors"]


def test_without_a_commit_there_is_nothing_to_pack(tmp_path: Path) -> None:
    (tmp_path / "state-3.safetensors").write_bytes(b"half")

    assert pack(tmp_path) is None
    assert pack(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "folder/file", ".."])
def test_a_name_that_leaves_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())

    with pytest.raises(ValueError, match="no plain file"):
        unpack(buffer.getvalue(), tmp_path / "here")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 1, 511, 700])
def test_a_truncated_archive_is_refused(tmp_path: Path, length: int) -> None:
    packed = pack(a_checkpoint(tmp_path / "there"))
    assert packed is not None

    with pytest.raises(ValueError, match="cannot be read"):
        unpack(packed[:length], tmp_path / "here")

    assert not (tmp_path / "here").exists()
