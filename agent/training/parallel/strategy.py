"""How several devices share a training: whole copies of the model (DDP) while one fits, else shards of it (FSDP2).

Estimated memory of a device, in bytes, over `micro_batch.training_bytes` (P parameters, K devices):

    ddp  = 18 P + activations and logits of a micro-batch
    fsdp = 16 P / K + 10 · (embedding, head + 2 layers) + activations and logits of a micro-batch

Weights, gradients and moments in fp32 take 16 bytes a parameter, bf16 copies 2. Shards are gathered a layer at a time,
the next while one computes: weight 4, gradient 4, bf16 copy 2. Gradients of DDP lie in its buckets, once.
"""

from typing import Literal

from agent.failures import InvalidInputError
from agent.training.micro_batch import HEADROOM, training_bytes
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe

Strategy = Literal["ddp", "fsdp"]

LEAST_TOKENS = 4096
"""Of a micro-batch on one device, or a batch's share where that is less: below it matrix products are too thin."""


def share_of(recipe: TrainingRecipe, num_devices: int) -> int:
    """Sequences of every batch that each device takes.

    Raises:
        InvalidInputError: the batch cannot be divided by the devices.
    """
    num_sequences = recipe.batch_tokens // recipe.sequence_length
    if num_sequences % num_devices:
        fitting = [count for count in range(2, num_devices) if num_sequences % count == 0]
        others = f", or {' or '.join(map(str, fitting))} devices" if fitting else ""
        raise InvalidInputError(
            f"a batch of {num_sequences} sequences cannot be shared evenly by {num_devices} devices; expected "
            f"batch_tokens a multiple of {num_devices * recipe.sequence_length}{others}"
        )
    return num_sequences // num_devices


def fsdp_bytes(architecture: Architecture, num_tokens: int, *, num_devices: int, bytes_per_activation: int) -> float:
    """Estimated memory of one of the devices that share a model, for a step on so many tokens of its own."""
    a = architecture
    activations = (
        training_bytes(a, num_tokens, bytes_per_activation=bytes_per_activation) - 18.0 * a.num_total_parameters
    )
    layer = a.attention_parameters_per_layer + a.mlp_parameters_per_layer
    gathered = a.num_embedding_parameters + 2 * layer
    return 16.0 * a.num_total_parameters / num_devices + 10.0 * gathered + activations


def choose_strategy(
    architecture: Architecture,
    recipe: TrainingRecipe,
    *,
    num_devices: int,
    memory_bytes: float,
    bytes_per_activation: int,
) -> Strategy:
    """DDP where a whole model and one micro-batch are estimated to fit into a device, else FSDP.

    Args:
        architecture: of the model.
        recipe: whose batch is shared.
        num_devices: that share it.
        memory_bytes: of the device that has least.
        bytes_per_activation: 2 in bf16, 4 in fp32.
    """
    share = share_of(recipe, num_devices) * recipe.sequence_length
    tokens = max(recipe.sequence_length, min(share, LEAST_TOKENS))
    needed = training_bytes(architecture, tokens, bytes_per_activation=bytes_per_activation)
    return "ddp" if needed <= HEADROOM * memory_bytes else "fsdp"
