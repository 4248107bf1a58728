"""ShapePoints: what was measured about shapes, as columns; and the (N, D) cells that the points fall into."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.law import Floats
from scaling.observations import TrainingObservation

Integers = NDArray[np.intp]
CELL_TOLERANCE = 0.05
"""Runs whose N (and whose D) differ by less than 5 % share a cell: shapes never hit a target N exactly."""
SCALE_GAP = 0.2
"""A scale ends where the next larger N is more than 20 % away."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapePoints:
    """One entry a finished run, all columns (n,): x, r, N in parameters, D in tokens, loss in nats per token.

    `standard_error` is the known part of each loss's error (over evaluation windows). `group` names the shape: runs of
    one cell with equal group are replicates that differ in the seed alone; by default equal (x, r, N, g) make a shape.
    `query_group_size` is g, query heads per key-value head, where it is known.
    """

    x: Floats
    r: Floats
    num_parameters: Floats
    num_tokens: Floats
    loss: Floats
    standard_error: Floats | None = None
    group: NDArray[Any] | None = None
    query_group_size: Floats | None = None

    def __post_init__(self) -> None:
        """Turn the columns into arrays and refuse what no fit can use."""
        for name in ("x", "r", "num_parameters", "num_tokens", "loss"):
            object.__setattr__(self, name, _positive_column(name, getattr(self, name)))
        if self.query_group_size is not None:
            object.__setattr__(self, "query_group_size", _positive_column("query_group_size", self.query_group_size))
        if self.standard_error is not None:
            object.__setattr__(self, "standard_error", np.atleast_1d(np.asarray(self.standard_error, dtype=float)))
            if not (np.isfinite(self.standard_error) & (self.standard_error >= 0)).all():
                raise ValueError("standard_error must be finite and not negative; leave the column out if unknown")
        group = self.group if self.group is not None else self._shape_names()
        object.__setattr__(self, "group", np.atleast_1d(np.asarray(group)))
        lengths = {name: len(column) for name, column in self._columns().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of ShapePoints must have one length, got {lengths}")

    def _columns(self) -> dict[str, NDArray[Any]]:
        names = (
            *("x", "r", "num_parameters", "num_tokens", "loss"),
            *("standard_error", "group", "query_group_size"),
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _shape_names(self) -> NDArray[Any]:
        columns = [self.x, self.r, self.num_parameters]
        if self.query_group_size is not None:
            columns.append(self.query_group_size)
        rounded = np.stack([np.round(np.log(z), 9) for z in columns], axis=1)
        return np.unique(rounded, axis=0, return_inverse=True)[1].reshape(-1)

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.loss)

    def take(self, chosen: NDArray[Any]) -> "ShapePoints":
        """The points of a boolean mask or of indices."""
        return ShapePoints(**{name: column[chosen] for name, column in self._columns().items()})

    @classmethod
    def from_observations(cls, observations: Iterable[TrainingObservation]) -> "ShapePoints":
        """The columns of finished runs.

        Raises:
            ValueError: the runs were trained on different corpora, whose losses cannot be compared.
        """
        runs = list(observations)
        corpora = sorted({run.corpus_id for run in runs})
        if len(corpora) > 1:
            raise ValueError(
                f"runs on {len(corpora)} different corpora ({', '.join(name[:12] for name in corpora)}) cannot be "
                "fitted together; fit the runs of one corpus"
            )
        return cls(
            x=np.array([run.architecture.width_ratio for run in runs], dtype=float),
            r=np.array([run.architecture.mlp_attention_ratio for run in runs], dtype=float),
            num_parameters=np.array([run.architecture.num_parameters for run in runs], dtype=float),
            num_tokens=np.array([run.num_tokens for run in runs], dtype=float),
            loss=np.array([run.loss for run in runs], dtype=float),
            standard_error=np.array([run.loss_standard_error for run in runs], dtype=float),
            group=np.array([run.architecture.label for run in runs], dtype=str),
            query_group_size=np.array([run.architecture.query_group_size for run in runs], dtype=float),
        )


def _positive_column(name: str, values: Any) -> Floats:
    column = np.atleast_1d(np.asarray(values, dtype=float))
    if column.ndim != 1 or not (np.isfinite(column) & (column > 0)).all():
        raise ValueError(
            f"{name} must be a column of finite positive numbers, got {column!r:.200}; leave failed runs out"
        )
    return column


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Which (N, D) cell every point is in: `of_point` (n,), and the cells' geometric mean N and D, (K,)."""

    of_point: Integers
    num_parameters: Floats
    num_tokens: Floats

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.num_parameters)

    def find(self, num_parameters: float, num_tokens: float) -> int | None:
        """Index of the cell that holds (N, D) within the tolerance, or None."""
        return find_cell(self.num_parameters, self.num_tokens, num_parameters, num_tokens)


def find_cell(cell_N: Floats, cell_D: Floats, N: float, D: float) -> int | None:
    """Index of the cell nearest to (N, D), if both are within 5 %; None otherwise."""
    if not len(cell_N):
        return None
    distance = np.maximum(np.abs(np.log(cell_N / N)), np.abs(np.log(cell_D / D)))
    nearest = int(np.argmin(distance))
    return nearest if distance[nearest] <= np.log1p(CELL_TOLERANCE) else None


def make_cells(num_parameters: Floats, num_tokens: Floats) -> Cells:
    """Group runs into (N, D) cells: levels of N first, then levels of D within each."""
    level_N = _levels(num_parameters)
    label = np.zeros(len(num_parameters), dtype=np.intp)
    for level in range(int(level_N.max(initial=-1)) + 1):
        inside = level_N == level
        label[inside] = label.max(initial=0) + 1 + _levels(num_tokens[inside])
    of_point = np.unique(label, return_inverse=True)[1].reshape(-1)
    num_cells = int(of_point.max(initial=-1)) + 1
    members = [of_point == cell for cell in range(num_cells)]
    return Cells(
        of_point=of_point,
        num_parameters=np.array([np.exp(np.mean(np.log(num_parameters[inside]))) for inside in members], dtype=float),
        num_tokens=np.array([np.exp(np.mean(np.log(num_tokens[inside]))) for inside in members], dtype=float),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scales:
    """Which size every point is of: `of_point` (n,), and the sizes' geometric mean N, (S,), ascending."""

    of_point: Integers
    num_parameters: Floats

    def __len__(self) -> int:
        """Number of scales."""
        return len(self.num_parameters)

    def nearest(self, num_parameters: float) -> int:
        """Index of the scale nearest in ln N."""
        return int(np.argmin(np.abs(np.log(self.num_parameters / num_parameters))))


def make_scales(num_parameters: Floats) -> Scales:
    """Group runs by size: shapes of one size differ by a few per cent in N, sizes by tens of per cent."""
    order = np.argsort(num_parameters, kind="stable")
    logs = np.log(num_parameters[order])
    of_point = np.zeros(len(order), dtype=np.intp)
    of_point[order] = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log1p(SCALE_GAP))]) if len(order) else 0
    means = [np.exp(np.log(num_parameters[of_point == scale]).mean()) for scale in np.unique(of_point)]
    return Scales(of_point=of_point, num_parameters=np.array(means, dtype=float))


def _levels(values: Floats) -> Integers:
    """Number the values by level: a new one begins more than 5 % above the first value of the level before."""
    order = np.argsort(values, kind="stable")
    level = np.zeros(len(values), dtype=np.intp)
    current, first = -1, -np.inf
    for index in order:
        if values[index] > first * (1 + CELL_TOLERANCE) or current < 0:
            current, first = current + 1, values[index]
        level[index] = current
    return level
