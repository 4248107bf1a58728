"""A wire between this machine and a node in a network namespace of its own, and whatever can be wrong with a wire.

No traffic shaping of the kernel's is needed: both ends are tunnel devices (/dev/net/tun), and a thread carries every
packet from one to the other, or loses, delays, overtakes or repeats it. Needs root and iproute2.
"""

import fcntl
import heapq
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.worker import Worker
from coordinator.fleet.ray_fleet import RayFleet
from coordinator.fleet.ray_session import ClusterSession

TUN_DEVICE = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET_BYTES = 9000
MAX_READ = 64
"""Packets taken from one end before the other end gets its turn."""
LONGEST_QUEUE_SECONDS = 1.0
"""A narrow wire drops what would wait longer for its turn."""
STORE_BYTES = 80 * 2**20
BOTH_UP_SECONDS = 240.0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What becomes of the packets of one direction. Jitter is uniform, so that packets overtake one another."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = float("inf")


GOOD, CUT = Conditions(), Conditions(loss=1.0)
TO_NODE, FROM_NODE = "to-node", "from-node"


@dataclass
class Direction:
    """One of the two; `num_lost` and the like count packets."""

    source: int
    target: int
    conditions: Conditions = GOOD
    free_at: float = 0.0
    """When the wire has sent all that was given to it."""
    num_carried: int = 0
    num_lost: int = 0
    num_repeated: int = 0
    num_overtaken: int = 0
    newest_due: float = 0.0

    def dues(self, num_bytes: int, now: float, chance: random.Random) -> list[float]:
        """When copies of a packet arrive; none where it is lost."""
        told, is_lost = self.conditions, chance.random() < self.conditions.loss
        sent_at = max(now, self.free_at)
        if is_lost or sent_at - now > LONGEST_QUEUE_SECONDS:
            self.num_lost += 1
            return []
        self.free_at = sent_at + num_bytes / told.bytes_per_second
        num_copies = 1 + (chance.random() < told.duplicate)
        self.num_carried += 1
        self.num_repeated += num_copies - 1
        jitter = told.jitter_seconds
        dues = [self.free_at + told.delay_seconds + chance.uniform(-jitter, jitter) for _ in range(num_copies)]
        self.num_overtaken += dues[0] < self.newest_due
        self.newest_due = max(self.newest_due, *dues)
        return dues


