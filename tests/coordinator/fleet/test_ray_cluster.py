"""A Ray cluster that is there already: nodes come and go, agents join and are lost, work goes on elsewhere.

Real multi-node Ray clusters on this machine, with token authentication.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import TrainAssignment
from agent.worker import Worker
from coordinator.errors import UserError
from coordinator.fleet.actor import DRAIN_VARIABLE
from coordinator.fleet.base import AgentDraining, AgentJoined, AgentLost, FleetEvent, Reported
from coordinator.fleet.ray_fleet import RayFleet
from coordinator.fleet.ray_session import ClusterSession
from scaling.observations import Failure, Progress

pytestmark = pytest.mark.fleet
MAX_SECONDS = 240.0
STORE_BYTES = 80 * 2**20


def poll_until(fleet: RayFleet, wanted: Callable[[FleetEvent], bool]) -> list[FleetEvent]:
    """Events up to the first wanted one."""
    events: list[FleetEvent] = []
    give_up = time.monotonic() + MAX_SECONDS
    while time.monotonic() < give_up:
        events += fleet.poll(timeout_seconds=0.5)
        if any(wanted(event) for event in events):
            return events
    raise AssertionError(f"not told within {MAX_SECONDS:.0f} s: {events}")


def joined(event: FleetEvent) -> bool:
    return isinstance(event, AgentJoined)


def test_nodes_come_and_go_and_work_goes_on_elsewhere(
    cluster: Any,
    make_fleet: Callable[..., RayFleet],
    add_node: Callable[..., Any],
    long_training: TrainAssignment,
    tmp_path: Path,
) -> None:
    leave = tmp_path / "leave"
    first_node = add_node(**{DRAIN_VARIABLE: str(leave)})
    fleet = make_fleet(worker=Worker)
    fleet.start()
    (first,) = [event for event in poll_until(fleet, joined) if isinstance(event, AgentJoined)]
    assert first.versions["python"]
    fleet.assign(first.agent, long_training.id, 1, long_training)
    poll_until(fleet, lambda e: isinstance(e, Reported) and isinstance(e.item, Progress) and e.item.done_fraction > 0)

    add_node()
    (second,) = [event for event in poll_until(fleet, joined) if isinstance(event, AgentJoined)]
    leave.touch()
    events = poll_until(fleet, lambda e: isinstance(e, Reported) and isinstance(e.item, Failure))

    assert AgentDraining(first.agent, f"{DRAIN_VARIABLE} {leave} exists") in events
    preempted = events[-1]
    assert isinstance(preempted, Reported)
    assert isinstance(preempted.item, Failure)
    assert preempted.item.failure_kind == "preempted"

    fleet.assign(second.agent, long_training.id, 2, long_training)
    resumed = poll_until(
        fleet, lambda e: isinstance(e, Reported) and isinstance(e.item, Progress) and e.item.done_fraction > 0
    )[-1]
    assert isinstance(resumed, Reported)
    assert (resumed.agent, resumed.epoch) == (second.agent, 2)

    cluster.remove_node(first_node)
    lost = poll_until(fleet, lambda e: isinstance(e, AgentLost) and e.agent == first.agent)
    assert lost


def test_a_cluster_that_takes_whoever_comes_is_refused(
    tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch, start_ray: Callable[..., Any]
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    open_cluster = start_ray(lambda: Cluster(initialize_head=True, head_node_args=node))
    try:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(UserError, match=r"takes connections without a token.*\n.*--insecure"):
            ClusterSession(open_cluster.address).connect()
    finally:
        open_cluster.shutdown()
