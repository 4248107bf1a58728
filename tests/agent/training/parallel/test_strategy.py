"""How devices share a training, decided from figures alone."""

import pytest

from agent.failures import InvalidInputError
from agent.training.micro_batch import training_bytes
from agent.training.parallel.strategy import choose_strategy, fsdp_bytes, share_of
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe

GIB = 2**30
RECIPE = TrainingRecipe(num_tokens=10**9, sequence_length=2048, batch_tokens=2048 * 24)
THREE_BILLION = Architecture(
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128_256,
)


@pytest.mark.parametrize(("memory_bytes", "strategy"), [(139 * GIB, "ddp"), (80 * GIB, "fsdp"), (24 * GIB, "fsdp")])
def test_shards_are_taken_where_a_whole_model_does_not_fit(memory_bytes: int, strategy: str) -> None:
    chosen = choose_strategy(THREE_BILLION, RECIPE, num_devices=8, memory_bytes=memory_bytes, bytes_per_activation=2)
    assert chosen == strategy


def test_shards_of_more_devices_take_less_of_each_and_never_less_than_activations() -> None:
    def needed(num_devices: int, num_tokens: int = 4096) -> float:
        return fsdp_bytes(THREE_BILLION, num_tokens, num_devices=num_devices, bytes_per_activation=2)

    parameters = THREE_BILLION.num_total_parameters
    assert needed(2) - needed(4) == pytest.approx(16 * parameters / 4)
    activations = training_bytes(THREE_BILLION, 4096, bytes_per_activation=2) - 18 * parameters
    assert needed(1024) > activations


@pytest.mark.parametrize(("num_devices", "share"), [(1, 24), (2, 12), (8, 3)])
def test_a_batch_is_shared_evenly(num_devices: int, share: int) -> None:
    assert share_of(RECIPE, num_devices) == share


def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_what_would_do() -> None:
    with pytest.raises(InvalidInputError, match=r"24 sequences .* 5 devices; .* multiple of 10240, or 2 or 3 or 4 dev"):
        share_of(RECIPE, 5)
