"""Blobs through Ray: small ones in its object store, linked files read where they lie.

A run's blob folder holds files, and links to the files of a prepared corpus, which may be far larger than the object
store. An agent that sees a linked file under its path uses it there; another one gets its bytes from a task on the
coordinator's node, one file at a time and only those that it asks for. Either way the agent checks the hash.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LinkedFile:
    """A file on the coordinator's node."""

    path: str
    node_id: str


Published = Mapping[str, list[Any]]
"""SHA-256 → where the blob is, a reference of Ray's or a `LinkedFile`; in a list, as Ray resolves bare references."""


def publish(blob_directory: Path, ray: Any) -> dict[str, list[Any]]:
    """Make every blob of a folder known to agents; links are not read."""
    node_id = ray.get_runtime_context().get_node_id()
    return {
        blob.name: [LinkedFile(str(blob.resolve()), node_id) if blob.is_symlink() else ray.put(blob.read_bytes())]
        for blob in sorted(blob_directory.iterdir())
    }


def fetch(sha256: str, blobs: Published) -> bytes | Path:
    """A blob's bytes, or its file where this node sees it."""
    if sha256 not in blobs:
        raise KeyError(f"the coordinator published no blob {sha256}")
    (place,) = blobs[sha256]
    if isinstance(place, LinkedFile) and Path(place.path).is_file():
        return Path(place.path)
    import ray

    return bytes(ray.get(_read_there(place) if isinstance(place, LinkedFile) else place))


def _read_there(file: LinkedFile) -> Any:
    """A reference to the bytes of a file, read on its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(file.node_id, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=there)(_read).remote(file.path)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()
