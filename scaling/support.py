"""Support: where runs speak for a law's prediction, and where it is only extended.

The law is separable, L(x, r) = (bracket of x) · (bracket of r): from arms of x and of r it claims to know every
corner, with an interval that is as narrow as if runs stood there. A shape counts as supported where (ln x, ln r) lies
within the convex hull of the shapes that were run, widened by `MARGIN` on all sides.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from scaling.law import Floats
from scaling.space import Mask

MARGIN = 0.1
"""In ln x and ln r: ten per cent beyond the runs, a choice; tests/benchmarks/bench_choice.py tells what it costs."""

Hull = tuple[tuple[float, float], ...]
"""(x, r) of the outermost shapes that were run, counter-clockwise; one or two of them where the runs lie on a line."""


def hull_of(x: Floats, r: Floats) -> Hull:
    """The convex hull in (ln x, ln r) of runs of these shapes."""
    points = sorted({(float(np.log(one)), float(np.log(other))) for one, other in zip(x, r, strict=True)})
    corners = points if len(points) < 3 else _half_hull(points)[:-1] + _half_hull(points[::-1])[:-1]
    return tuple((float(np.exp(u)), float(np.exp(v))) for u, v in corners)


def _half_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """One chain of Andrew's: from the first point to the last, turning left only."""
    chain: list[tuple[float, float]] = []
    for point in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Above zero where a, b, c turn left."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def supported(hull: Hull, x: ArrayLike, r: ArrayLike, *, margin: float = MARGIN) -> Mask:
    """Which shapes (M,) lie within the hull or at most `margin` away from it; all of them where no hull is known."""
    at = np.stack([np.log(np.atleast_1d(x)), np.log(np.atleast_1d(r))], axis=1)
    if not hull:
        return np.ones(len(at), dtype=bool)
    corners = np.log(np.array(hull))
    inside = np.full(len(at), len(corners) > 2)
    distance = np.full(len(at), np.inf)
    for start, end in pairwise([*corners, corners[0]]):
        along, offset = end - start, at - start
        share = np.clip(offset @ along / max(float(along @ along), 1e-300), 0.0, 1.0)
        distance = np.minimum(distance, np.linalg.norm(offset - share[:, None] * along, axis=1))
        inside &= along[0] * offset[:, 1] - along[1] * offset[:, 0] >= 0
    return np.asarray(inside | (distance <= margin), dtype=bool)
