"""SearchSpace: the legal architectures near a target N, listed at once as columns.

For every number of layers, hidden size, query-group size and number of heads the intermediate size is the one whose N
is nearest the target: along a shape's own N the loss changes faster than between good shapes, so every candidate sits
as close to the target as divisibility allows, and at most `tolerance` away. `intermediate_sizes = "all"` lists every
multiple within the tolerance instead.

Listing works layer count by layer count (arrays that stay in a core's cache) and only where a legal shape can be: with
T parameters a layer, tolerance t and r = MLP / attention within [r0, r1],

    T (1 - t) / (1 + r1)  <=  attention = 2 · d · head_dim · (1 + g) · kv_heads  <=  T (1 + t) / (1 + r0)

bounds the key-value heads of every (d, g), so nearly everything that is generated is kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hwprofiles.profile import BYTES_PER_ELEMENT, Dtype, HardwareProfile
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.points import Integers
from scaling.serving_cost import usable_bytes

Mask = NDArray[np.bool_]

Range = tuple[PositiveFloat, PositiveFloat]
_ANY_RATIO = (0.0, math.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Legal architectures as columns of one length (M,), in `Architecture`'s terms and counting conventions.

    `head_dim` and the vocabulary are common to all. What is counted from the columns is counted once and kept.
    """

    hidden_size: Integers
    intermediate_size: Integers
    num_hidden_layers: Integers
    num_attention_heads: Integers
    num_key_value_heads: Integers
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.hidden_size)

    @cached_property
    def attention_parameters_per_layer(self) -> Integers:
        """2 · d · head_dim · (heads + kv_heads)."""
        return (2 * self.head_dim) * self.hidden_size * (self.num_attention_heads + self.num_key_value_heads)

    @cached_property
    def mlp_parameters_per_layer(self) -> Integers:
        """3 · d · f."""
        return 3 * self.hidden_size * self.intermediate_size

    @cached_property
    def num_parameters(self) -> Integers:
        """N: the matrices of the blocks; no norms, no embeddings."""
        return self.num_hidden_layers * (self.attention_parameters_per_layer + self.mlp_parameters_per_layer)

    @property
    def num_total_parameters(self) -> Integers:
        """Everything a checkpoint holds: N, norms, embedding and head."""
        tables = self.vocab_size * (1 if self.tie_word_embeddings else 2)
        return self.num_parameters + (2 * self.num_hidden_layers + 1 + tables) * self.hidden_size

    @cached_property
    def x(self) -> Floats:
        """d / sqrt(N)."""
        return np.asarray(self.hidden_size / np.sqrt(self.num_parameters), dtype=float)

    @cached_property
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
            **{name: int(column[index]) for name, column in self._columns().items()},
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
        )

    def index_of(self, architecture: Architecture) -> int | None:
        """Where an architecture stands in the list, or None."""
        if self._constants != _constants_of(architecture):
            return None
        same = np.logical_and.reduce([column == getattr(architecture, n) for n, column in self._columns().items()])
        return int(np.argmax(same)) if same.any() else None

    def nearest(self, *, x: float, r: float) -> int:
        """Index of the candidate nearest to (x, r) in ln x and ln r."""
        return int(np.argmin(np.log(self.x / x) ** 2 + np.log(self.r / r) ** 2))

    def including(self, architecture: Architecture) -> "tuple[Candidates, int]":
        """The same list with one more architecture, e.g. a baseline, if it lacks it; and where it stands.

        Raises:
            ValueError: its head_dim, vocabulary or tying differ from the list's.
        """
        index = self.index_of(architecture)
        if index is not None:
            return self, index
        if self._constants != _constants_of(architecture):
            raise ValueError(
                f"{architecture.label} cannot join candidates with (head_dim, vocabulary, tied) = "
                f"{self._constants}: its own are {_constants_of(architecture)}"
            )
        columns: dict[str, Any] = {
            name: np.append(column, getattr(architecture, name)) for name, column in self._columns().items()
        }
        return replace(self, **columns), len(self)

    def take(self, chosen: Integers | Mask) -> "Candidates":
        """The candidates of a mask or of indices."""
        return replace(self, **{name: column[chosen] for name, column in self._columns().items()})

    @property
    def _constants(self) -> tuple[int, int, bool]:
        return self.head_dim, self.vocab_size, self.tie_word_embeddings

    def _columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _COLUMNS}


