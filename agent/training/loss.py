"""Cross-entropy of a linear head without the logits of a whole batch in memory.

    loss = sum over tokens of  lse(z) - z[target] + z_loss_weight · lse(z)²,    z = W h,  lse = log-sum-exp

The last term keeps the normaliser near 1 (PaLM, arXiv 2204.02311, section 5: weight 1e-4). Where the logits of all
tokens fit into `LOGITS_BYTES` (on a GPU `GPU_LOGITS_BYTES`) this is torch's own cross-entropy; beyond, tokens are taken
in chunks, each of whose logits lives only until its gradients are formed, in the forward pass, so that the head is
multiplied three times a step as in the plain way, not four. At V = 128,256 the logits of 64 k tokens would take 33.6 GB
in fp32.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent.training.model import Decoder

LOGITS_BYTES = 256 * 2**20
"""Of fp32 logits that may live at once. Depends on nothing found at run time: a loss must not depend on the machine."""
GPU_LOGITS_BYTES = 2**30
"""The same on a GPU, whose matrix products need some thousand tokens to be efficient."""

Layer = Callable[[Tensor, Tensor], Tensor]
ChunkGradients = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class SummedLoss(nn.Module):
    """Input and target ids (B, T) → the loss summed over their tokens, fp32: what a trainer wraps and differentiates.

    Args:
        decoder: the model; its parameters are this module's only ones.
        z_loss_weight: of the squared log-sum-exp.
        autocast: bf16 matrix products over fp32 master weights.
    """

    def __init__(self, decoder: Decoder, *, z_loss_weight: float = 0.0, autocast: bool = False) -> None:
        super().__init__()
        self.decoder = decoder
        self.layers: tuple[Layer, ...] = tuple(decoder.blocks)
        """The decoder's blocks, or their compiled forms."""
        self.chunk_gradients: ChunkGradients = chunk_gradients
        self._z_loss_weight = z_loss_weight
        self._autocast = autocast

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The summed loss of a micro-batch."""
        device = inputs_BT.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._autocast):
            hidden_BTD = self.decoder.hidden_states(inputs_BT, self.layers)
        return linear_cross_entropy(
            hidden_BTD.flatten(0, 1),
            self.decoder.head_weight,
            targets_BT.flatten(),
            z_loss_weight=self._z_loss_weight,
            autocast=self._autocast,
            logits_bytes=LOGITS_BYTES if device == "cpu" else GPU_LOGITS_BYTES,
            chunk_gradients=self.chunk_gradients,
        )


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    z_loss_weight: float = 0.0,
    autocast: bool = False,
    logits_bytes: int = LOGITS_BYTES,
    chunk_gradients: ChunkGradients | None = None,
) -> Tensor:
    """Cross-entropy, and z-loss, of the logits hidden @ weight^T, summed over the tokens: fp32, differentiable.

    Args:
        hidden_ND: hidden states.
        weight_VD: the head.
        targets_N: token ids.
        z_loss_weight: of the squared log-sum-exp.
        autocast: multiply in bf16; sums and exponentials are fp32 all the same.
        logits_bytes: fp32 logits beyond which tokens are taken in chunks.
        chunk_gradients: the compiled form of the function of that name, if there is one.
    """
    chunk = chunk_tokens(weight_VD.shape[0], logits_bytes)
    if chunk < hidden_ND.shape[0]:
        gradients = chunk_gradients or _CHUNK_GRADIENTS
        total: Tensor = _ChunkedLoss.apply(hidden_ND, weight_VD, targets_N, z_loss_weight, autocast, chunk, gradients)  # type: ignore[no-untyped-call]
        return total
    with torch.autocast(hidden_ND.device.type, torch.bfloat16, enabled=autocast):
        logits_NV = functional.linear(hidden_ND, weight_VD)
    logits_NV = logits_NV.to(torch.promote_types(weight_VD.dtype, torch.float32))
    loss = functional.cross_entropy(logits_NV, targets_N, reduction="sum")
    return loss + z_loss_weight * logits_NV.logsumexp(dim=-1).square().sum() if z_loss_weight else loss


def token_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, logits_bytes: int = LOGITS_BYTES
) -> Tensor:
    """Cross-entropy of every token, fp32 (N,), a chunk of tokens at a time; for evaluation, under its autocast."""
    chunk = chunk_tokens(weight_VD.shape[0], logits_bytes)
    parts = [slice(first, first + chunk) for first in range(0, hidden_ND.shape[0], chunk)]
    logits = (functional.linear(hidden_ND[part], weight_VD).float() for part in parts)
    losses = [
        functional.cross_entropy(z, targets_N[part], reduction="none") for z, part in zip(logits, parts, strict=True)
    ]
    return torch.cat(losses)


def chunk_tokens(vocab_size: int, logits_bytes: int = LOGITS_BYTES) -> int:
    """Tokens whose fp32 logits fit into a number of bytes; a multiple of 128 where that is more, at least one."""
    tokens = max(1, logits_bytes // (4 * vocab_size))
    return tokens // 128 * 128 if tokens > 128 else tokens


def chunk_gradients(logits_NV: Tensor, targets_N: Tensor, z_loss_weight: float) -> tuple[Tensor, Tensor]:
    """The summed loss of some fp32 logits, and its gradient: softmax · (1 + 2 · weight · lse) - one-hot."""
    lse_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    targets_N1 = targets_N.unsqueeze(1)
    loss = (lse_N1 - logits_NV.gather(1, targets_N1)).sum()
    gradient_NV = (logits_NV - lse_N1).exp()
    if z_loss_weight:
        loss = loss + z_loss_weight * lse_N1.square().sum()
        gradient_NV = gradient_NV * (1 + 2 * z_loss_weight * lse_N1)
    return loss, gradient_NV.scatter_add(1, targets_N1, torch.full_like(lse_N1, -1.0))


_CHUNK_GRADIENTS = chunk_gradients


class _ChunkedLoss(torch.autograd.Function):
    """Forms the gradients in the forward pass, chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        z_loss_weight: float,
        autocast: bool,
        chunk: int,
        gradients: ChunkGradients,
    ) -> Tensor:
        dtype = torch.bfloat16 if autocast else weight_VD.dtype
        weight = weight_VD.to(dtype)
        total = torch.zeros((), dtype=torch.promote_types(weight_VD.dtype, torch.float32), device=hidden_ND.device)
        hidden_gradient_ND = torch.empty_like(hidden_ND)
        weight_gradient_VD = torch.zeros_like(weight_VD)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for first in range(0, hidden_ND.shape[0], chunk):
                part = slice(first, first + chunk)
                hidden = hidden_ND[part].to(dtype)
                logits = functional.linear(hidden, weight).to(total.dtype)
                loss, gradient = gradients(logits, targets_N[part], z_loss_weight)
                total += loss
                gradient = gradient.to(dtype)
                hidden_gradient_ND[part] = gradient @ weight
                if dtype == weight_VD.dtype:
                    weight_gradient_VD.addmm_(gradient.T, hidden)
                else:
                    weight_gradient_VD += gradient.T @ hidden
        ctx.save_for_backward(hidden_gradient_ND, weight_gradient_VD)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        return hidden_gradient_ND * scale, weight_gradient_VD * scale, None, None, None, None, None
