"""The canary: a fixed piece of work whose rate tells whether a machine still is what it was.

A square matrix product on the agent's device, alone, in single precision: big enough to feel a throttled clock or a
crowded core, small enough to be done between two trials. The fastest of several rounds is told, since whatever
disturbs a round can only slow it down.
"""

import time
from collections.abc import Callable

KIND = "gemm"
CPU_SIZE = 512
GPU_SIZE = 8192
NUM_ROUNDS = 7
ROUND_SECONDS = 0.05


def measure_canary(*, device: str | None = None, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of the canary on this device: 2 · n³ a product, the fastest of `NUM_ROUNDS` rounds.

    Args:
        device: "cpu" or "cuda"; by default cuda where there is one.
        clock: seconds.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = GPU_SIZE if device == "cuda" else CPU_SIZE
    matrix = torch.ones(size, size, device=device)
    out = torch.empty_like(matrix)

    def seconds_of(num_products: int) -> float:
        started = clock()
        for _ in range(num_products):
            torch.mm(matrix, matrix, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        return max(clock() - started, 1e-9)

    seconds_of(1)
    num_products = max(1, round(ROUND_SECONDS / seconds_of(1)))
    fastest = min(seconds_of(num_products) for _ in range(NUM_ROUNDS))
    return num_products * 2.0 * size**3 / fastest
