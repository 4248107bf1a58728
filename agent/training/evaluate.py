"""Evaluation on the fixed held-out windows, the same for every architecture, so that differences are paired.

Shapes: B windows a batch, T tokens a window, V vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from agent.corpus.shards import Tokens
from agent.training.data import gather_windows
from agent.training.loss import chunk_tokens, token_cross_entropy
from agent.training.model import Decoder
from scaling.windows import standard_error

_LOGITS_PER_BATCH = 2**23  # 32 MiB of fp32 logits; depends on T and V alone, so all shapes are batched alike


class HeldOutLoss(NamedTuple):
    """Mean over windows in nats per token, its standard error over windows, and every window's mean."""

    mean: float
    standard_error: float
    window_losses: tuple[float, ...]


def token_losses(
    model: Decoder,
    tokens: Tokens,
    offsets: NDArray[np.int64],
    *,
    sequence_length: int,
    through: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Loss of every target token in nats, shape (windows, T), some windows at a time so that a caller can report.

    `through` forms those of some inputs and targets where the model cannot be called itself.
    """
    device = model.embedding.device
    batch = windows_per_batch(model, sequence_length)
    losses_of = through or partial(losses_of_tokens, model)
    for first in range(0, len(offsets), batch):
        inputs, targets = gather_windows(tokens, offsets[first : first + batch], sequence_length)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses_BT = losses_of(inputs.to(device), targets.to(device))
        yield losses_BT.cpu().numpy()


def windows_per_batch(model: Decoder, sequence_length: int) -> int:
    """Windows whose logits are formed at once."""
    return max(1, _LOGITS_PER_BATCH // (sequence_length * model.architecture.vocab_size))


def losses_of_tokens(model: Decoder, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Loss of every token, (B, T); in chunks where the logits of a single window are too many to hold."""
    if inputs_BT.numel() > chunk_tokens(model.architecture.vocab_size):
        hidden_ND = model.hidden_states(inputs_BT).flatten(0, 1)
        return token_cross_entropy(hidden_ND, model.head_weight, targets_BT.flatten()).view_as(targets_BT)
    logits_BTV = model(inputs_BT).float()
    return functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")


def window_means(losses: NDArray[np.float32]) -> list[float]:
    """Mean loss of each window in nats per token, of token losses of shape (windows, T)."""
    means: list[float] = losses.mean(axis=1, dtype=np.float64).tolist()
    return means


def summarise(losses: list[float]) -> HeldOutLoss:
    """Mean and standard error over windows; neighbours of one document count as alike (`scaling/windows.py`)."""
    return HeldOutLoss(float(np.mean(losses)), standard_error(losses), tuple(losses))
