"""Local directories and stores that fsspec knows keep a checkpoint alike."""

import uuid
from pathlib import Path

import pytest

from agent.failures import InvalidInputError
from agent.training.folder import Folder, LocalFolder, below, open_folder


@pytest.fixture(params=["path", "text", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    places = {
        "path": tmp_path / "a" / "run",
        "text": str(tmp_path / "a" / "run"),
        "file": f"file://{tmp_path}/a/run",
        "memory": f"memory://{uuid.uuid4()}/run",
    }
    return open_folder(places[request.param])


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write("a", [b"one", memoryview(b"two")])
    folder.write("b", [b""])
    folder.write("a", [b"three"])
    assert (folder.read("a"), folder.read("b"), folder.read("c")) == (b"three", b"", None)
    assert folder.names() == ["a", "b"]


def test_what_is_removed_is_gone(folder: Folder) -> None:
    folder.write("a", [b"1"])
    folder.write("b", [b"1"])
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["b"]
    folder.discard()
    folder.discard()
    assert folder.names() == []
    assert folder.read("b") is None


def test_a_write_that_breaks_off_leaves_the_file_before(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("a", [b"old"])

    def parts() -> object:
        yield b"new"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        folder.write("a", parts())  # type: ignore[arg-type]
    assert folder.read("a") == b"old"
    assert folder.names() == ["a"]


def test_a_url_that_nobody_knows_is_refused_with_what_to_install() -> None:
    with pytest.raises(InvalidInputError, match=r"expected a directory or a URL.*s3fs"):
        open_folder("nowhere://bucket/run")


def test_folders_lie_below_paths_and_urls(tmp_path: Path) -> None:
    assert below(tmp_path, "run") == tmp_path / "run"
    assert below("memory://bucket/", "run") == "memory://bucket/run"
