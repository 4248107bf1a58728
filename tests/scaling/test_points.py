"""Points: cells within a tolerance, columns that are checked, and runs whose losses compare."""

import numpy as np
import pytest

from scaling.points import ShapePoints, make_cells


def test_cells_gather_runs_within_five_per_cent() -> None:
    cells = make_cells(np.array([97e3, 100e3, 101e3, 200e3, 99e3]), np.array([1e6, 1e6, 1e6, 2e6, 2e6]))
    assert len(cells) == 3
    assert cells.of_point[0] == cells.of_point[1] == cells.of_point[2]
    assert cells.find(1.0e5, 1.02e6) == cells.of_point[0]
    assert cells.find(1.0e5, 1.2e6) is None


def test_cells_are_separate_amounts_of_data_at_one_size() -> None:
    cells = make_cells(np.full(6, 1e8), np.repeat([5e8, 1e9, 2e9], 2))
    assert len(cells) == 3
    assert cells.num_tokens == pytest.approx([5e8, 1e9, 2e9])


def columns(num: int = 3) -> dict[str, object]:
    return {
        "x": np.linspace(0.1, 0.3, num),
        "r": np.linspace(1, 3, num),
        "num_parameters": np.full(num, 1e5),
        "num_tokens": np.full(num, 1e6),
        "loss": np.full(num, 3.5),
    }


def test_replicates_are_runs_of_one_shape_and_one_group_size() -> None:
    twice = {name: np.concatenate([column, column]) for name, column in columns().items()}  # type: ignore[arg-type]
    alike = ShapePoints(**twice)  # type: ignore[arg-type]
    assert alike.group is not None
    assert len(np.unique(alike.group)) == 3
    apart = ShapePoints(**twice, query_group_size=np.repeat([4.0, 8.0], 3))  # type: ignore[arg-type]
    assert apart.group is not None
    assert len(np.unique(apart.group)) == 6


def test_taking_points_keeps_every_column() -> None:
    points = ShapePoints(
        **columns(),
        standard_error=np.array([0.1, 0.2, 0.3]),
        query_group_size=np.array([1.0, 2.0, 4.0]),  # type: ignore[arg-type]
    )
    taken = points.take(np.array([True, False, True]))
    assert len(taken) == 2
    assert taken.standard_error is not None
    assert taken.query_group_size is not None
    assert taken.standard_error.tolist() == [0.1, 0.3]
    assert taken.query_group_size.tolist() == [1.0, 4.0]


@pytest.mark.parametrize("name", ["x", "r", "loss", "num_tokens", "query_group_size"])
@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0])
def test_a_column_that_no_fit_can_use_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a column of finite positive numbers"):
        ShapePoints(**{**columns(), name: np.array([1.0, 2.0, value])})  # type: ignore[arg-type]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        ShapePoints(**{**columns(), "loss": np.array([3.5])})  # type: ignore[arg-type]
