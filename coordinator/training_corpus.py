"""The corpus of `archfleet train`: a prepared one, a folder of blobs, or the default one, built once a user.

The default corpus is the core of this Python's standard library; it lies in the user's cache under the version of
Python, the size of its vocabulary and a hash of the code that makes it.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.blobs import BlobCache
from agent.corpus import manifest as builder
from agent.corpus.manifest import CorpusManifest, build_stdlib_corpus
from agent.corpus.prepared import CorpusFolder, corpus_fetcher, is_corpus_folder
from agent.failures import CorpusError

DEFAULT_VOCAB_SIZE = 1024
_LARGEST_MANIFEST_BYTES = 10**7


@dataclass(frozen=True, kw_only=True)
class FoundCorpus:
    """A corpus under its name, and where its files are read."""

    id: str
    blobs: BlobCache


def user_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """$XDG_CACHE_HOME/archfleet, by default ~/.cache/archfleet."""
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "archfleet"


def open_corpus(directory: Path | None, *, cache: Path, say: Callable[[str], None]) -> FoundCorpus:
    """The corpus in a folder, or the default one.

    Args:
        directory: what `archfleet data prepare` or `python -m agent corpus` wrote; null for the default corpus.
        cache: where the default corpus is built, and what was hashed is remembered.
        say: is told what takes a while.

    Raises:
        CorpusError: there is no such folder, or not one corpus in it.
    """
    place = _default_corpus(cache, say) if directory is None else directory
    return FoundCorpus(id=_corpus_id(place), blobs=BlobCache(cache / "verified", corpus_fetcher(place)))


def _default_corpus(cache: Path, say: Callable[[str], None]) -> Path:
    made_by = hashlib.sha256(Path(str(builder.__file__)).read_bytes()).hexdigest()[:8]
    place = cache / "corpora" / f"python-{platform.python_version()}-stdlib-{DEFAULT_VOCAB_SIZE}-{made_by}"
    if not is_corpus_folder(place):
        say(f"building the default corpus, once, in {place}")
        manifest = build_stdlib_corpus(place, vocab_size=DEFAULT_VOCAB_SIZE, progress=say).manifest
        blobs = [shard.sha256 for shard in manifest.shards]
        if manifest.tokenizer_sha256 is not None:
            blobs.append(manifest.tokenizer_sha256)
        CorpusFolder.write(place, manifest, {sha256: sha256 for sha256 in blobs})
    return place


def _corpus_id(directory: Path) -> str:
    if not directory.is_dir():
        raise CorpusError(
            f"--corpus {directory} is not a folder; expected one that archfleet data prepare or python -m agent corpus "
            "wrote"
        )
    if is_corpus_folder(directory):
        folder = CorpusFolder.open(directory)
        folder.check_sizes()
        return folder.corpus.id
    found = sorted(path.name for path in directory.iterdir() if _is_manifest(path))
    if len(found) != 1:
        told = f"{len(found)} corpora ({', '.join(found)})" if found else "no corpus manifest"
        raise CorpusError(
            f"--corpus {directory} holds {told}; expected one corpus, as archfleet data prepare or "
            "python -m agent corpus writes it"
        )
    return found[0]


def _is_manifest(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > _LARGEST_MANIFEST_BYTES:
        return False
    content = path.read_bytes()
    if b'"shards"' not in content:
        return False
    try:
        CorpusManifest.model_validate_json(content)
    except ValueError:
        return False
    return True