_COLUMNS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def _constants_of(architecture: Architecture) -> tuple[int, int, bool]:
    return architecture.head_dim, architecture.vocab_size, architecture.tie_word_embeddings


def _concatenate(parts: Sequence[Candidates]) -> Candidates:
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    return replace(parts[0], **columns)


class MemoryLimit(Value):
    """Weights and the KV cache of one sequence must fit into what an engine may take of a device's memory.

    bytes = w · (all weights) + w · 2 · layers · kv_heads · head_dim · tokens  <=  0.92 · memory - runtime

    with w bytes an element; the right-hand side is the throughput model's own (`scaling.serving`).
    """

    profile: HardwareProfile
    tokens_per_sequence: PositiveInt = 2048
    """Input and output together."""
    dtype: Dtype = "bfloat16"

    def admits(self, candidates: Candidates) -> Mask:
        """Which candidates fit, (M,)."""
        cache = candidates.key_value_elements_per_token * self.tokens_per_sequence
        needed_bytes = BYTES_PER_ELEMENT[self.dtype] * (candidates.num_total_parameters + cache)
        return np.asarray(needed_bytes <= usable_bytes(self.profile), dtype=bool)


class SearchSpace(Value):
    """Which architectures are legal: near `num_parameters` (non-embedding), divisible, and within ranges.

    Within a study depth is one number: x = d / sqrt(N) moves with depth, and the fitted x* would be about depth.
    Several layer counts are for searching with a law that is known.
    """

    num_parameters: PositiveInt
    """Target N, non-embedding."""
    tolerance: float = Field(0.03, gt=0, lt=1)
    """Largest relative distance of N from the target."""
    num_hidden_layers: PositiveInt | tuple[PositiveInt, ...]
    """One layer count, or those to choose among."""
    head_dim: PositiveInt
    query_group_sizes: tuple[PositiveInt, ...] = Field((2,), min_length=1)
    hidden_multiple_of: PositiveInt = 16
    intermediate_multiple_of: PositiveInt = 4
    intermediate_sizes: Literal["nearest", "all"] = "nearest"
    """Per d and heads: the intermediate size nearest the target N, or all within the tolerance."""
    vocab_size: PositiveInt
    tie_word_embeddings: bool = True
    hidden_size_range: tuple[PositiveInt, PositiveInt] | None = None
    x_range: Range | None = None
    """d / sqrt(N)."""
    r_range: Range = (0.3, 8.0)
    """MLP / attention parameters; a little wider than the fit's default, for flanks."""
    memory: MemoryLimit | None = None

    @field_validator("num_hidden_layers", mode="before")
    @classmethod
    def _list_a_range(cls, given: Any) -> Any:
        return tuple(given) if isinstance(given, range) else given

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("hidden_size_range", "x_range", "r_range"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] <= limits[1]:
                raise ValueError(f"{name} is {list(limits)}: the first number must not exceed the second")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs of channels")
        if not self.layer_counts:
            raise ValueError("num_hidden_layers is empty: give one layer count or several")
        return self

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """The layer counts to choose among, ascending."""
        given = self.num_hidden_layers
        return (given,) if isinstance(given, int) else tuple(sorted(set(given)))

    def enumerate(self) -> Candidates:
        """All legal architectures, ordered by layers, then hidden size, group size and heads.

        Raises:
            ValueError: there is none; the message names the nearest misses and what to relax.
        """
        found = _concatenate([self._legal(self._grid(layers, self.r_range)) for layers in self.layer_counts])
        if not len(found):
            grid = _concatenate([self._grid(layers, _ANY_RATIO) for layers in self.layer_counts])
            # Far beyond the target nothing is a near miss.
            raise ValueError(self._explain(grid.take(grid.num_parameters <= 2 * self.num_parameters)))
        return found

    def _grid(self, layers: int, r_range: tuple[float, float]) -> Candidates:
        """Every hidden size with every number of heads that these ratios leave, at one layer count."""
        widths, groups = self._hidden_sizes(layers), np.array(sorted(set(self.query_group_sizes)), dtype=np.intp)
        d, g = np.repeat(widths, len(groups)), np.tile(groups, len(widths))
        # Attention parameters of one key-value head and the g query heads that share it.
        unit = 2 * self.head_dim * d * (1 + g)
        target, slack = self.num_parameters / layers, self.tolerance + 1e-9
        fewest = np.maximum(1, np.ceil(target * (1 - slack) / (1 + r_range[1]) / unit))
        most = np.floor(target * (1 + slack) / (1 + r_range[0]) / unit)
        if r_range == _ANY_RATIO:
            most = np.maximum(1, most)  # a miss by size is still a miss to tell
        row, kv_heads = _ragged(fewest, most)
        d, g = d[row], g[row]
        room, quantum = target - unit[row] * kv_heads, 3 * self.intermediate_multiple_of * d
        if self.intermediate_sizes == "nearest":
            steps = np.maximum(1, np.rint(room / quantum)).astype(np.intp)
        else:
            lowest = np.maximum(1, np.ceil((room - slack * target) / quantum))
            column, steps = _ragged(lowest, np.floor((room + slack * target) / quantum))
            d, g, kv_heads = d[column], g[column], kv_heads[column]
        return Candidates(
            hidden_size=d,
            intermediate_size=self.intermediate_multiple_of * steps,
            num_hidden_layers=np.full(len(d), layers, dtype=np.intp),
            num_attention_heads=g * kv_heads,
            num_key_value_heads=kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
        )

    def _hidden_sizes(self, layers: int) -> Integers:
        step = self.hidden_multiple_of
        # Beyond this width one key-value head and the smallest MLP are already too large.
        smallest = 2 * self.head_dim * (1 + min(self.query_group_sizes)) + 3 * self.intermediate_multiple_of
        widest = self.num_parameters * (1 + self.tolerance) / layers / smallest
        low, high = self.hidden_size_range or (step, max(step, int(widest)))
        if self.x_range is not None:
            # d = x sqrt(N), with N anywhere within the tolerance.
            low = max(low, math.floor(self.x_range[0] * math.sqrt(self.num_parameters * (1 - self.tolerance))))
            high = min(high, math.ceil(self.x_range[1] * math.sqrt(self.num_parameters * (1 + self.tolerance))))
        d = np.arange(math.ceil(low / step) * step, high + 1, step, dtype=np.intp)
        return d if len(d) else np.array([max(step, round(low / step) * step)], dtype=np.intp)

    def _legal(self, grid: Candidates) -> Candidates:
        passed = np.logical_and.reduce(list(self._checks(grid).values()))
        return grid if passed.all() else grid.take(passed)

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
        if self.memory is not None:
            checks["memory"] = self.memory.admits(grid)
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


