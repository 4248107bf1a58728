"""A node is cut off while its trial runs: the trial is finished elsewhere, the node joins again when it is healed.

Real coordinator, store and Ray nodes; every history is checked.
"""

from collections.abc import Callable
from typing import Any

import pytest

from agent.assignment import TrainAssignment
from coordinator.fleet.ray_fleet import RayFleet

pytestmark = [pytest.mark.fleet, pytest.mark.slow]
BOTH_WAYS = ("to-node", "from-node")


class UnheardFleet(RayFleet):
    """Its orders to end an agent get lost."""

    def restart(self, agent: str) -> None:
        pass


def both_train_and_the_wire_is_cut(
    run: Any, nodes: Any, wire: Any, trainings: list[TrainAssignment], cut: tuple[str, ...]
) -> tuple[str, str]:
    """Begin a trial on either side and cut the wire. The far trial, and its agent."""
    run.begin(trainings, num_agents=2)
    run.until(lambda: all(run.is_training(one.id) for one in trainings))
    far = next(attempt for attempt in run.store.attempts() if nodes.is_far(attempt.agent))
    wire.cut(*cut)
    return far.trial_id, far.agent


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(BOTH_WAYS, id="both-ways"),
        pytest.param(("to-node",), id="the-node-hears-nothing"),
        pytest.param(("from-node",), id="nobody-hears-the-node"),
    ],
)
def test_a_trial_that_is_cut_off_is_finished_elsewhere_and_its_node_joins_again(
    cut: tuple[str, ...],
    make_run: Callable[..., Any],
    make_wired_fleet: Callable[..., RayFleet],
    nodes: Any,
    wire: Any,
    make_training: Callable[..., TrainAssignment],
) -> None:
    run = make_run(make_wired_fleet(nodes))
    trial_id, agent = both_train_and_the_wire_is_cut(run, nodes, wire, [make_training(1), make_training(2)], cut)
    run.until(lambda: len(run.attempts_of(trial_id)) == 2)
    joined_before = {row.agent: row.joined_unix for row in run.store.agents()}
    wire.heal()
    verdict = run.finish()

    def joined_again() -> bool:
        nodes.supervise()
        return any(
            nodes.is_far(row.agent) and row.state == "idle" and row.joined_unix > joined_before.get(row.agent, 0)
            for row in run.store.agents()
        )

    run.until(joined_again)
    assert verdict.kept, verdict.sentence()
    assert (verdict.num_succeeded, verdict.num_failed) == (2, 0)
    first, second = run.attempts_of(trial_id)
    assert (first.outcome, first.failure_kind, second.outcome) == ("retried", "agent-lost", "succeeded")
    assert not nodes.is_far(second.agent)
    assert set(run.store.rejections()) <= {("fenced", trial_id, 1, agent)}


def test_the_result_that_waited_behind_a_partition_is_refused_and_recorded(
    make_run: Callable[..., Any],
    make_wired_fleet: Callable[..., RayFleet],
    nodes: Any,
    wire: Any,
    make_training: Callable[..., TrainAssignment],
) -> None:
    run = make_run(make_wired_fleet(nodes, UnheardFleet))
    trial_id, agent = both_train_and_the_wire_is_cut(run, nodes, wire, [make_training(3), make_training(4)], BOTH_WAYS)
    run.until(lambda: len(run.attempts_of(trial_id)) == 2)
    wire.heal()
    verdict = run.finish()
    run.until(lambda: ("fenced", trial_id, 1, agent) in run.store.rejections())

    assert verdict.kept, verdict.sentence()
    assert verdict.num_attempts == 3
    assert [attempt.outcome for attempt in run.attempts_of(trial_id)] == ["retried", "succeeded"]


def test_a_node_that_ray_gives_up_is_lost_before_its_lease_ends_and_comes_back_under_another_name(
    make_run: Callable[..., Any],
    make_wired_fleet: Callable[..., RayFleet],
    impatient_nodes: Any,
    wire: Any,
    make_training: Callable[..., TrainAssignment],
) -> None:
    nodes = impatient_nodes
    run = make_run(make_wired_fleet(nodes), lease_seconds=120.0)
    trial_id, agent = both_train_and_the_wire_is_cut(run, nodes, wire, [make_training(5), make_training(6)], BOTH_WAYS)
    run.until(lambda: len(run.attempts_of(trial_id)) == 2)
    wire.heal()
    verdict = run.finish()

    def another_joined() -> bool:
        nodes.supervise()  # a node that was given up ends itself
        return any(nodes.is_far(row.agent) and row.agent != agent and row.state == "idle" for row in run.store.agents())

    run.until(another_joined)
    assert verdict.kept, verdict.sentence()
    assert any(note.startswith(f"{agent} was lost") for note in run.notes)
    first, second = run.attempts_of(trial_id)
    assert (first.failure_kind, second.outcome) == ("agent-lost", "succeeded")
    assert not nodes.is_far(second.agent)
