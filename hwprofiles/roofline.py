"""The roofline: the least time that some work can take on a device.

    t = max(FLOPs / peak FLOP/s, bytes / bandwidth)

Both terms overlap perfectly and nothing else costs anything, so this is a bound, not a forecast.
Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwprofiles.profile import Dtype, HardwareProfile


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
