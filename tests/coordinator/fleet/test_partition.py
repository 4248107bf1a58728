"""A node in a network namespace of its own is cut off: its agent is lost in time, and joins again when it is healed.

Real Ray nodes, a real link between two namespaces. Needs root and iproute2.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.assignment import TrainAssignment
from coordinator.errors import UserError
from coordinator.fleet.base import AgentJoined, AgentLost, FleetEvent, Reported
from coordinator.fleet.ray_fleet import RayFleet
from coordinator.fleet.ray_session import ClusterSession
from scaling.observations import Progress

NETWORK = "10.231.7"
HEAD, NODE = f"{NETWORK}.1", f"{NETWORK}.2"
PORT = 26379
STORE_BYTES = 80 * 2**20
MAX_POLLS = 400


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.fleet,
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and iproute2 for a network namespace"),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace on a link of its own; the name holds the process id, so that two runs do not meet."""
    name, here, there = f"archfleet-{os.getpid()}", f"af{os.getpid()}h", f"af{os.getpid()}n"
    ip("netns", "add", name)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", f"{HEAD}/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", f"{NODE}/24", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        with suppress(subprocess.CalledProcessError):
            ip("link", "delete", here)
        ip("netns", "delete", name)


@pytest.fixture
def quick_health_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partitioned node is given up after a few seconds instead of a minute."""
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "1000")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")


class Nodes:
    """Ray processes of this test, each leading a group of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, namespace: str | None = None) -> None:
        prefix = ("ip", "netns", "exec", namespace) if namespace else ()
        ray = str(Path(sys.executable).with_name("ray"))
        with (self._directory / f"ray-{len(self._processes)}.log").open("wb") as log:
            command = [*prefix, ray, "start", "--block", f"--object-store-memory={STORE_BYTES}", *arguments]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._processes.append(process)

    def stop(self) -> None:
        """TERM each, which ends what it started; KILL the group of one that stays."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def nodes(token: Path, quick_health_checks: None, namespace: str, tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    # Unix sockets allow 107 bytes: the head's files need a short path.
    directory = tempfile.mkdtemp(prefix="af-")
    made.start(
        "--head",
        f"--node-ip-address={HEAD}",
        f"--port={PORT}",
        "--num-cpus=0",
        "--include-dashboard=false",
        f"--temp-dir={directory}",
    )
    yield made
    made.stop()
    shutil.rmtree(directory, ignore_errors=True)


def start_node(nodes: Nodes, namespace: str) -> None:
    nodes.start(f"--address={HEAD}:{PORT}", f"--node-ip-address={NODE}", "--num-cpus=1", namespace=namespace)


def connect(fleet: RayFleet) -> None:
    """The head takes some seconds until it listens."""
    for _ in range(60):
        try:
            return fleet.start()
        except UserError:
            time.sleep(0.5)
    return fleet.start()


def poll_until(fleet: RayFleet, wanted: Callable[[FleetEvent], bool]) -> FleetEvent:
    for _ in range(MAX_POLLS):
        for event in fleet.poll(timeout_seconds=0.5):
            if wanted(event):
                return event
    raise AssertionError(f"not told within {MAX_POLLS / 2:.0f} s")


def test_a_node_that_is_cut_off_is_lost_in_time_and_joins_again(
    nodes: Nodes, namespace: str, long_training: TrainAssignment, blob_directory: Path, tmp_path: Path
) -> None:
    link = f"af{os.getpid()}h"
    fleet = RayFleet(
        ClusterSession(f"{HEAD}:{PORT}"),
        max_agents=4,
        blob_directory=blob_directory,
        work_directory=tmp_path / "agents",
    )
    try:
        connect(fleet)
        start_node(nodes, namespace)
        joined = poll_until(fleet, lambda e: isinstance(e, AgentJoined))
        fleet.assign(joined.agent, long_training.id, 1, long_training)
        poll_until(fleet, lambda e: isinstance(e, Reported) and isinstance(e.item, Progress))

        ip("link", "set", link, "down")
        lost = poll_until(fleet, lambda e: isinstance(e, AgentLost))
        assert lost.agent == joined.agent

        ip("link", "set", link, "up")
        start_node(nodes, namespace)  # as its supervisor would: a node that was given up ends itself
        again = poll_until(fleet, lambda e: isinstance(e, AgentJoined))
        assert again.agent != joined.agent
    finally:
        fleet.stop()
