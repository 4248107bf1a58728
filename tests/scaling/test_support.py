"""Support: where runs speak for a law's prediction."""

import numpy as np
import pytest

from scaling.support import hull_of, supported

X, R = np.array([0.1, 0.2, 0.4, 0.2, 0.2]), np.array([1.5, 0.5, 1.5, 4.5, 1.5])
"""A cross: both arms of x and of r, and its centre."""


def test_the_hull_of_a_cross_is_its_four_ends() -> None:
    ends = np.array(sorted(hull_of(X, R)))
    assert ends == pytest.approx(np.array([(0.1, 1.5), (0.2, 0.5), (0.2, 4.5), (0.4, 1.5)]))


def test_every_run_supports_its_own_shape_at_any_margin() -> None:
    assert supported(hull_of(X, R), X, R, margin=1e-9).all()


def test_between_the_arms_is_supported_and_the_corner_beyond_them_is_not() -> None:
    hull = hull_of(X, R)
    assert supported(hull, 0.25, 2.0)[0]
    assert not supported(hull, 0.38, 4.4)[0]


def test_the_margin_reaches_as_far_in_x_as_in_r() -> None:
    hull = hull_of(X, R)
    for beyond, near in ((1.09, True), (1.12, False)):
        assert supported(hull, 0.4 * beyond, 1.5)[0] == near
        assert supported(hull, 0.2, 4.5 * beyond)[0] == near


def test_an_infinite_margin_supports_everything() -> None:
    assert supported(hull_of(X, R), [0.01, 9.0], [0.1, 90.0], margin=np.inf).all()


@pytest.mark.parametrize("num", [1, 2, 3])
def test_runs_on_a_line_support_what_is_near_the_line(num: int) -> None:
    hull = hull_of(np.geomspace(0.1, 0.4, 3)[:num], np.full(num, 1.5))
    assert len(hull) == min(num, 2)
    assert supported(hull, 0.1, 1.6)[0]
    assert not supported(hull, 0.1, 1.8)[0]


def test_where_no_hull_is_known_nothing_is_ruled_out() -> None:
    assert supported((), [0.01, 9.0], [0.1, 90.0]).all()
