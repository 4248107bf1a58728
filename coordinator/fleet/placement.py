"""Placement: which agents a Ray cluster has room for. Decides; starts nothing.

One agent per accelerator of a node; a node without accelerators has one per CPU; where a node's label says so, one per
several of them. A node whose CPU count is 0, as a
head should be, has none.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.errors import UserError

PRETENDED_LABEL = "archfleet.io/pretended-hardware"
"""A node with this label lets its agents pretend to be that hardware: tests of mixed fleets on CPUs. Only the fake
engine pretends, and says so; everything else measures what is there."""

DEVICES_LABEL = "archfleet.io/devices-per-agent"
"""A node with this label has fewer agents, of so many accelerators (or CPUs) each, which share every training."""


@dataclass(frozen=True)
class Slot:
    """Room for one agent."""

    agent: str
    node_id: str
    node: str
    """Name or address of the machine."""
    num_gpus: int
    num_devices: int = 1
    """Accelerators, or CPUs where there are none, of the one agent."""
    pretended_hardware: str | None = None


def slots_of(nodes: Iterable[Mapping[str, Any]], *, max_agents: int, prefix: str | None = None) -> list[Slot]:
    """Slots on the nodes that live, in the cluster's order, at most `max_agents`.

    Args:
        nodes: what `ray.nodes()` tells.
        max_agents: of the whole fleet.
        prefix: of the agents' names on a cluster of one node; by default its host and the first digits of its id.
    """
    slots: list[Slot] = []
    for node in sorted((node for node in nodes if node["Alive"]), key=lambda node: str(node["NodeID"])):
        resources = node["Resources"]
        num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        num_devices = _devices_per_agent(node)
        slots += [
            Slot(
                agent=f"{prefix or _prefix(node)}-{number}",
                node_id=str(node["NodeID"]),
                node=str(node["NodeManagerHostname"]),
                num_gpus=num_devices if num_gpus else 0,
                num_devices=num_devices,
                pretended_hardware=node["Labels"].get(PRETENDED_LABEL),
            )
            for number in range((num_gpus or num_cpus) // num_devices)
        ]
    return slots[:max_agents]


def _devices_per_agent(node: Mapping[str, Any]) -> int:
    asked = node["Labels"].get(DEVICES_LABEL, "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise UserError(
            f"node {node['NodeManagerHostname']} has the label {DEVICES_LABEL}={asked!r}; expected a whole number of "
            "devices, such as 4: start its Ray again with --labels"
        )
    return int(asked)


def _prefix(node: Mapping[str, Any]) -> str:
    """The host's name and the first digits of the node's id: two Ray nodes may share a machine."""
    host = re.sub(r"[^a-z0-9]+", "-", str(node["NodeManagerHostname"]).lower()).strip("-")
    return f"{host[:40] or 'node'}-{str(node['NodeID'])[:6]}"
