"""Reading the architectures that a user names."""

import json

import pytest

from agent.benchmark.configs import read_config
from scaling.named import named_architecture

LLAMA = named_architecture("llama-3.2-1b")


def test_a_published_name_is_read():
    assert read_config("llama-3.2-1b") == LLAMA


def test_a_file_and_its_directory_give_the_same_architecture(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA.to_hf_config()))
    assert read_config(file) == read_config(str(tmp_path)) == LLAMA


def test_a_missing_file_lists_the_names(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json: no such file; expected a config\.json.*surefire-3b"):
        read_config(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,}', r"not JSON: .* at line 1, column 9"),
        ("[1, 2]", "expected a JSON object with config.json's fields, got list"),
        ('{"model_type": "mamba"}', "model_type 'mamba' is not a dense Llama-style decoder"),
        ('{"model_type": "llama", "num_local_experts": 8}', "num_local_experts = 8: only dense"),
        ('{"model_type": "llama"}', "lacks whole numbers for hidden_size, intermediate_size"),
        (json.dumps(LLAMA.to_hf_config() | {"num_key_value_heads": 5}), r"must be a multiple of num_key_value_heads"),
        (json.dumps(LLAMA.to_hf_config() | {"hidden_size": -8}), r"not a legal architecture: hidden_size: "),
    ],
)
def test_what_is_no_dense_decoder_is_refused_by_file_and_reason(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        read_config(file)
    assert str(refusal.value).startswith(str(file))
    assert "\n" not in str(refusal.value)


def test_a_binary_file_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not a text file"):
        read_config(file)
