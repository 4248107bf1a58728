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
) -> NDArray[Any]:
    """Time in seconds at the profile's measured efficiency; on a profile without any, exactly `least_seconds`.

    NaN where the profile has measured efficiencies, but none near this operation, dtype and size.
    """
    least = least_seconds(flops, num_bytes, profile, dtype)
    if not profile.efficiencies:
        return least
    return np.asarray(least / efficiency(profile, operation, dtype, *sizes), dtype=float)


def efficiency(
    profile: HardwareProfile, operation: Operation, dtype: Dtype, first: ArrayLike, second: ArrayLike
) -> Floats:
    """Measured efficiency at sizes along the operation's two axes (`AXES`), elementwise; NaN where there is no data."""
    for table in profile.efficiencies:
        if (table.operation, table.dtype) == (operation, dtype):
            return _interpolate(_grid(table), first, second)
    return np.full(np.broadcast_shapes(np.shape(first), np.shape(second)), np.nan)


@dataclass(frozen=True)
class _Grid:
    """Logarithms: two axes, ascending, and ln e over them; NaN in cells that were not measured."""

    first: Floats
    second: Floats
    log_efficiency: Floats


@lru_cache(maxsize=64)
def _grid(table: EfficiencyTable) -> _Grid:
    axes = [sorted({point.size[axis] for point in table.points}) for axis in (0, 1)]
    cells = np.full([len(axis) for axis in axes], np.nan)
    for point in table.points:
        cells[axes[0].index(point.size[0]), axes[1].index(point.size[1])] = math.log(point.efficiency)
    return _Grid(np.log(axes[0]), np.log(axes[1]), cells)


def _interpolate(grid: _Grid, first: ArrayLike, second: ArrayLike) -> Floats:
    i, next_i, u = _position(grid.first, first)
    j, next_j, v = _position(grid.second, second)
    cells = grid.log_efficiency
    corners = ((1 - u) * (1 - v), i, j), ((1 - u) * v, i, next_j), (u * (1 - v), next_i, j), (u * v, next_i, next_j)
    total: Floats = np.zeros(np.broadcast_shapes(u.shape, v.shape))
    for weight, row, column in corners:
        # A corner without weight does not count, even if it was not measured.
        total = total + np.where(weight == 0, 0.0, weight * cells[row, column])
    return np.exp(total)


def _position(axis: Floats, sizes: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """The cells on either side of each size, and how far it is between them, 0 to 1; NaN out of reach."""
    logs = np.log(np.asarray(sizes, dtype=float))
    inside = np.clip(logs, axis[0], axis[-1])
    low = np.clip(np.searchsorted(axis, inside, side="right") - 1, 0, max(0, len(axis) - 2))
    high = np.minimum(low + 1, len(axis) - 1)
    width = np.where(high > low, axis[high] - axis[low], 1.0)
    reach = math.log(EDGE_FACTOR) + 1e-9
    fraction = np.where(np.abs(logs - inside) > reach, np.nan, (inside - axis[low]) / width)
    return low, high, np.asarray(fraction, dtype=float)