@dataclass
class Wire:
    """Carries packets between two tunnels; `here` and `there` are addresses of one subnet."""

    namespace: str
    here: str
    there: str
    to_node: Direction
    from_node: Direction
    chance: random.Random
    _flying: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _num_sent: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def worsen(self, **conditions: float) -> None:
        """Make both directions as bad as `Conditions` says."""
        self.to_node.conditions = self.from_node.conditions = Conditions(**conditions)

    def cut(self, *directions: str) -> None:
        """Lose every packet "to-node", "from-node" or both."""
        self.to_node.conditions = CUT if TO_NODE in directions else GOOD
        self.from_node.conditions = CUT if FROM_NODE in directions else GOOD

    def heal(self) -> None:
        """As good as new."""
        self.cut()

    def carry(self) -> None:
        """Carry packets until `end`."""
        directions = {one.source: one for one in (self.to_node, self.from_node)}
        while not self._ended.is_set():
            patience = 0.1 if not self._flying else min(0.1, max(0.0, self._flying[0][0] - time.monotonic()))
            for source in select.select(list(directions), [], [], patience)[0]:
                self._take(directions[source])
            while self._flying and self._flying[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(self._flying)
                with suppress(OSError):  # its queue is full, or it is down: the packet is lost
                    os.write(target, packet)

    def end(self) -> None:
        """Carry no more."""
        self._ended.set()

    def _take(self, direction: Direction) -> None:
        for _ in range(MAX_READ):
            try:
                packet = os.read(direction.source, PACKET_BYTES + 100)
            except OSError:  # nothing more for now
                return
            for due in direction.dues(len(packet), time.monotonic(), self.chance):
                self._num_sent += 1
                heapq.heappush(self._flying, (due, self._num_sent, direction.target, packet))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def open_tunnel(name: str) -> int:
    """A tunnel device; it lasts as long as the file."""
    file = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return file


def why_no_wire() -> str:
    """What is missing here for namespaces and tunnels; "" where nothing is."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2 for a network namespace"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return "needs a kernel that lets root make a network namespace"
    return "" if TUN_DEVICE.exists() else f"needs {TUN_DEVICE}"


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """A wire to a namespace. Names and addresses hold the process id, so that two runs do not meet."""
    if why := why_no_wire():
        pytest.skip(why)
    number = os.getpid()
    name, near, far = f"archfleet-{number}", f"af{number}h", f"af{number}n"
    network = f"10.231.{number % 250}"
    ip("netns", "add", name)
    here, there = open_tunnel(near), open_tunnel(far)
    made = Wire(
        namespace=name,
        here=f"{network}.1",
        there=f"{network}.2",
        to_node=Direction(here, there),
        from_node=Direction(there, here),
        chance=random.Random(7),
    )
    carrier = threading.Thread(target=made.carry, name="wire", daemon=True)
    try:
        ip("link", "set", far, "netns", name)
        for device, address, place in ((near, made.here, ()), (far, made.there, ("-n", name))):
            ip(*place, "addr", "add", f"{address}/24", "dev", device)
            ip(*place, "link", "set", device, "mtu", str(PACKET_BYTES), "up")
        ip("-n", name, "link", "set", "lo", "up")
        carrier.start()
        yield made
    finally:
        made.end()
        if carrier.is_alive():
            carrier.join()
        os.close(here)
        os.close(there)
        ip("netns", "delete", name)


@dataclass
class Nodes:
    """A head on this end of the wire, and a node on the other that its supervisor starts anew when it has ended."""

    wire: Wire
    directory: Path
    head: Any
    environment: dict[str, str]
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def is_far(self, agent: str) -> bool:
        """Whether an agent works beyond the wire."""
        return f"-{self.head.head_node.node_id[:6]}-" not in agent

    def supervise(self) -> None:
        """Start the far node unless it runs."""
        if self._processes and self._processes[-1].poll() is None:
            return
        ray = str(Path(sys.executable).with_name("ray"))
        with (self.directory / f"node-{len(self._processes)}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [
                        *("ip", "netns", "exec", self.wire.namespace, ray, "start", "--block"),
                        *(f"--address={self.head.address}", f"--node-ip-address={self.wire.there}", "--num-cpus=1"),
                        *(f"--object-store-memory={STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"),
                    ],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=self.environment,
                )
            )

    def await_both(self) -> None:
        """Wait until the head knows both nodes."""
        give_up = time.monotonic() + BOTH_UP_SECONDS
        while sum(node["Alive"] for node in self.head.global_state.node_table()) < 2:
            assert time.monotonic() < give_up, f"the far node did not come up; see {self.directory}"
            self.supervise()
            time.sleep(0.2)

    def stop(self) -> None:
        """TERM, which ends what the node started; KILL the group of one that stays. Then the head."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.head.shutdown()


@contextmanager
def running_nodes(wire: Wire, directory: Path, start_ray: Callable[..., Any], **settings: int) -> Iterator[Nodes]:
    """A head with room for one agent, with these settings of Ray's, and a far node with room for another."""
    import ray  # reads its mode when it is imported
    from ray.cluster_utils import Cluster

    head = start_ray(
        lambda: Cluster(
            initialize_head=True,
            head_node_args={
                "node_ip_address": wire.here,
                "gcs_server_port": free_port(),
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_system_config": settings,
            },
        )
    )
    made = Nodes(wire, directory, head, dict(os.environ))
    try:
        made.await_both()
        yield made
    finally:
        wire.heal()
        ray.shutdown()  # of a fleet that is stopped only after its nodes
        made.stop()


@pytest.fixture(scope="module")
def nodes(
    token: Path, wire: Wire, tmp_path_factory: pytest.TempPathFactory, start_ray: Callable[..., Any]
) -> Iterator[Nodes]:
    """Nodes as Ray has them: one that is cut off is given up after about a minute."""
    with running_nodes(wire, tmp_path_factory.mktemp("nodes"), start_ray) as made:
        yield made


@pytest.fixture
def impatient_nodes(token: Path, wire: Wire, tmp_path: Path, start_ray: Callable[..., Any]) -> Iterator[Nodes]:
    """Of these, one that is cut off is given up after ten seconds or twenty."""
    with running_nodes(
        wire,
        tmp_path,
        start_ray,
        health_check_initial_delay_ms=1000,
        health_check_period_ms=1000,
        health_check_timeout_ms=1000,
        health_check_failure_threshold=10,
    ) as made:
        yield made


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def make_wired_fleet(
    wire: Wire, tmp_path: Path, blob_directory: Path, paced_worker: type[Worker]
) -> Iterator[Callable[..., RayFleet]]:
    """A function that makes a fleet on nodes; paced workers, unless others are given. The wire is healed at the end."""
    made: list[RayFleet] = []

    def make(nodes: Nodes, kind: type[RayFleet] = RayFleet, *, worker: type[Worker] = paced_worker) -> RayFleet:
        made.append(
            kind(
                ClusterSession(nodes.head.address),
                max_agents=4,
                blob_directory=blob_directory,
                work_directory=tmp_path / "agents",
                worker=worker,
            )
        )
        return made[-1]

    yield make
    wire.heal()
    for fleet in made:
        fleet.stop()
