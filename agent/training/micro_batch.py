"""How much of a batch is trained at once: what fits into the device, and what a request to leave can wait for.

Memory of a training step, in bytes (estimated; what it misses, `HEADROOM` covers):

    fixed     = parameters · (4 weight + 4 gradient + 8 moments + 2 bf16 copy) + 3 · fp32 logits of a chunk
    per token = L · (12 d + e · (4 A + 3 G + 4 f)) + 8 d,    G = kv_heads · head_dim, e = bytes of an activation

a residual stream in fp32 with the inputs of two norms, and queries, keys, values (twice where rotated), mixed values,
gate, up, their product and its factor in the activations' dtype, all of which the backward pass needs.

Symbols: d hidden size, A query width, f intermediate size, L layers.
"""

from agent.training.loss import GPU_LOGITS_BYTES
from scaling.architecture import Architecture

HEADROOM = 0.85
"""Share of the memory found that the estimate may fill; the rest is for fragmentation and what it misses."""
LONGEST_SECONDS = 2.0
"""Of one micro-batch on a CPU core of `CPU_FLOPS_PER_SECOND`: between two of them a run can be asked to leave."""
CPU_FLOPS_PER_SECOND = 6e10
"""What one quiet core reaches in fp32 on models of 0.05 to 1 M parameters; measured, 54 to 84."""


def train_flops_per_token(architecture: Architecture, sequence_length: int) -> float:
    """6 · parameters + 12 · L · d · T, PaLM's convention (arXiv 2204.02311, appendix B), with d = A, the query width.

    Parameters are all that multiply: those of the blocks and of the head, tied or not; looking an embedding up is
    free.
    """
    head = architecture.vocab_size * architecture.hidden_size
    attention = architecture.num_hidden_layers * architecture.query_width * sequence_length
    return 6.0 * (architecture.num_parameters + head) + 12.0 * attention


def training_bytes(architecture: Architecture, num_tokens: int, *, bytes_per_activation: int) -> float:
    """Estimated memory of a step on so many tokens at once."""
    a = architecture
    per_layer = 12 * a.hidden_size + bytes_per_activation * (
        4 * a.query_width + 3 * a.key_value_width + 4 * a.intermediate_size
    )
    per_token = a.num_hidden_layers * per_layer + 8 * a.hidden_size
    chunk = 3 * min(GPU_LOGITS_BYTES, 4 * a.vocab_size * num_tokens)
    return 18.0 * a.num_total_parameters + chunk + float(per_token) * num_tokens


def fitting_sequences(
    architecture: Architecture,
    *,
    num_sequences: int,
    sequence_length: int,
    memory_bytes: float,
    bytes_per_activation: int,
) -> int:
    """The most sequences, a divisor of the batch's, whose step is estimated to fit; 1 where none is.

    A divisor, so that all micro-batches have one shape, for which kernels are compiled once.
    """
    for size in _divisors(num_sequences):
        needed = training_bytes(architecture, size * sequence_length, bytes_per_activation=bytes_per_activation)
        if needed <= HEADROOM * memory_bytes:
            return size
    return 1


def swift_sequences(architecture: Architecture, *, num_sequences: int, sequence_length: int) -> int:
    """The most sequences, a divisor of the batch's, that a CPU core trains in `LONGEST_SECONDS`; at least 1.

    By the architecture alone: the size of a micro-batch decides the rounding of a gradient, and a result must not
    depend on how busy a machine was.
    """
    flops = sequence_length * train_flops_per_token(architecture, sequence_length)
    affordable = LONGEST_SECONDS * CPU_FLOPS_PER_SECOND / flops
    return next((size for size in _divisors(num_sequences) if size <= affordable), 1)


def halved(num_sequences: int, micro_batch: int) -> int:
    """The next smaller divisor of a batch, at most half a micro-batch; 1 stays 1."""
    return next((size for size in _divisors(num_sequences) if size <= max(1, micro_batch // 2)), 1)


def _divisors(number: int) -> list[int]:
    """The largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]
