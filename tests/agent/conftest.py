"""A small real corpus and a small real assignment, built once."""

import random
from pathlib import Path

import pytest

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, directory_fetcher
from agent.corpus.manifest import Corpus, build_stdlib_corpus
from scaling.architecture import Architecture
from scaling.recipes import FanIns, TrainingRecipe

VOCAB_SIZE = 300
_WORDS = ("def", "return", "self", "value", "for", "in", "range", "len", "import", "class", "None", "if", "else", "not")


def write_texts(directory: Path, *, num_documents: int = 40) -> Path:
    """Documents of seeded words: learnable, and the same on every machine."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(num_documents):
        source = random.Random(number)
        lines = [" ".join(source.choices(_WORDS, k=8)) for _ in range(60)]
        (directory / f"document-{number}.txt").write_text("\n".join(lines))
    return directory


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def blob_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="session")
def corpus(texts: Path, blob_directory: Path) -> Corpus:
    return build_stdlib_corpus(blob_directory, vocab_size=VOCAB_SIZE, source=texts)


@pytest.fixture
def blobs(corpus: Corpus, blob_directory: Path, tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache", directory_fetcher(blob_directory))


@pytest.fixture(scope="session")
def small_architecture() -> Architecture:
    return Architecture(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB_SIZE,
    )


@pytest.fixture
def assignment(corpus: Corpus, small_architecture: Architecture) -> TrainAssignment:
    recipe = TrainingRecipe(
        num_tokens=12_800,
        sequence_length=32,
        batch_tokens=256,
        base_fan_ins=FanIns(hidden=32, attention=32, mlp=40),
    )
    return TrainAssignment(architecture=small_architecture, recipe=recipe, corpus_id=corpus.id, num_eval_windows=24)
