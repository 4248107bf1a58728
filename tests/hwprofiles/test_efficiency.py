"""Measured efficiencies: kept as measured, interpolated in logarithms, absent where nothing was measured."""

import numpy as np
import pytest
from pydantic import ValidationError

from hwprofiles.catalog import load_profile
from hwprofiles.profile import Calibration, EfficiencyPoint, EfficiencyTable
from hwprofiles.roofline import attained_seconds, efficiency, least_seconds

SHEET = load_profile("h200")
CALIBRATION = Calibration(device="x", measured_at="2026-01-01", versions={}, clock="wall", num_repeats=3, seconds=1)


def table(cells, operation="gemm", dtype="bfloat16"):
    points = tuple(
        EfficiencyPoint(size=size, efficiency=value, spread=0.01, num_samples=3) for size, value in cells.items()
    )
    return EfficiencyTable(operation=operation, dtype=dtype, points=points)


def measured(*tables):
    return SHEET.model_copy(update={"efficiencies": tables, "calibration": CALIBRATION})


GRID = measured(table({(1, 100): 0.1, (1, 10_000): 0.4, (16, 100): 0.2, (16, 10_000): 1.6}))


def at(rows, weights, profile=GRID, operation="gemm", dtype="bfloat16"):
    return efficiency(profile, operation, dtype, rows, weights)


def test_points_of_the_grid_are_kept_even_above_one():
    np.testing.assert_allclose(at([1, 1, 16, 16], [100, 10_000, 100, 10_000]), [0.1, 0.4, 0.2, 1.6])


def test_between_points_the_logarithm_is_linear_in_the_logarithms():
    assert at(1, 1000) == pytest.approx(0.2)  # halfway from 0.1 to 0.4
    assert at(4, 100) == pytest.approx(np.sqrt(0.1 * 0.2))
    assert at(4, 1000) == pytest.approx((0.1 * 0.4 * 0.2 * 1.6) ** 0.25)


def test_the_edge_holds_for_a_factor_two_and_not_further():
    assert at(32, 20_000) == pytest.approx(1.6)
    assert np.isnan(at(33, 100))
    assert np.isnan(at(1, 49))


def test_beside_a_cell_that_was_not_measured_there_is_no_data():
    holed = measured(table({(1, 100): 0.1, (1, 10_000): 0.4, (16, 100): 0.2}))
    assert at(1, 10_000, holed) == pytest.approx(0.4)
    assert at(16, 100, holed) == pytest.approx(0.2)
    assert np.isnan(at(2, 1000, holed))


def test_an_operation_or_dtype_without_a_table_has_no_data():
    assert np.isnan(at(1, 100, operation="decode_attention"))
    assert np.isnan(at(1, 100, dtype="float16"))


def test_a_single_point_holds_around_itself():
    one = measured(table({(4, 64): 0.5}, "decode_attention"))
    np.testing.assert_allclose(at([2, 4, 8], [128, 64, 32], one, "decode_attention"), 0.5)
    assert np.isnan(at(1, 64, one, "decode_attention"))


def test_shapes_broadcast():
    assert at(np.ones((3, 1)), np.full(5, 100.0)).shape == (3, 5)


def test_time_is_the_least_time_over_the_efficiency():
    least = least_seconds(1e12, 1e9, GRID, "bfloat16")
    seconds = attained_seconds("gemm", (16, 100), flops=1e12, num_bytes=1e9, profile=GRID, dtype="bfloat16")
    assert seconds == pytest.approx(least / 0.2)


def test_a_sheet_without_efficiencies_gives_exactly_the_least_time():
    seconds = attained_seconds("gemm", (3, 7), flops=1e12, num_bytes=1e9, profile=SHEET, dtype="bfloat16")
    assert seconds == least_seconds(1e12, 1e9, SHEET, "bfloat16")


def test_two_points_of_one_size_and_wrong_axes_are_refused():
    point = EfficiencyPoint(size=(1, 100), efficiency=0.1, spread=0, num_samples=1)
    with pytest.raises(ValidationError, match="two points of one size"):
        EfficiencyTable(operation="gemm", dtype="float32", points=(point, point))
    with pytest.raises(ValidationError, match=r"a size of copy has 1 numbers \(bytes\)"):
        EfficiencyTable(operation="copy", dtype="float32", points=(point,))


def test_efficiencies_without_their_calibration_are_refused():
    with pytest.raises(ValidationError, match="go together"):
        type(SHEET).model_validate({**SHEET.model_dump(), "efficiencies": GRID.efficiencies})
