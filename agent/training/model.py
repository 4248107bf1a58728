"""The proxy model: a Llama-style decoder built from an `Architecture`, counted by the same conventions.

Pre-norm blocks of grouped-query attention (rotary positions, half-split as in transformers) and a SiLU-gated MLP,
RMSNorm, no biases. Query, key and value projections are one matrix, gate and up another: they share their
fan-in, hence their initial scale and learning rate, and a tiny model on a CPU is bound by the number of kernels.

Initial weights: normal with standard deviation
    1 / sqrt(d)                             q, k, v, gate, up
    1 / sqrt(A) / sqrt(2L)                  output projection
    1 / sqrt(f) / sqrt(2L)                  down projection
    EMBEDDING_GAIN / sqrt(d)                embedding and head

Shapes: B sequences, T tokens, D hidden size d, H query heads, K key/value heads, C head_dim, A = H·C, F intermediate
size f, V vocabulary, L layers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from scaling.architecture import Architecture

MatrixKind = Literal["hidden", "attention", "mlp", "embedding", "gain"]
"""Kinds of parameters: the first three by their fan-in (d, A, f), as in `scaling.recipes.FanIns`."""

NORM_EPS = 1e-5
ROPE_THETA = 10000.0
EMBEDDING_GAIN = 1.0
"""Standard deviation of the logits of an untrained model: the final norm gives unit channels, so head weights of
gain / sqrt(d) give logits of this size for every shape, and a first loss near ln V + gain² / 2. Measured at 0.1 M,
tied embeddings: 0.16 costs 0.10 nats at 1 M tokens, 0.5 costs 0.3 nats at 0.3 M, 2 gains no more, 4 can diverge."""


class Decoder(nn.Module):
    """Token ids (B, T) -> logits (B, T, V)."""

    def __init__(self, architecture: Architecture, *, max_sequence_length: int) -> None:
        super().__init__()
        self.architecture = architecture
        d, V = architecture.hidden_size, architecture.vocab_size
        self.embedding = nn.Parameter(torch.empty(V, d))
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(d))
        self.head = None if architecture.tie_word_embeddings else nn.Parameter(torch.empty(V, d))
        rotation = rotary_table(max_sequence_length, architecture.head_dim)
        self.register_buffer("rotation", rotation, persistent=False)
        self.rotation: Tensor
        check_counts(self)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        return functional.linear(self.hidden_states(tokens_BT), self.head_weight)

    def hidden_states(self, tokens_BT: Tensor, layers: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()) -> Tensor:
        """What the head multiplies, (B, T, D); `layers` stand in for the blocks, e.g. their compiled forms."""
        x_BTD = functional.embedding(tokens_BT, self.embedding)
        rotation = self.rotation[: tokens_BT.shape[1]]
        for layer in layers or self.blocks:
            x_BTD = layer(x_BTD, rotation)
        return rms_norm(x_BTD, self.norm)

    @property
    def head_weight(self) -> nn.Parameter:
        """The head's matrix (V, D): the embedding where they are tied."""
        return self.embedding if self.head is None else self.head


class Block(nn.Module):
    """One decoder layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        d, f, A = architecture.hidden_size, architecture.intermediate_size, architecture.query_width
        self.num_heads = architecture.num_attention_heads
        self.num_kv_heads = architecture.num_key_value_heads
        self.head_dim = architecture.head_dim
        self.attention_norm = nn.Parameter(torch.ones(d))
        self.qkv = nn.Parameter(torch.empty(A + 2 * architecture.key_value_width, d))
        self.output = nn.Parameter(torch.empty(d, A))
        self.mlp_norm = nn.Parameter(torch.ones(d))
        self.gate_up = nn.Parameter(torch.empty(2 * f, d))
        self.down = nn.Parameter(torch.empty(d, f))

    def forward(self, x_BTD: Tensor, rotation: Tensor) -> Tensor:
        """The layer's output, of the input's shape (B, T, D)."""
        x_BTD = x_BTD + self._attention(rms_norm(x_BTD, self.attention_norm), rotation)
        gate_BTF, up_BTF = functional.linear(rms_norm(x_BTD, self.mlp_norm), self.gate_up).chunk(2, dim=-1)
        return x_BTD + functional.linear(functional.silu(gate_BTF) * up_BTF, self.down)

    def _attention(self, x_BTD: Tensor, rotation: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        H, K = self.num_heads, self.num_kv_heads
        qkv = functional.linear(x_BTD, self.qkv).view(B, T, H + 2 * K, self.head_dim)
        # Split, not sliced: the gradient of a slice is a copy into zeros, that of a split one concatenation.
        qk, v = qkv.split_with_sizes([H + K, K], dim=2)
        q, k = rotate(qk, rotation).transpose(1, 2).split_with_sizes([H, K], dim=1)
        v = v.transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
        return functional.linear(mixed.transpose(1, 2).reshape(B, T, H * self.head_dim), self.output)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + eps) · gain, over the last axis."""
    return functional.rms_norm(x, (x.shape[-1],), gain, NORM_EPS)


