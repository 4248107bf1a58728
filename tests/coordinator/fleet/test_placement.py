"""One agent an accelerator, or a CPU where a node has none."""

from typing import Any

import pytest

from coordinator.errors import UserError
from coordinator.fleet.placement import DEVICES_LABEL, PRETENDED_LABEL, slots_of


def node(
    node_id: str, *, host: str = "h1", alive: bool = True, labels: dict[str, str] | None = None, **resources: float
) -> dict[str, Any]:
    return {
        "NodeID": node_id,
        "Alive": alive,
        "NodeManagerHostname": host,
        "Resources": resources,
        "Labels": labels or {},
    }


def test_a_node_has_one_agent_for_each_of_its_gpus() -> None:
    slots = slots_of([node("aaaaaaaa", CPU=96.0, GPU=8.0)], max_agents=64)

    assert [(slot.agent, slot.num_gpus) for slot in slots] == [(f"h1-aaaaaa-{number}", 1) for number in range(8)]


def test_a_node_without_gpus_has_one_agent_for_each_cpu() -> None:
    slots = slots_of([node("aaaaaaaa", CPU=2.0)], max_agents=64)

    assert [slot.num_gpus for slot in slots] == [0, 0]


def test_a_head_without_cpus_has_no_agent() -> None:
    assert slots_of([node("aaaaaaaa", memory=1e9)], max_agents=64) == []


def test_a_dead_node_has_no_agent() -> None:
    assert slots_of([node("aaaaaaaa", CPU=2.0, alive=False)], max_agents=64) == []


def test_two_nodes_on_one_host_have_agents_of_different_names() -> None:
    slots = slots_of([node("bbbbbbbb", CPU=1.0), node("aaaaaaaa", CPU=1.0)], max_agents=64)

    assert [slot.agent for slot in slots] == ["h1-aaaaaa-0", "h1-bbbbbb-0"]


def test_names_are_made_of_what_labels_and_paths_allow() -> None:
    (slot,) = slots_of([node("aaaaaaaa", host="Node_7.Rack/3", CPU=1.0)], max_agents=64)

    assert slot.agent == "node-7-rack-3-aaaaaa-0"


def test_a_fleet_has_no_more_agents_than_it_may() -> None:
    assert len(slots_of([node("aaaaaaaa", CPU=96.0)], max_agents=5)) == 5


def test_a_label_lets_agents_pretend_to_be_hardware() -> None:
    (slot,) = slots_of([node("aaaaaaaa", CPU=1.0, labels={PRETENDED_LABEL: "h200-sxm-141gb"})], max_agents=64)

    assert slot.pretended_hardware == "h200-sxm-141gb"


def test_a_label_gives_each_agent_several_gpus_and_leaves_the_rest_idle() -> None:
    slots = slots_of([node("aaaaaaaa", CPU=96.0, GPU=7.0, labels={DEVICES_LABEL: "3"})], max_agents=64)

    assert [(slot.num_gpus, slot.num_devices) for slot in slots] == [(3, 3), (3, 3)]


def test_a_label_gives_each_agent_of_a_node_without_gpus_several_cpus() -> None:
    slots = slots_of([node("aaaaaaaa", CPU=4.0, labels={DEVICES_LABEL: "2"})], max_agents=64)

    assert [(slot.num_gpus, slot.num_devices) for slot in slots] == [(0, 2), (0, 2)]


@pytest.mark.parametrize("label", ["all", "0", "-1", "1.5"])
def test_a_label_that_is_no_number_of_devices_is_refused_by_name(label: str) -> None:
    with pytest.raises(UserError, match=r"node h1 has the label archfleet.io/devices-per-agent="):
        slots_of([node("aaaaaaaa", GPU=4.0, labels={DEVICES_LABEL: label})], max_agents=64)
