"""A figure of very many points is thinned to what can be told apart, and says so."""

import numpy as np
import pytest

from coordinator.figures.figure import Axis, Figure, Series
from coordinator.figures.thinning import MAX_POINTS, thinned


def cloud(num: int, mark: str = "dot", name: str = "runs") -> Series:
    random = np.random.default_rng(1)
    return Series(
        name=name,
        kind="measured",
        mark=mark,  # type: ignore[arg-type]
        colour="ink",
        x=tuple(random.uniform(0, 1, num).tolist()),
        y=tuple(random.normal(0, 1, num).tolist()),
        y_interval=tuple((float(k), float(k)) for k in range(num)),
        labels=tuple(f"run {k}" for k in range(num)),
        trial_ids=tuple(f"train-{k}" for k in range(num)),
    )


def figure_of(*series: Series) -> Figure:
    axis = Axis(label="x")
    return Figure(name="figure", title="Figure", caption="Dots: runs.", x=axis, y=axis, series=series)


def test_a_figure_that_has_not_too_many_points_is_left_alone() -> None:
    figure = figure_of(cloud(MAX_POINTS))
    assert thinned(figure) is figure


def test_a_large_figure_keeps_about_as_many_as_can_be_told_apart_and_says_how_many() -> None:
    (left,) = thinned(figure_of(cloud(20_000))).series
    assert 0.9 * MAX_POINTS <= len(left.x) <= 1.1 * MAX_POINTS
    assert thinned(figure_of(cloud(20_000))).caption.startswith(
        f"Dots: runs. {len(left.x):,} of 20,000 points are drawn"
    )


def test_what_stays_is_as_it_was_with_its_label_interval_and_trial() -> None:
    whole = cloud(20_000)
    (left,) = thinned(figure_of(whole)).series
    for x, y, interval, label, trial_id in zip(
        left.x, left.y, left.y_interval, left.labels, left.trial_ids, strict=True
    ):
        place = int(label.removeprefix("run "))
        assert (x, y, interval) == (whole.x[place], whole.y[place], (place, place))
        assert trial_id == f"train-{place}"


def test_extremes_stay() -> None:
    whole = cloud(20_000)
    (left,) = thinned(figure_of(whole)).series
    assert (min(left.x), max(left.x)) == (min(whole.x), max(whole.x))
    assert (min(left.y), max(left.y)) == (min(whole.y), max(whole.y))


def test_a_cloud_keeps_its_middle() -> None:
    whole = cloud(20_000)
    (left,) = thinned(figure_of(whole)).series
    quartiles = (0.25, 0.5, 0.75)
    assert np.quantile(left.y, quartiles) == pytest.approx(np.quantile(whole.y, quartiles), abs=0.08)


def test_a_series_of_few_points_stays_whole() -> None:
    few = cloud(20, name="few")
    assert thinned(figure_of(cloud(20_000), few)).series[1] == few


def test_a_line_keeps_its_ends_and_every_peak() -> None:
    y = np.zeros(20_000)
    y[[7_000, 13_123]] = 5, -5
    line = Series(name="", kind="", mark="step", colour="ink", x=tuple(map(float, range(20_000))), y=tuple(y.tolist()))
    (left,) = thinned(figure_of(line)).series
    assert (left.x[0], left.x[-1]) == (0, 19_999)
    assert {7_000, 13_123} <= set(left.x)
    assert list(left.x) == sorted(left.x)
