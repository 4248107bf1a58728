"""How a candidate is trained and how it is served: everything besides the architecture that changes a number.

Data order and filtering belong to `TrainingRecipe`; precision and decoding to `ServingRecipe`. New axes
(quantisation, fine-tuning, data recipes, parallel decoding) will become fields here.
"""

import math
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hwprofiles.value import Value
from scaling.architecture import Architecture

EngineName = Literal["transformers", "vllm", "sglang", "fake"]


class FanIns(Value):
    """Fan-ins at which each of the three kinds of hidden matrices learns at the base rate.

    `hidden` for q, k, v, gate and up (d), `attention` for the output projection (A = heads · head_dim),
    `mlp` for the down projection (f).

    Measured at 100 k parameters (L = 2, V = 1,024, T = 128, 512 tokens a step, D = 0.5 M tokens, rate 0.008, bases 64,
    64, 196): change of the loss in nats by seed, paired over 1,024 windows; one run's sd over seeds is 0.025:

        change                            d 112, f 52           d 64, f 164           d 40, f 256
        all rates x 0.7                   -0.016 -0.024         +0.012
        hidden = 45                       -0.027 -0.060 -0.014  -0.027 -0.011 -0.024  +0.008 +0.006 -0.013
        hidden = 32                       -0.043                -0.007
        down projection at sqrt(196/f)    +0.014 +0.055
        embedding at 64/d                 +0.047 +0.122
        hidden = 45, then all x 0.7       -0.005 +0.031         +0.040

    So the wide shape gained at a lower rate not for its narrow MLP, whose multiplier of 3.8 is no hindrance (a softer
    power there, the same as a cap of 1.9, is worse), but for q, k, v, gate and up: with their base at 45 no gain beyond
    noise is left. At 50 k (one seed, hidden = 45): d 48 +0.006, d 96 -0.017, d 24 -0.003. Effects of 0.003 nats would
    take over a hundred seeds to tell.
    """

    hidden: PositiveInt
    attention: PositiveInt
    mlp: PositiveInt


class TrainingRecipe(Value):
    """One training run: warm-up, stable, decay; AdamW whose rates follow the fan-in rule.

    A hidden matrix learns at base_learning_rate · min(base fan-in of its kind / its fan-in, max_rate_multiplier);
    embeddings, head and gains learn at the base rate. Weight decay does not follow the multiplier.

    Warm-up and stable part are the run's trunk. Where `warmup_tokens` says how long the warm-up is, the trunk is the
    same for every D, and runs of several D branch off where each begins to decay.
    """

    num_tokens: PositiveInt
    sequence_length: PositiveInt = 128
    batch_tokens: PositiveInt = 512
    base_learning_rate: PositiveFloat = 0.008
    base_fan_ins: FanIns = FanIns(hidden=64, attention=64, mlp=196)
    max_rate_multiplier: PositiveFloat | None = Field(None, exclude_if=lambda cap: cap is None)
    """Cap on the fan-in rule's multiplier: a matrix of a very small fan-in learns no faster than this many times the
    base rate. Null: none; left out of the JSON then, so that names stay those of runs made before."""
    warmup_fraction: float = Field(0.02, ge=0, lt=1)
    """Of num_tokens; counts where `warmup_tokens` is null."""
    warmup_tokens: PositiveInt | None = Field(None, exclude_if=lambda tokens: tokens is None)
    """Length of the warm-up in tokens, whatever D is. Left out of the JSON when null, so that names stay those of runs
    made before there was this field."""
    decay_fraction: float = Field(0.3, gt=0, le=1)
    weight_decay: float = Field(0.1, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    gradient_clip_norm: PositiveFloat = 1.0
    z_loss_weight: float = Field(0.0, ge=0, exclude_if=lambda weight: weight == 0)
    """Of the squared log-sum-exp of the logits, added to the trained loss alone (PaLM: 1e-4). Left out of the JSON at
    0, so that names stay those of runs made before there was this field."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights; the only thing replicates differ in."""
    order_seed: NonNegativeInt = 0
    """Seed of the data order: the same for all runs of a study, so that differences are paired."""

    @model_validator(mode="after")
    def _warm_before_the_decay(self) -> Self:
        if self.warmup_tokens is not None and self.num_warmup_steps > max(1, self.first_decaying_step):
            raise ValueError(
                f"warmup_tokens ({self.warmup_tokens}) reach into the decay, which begins after {self.trunk_tokens} of "
                f"{self.num_tokens} tokens: give at most so many, or a smaller decay_fraction"
            )
        return self

    @property
    def num_steps(self) -> int:
        """Optimiser steps, at least one; the last step completes `num_tokens` to within one batch."""
        return max(1, round(self.num_tokens / self.batch_tokens))

    @property
    def num_warmup_steps(self) -> int:
        """Steps whose rate rises, at least one."""
        if self.warmup_tokens is not None:
            return max(1, round(self.warmup_tokens / self.batch_tokens))
        return max(1, round(self.warmup_fraction * self.num_steps))

    @property
    def first_decaying_step(self) -> int:
        """The step with which the decay begins; those before belong to the trunk, unless the warm-up is not over."""
        return self.num_steps - round(self.decay_fraction * self.num_steps)

    @property
    def trunk_tokens(self) -> int:
        """Tokens before the decay begins: what this run has in common with a longer one that warms up alike."""
        return self.first_decaying_step * self.batch_tokens

    def rate_multipliers(self, architecture: Architecture) -> dict[str, float]:
        """Rate of each kind of hidden matrix over the base rate, by the fields of `FanIns`."""
        base, cap = self.base_fan_ins, self.max_rate_multiplier or math.inf
        return {
            "hidden": min(cap, base.hidden / architecture.hidden_size),
            "attention": min(cap, base.attention / architecture.query_width),
            "mlp": min(cap, base.mlp / architecture.intermediate_size),
        }

    def trunk_identity(self) -> dict[str, Any]:
        """All of the recipe that the steps before the decay follow from: equal for runs that share a trunk."""
        end = {"num_tokens", "decay_fraction", "warmup_fraction", "warmup_tokens"}
        return {**self.model_dump(mode="json", exclude=end), "num_warmup_steps": self.num_warmup_steps}


class Workload(Value):
    """What is asked of an engine: `batch_size` requests at once, each of fixed lengths, in tokens."""

    batch_size: PositiveInt
    input_tokens: PositiveInt = 1024
    output_tokens: PositiveInt = 1024


class ServingRecipe(Value):
    """How an engine is run."""

    engine: EngineName = "transformers"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantization: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_.-]{0,40}$")
    """The engine's name of a weight quantisation, passed through, e.g. "fp8"; null for weights of `dtype`."""
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Of cached keys and values; "auto" is `dtype`."""
    tensor_parallel_size: PositiveInt = 1
    """Devices that share every matrix."""
    num_threads: PositiveInt = 1
    """CPU threads of the engine; ignored on an accelerator."""
