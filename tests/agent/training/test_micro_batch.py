"""How much of a batch is trained at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.training.micro_batch import (
    CPU_FLOPS_PER_SECOND,
    HEADROOM,
    LONGEST_SECONDS,
    fitting_sequences,
    halved,
    swift_sequences,
    train_flops_per_token,
    training_bytes,
)
from scaling.architecture import Architecture

PROXY = Architecture(
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
    vocab_size=32_000,
)
LAPTOP = Architecture(
    hidden_size=64,
    intermediate_size=196,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=1024,
)


def test_flops_follow_palms_convention() -> None:
    blocks = 12 * (4 * 768 * 768 + 3 * 768 * 2048)
    assert train_flops_per_token(PROXY, 2048) == 6 * (blocks + 32_000 * 768) + 12 * 12 * 768 * 2048
    untied = PROXY.model_copy(update={"tie_word_embeddings": False})
    assert train_flops_per_token(untied, 2048) == train_flops_per_token(PROXY, 2048)  # a lookup multiplies nothing


@given(batch=st.integers(1, 200), gigabytes=st.floats(0.5, 200))
def test_what_is_trained_at_once_divides_the_batch_and_is_estimated_to_fit(batch: int, gigabytes: float) -> None:
    def fits(size: int) -> bool:
        needed = training_bytes(PROXY, size * 2048, bytes_per_activation=2)
        return needed <= HEADROOM * gigabytes * 1e9

    size = fitting_sequences(
        PROXY, num_sequences=batch, sequence_length=2048, memory_bytes=gigabytes * 1e9, bytes_per_activation=2
    )
    assert batch % size == 0
    assert size == 1 or fits(size)
    assert not any(fits(larger) for larger in range(size + 1, batch + 1) if batch % larger == 0)


def test_a_large_device_takes_the_whole_batch_and_a_small_one_less() -> None:
    def size(gigabytes: float) -> int:
        return fitting_sequences(
            PROXY, num_sequences=64, sequence_length=2048, memory_bytes=gigabytes * 1e9, bytes_per_activation=2
        )

    assert size(139) == 64
    assert 1 <= size(16) < 32


def test_on_a_cpu_the_study_laptop_trains_whole_batches_and_a_long_step_is_divided() -> None:
    assert swift_sequences(LAPTOP, num_sequences=4, sequence_length=128) == 4
    size = swift_sequences(PROXY, num_sequences=24, sequence_length=128)
    assert 24 % size == 0
    seconds = size * 128 * train_flops_per_token(PROXY, 128) / CPU_FLOPS_PER_SECOND
    assert size == 1 or seconds <= LONGEST_SECONDS


@pytest.mark.parametrize(("batch", "size", "half"), [(8, 8, 4), (12, 3, 1), (6, 6, 3), (5, 5, 1), (4, 1, 1)])
def test_half_of_a_micro_batch_divides_the_batch(batch: int, size: int, half: int) -> None:
    assert halved(batch, size) == half
