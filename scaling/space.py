"""SearchSpace: the legal architectures near a target N, listed at once as columns.

For every hidden size, query-group size and number of heads the intermediate size is the one whose N is nearest the
target: along a shape's own N the loss changes faster than between good shapes, so every candidate sits as close to the
target as divisibility allows, and at most `tolerance` away.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.points import Integers

Mask = NDArray[np.bool_]

Range = tuple[PositiveFloat, PositiveFloat]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Legal architectures as columns of one length (M,), in `Architecture`'s terms and counting conventions."""

    hidden_size: Integers
    intermediate_size: Integers
    num_attention_heads: Integers
    num_key_value_heads: Integers
    num_hidden_layers: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.hidden_size)

    @property
    def attention_parameters_per_layer(self) -> Integers:
        """2 · d · head_dim · (heads + kv_heads)."""
        return 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)

    @property
    def mlp_parameters_per_layer(self) -> Integers:
        """3 · d · f."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def num_parameters(self) -> Integers:
        """N: the matrices of the blocks; no norms, no embeddings."""
        return self.num_hidden_layers * (self.attention_parameters_per_layer + self.mlp_parameters_per_layer)

    @property
    def x(self) -> Floats:
        """d / sqrt(N)."""
        return np.asarray(self.hidden_size / np.sqrt(self.num_parameters), dtype=float)

    @property
    def r(self) -> Floats:
        """MLP / attention parameters."""
        return np.asarray(self.mlp_parameters_per_layer / self.attention_parameters_per_layer, dtype=float)

    @property
    def query_group_size(self) -> Integers:
        """g = heads / kv_heads."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def key_value_elements_per_token(self) -> Integers:
        """2 · layers · kv_heads · head_dim, in elements."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def architecture(self, index: int) -> Architecture:
        """The candidate at `index` as a value."""
        return Architecture(
            hidden_size=int(self.hidden_size[index]),
            intermediate_size=int(self.intermediate_size[index]),
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=int(self.num_attention_heads[index]),
            num_key_value_heads=int(self.num_key_value_heads[index]),
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
        )

    def index_of(self, architecture: Architecture) -> int | None:
        """Where an architecture stands in the list, or None."""
        same = (
            (self.hidden_size == architecture.hidden_size)
            & (self.intermediate_size == architecture.intermediate_size)
            & (self.num_attention_heads == architecture.num_attention_heads)
            & (self.num_key_value_heads == architecture.num_key_value_heads)
        )
        return int(np.argmax(same)) if same.any() and self._constants == _constants_of(architecture) else None

    def nearest(self, *, x: float, r: float) -> int:
        """Index of the candidate nearest to (x, r) in ln x and ln r."""
        return int(np.argmin(np.log(self.x / x) ** 2 + np.log(self.r / r) ** 2))

    def including(self, architecture: Architecture) -> "tuple[Candidates, int]":
        """The same list with one more architecture, e.g. a baseline, if it lacks it; and where it stands.

        Raises:
            ValueError: its depth, head_dim, vocabulary or tying differ from the list's.
        """
        index = self.index_of(architecture)
        if index is not None:
            return self, index
        if self._constants != _constants_of(architecture):
            raise ValueError(
                f"{architecture.label} cannot join candidates with (layers, head_dim, vocabulary, tied) = "
                f"{self._constants}: its own are {_constants_of(architecture)}"
            )
        return replace(
            self,
            hidden_size=np.append(self.hidden_size, architecture.hidden_size),
            intermediate_size=np.append(self.intermediate_size, architecture.intermediate_size),
            num_attention_heads=np.append(self.num_attention_heads, architecture.num_attention_heads),
            num_key_value_heads=np.append(self.num_key_value_heads, architecture.num_key_value_heads),
        ), len(self)

    @property
    def _constants(self) -> tuple[int, int, int, bool]:
        return self.num_hidden_layers, self.head_dim, self.vocab_size, self.tie_word_embeddings

    def take(self, chosen: Integers | Mask) -> "Candidates":
        """The candidates of a mask or of indices."""
        return replace(
            self,
            hidden_size=self.hidden_size[chosen],
            intermediate_size=self.intermediate_size[chosen],
            num_attention_heads=self.num_attention_heads[chosen],
            num_key_value_heads=self.num_key_value_heads[chosen],
        )


def _constants_of(architecture: Architecture) -> tuple[int, int, int, bool]:
    return (
        architecture.num_hidden_layers,
        architecture.head_dim,
        architecture.vocab_size,
        architecture.tie_word_embeddings,
    )


class SearchSpace(Value):
    """Which architectures are legal: near `num_parameters` (non-embedding), divisible, and within ranges.

    Depth is fixed over a search: x = d / sqrt(N) moves with depth, and the fitted x* would be about depth.
    """

    num_parameters: PositiveInt
    """Target N, non-embedding."""
    tolerance: float = Field(0.03, gt=0, lt=1)
    """Largest relative distance of N from the target."""
    num_hidden_layers: PositiveInt
    head_dim: PositiveInt
    query_group_sizes: tuple[PositiveInt, ...] = Field((2,), min_length=1)
    hidden_multiple_of: PositiveInt = 16
    intermediate_multiple_of: PositiveInt = 4
    vocab_size: PositiveInt
    tie_word_embeddings: bool = True
    hidden_size_range: tuple[PositiveInt, PositiveInt] | None = None
    x_range: Range | None = None
    """d / sqrt(N)."""
    r_range: Range = (0.3, 8.0)
    """MLP / attention parameters; a little wider than the fit's default, for flanks."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("hidden_size_range", "x_range", "r_range"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] <= limits[1]:
                raise ValueError(f"{name} is {list(limits)}: the first number must not exceed the second")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs of channels")
        return self

    def enumerate(self) -> Candidates:
        """All legal architectures, ordered by hidden size, then group size, then heads.

        Raises:
            ValueError: there is none; the message names the nearest misses and what to relax.
        """
        grid = self._grid()
        legal = np.logical_and.reduce(list(self._checks(grid).values()))
        if not legal.any():
            raise ValueError(self._explain(grid))
        return grid.take(legal)

    def _grid(self) -> Candidates:
        """Every hidden size with every number of heads that leaves room for an MLP, f at its best."""
        widths, parts = self._hidden_sizes(), []
        for g in sorted(set(self.query_group_sizes)):
            # Ragged: as many heads as the attention of this width has room for, so the grid grows like N log N, not N².
            most = np.maximum(1, self._per_layer() // (2 * widths * self.head_dim * (1 + g))).astype(np.intp)
            kv_heads = np.arange(most.sum()) - np.repeat(np.cumsum(most) - most, most) + 1
            parts.append((np.repeat(widths, most), kv_heads * g, kv_heads))
        d, heads, kv_heads = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        attention = 2 * d * self.head_dim * (heads + kv_heads)
        step = self.intermediate_multiple_of
        room = self.num_parameters / self.num_hidden_layers - attention
        f = step * np.maximum(1, np.rint(room / (3 * d * step))).astype(np.intp)
        order = np.lexsort((heads, heads // kv_heads, d))
        grid = self._candidates(d[order], f[order], heads[order], kv_heads[order])
        # Far beyond the target nothing is a near miss: keep the grid small.
        return grid.take(grid.num_parameters <= 2 * self.num_parameters)

    def _per_layer(self) -> float:
        """The most parameters that one layer may have."""
        return self.num_parameters * (1 + self.tolerance) / self.num_hidden_layers

    def _hidden_sizes(self) -> Integers:
        step = self.hidden_multiple_of
        # Beyond this width one key-value head and the smallest MLP are already too large.
        smallest = 2 * self.head_dim * (1 + min(self.query_group_sizes)) + 3 * self.intermediate_multiple_of
        low, high = self.hidden_size_range or (step, max(step, int(self._per_layer() / smallest)))
        if self.x_range is not None:
            # d = x sqrt(N), with N anywhere within the tolerance.
            low = max(low, math.floor(self.x_range[0] * math.sqrt(self.num_parameters * (1 - self.tolerance))))
            high = min(high, math.ceil(self.x_range[1] * math.sqrt(self.num_parameters * (1 + self.tolerance))))
        d = np.arange(math.ceil(low / step) * step, high + 1, step, dtype=np.intp)
        return d if len(d) else np.array([max(step, round(low / step) * step)], dtype=np.intp)

    def _candidates(self, d: Integers, f: Integers, heads: Integers, kv_heads: Integers) -> Candidates:
        return Candidates(
            hidden_size=d,
            intermediate_size=f,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            num_hidden_layers=self.num_hidden_layers,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
        )

    def _checks(self, grid: Candidates) -> dict[str, Mask]:
        """Per condition, which of the grid satisfy it."""
        checks = {
            "tolerance": np.abs(grid.num_parameters / self.num_parameters - 1) <= self.tolerance,
            "r_range": (grid.r >= self.r_range[0]) & (grid.r <= self.r_range[1]),
        }
        if self.x_range is not None:
            checks["x_range"] = (grid.x >= self.x_range[0]) & (grid.x <= self.x_range[1])
        if self.hidden_size_range is not None:
            low, high = self.hidden_size_range
            checks["hidden_size_range"] = (grid.hidden_size >= low) & (grid.hidden_size <= high)
        return checks

    def _explain(self, grid: Candidates) -> str:
        start = f"no legal architecture within {self.tolerance:.1%} of {self.num_parameters} non-embedding parameters"
        if not len(grid):
            return (
                f"{start}: every shape that the ranges admit is more than twice as large. Lower hidden_size_range or "
                "x_range if given, num_hidden_layers, head_dim or the multiples; or raise num_parameters."
            )
        checks = self._checks(grid)
        failed = np.sum([~passed for passed in checks.values()], axis=0)
        off = np.abs(grid.num_parameters / self.num_parameters - 1)
        nearest = np.lexsort((off, failed))[:3]
        misses = "; ".join(self._miss(grid, checks, int(index)) for index in nearest)
        to_relax = sorted({name for index in nearest for name, passed in checks.items() if not passed[index]})
        return (
            f"{start}. Nearest misses: {misses}. Relax {', '.join(to_relax)}, or lower intermediate_multiple_of "
            f"({self.intermediate_multiple_of}) or hidden_multiple_of ({self.hidden_multiple_of})."
        )

    def _miss(self, grid: Candidates, checks: dict[str, Mask], index: int) -> str:
        broken = ", ".join(name for name, passed in checks.items() if not passed[index])
        return (
            f"{grid.architecture(index).label} (N {grid.num_parameters[index]}, x {grid.x[index]:.3g}, "
            f"r {grid.r[index]:.3g}) breaks {broken}"
        )


def baseline_shape(reference: Architecture, num_parameters: int, space: SearchSpace) -> Architecture:
    """The shape of a known model at another N: nearest legal architecture with its r, g and width.

    x = d / sqrt(N) depends on depth (N ≈ c · layers · d²), so the width that is kept is d · sqrt(layers / N): the
    aspect of one layer. Ranges of the space do not bind a baseline; its divisibility and layer count do.

    Args:
        reference: e.g. Llama-3.2-1B.
        num_parameters: target N, non-embedding.
        space: layer count, head_dim, multiples, tolerance and vocabulary.

    Raises:
        ValueError: nothing legal is near the target.
    """
    group_sizes = sorted(set(space.query_group_sizes), key=lambda g: abs(math.log(g / reference.query_group_size)))
    relaxed = space.model_copy(
        update={
            "num_parameters": num_parameters,
            "query_group_sizes": (group_sizes[0],),
            "hidden_size_range": None,
            "x_range": None,
            "r_range": (1e-3, 1e3),
        }
    )
    candidates = relaxed.enumerate()
    x = reference.width_ratio * math.sqrt(reference.num_hidden_layers / space.num_hidden_layers)
    return candidates.architecture(candidates.nearest(x=x, r=reference.mlp_attention_ratio))
