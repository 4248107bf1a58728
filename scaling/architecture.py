"""A dense decoder architecture in config.json's field names, and everything counted from it.

Counting conventions (arXiv 2510.18245, section 3): only the matrices of the blocks count, no norms, no embeddings.

    attention parameters per layer = 2 · d · head_dim · (heads + kv_heads)
    MLP parameters per layer       = 3 · d · f                       (gated MLP)
    N = layers · (attention + MLP),  r = MLP / attention,  x = d / sqrt(N),  g = heads / kv_heads

`head_dim` is free: the query width heads · head_dim need not equal the hidden size. Attention is grouped-query
today; latent and sparse kinds will join it as a union of kinds here.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import PositiveInt, model_validator

from hwprofiles.value import Value


class Architecture(Value):
    """One legal Llama-style decoder: grouped-query attention, gated MLP, RMSNorm, rotary positions."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _legal(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs of channels")
        return self

    @property
    def query_width(self) -> int:
        """A = heads · head_dim, the width of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of the key projection, and of the value projection."""
        return self.num_key_value_heads * self.head_dim

    @property
    def attention_parameters_per_layer(self) -> int:
        """2 · d · head_dim · (heads + kv_heads)."""
        return 2 * self.hidden_size * (self.query_width + self.key_value_width)

    @property
    def mlp_parameters_per_layer(self) -> int:
        """3 · d · f."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def num_parameters(self) -> int:
        """N: the matrices of the blocks; no norms, no embeddings."""
        return self.num_hidden_layers * (self.attention_parameters_per_layer + self.mlp_parameters_per_layer)

    @property
    def num_embedding_parameters(self) -> int:
        """Embedding and head: V · d once if tied, twice if not. Not part of N."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def num_norm_parameters(self) -> int:
        """RMSNorm gains: two a layer and a last one. Not part of N."""
        return (2 * self.num_hidden_layers + 1) * self.hidden_size

    @property
    def num_total_parameters(self) -> int:
        """Everything a checkpoint holds."""
        return self.num_parameters + self.num_embedding_parameters + self.num_norm_parameters

    @property
    def mlp_attention_ratio(self) -> float:
        """r = MLP / attention parameters, keys and values counted at their grouped size."""
        return self.mlp_parameters_per_layer / self.attention_parameters_per_layer

    @property
    def width_ratio(self) -> float:
        """x = d / sqrt(N), dimensionless."""
        return self.hidden_size / math.sqrt(self.num_parameters)

    @property
    def query_group_size(self) -> int:
        """g = heads / kv_heads ("GQA")."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def key_value_elements_per_token(self) -> int:
        """Cached keys and values of one token over all layers, in elements: 2 · layers · kv_heads · head_dim."""
        return 2 * self.num_hidden_layers * self.key_value_width

    def key_value_bytes_per_token(self, bytes_per_element: float = 2) -> float:
        """KV-cache bytes of one token; two bytes an element for bfloat16."""
        return self.key_value_elements_per_token * bytes_per_element

    def decode_flops_per_token(self, context_tokens: float) -> float:
        """FLOPs to decode one token that attends to `context_tokens` tokens, the output head included.

        Two FLOPs a weight, and 4 · A per layer and attended token (scores and weighted values).
        """
        matrices = 2 * (self.num_parameters + self.vocab_size * self.hidden_size)
        return matrices + 4 * self.num_hidden_layers * self.query_width * context_tokens

    def prefill_flops(self, prompt_tokens: int) -> float:
        """FLOPs to read a prompt causally; the output head runs for its last token alone."""
        matrices = 2 * self.num_parameters * prompt_tokens + 2 * self.vocab_size * self.hidden_size
        attended = prompt_tokens * (prompt_tokens + 1) / 2
        return matrices + 4 * self.num_hidden_layers * self.query_width * attended

    @property
    def label(self) -> str:
        """A short name that tells the shape: d64-f196-h4kv2x16-L2."""
        return (
            f"d{self.hidden_size}-f{self.intermediate_size}-h{self.num_attention_heads}"
            f"kv{self.num_key_value_heads}x{self.head_dim}-L{self.num_hidden_layers}"
        )

    def to_hf_config(self, *, max_position_embeddings: int = 2048) -> dict[str, Any]:
        """The config.json from which transformers, vLLM and SGLang build this architecture.

        The Mistral class without its sliding window is Llama's computation under the same weight names. Llama's own
        config class (transformers 5) refuses a hidden size that is no multiple of the heads, though head_dim is free;
        one class for all shapes keeps their timings comparable.
        """
        return {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            **self.model_dump(),
            "sliding_window": None,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": max_position_embeddings,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "float32",
        }

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Read a config.json of a dense Llama-style decoder.

        Raises:
            ValueError: the config is not such a decoder, or lacks a field; the message says which.
        """
        if str(config.get("model_type")) not in _DENSE_LLAMA_STYLE:
            raise ValueError(
                f"model_type {config.get('model_type')!r:.80} is not a dense Llama-style decoder; "
                f"expected one of {', '.join(sorted(_DENSE_LLAMA_STYLE))}"
            )
        for refused in _NOT_DENSE:
            if config.get(refused):
                raise ValueError(f"{refused} = {config[refused]!r}: only dense grouped-query decoders are counted here")
        if config.get("quantization_config"):
            raise ValueError(
                "quantization_config: weights are random here, so none are quantised beforehand; take it out of the "
                "config.json and name a quantisation that the engine makes at load (--quantization)"
            )
        missing = [
            key
            for key in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "vocab_size",
            )
            if not isinstance(config.get(key), int)
        ]
        if missing:
            raise ValueError(f"config.json lacks whole numbers for {', '.join(missing)}")
        heads = config["num_attention_heads"]
        if not config.get("head_dim") and (heads < 1 or config["hidden_size"] % heads):
            raise ValueError(
                f"hidden_size ({config['hidden_size']}) is no multiple of num_attention_heads ({heads}), and there is "
                "no head_dim; give head_dim"
            )
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab_size=config["vocab_size"],
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )


_NOT_DENSE = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "kv_lora_rank",
    "vision_config",
    "audio_config",
    "is_encoder_decoder",
)
_DENSE_LLAMA_STYLE = frozenset({"llama", "mistral", "qwen2", "qwen3"})
