"""Placement: which agents a Ray cluster has room for. Decides; starts nothing.

One agent per accelerator of a node; a node without accelerators has one per CPU. A node whose CPU count is 0, as a
head should be, has none.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PRETENDED_LABEL = "archfleet.io/pretended-hardware"
"""A node with this label lets its agents pretend to be that hardware: tests of mixed fleets on CPUs. Only the fake
engine pretends, and says so; everything else measures what is there."""


@dataclass(frozen=True)
class Slot:
    """Room for one agent."""

    agent: str
    node_id: str
    node: str
    """Name or address of the machine."""
    num_gpus: int
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
        slots += [
            Slot(
                agent=f"{prefix or _prefix(node)}-{number}",
                node_id=str(node["NodeID"]),
                node=str(node["NodeManagerHostname"]),
                num_gpus=1 if num_gpus else 0,
                pretended_hardware=node["Labels"].get(PRETENDED_LABEL),
            )
            for number in range(num_gpus or num_cpus)
        ]
    return slots[:max_agents]


def _prefix(node: Mapping[str, Any]) -> str:
    """The host's name and the first digits of the node's id: two Ray nodes may share a machine."""
    host = re.sub(r"[^a-z0-9]+", "-", str(node["NodeManagerHostname"]).lower()).strip("-")
    return f"{host[:40] or 'node'}-{str(node['NodeID'])[:6]}"
