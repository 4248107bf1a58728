"""The roofline's two limits and its ridge."""

import numpy as np
import pytest

from hwprofiles.catalog import load_profile
from hwprofiles.roofline import least_seconds, ridge_flops_per_byte

H200 = load_profile("h200")


def test_work_without_bytes_takes_the_compute_time_and_bytes_without_work_the_memory_time():
    assert least_seconds(989e12, 0, H200, "bfloat16") == pytest.approx(1.0)
    assert least_seconds(0, 4.8e12, H200, "bfloat16") == pytest.approx(1.0)


def test_at_the_ridge_both_limits_are_equal():
    ridge = ridge_flops_per_byte(H200, "bfloat16")
    assert ridge == pytest.approx(206, abs=0.5)
    assert least_seconds(ridge * 1e9, 1e9, H200, "bfloat16") == pytest.approx(1e9 / 4.8e12)


def test_least_time_is_elementwise():
    seconds = least_seconds(np.array([989e12, 0.0]), np.array([[0.0], [4.8e12]]), H200, "bfloat16")
    np.testing.assert_allclose(seconds, [[1, 0], [1, 1]])


def test_a_dtype_without_a_peak_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"h200 has no peak for float32; choose one of: bfloat16"):
        least_seconds(1, 1, H200, "float32")
