"""A coordinator on a machine without a Ray node of its own: it joins the cluster, and leaves it again."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.slow]
ROOT = Path(__file__).parents[4]

DRIVER = """
import json, sys
from coordinator.fleet import ray_session
from coordinator.fleet.ray_session import ClusterSession

ray_session.CONNECT_TIMEOUT_SECONDS = 200.0  # not how fast it joins is tested
session = ClusterSession(sys.argv[1])
ray = session.connect()
nodes = {node["NodeManagerAddress"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
length = ray.remote(num_cpus=1)(lambda sent: len(sent)).remote(ray.put(b"x" * 1_000_000))
told = {"nodes": nodes, "length": ray.get(length, timeout=200)}
ray.shutdown()
session.close()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def head(token: Path, wire: Any, start_ray: Callable[..., Any]) -> Iterator[Any]:
    from ray.cluster_utils import Cluster  # Ray reads its mode when it is imported

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    made = start_ray(lambda: Cluster(initialize_head=True, head_node_args={"node_ip_address": wire.here, **node}))
    yield made
    made.shutdown()


def test_a_machine_without_a_node_joins_with_one_that_has_no_room_for_agents(head: Any, wire: Any) -> None:
    # Beyond the wire and among processes of its own, as in a container.
    alone = ("ip", "netns", "exec", wire.namespace, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    driven = subprocess.run(
        [*alone, sys.executable, "-c", DRIVER, head.address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert driven.returncode == 0, driven.stderr
    told = json.loads(driven.stdout.splitlines()[-1])
    assert told == {"nodes": {wire.here: 1, wire.there: 0}, "length": 1_000_000}
