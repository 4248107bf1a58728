"""What systemd is told."""

import socket
from pathlib import Path

import pytest

from coordinator.supervisor import EVERY_SECONDS, Supervisor


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_socket_is_told_how_the_run_is(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@archfleet-test-{tmp_path.name}-{id(tmp_path)}"
    now = 0.0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address if kind == "path" else f"\0{address[1:]}")
        supervisor = Supervisor(address, monotonic=lambda: now)
        supervisor.ready()
        for now in (0.0, EVERY_SECONDS / 2, EVERY_SECONDS, EVERY_SECONDS + 1):  # noqa: B007
            supervisor.alive()
        supervisor.stopping()
        listener.setblocking(False)
        told = [listener.recv(100) for _ in range(4)]
        assert told == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]
        with pytest.raises(BlockingIOError):
            listener.recv(100)


def test_the_first_turn_of_the_loop_is_when_it_is_ready_at_the_latest(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        supervisor = Supervisor(str(tmp_path / "notify"), monotonic=lambda: 0.0)
        supervisor.alive()
        supervisor.ready()
        supervisor.stopping()
        assert [listener.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_children_do_not_speak_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/somewhere")
    assert Supervisor.of_environment().address == "/run/somewhere"
    assert Supervisor.of_environment().address is None


@pytest.mark.parametrize("address", [None, "", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(address: str | None) -> None:
    supervisor = Supervisor(address)
    supervisor.ready()
    supervisor.alive()
    supervisor.stopping()
