"""The benchmark of the fleet: its intervals, and a few no-op trials through the real coordinator and Ray."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest


def load() -> ModuleType:
    path = Path(__file__).with_name("bench_fleet.py")
    spec = importlib.util.spec_from_file_location("bench_fleet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rate_leaves_out_the_first_quarter() -> None:
    slow_start = [10.0, 20.0, 20.5, 21.0, 21.5, 22.0]
    assert load().rate(slow_start) == pytest.approx(2)


def test_the_interval_of_ratios_is_about_their_geometric_mean() -> None:
    mean, low, high = load().interval([8.0, 12.5, 10.0])
    assert mean == pytest.approx(10)
    assert low * high == pytest.approx(100)
    assert low < 8
    assert math.isnan(load().interval([10.0])[1])


@pytest.mark.fleet
def test_trials_that_do_nothing_end_through_the_real_fleet_beside_older_ones_in_the_store(tmp_path: Path) -> None:
    load().make_store(tmp_path / "run", 60, num_done=20)
    result = load().our_noops(tmp_path / "run")
    assert len(result["ends"]) == len(result["processor_seconds"]) == 40
    assert result["take_up_seconds"] > 0