def rotary_table(max_sequence_length: int, head_dim: int) -> Tensor:
    """cos and sin of t · theta^(-2i / C), each repeated over both halves of the channels; sin's first half negated.

    Shape (T, 2, 1, C), so that `rotate` is two products and one sum.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = torch.outer(torch.arange(max_sequence_length, dtype=torch.float64), ROPE_THETA**-exponents)
    cos, sin = torch.cat([angles.cos()] * 2, dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)
    return torch.stack([cos, sin], dim=1).unsqueeze(2).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions on x of shape (B, T, heads, C), halves (x1, x2) -> (x1·cos - x2·sin, x2·cos + x1·sin)."""
    cos, sin = rotation.to(x.dtype).unbind(1)
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def init_weights(model: Decoder, *, seed: int) -> None:
    """Fill the weights from one seeded generator, always on the CPU, so that every device starts alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, kind, parameter in parameters_by_kind(model):
            if kind != "gain":
                std = initial_std(kind, model.architecture)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def initial_std(kind: MatrixKind, architecture: Architecture) -> float:
    """Standard deviation of the initial weights of one kind of matrix, as the head of this module says."""
    branch_gain = 1 / math.sqrt(2 * architecture.num_hidden_layers)
    return {
        "hidden": 1 / math.sqrt(architecture.hidden_size),
        "attention": branch_gain / math.sqrt(architecture.query_width),
        "mlp": branch_gain / math.sqrt(architecture.intermediate_size),
        "embedding": EMBEDDING_GAIN / math.sqrt(architecture.hidden_size),
    }[kind]


def parameters_by_kind(model: Decoder) -> Iterator[tuple[str, MatrixKind, nn.Parameter]]:
    """Every parameter once, in a fixed order, with its name and kind."""
    for name, parameter in model.named_parameters():
        yield name, _KINDS[name.rsplit(".", 1)[-1]], parameter


_KINDS: dict[str, MatrixKind] = {
    "embedding": "embedding",
    "head": "embedding",
    "qkv": "hidden",
    "gate_up": "hidden",
    "output": "attention",
    "down": "mlp",
    "attention_norm": "gain",
    "mlp_norm": "gain",
    "norm": "gain",
}


def check_counts(model: Decoder) -> None:
    """The model has, group by group, exactly the parameters that its architecture counts."""
    counted = {"attention": 0, "mlp": 0, "embedding": 0, "norm": 0}
    for name, parameter in model.named_parameters():
        counted[_COUNT_GROUPS[name.rsplit(".", 1)[-1]]] += parameter.numel()
    a = model.architecture
    expected = {
        "attention": a.num_hidden_layers * a.attention_parameters_per_layer,
        "mlp": a.num_hidden_layers * a.mlp_parameters_per_layer,
        "embedding": a.num_embedding_parameters,
        "norm": a.num_norm_parameters,
    }
    assert counted == expected, f"built {counted}, the architecture counts {expected}"


_COUNT_GROUPS = {
    "qkv": "attention",
    "output": "attention",
    "gate_up": "mlp",
    "down": "mlp",
    "embedding": "embedding",
    "head": "embedding",
    "attention_norm": "norm",
    "mlp_norm": "norm",
    "norm": "norm",
}


def to_hf_state_dict(model: Decoder) -> dict[str, Tensor]:
    """The weights under the names of transformers' LlamaForCausalLM, for `Architecture.to_hf_config`."""
    a = model.architecture
    state: dict[str, Tensor] = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    state["lm_head.weight"] = model.head_weight
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        q, k, v = torch.split(block.qkv, [a.query_width, a.key_value_width, a.key_value_width])
        gate, up = block.gate_up.chunk(2)
        state |= dict(zip(_hf_names(i), _hf_order(block, q, k, v, gate, up), strict=True))
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def from_hf_state_dict(model: Decoder, state: Mapping[str, Tensor]) -> None:
    """Fill a model with the weights of transformers' LlamaForCausalLM of the same architecture, in the model's dtype.

    A tied model may come with or without its `lm_head.weight`, as safetensors leaves out what is shared.

    Raises:
        ValueError: names or shapes are not those of this architecture, or a tied head differs from the embedding;
            the model is left as it was.
    """
    expected = to_hf_state_dict(model)
    given = dict(state)
    if model.head is None:
        given.setdefault("lm_head.weight", given.get("model.embed_tokens.weight", model.embedding))
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if wrong := sorted(name for name in shapes.keys() | given.keys() if _shape(given.get(name)) != shapes.get(name)):
        name = wrong[0]
        raise ValueError(
            f"the weights are not those of a Llama {model.architecture.label}: {len(wrong)} names differ, first "
            f"{name}: given {_shape(given.get(name))}, expected {shapes.get(name)}; give its config.json's architecture"
        )
    if model.head is None and not torch.equal(given["lm_head.weight"], given["model.embed_tokens.weight"]):
        raise ValueError(
            "lm_head.weight differs from model.embed_tokens.weight, the architecture ties them; "
            "expected tie_word_embeddings = false"
        )
    with torch.no_grad():
        model.embedding.copy_(given["model.embed_tokens.weight"])
        model.norm.copy_(given["model.norm.weight"])
        if model.head is not None:
            model.head.copy_(given["lm_head.weight"])
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            attention_norm, q, k, v, output, mlp_norm, gate, up, down = (given[name] for name in _hf_names(i))
            block.attention_norm.copy_(attention_norm)
            block.qkv.copy_(torch.cat([q, k, v]))
            block.output.copy_(output)
            block.mlp_norm.copy_(mlp_norm)
            block.gate_up.copy_(torch.cat([gate, up]))
            block.down.copy_(down)


def _hf_names(layer: int) -> list[str]:
    return [f"model.layers.{layer}.{name}.weight" for name in _HF_MATRICES]


def _hf_order(block: Block, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, up: Tensor) -> list[Tensor]:
    return [block.attention_norm, q, k, v, block.output, block.mlp_norm, gate, up, block.down]


_HF_MATRICES = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
