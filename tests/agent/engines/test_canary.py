"""The canary: a rate that follows the clock, and the fastest round of several."""

import itertools

import pytest

from agent.engines.canary import CPU_SIZE, NUM_ROUNDS, measure_canary


def test_the_rate_is_the_products_flops_over_the_fastest_round() -> None:
    slow_rounds = [4.0] * (NUM_ROUNDS - 1)
    durations = itertools.chain([9.0, 2.0], slow_rounds, [1.0])
    ticks = itertools.chain.from_iterable((0.0, seconds) for seconds in durations)

    assert measure_canary(device="cpu", clock=lambda: next(ticks)) == pytest.approx(2.0 * CPU_SIZE**3 / 1.0)


def test_this_machine_has_a_rate() -> None:
    assert measure_canary(device="cpu") > 1e6
