"""The roofline: the least time that some work can take on a device, and the time it takes at a measured efficiency.

    t_least = max(FLOPs / peak FLOP/s, bytes / bandwidth)          t = t_least / e(operation, size)

In the bound both terms overlap perfectly and nothing else costs anything; it is no forecast. Williams, Waterman and
Patterson 2009, "Roofline: an insightful visual performance model". The efficiency e was measured at the points of a
grid; between them ln e is bilinear in the logarithms of the sizes. Outside, the edge holds for a factor two; beyond
that, and beside cells that were not measured, there is no data, and the result is NaN.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwprofiles.profile import Dtype, EfficiencyTable, HardwareProfile, Operation

Floats = NDArray[np.float64]

EDGE_FACTOR = 2.0
"""How far beyond the smallest and the largest size the efficiency at the edge is taken to hold."""


def peak_flops_per_second(profile: HardwareProfile, dtype: Dtype) -> float:
    """Dense peak of a device in FLOP/s.

    Raises:
        ValueError: the sheet has no figure for this dtype.
    """
    peak = profile.peak_flops_per_second.get(dtype)
    if peak is None:
        known = ", ".join(profile.peak_flops_per_second)
        raise ValueError(f"the sheet of {profile.id} has no peak for {dtype}; choose one of: {known}")
    return peak


def least_seconds(flops: ArrayLike, num_bytes: ArrayLike, profile: HardwareProfile, dtype: Dtype) -> NDArray[Any]:
    """Least time in seconds, elementwise over the broadcast shapes of `flops` (FLOPs) and `num_bytes` (bytes)."""
    compute_seconds = np.asarray(flops, dtype=float) / peak_flops_per_second(profile, dtype)
    memory_seconds = np.asarray(num_bytes, dtype=float) / profile.memory_bandwidth_bytes_per_second
    return np.maximum(compute_seconds, memory_seconds)


def ridge_flops_per_byte(profile: HardwareProfile, dtype: Dtype) -> float:
    """Arithmetic intensity (FLOPs per byte) above which compute, not memory, is the bound."""
    return peak_flops_per_second(profile, dtype) / profile.memory_bandwidth_bytes_per_second


def attained_seconds(
    operation: Operation,
    sizes: tuple[ArrayLike, ArrayLike],
    *,
    flops: ArrayLike,
    num_bytes: ArrayLike,
    profile: HardwareProfile,
    dtype: Dtype,
    kernel: str | None = None,
) -> NDArray[Any]:
    """Time in seconds at the profile's measured efficiency; on a profile without any, exactly `least_seconds`.

    NaN where the profile has measured efficiencies, but none near this operation, dtype and size. `kernel` names the
    table of efficiencies where it is not that of `dtype`: a kernel that unpacks what it reads is another one.
    """
    least = least_seconds(flops, num_bytes, profile, dtype)
    if not profile.efficiencies:
        return least
    return np.asarray(least / efficiency(profile, operation, kernel or dtype, *sizes), dtype=float)


def efficiency(
    profile: HardwareProfile, operation: Operation, dtype: str, first: ArrayLike, second: ArrayLike
) -> Floats:
    """Measured efficiency at sizes along the operation's two axes (`AXES`), elementwise; NaN where there is no data."""
    for table in profile.efficiencies:
        if (table.operation, table.dtype) == (operation, dtype):
            return _interpolate(_grid(table), first, second)
    return np.full(np.broadcast_shapes(np.shape(first), np.shape(second)), np.nan)


@dataclass(frozen=True)
class _Grid:
    """Logarithms of two ascending axes, and ln e over them, row by row; NaN in cells that were not measured."""

    first: Floats
    second: Floats
    log_efficiency: Floats
    is_full: bool


@lru_cache(maxsize=64)
def _grid(table: EfficiencyTable) -> _Grid:
    axes = [sorted({point.size[axis] for point in table.points}) for axis in (0, 1)]
    cells = np.full([len(axis) for axis in axes], np.nan)
    for point in table.points:
        cells[axes[0].index(point.size[0]), axes[1].index(point.size[1])] = math.log(point.efficiency)
    return _Grid(np.log(axes[0]), np.log(axes[1]), cells.ravel(), not np.isnan(cells).any())


def _interpolate(grid: _Grid, first: ArrayLike, second: ArrayLike) -> Floats:
    row, u = _position(grid.first, first)
    column, v = _position(grid.second, second)
    num_columns = len(grid.second)
    corner = row * num_columns + column
    down, right = (num_columns if len(grid.first) > 1 else 0), (1 if num_columns > 1 else 0)

    def share(weight: Floats, offset: int) -> Floats:
        part = weight * grid.log_efficiency.take(corner + offset)
        # A corner without weight does not count, even if it was not measured.
        return part if grid.is_full else np.where(weight == 0, 0.0, part)

    both = u * v
    total = share(1 - u - v + both, 0) + share(v - both, right) + share(u - both, down) + share(both, down + right)
    return np.asarray(np.exp(total), dtype=float)


def _position(axis: Floats, sizes: ArrayLike) -> tuple[NDArray[np.intp], Floats]:
    """The cell below each size, and how far into it the size lies, 0 to 1; NaN out of reach."""
    reach = math.log(EDGE_FACTOR) + 1e-9
    numbers = np.arange(len(axis), dtype=float)
    places = np.interp(
        np.log(np.asarray(sizes, dtype=float)),
        np.concatenate(([axis[0] - reach], axis, [axis[-1] + reach])),
        np.concatenate(([0.0], numbers, [numbers[-1]])),
        left=-1.0,
        right=-1.0,
    )
    low = np.clip(places, 0, max(0, len(axis) - 2)).astype(np.intp)
    return low, np.where(places < 0, np.nan, places - low)
