import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, directory_fetcher
from agent.corpus.manifest import Corpus
from agent.failures import CorpusError
from agent.training.export import export_checkpoint
from agent.training.model import Decoder
from agent.training.run import train
from scaling.architecture import Architecture
from scaling.observations import TrainingObservation
from scaling.recipes import FanIns, TrainingRecipe

TEXT = "def value(self): return len(class) \n\n  for é in range:\tNone <|endoftext|> 漢字 if not"


@dataclass(frozen=True)
class Trained:
    model: Decoder
    token_losses: NDArray[np.float32]
    observation: TrainingObservation


def _train(architecture: Architecture, corpus: Corpus, blobs: BlobCache, directory: Path) -> Trained:
    recipe = TrainingRecipe(
        num_tokens=6_400,
        sequence_length=32,
        batch_tokens=256,
        base_fan_ins=FanIns(hidden=32, attention=32, mlp=40),
    )
    assignment = TrainAssignment(architecture=architecture, recipe=recipe, corpus_id=corpus.id, num_eval_windows=24)
    kept: list[Any] = []
    *_, observation = train(
        assignment,
        blobs=blobs,
        checkpoint_directory=directory,
        agent="tester",
        device="cpu",
        on_finished=lambda model, losses: kept.extend((model, losses)),
    )
    assert isinstance(observation, TrainingObservation)
    return Trained(kept[0], kept[1], observation)


@pytest.fixture(scope="module")
def cache(corpus: Corpus, blob_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> BlobCache:
    return BlobCache(tmp_path_factory.mktemp("cache"), directory_fetcher(blob_directory))


@pytest.fixture(scope="module")
def trained(
    small_architecture: Architecture, corpus: Corpus, cache: BlobCache, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    return _train(small_architecture, corpus, cache, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def exported(trained: Trained, cache: BlobCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "model"
    export_checkpoint(trained.model, trained.observation, directory, blobs=cache)
    return directory


def _logits_of_transformers(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        return model(tokens).logits


def test_transformers_computes_the_trained_models_logits(trained: Trained, exported: Path) -> None:
    tokens = torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (trained.model(tokens) - _logits_of_transformers(exported, tokens)).abs().max()
    assert difference <= 1e-4


def test_an_untied_head_is_exported_too(
    small_architecture: Architecture, corpus: Corpus, cache: BlobCache, tmp_path: Path
) -> None:
    untied = small_architecture.model_copy(update={"tie_word_embeddings": False})
    trained = _train(untied, corpus, cache, tmp_path / "checkpoints")
    export_checkpoint(trained.model, trained.observation, tmp_path / "model", blobs=cache)
    tokens = torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (trained.model(tokens) - _logits_of_transformers(tmp_path / "model", tokens)).abs().max()
    assert difference <= 1e-4


def test_autotokenizer_gives_text_back_and_knows_the_end_of_text(exported: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == json.loads((exported / "config.json").read_text())["eos_token_id"]
    assert tokenizer.model_max_length == 32


def test_autotokenizer_gives_the_tokens_of_the_corpus(
    exported: Path, texts: Path, corpus: Corpus, cache: BlobCache
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    shard = np.fromfile(cache.get(corpus.manifest.shard("validation").sha256), dtype="<u2").tolist()
    documents = [tokenizer(path.read_text())["input_ids"] for path in texts.iterdir()]
    assert shard[0] == tokenizer.eos_token_id
    assert any(shard[1 : 1 + len(ids)] == ids for ids in documents)


def test_provenance_says_what_was_trained_on_what(trained: Trained, exported: Path) -> None:
    told = json.loads((exported / "archfleet.json").read_text())
    assert told["training"]["loss"] == trained.observation.loss
    assert told["training"]["corpus_id"] == trained.observation.corpus_id
    assert told["training"]["recipe"]["num_tokens"] == 6_400
    assert told["num_parameters"] == trained.observation.architecture.num_parameters
    assert "text files: 40 documents" in told["corpus"]


def test_exporting_again_replaces_the_folder_whole(trained: Trained, cache: BlobCache, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "left-behind.bin").write_text("of another export")
    (tmp_path / ".model.writing").mkdir()
    (tmp_path / ".model.writing" / "half.bin").write_text("of an export that was killed")
    export_checkpoint(trained.model, trained.observation, directory, blobs=cache)
    assert sorted(path.name for path in directory.iterdir()) == [
        "archfleet.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_of_another_corpus_is_refused(
    trained: Trained, corpus: Corpus, cache: BlobCache, tmp_path: Path
) -> None:
    from agent.blobs import put

    wrong = corpus.manifest.model_copy(update={"end_of_text_id": 5_000})
    blobs = BlobCache(tmp_path, cache.get)
    other = trained.observation.model_copy(update={"corpus_id": put(tmp_path, wrong.model_dump_json().encode())})
    with pytest.raises(CorpusError, match="no token 5000, which its manifest calls end-of-text"):
        export_checkpoint(trained.model, other, tmp_path / "model", blobs=blobs)


def test_held_out_token_losses_are_those_of_the_observation(trained: Trained) -> None:
    assert trained.token_losses.shape == (24, 32)
    assert trained.token_losses.dtype == np.float32
    means = trained.token_losses.mean(axis=1, dtype=np.float64)
    assert means.tolist() == list(trained.observation.window_losses)
