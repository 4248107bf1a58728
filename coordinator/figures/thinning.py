"""Thinning: a figure of very many points keeps as many as can be told apart, and says so.

What is left out is chosen by the points' places alone: of a cloud every k-th along x stays, and what lies highest and
lowest in each stretch of x; of a line or a step the first, last, highest and lowest of each stretch, so that
it looks the same. A series with few points stays whole: it is there to be seen.
"""

from collections.abc import Sequence

import numpy as np

from coordinator.figures.figure import Figure, Series

MAX_POINTS = 1_600
"""Of a figure. As JSON about 200 kB."""
_FEW = 100
"""A series of so many points is left whole."""
_NUM_STRETCHES = 25
_JOINED = ("line", "step", "band")


def thinned(figure: Figure) -> Figure:
    """The figure with at most about `MAX_POINTS` points; the same one where it has no more."""
    counts = [len(series.x) for series in figure.series]
    if sum(counts) <= MAX_POINTS:
        return figure
    spare = sum(count for count in counts if count > _FEW)
    room = max(_FEW, MAX_POINTS - sum(count for count in counts if count <= _FEW))
    series = [
        one if count <= _FEW else _chosen(one, max(_FEW, int(room * count / spare)))
        for one, count in zip(figure.series, counts, strict=True)
    ]
    drawn = sum(len(one.x) for one in series)
    words = (
        f"{drawn:,} of {sum(counts):,} points are drawn, the highest and the lowest of each stretch of x among them."
    )
    return figure.model_copy(
        update={"series": tuple(series), "caption": " ".join(filter(None, (figure.caption, words)))}
    )


def _chosen(series: Series, num: int) -> Series:
    if len(series.x) <= num:
        return series
    kept = _kept(series, num).tolist()
    parts = ("x", "y", "x_interval", "y_interval", "labels", "trial_ids")
    return series.model_copy(update={part: _at(getattr(series, part), kept) for part in parts})


def _at(values: Sequence[object], places: Sequence[int]) -> tuple[object, ...]:
    return tuple(values[place] for place in places) if values else ()


def _kept(series: Series, num: int) -> np.ndarray:
    """Places of the points that stay, ascending."""
    order = np.argsort(np.array(series.x), kind="stable")
    y = np.array(series.y)[order]
    if series.mark in _JOINED:
        kept = _ends(y, num // 4, with_first_and_last=True)
    else:
        extremes = _ends(y, _NUM_STRETCHES, with_first_and_last=False)
        even = np.linspace(0, len(y) - 1, num - len(extremes)).round().astype(int)
        kept = np.union1d(extremes, even)
    return np.sort(order[kept])


def _ends(y: np.ndarray, num_stretches: int, *, with_first_and_last: bool) -> np.ndarray:
    """The highest and the lowest place of each stretch of equally many points."""
    found: set[int] = set()
    for stretch in np.array_split(np.arange(len(y)), num_stretches):
        found |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
        if with_first_and_last:
            found |= {int(stretch[0]), int(stretch[-1])}
    return np.array(sorted(found))
