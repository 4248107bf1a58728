"""The chunked loss is torch's cross-entropy, exact to rounding, and never holds the logits of all tokens."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from agent.training.evaluate import token_losses
from agent.training.loss import LOGITS_BYTES, SummedLoss, chunk_tokens, linear_cross_entropy, token_cross_entropy
from agent.training.model import Decoder, init_weights
from scaling.architecture import Architecture


def _inputs(num_tokens: int, hidden_size: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=source, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab_size, hidden_size, generator=source, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocab_size, (num_tokens,), generator=source)


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss_weight: float) -> Tensor:
    logits = hidden @ weight.T
    z_loss = z_loss_weight * logits.logsumexp(dim=-1).square().sum()
    return functional.cross_entropy(logits, targets, reduction="sum") + z_loss


def _gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(0.3 * loss, leaves)


@given(
    num_tokens=st.integers(1, 40),
    hidden_size=st.integers(1, 12),
    vocab_size=st.integers(2, 50),
    chunk=st.integers(1, 41),
    z_loss_weight=st.sampled_from([0.0, 1e-4, 0.5]),
)
@settings(deadline=None)
def test_the_chunked_loss_and_its_gradients_are_those_of_the_whole(
    num_tokens: int, hidden_size: int, vocab_size: int, chunk: int, z_loss_weight: float
) -> None:
    hidden, weight, targets = _inputs(num_tokens, hidden_size, vocab_size, torch.float64)
    chunked = linear_cross_entropy(
        hidden, weight, targets, z_loss_weight=z_loss_weight, logits_bytes=4 * vocab_size * chunk
    )
    plain = _plain(hidden, weight, targets, z_loss_weight)
    assert torch.allclose(chunked, plain, rtol=1e-12, atol=1e-12)
    ours, theirs = _gradients(chunked, hidden, weight), _gradients(plain, hidden, weight)
    assert all(torch.allclose(our, their, rtol=1e-10, atol=1e-12) for our, their in zip(ours, theirs, strict=True))


def test_in_single_precision_the_chunked_loss_is_exact_to_rounding() -> None:
    hidden, weight, targets = _inputs(256, 32, 1000, torch.float32)
    exact = _gradients(_plain(hidden.double(), weight.double(), targets, 0.0), hidden, weight)
    chunked = linear_cross_entropy(hidden, weight, targets, logits_bytes=4 * 1000 * 48)
    for ours, theirs in zip(_gradients(chunked, hidden, weight), exact, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_logits_that_fit_are_torchs_own_cross_entropy_bit_for_bit() -> None:
    hidden, weight, targets = _inputs(128, 16, 300, torch.float32)
    plain = functional.cross_entropy(functional.linear(hidden, weight), targets, reduction="sum")
    ours = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(ours, plain)
    for our, their in zip(_gradients(ours, hidden, weight), _gradients(plain, hidden, weight), strict=True):
        assert torch.equal(our, their)


class _Largest(TorchDispatchMode):
    """Remembers the most elements that any operation gave, or took."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = [each for each in (*args, result) if isinstance(each, Tensor)]
        self.num_elements = max([self.num_elements, *(each.numel() for each in found)])
        return result


@pytest.mark.parametrize("autocast", [False, True])
def test_the_logits_of_all_tokens_are_never_in_memory_forward_or_backward(autocast: bool) -> None:
    hidden, weight, targets = _inputs(96, 8, 2000, torch.float32)
    with _Largest() as largest:
        loss = linear_cross_entropy(hidden, weight, targets, autocast=autocast, logits_bytes=4 * 2000 * 16)
        loss.backward()  # type: ignore[no-untyped-call]
    assert largest.num_elements == 16 * 2000
    assert weight.grad is not None


def test_bf16_products_leave_fp32_gradients_near_those_of_fp32() -> None:
    hidden, weight, targets = _inputs(256, 32, 1000, torch.float32)
    exact = linear_cross_entropy(hidden, weight, targets)
    rough = linear_cross_entropy(hidden, weight, targets, autocast=True, logits_bytes=4 * 1000 * 64)
    assert rough.item() == pytest.approx(exact.item(), rel=5e-3)
    for ours, theirs in zip(_gradients(rough, hidden, weight), _gradients(exact, hidden, weight), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.05 * theirs.norm()


def test_a_vocabulary_of_128k_is_taken_in_chunks_of_hundreds_of_tokens() -> None:
    assert chunk_tokens(128_256) == 512
    assert chunk_tokens(1024) == LOGITS_BYTES // 4096 > 512  # the study `laptop` never is
    assert chunk_tokens(10**9) == 1


def test_a_batch_of_a_decoder_gives_its_summed_loss(small_architecture: Architecture) -> None:
    decoder = Decoder(small_architecture, max_sequence_length=16)
    init_weights(decoder, seed=0)
    tokens = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(1))
    loss = SummedLoss(decoder)(tokens[:, :-1], tokens[:, 1:])
    assert 0.9 * math.log(300) < loss.item() / 48 < 1.4 * math.log(300)
    assert {id(p) for p in SummedLoss(decoder).parameters()} == {id(p) for p in decoder.parameters()}


def test_a_decoder_in_bf16_has_fp32_weights_and_gradients_near_those_of_fp32(small_architecture: Architecture) -> None:
    decoder = Decoder(small_architecture, max_sequence_length=16)
    init_weights(decoder, seed=0)
    tokens = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(1))
    found = []
    for autocast in (False, True):
        loss = SummedLoss(decoder, autocast=autocast)(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in decoder.parameters() if p.grad is not None]))
        decoder.zero_grad()
    (exact, gradients), (rough, rough_gradients) = found
    assert rough != exact
    assert rough == pytest.approx(exact, rel=1e-2)
    for ours, theirs in zip(rough_gradients, gradients, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.1 * theirs.norm()


def test_losses_of_tokens_are_those_of_the_whole_and_never_hold_all_logits() -> None:
    hidden, weight, targets = _inputs(100, 8, 500, torch.float32)
    with torch.no_grad(), _Largest() as largest:
        chunked = token_cross_entropy(hidden, weight, targets, logits_bytes=4 * 500 * 16)
    assert largest.num_elements == 16 * 500
    whole = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    assert torch.allclose(chunked, whole, atol=1e-5)
    assert chunked.sum().item() == pytest.approx(linear_cross_entropy(hidden, weight, targets).item(), rel=1e-6)


def test_held_out_windows_too_large_for_whole_logits_have_the_same_losses(
    small_architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(small_architecture, max_sequence_length=16)
    init_weights(decoder, seed=0)
    tokens = np.arange(0, 3000, 7, dtype=np.uint16) % 300
    offsets = np.array([0, 48, 160])

    def losses() -> NDArray[np.float32]:
        return np.concatenate(list(token_losses(decoder, tokens, offsets, sequence_length=16)))

    whole = losses()
    monkeypatch.setattr("agent.training.evaluate.chunk_tokens", lambda _: 5)
    assert whole.shape == (3, 16)
    assert np.allclose(losses(), whole, atol=1e-5)
