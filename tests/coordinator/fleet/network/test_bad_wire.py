"""Loss, delay, overtaking, repetition and a narrow wire between coordinator and node: slower, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from agent.assignment import TrainAssignment
from agent.worker import Worker
from coordinator.fleet.ray_fleet import RayFleet

pytestmark = [pytest.mark.fleet, pytest.mark.slow]
NUM_TRIALS = 6


def test_a_bad_wire_keeps_every_promise(
    make_run: Callable[..., Any],
    make_wired_fleet: Callable[..., RayFleet],
    nodes: Any,
    wire: Any,
    make_training: Callable[..., TrainAssignment],
) -> None:
    """Code and corpus travel over it too: 5 % loss, 50 ± 20 ms either way, 1 % repeated, 2 MB/s."""
    before = wire.to_node.num_lost
    wire.worsen(loss=0.05, delay_seconds=0.05, jitter_seconds=0.02, duplicate=0.01, bytes_per_second=2e6)
    run = make_run(make_wired_fleet(nodes, worker=Worker), lease_seconds=60.0)
    run.begin([make_training(seed, num_tokens=51_200) for seed in range(NUM_TRIALS)], num_agents=2)
    verdict = run.finish()

    assert verdict.kept, verdict.sentence()
    assert (verdict.num_succeeded, verdict.num_failed) == (NUM_TRIALS, 0)
    assert any(nodes.is_far(attempt.agent) for attempt in run.store.attempts() if attempt.outcome == "succeeded")
    assert wire.to_node.num_lost > before
    assert wire.from_node.num_repeated > 0
    assert wire.from_node.num_overtaken > 0
