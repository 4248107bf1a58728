"""A small corpus and a training run on it that is long enough to be interrupted."""

from pathlib import Path

import pytest

from agent.assignment import TrainAssignment
from agent.training.corpus import build_stdlib_corpus
from scaling.architecture import Architecture
from scaling.recipes import FanIns, TrainingRecipe

VOCAB_SIZE = 300


@pytest.fixture(scope="session")
def blob_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="session")
def corpus_id(tmp_path_factory: pytest.TempPathFactory, blob_directory: Path) -> str:
    texts = tmp_path_factory.mktemp("texts")
    for number in range(40):
        (texts / f"{number}.txt").write_text("\n".join(f"def value_{k}(self): return {k * number}" for k in range(100)))
    return build_stdlib_corpus(blob_directory, vocab_size=VOCAB_SIZE, source=texts).id


@pytest.fixture
def long_training(corpus_id: str) -> TrainAssignment:
    """About half a minute of training."""
    architecture = Architecture(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB_SIZE,
    )
    recipe = TrainingRecipe(
        num_tokens=5_120_000,
        sequence_length=32,
        batch_tokens=256,
        base_fan_ins=FanIns(hidden=32, attention=32, mlp=40),
    )
    return TrainAssignment(architecture=architecture, recipe=recipe, corpus_id=corpus_id, num_eval_windows=24)