def _ragged(low: ArrayLike, high: ArrayLike) -> tuple[Integers, Integers]:
    """Row numbers and values of low[i], low[i] + 1, ..., high[i] for every row i, one after the other."""
    first = np.asarray(low).astype(np.intp)
    counts = np.maximum(0, np.asarray(high).astype(np.intp) - first + 1)
    row = np.repeat(np.arange(len(counts)), counts)
    starts = first - (np.cumsum(counts) - counts)
    return row, np.arange(len(row)) + starts[row]


def baseline_shape(reference: Architecture, num_parameters: int, space: SearchSpace) -> Architecture:
    """The shape of a known model at another N: nearest legal architecture with its r, g and width.

    x = d / sqrt(N) depends on depth (N ≈ c · layers · d²), so the width that is kept is d · sqrt(layers / N): the
    aspect of one layer. Ranges and memory of the space do not bind a baseline; its divisibility and layer count do (of
    several counts, the one nearest the model's own).

    Args:
        reference: e.g. Llama-3.2-1B.
        num_parameters: target N, non-embedding.
        space: layer count, head_dim, multiples, tolerance and vocabulary.

    Raises:
        ValueError: nothing legal is near the target.
    """
    group_sizes = sorted(set(space.query_group_sizes), key=lambda g: abs(math.log(g / reference.query_group_size)))
    layers = min(space.layer_counts, key=lambda count: abs(math.log(count / reference.num_hidden_layers)))
    relaxed = space.model_copy(
        update={
            "num_parameters": num_parameters,
            "num_hidden_layers": layers,
            "query_group_sizes": (group_sizes[0],),
            "hidden_size_range": None,
            "x_range": None,
            "r_range": (1e-3, 1e3),
            "memory": None,
        }
    )
    candidates = relaxed.enumerate()
    x = reference.width_ratio * math.sqrt(reference.num_hidden_layers / layers)
    return candidates.architecture(candidates.nearest(x=x, r=reference.mlp_attention_ratio))
