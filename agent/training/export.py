"""Export: a trained model as a checkpoint folder that transformers, vLLM and lm-evaluation-harness load.

    config.json              `Architecture.to_hf_config`; positions up to the sequence length that was trained
    model.safetensors        float32 weights under the names of transformers' Llama; a tied head is left out
    tokenizer.json           the corpus's own; this and the next are absent where a corpus came without a tokenizer
    tokenizer_config.json    names the end-of-text mark, which stands before every document
    archfleet.json           what was trained, on what and by what, and its held-out loss

The folder is written beside its place and renamed: it is whole or not there.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save

from agent.blobs import BlobCache, sync_directory, write_atomically
from agent.corpus.manifest import CorpusManifest, load_corpus
from agent.failures import CorpusError
from agent.training.model import Decoder, to_hf_state_dict
from scaling.observations import TrainingObservation

WEIGHTS_NAME = "model.safetensors"
PROVENANCE_NAME = "archfleet.json"


def export_checkpoint(model: Decoder, observation: TrainingObservation, directory: Path, *, blobs: BlobCache) -> None:
    """Write the checkpoint folder of a finished training, in place of one that is there.

    Args:
        model: with the weights as they were trained.
        observation: of that training.
        directory: the folder to make.
        blobs: where the corpus's manifest and tokenizer are.

    Raises:
        InvalidInputError: the manifest or the tokenizer cannot be had.
        OSError: the folder cannot be written.
    """
    manifest = load_corpus(blobs, observation.corpus_id).manifest
    files = {
        "config.json": _as_json(_config(observation, manifest)),
        WEIGHTS_NAME: save(_weights(model), metadata={"format": "pt"}),
        **_tokenizer_files(manifest, blobs, max_tokens=observation.recipe.sequence_length),
        PROVENANCE_NAME: _as_json(_provenance(observation, manifest)),
    }
    writing = directory.with_name(f".{directory.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    for name, content in files.items():
        write_atomically(writing / name, content)
    shutil.rmtree(directory, ignore_errors=True)
    writing.rename(directory)
    sync_directory(directory.parent)


def _config(observation: TrainingObservation, manifest: CorpusManifest) -> dict[str, Any]:
    config = observation.architecture.to_hf_config(max_position_embeddings=observation.recipe.sequence_length)
    return config | {"bos_token_id": manifest.end_of_text_id, "eos_token_id": manifest.end_of_text_id}


def _weights(model: Decoder) -> dict[str, Any]:
    weights = {name: tensor.float().cpu().contiguous() for name, tensor in to_hf_state_dict(model).items()}
    if model.architecture.tie_word_embeddings:
        del weights["lm_head.weight"]  # it is the embedding: transformers and the engines tie it themselves
    return weights


def _tokenizer_files(manifest: CorpusManifest, blobs: BlobCache, *, max_tokens: int) -> dict[str, bytes]:
    if manifest.tokenizer_sha256 is None:
        return {}
    from tokenizers import Tokenizer

    content = blobs.get(manifest.tokenizer_sha256).read_bytes()
    end_of_text = Tokenizer.from_str(content.decode()).id_to_token(manifest.end_of_text_id)
    if end_of_text is None:
        raise CorpusError(
            f"the corpus's tokenizer has no token {manifest.end_of_text_id}, which its manifest calls end-of-text: "
            "they do not belong together, prepare the corpus again"
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }
    return {"tokenizer.json": content, "tokenizer_config.json": _as_json(config)}


def _provenance(observation: TrainingObservation, manifest: CorpusManifest) -> dict[str, Any]:
    bulky = {"window_losses", "curve"}
    return {
        "schema_version": 1,
        "corpus": manifest.description,
        "num_parameters": observation.architecture.num_parameters,
        "num_total_parameters": observation.architecture.num_total_parameters,
        "training": observation.model_dump(mode="json", exclude=bulky),
    }


def _as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
