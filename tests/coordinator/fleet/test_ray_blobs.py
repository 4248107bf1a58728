from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.fleet.ray_blobs import LinkedFile, fetch, publish


class ObjectStore:
    """What `publish` uses of Ray; a reference is the bytes themselves, marked."""

    def get_runtime_context(self) -> "ObjectStore":
        return self

    def get_node_id(self) -> str:
        return "head"

    def put(self, content: bytes) -> tuple[str, bytes]:
        return ("reference", content)


def test_small_blobs_go_into_the_object_store_and_links_do_not(tmp_path: Path) -> None:
    (tmp_path / "shard.bin").write_bytes(b"tokens")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "manifest").write_bytes(b"small")
    (tmp_path / "blobs" / "shard").symlink_to(tmp_path / "shard.bin")
    assert publish(tmp_path / "blobs", ObjectStore()) == {
        "manifest": [("reference", b"small")],
        "shard": [LinkedFile(str(tmp_path / "shard.bin"), "head")],
    }


def test_a_linked_file_that_this_node_sees_is_used_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "shard.bin").write_bytes(b"tokens")
    assert fetch("shard", {"shard": [LinkedFile(str(tmp_path / "shard.bin"), "head")]}) == tmp_path / "shard.bin"


def test_a_blob_that_was_not_published_is_named() -> None:
    with pytest.raises(KeyError, match="the coordinator published no blob shard"):
        fetch("shard", {})


@pytest.mark.fleet
def test_a_node_that_does_not_see_a_linked_file_gets_its_bytes_from_the_coordinators_node(
    cluster: Any, add_node: Callable[..., Any], tmp_path: Path
) -> None:
    import ray

    add_node(num_cpus=1)
    ray.init(address=cluster.address, namespace="blobs", log_to_driver=False)
    try:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "shard.bin").write_bytes(b"tokens")
        (tmp_path / "blobs" / "shard").symlink_to(tmp_path / "shard.bin")
        blobs = publish(tmp_path / "blobs", ray)

        def read(published: dict[str, list[Any]]) -> tuple[bytes | Path, str]:
            from unittest.mock import patch

            with patch("pathlib.Path.is_file", return_value=False):  # as on a machine without that folder
                return fetch("shard", published), ray.get_runtime_context().get_node_id()

        content, node_id = ray.get(ray.remote(num_cpus=1)(read).remote(blobs))
        assert content == b"tokens"
        assert node_id != ray.get_runtime_context().get_node_id()
    finally:
        ray.shutdown()
