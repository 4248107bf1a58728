"""The wire does to packets what the tests of this folder ask of it. No Ray; packets are echoed from the far end."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

ECHO = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as far:
    far.setsockopt(socket.SOL_SOCKET, int(sys.argv[2]), 2**22)
    far.bind((sys.argv[1], 7))
    print("ready", flush=True)
    while True:
        far.sendto(*far.recvfrom(9000))
"""
SILENCE_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
SO_RCVBUFFORCE = 33
"""Of Linux: what waits to be read is not dropped, also where nobody reads for a while."""


@pytest.fixture
def echo(wire: Any) -> Iterator[None]:
    command = ["ip", "netns", "exec", wire.namespace, sys.executable, "-c", ECHO, wire.there, str(SO_RCVBUFFORCE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as far:
        assert far.stdout is not None
        far.stdout.readline()
        yield
        wire.heal()
        far.kill()


def trips(wire: Any, num_packets: int, *, num_awaited: int, num_bytes: int = 100) -> list[tuple[int, float]]:
    """Packets that came back, as they came: their number, and the seconds since all were sent.

    Patient until so many different ones came; then until nothing comes for a while.
    """
    found = []
    with socket.socket(type=socket.SOCK_DGRAM) as near:
        near.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**22)
        began = time.monotonic()
        for number in range(num_packets):
            near.sendto(number.to_bytes(4, "big").ljust(num_bytes, b"."), (wire.there, 7))
        while True:
            near.settimeout(SILENCE_SECONDS if len(dict(found)) >= num_awaited else PATIENCE_SECONDS)
            try:
                packet = near.recv(9000)
            except TimeoutError:
                return found
            found.append((int.from_bytes(packet[:4], "big"), time.monotonic() - began))


def test_a_good_wire_carries_everything_once_and_in_order(wire: Any, echo: None) -> None:
    assert [number for number, _ in trips(wire, 100, num_awaited=100)] == list(range(100))


def test_a_bad_wire_loses_repeats_delays_and_lets_overtake(wire: Any, echo: None) -> None:
    wire.worsen(loss=0.1, duplicate=0.1, delay_seconds=0.1, jitter_seconds=0.05)

    came = trips(wire, 300, num_awaited=220)

    numbers = [number for number, _ in came]
    # 0.9 of 0.9 come back at least; four standard deviations of 300 packets are 0.09.
    assert 0.72 < len(set(numbers)) / 300 < 0.94
    assert len(numbers) > len(set(numbers))
    assert numbers != sorted(numbers)
    assert min(seconds for _, seconds in came) >= 0.1


@pytest.mark.parametrize("cut", [("to-node",), ("from-node",), ("to-node", "from-node")])
def test_a_cut_wire_carries_nothing_and_a_healed_one_all(wire: Any, echo: None, cut: tuple[str, ...]) -> None:
    heard = wire.to_node.num_carried
    wire.cut(*cut)
    assert trips(wire, 5, num_awaited=0) == []
    if "to-node" in cut:
        assert wire.to_node.num_carried == heard
    else:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while wire.to_node.num_carried == heard:
            assert time.monotonic() < give_up
            time.sleep(0.05)

    wire.heal()
    assert len(trips(wire, 5, num_awaited=5)) == 5


def test_a_narrow_wire_takes_its_time(wire: Any, echo: None) -> None:
    wire.worsen(bytes_per_second=100e3)

    came = trips(wire, 40, num_awaited=40, num_bytes=1000)

    assert len(came) == 40
    assert came[-1][1] >= 0.4
