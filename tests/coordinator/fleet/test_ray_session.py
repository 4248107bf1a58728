"""A cluster is used with a token that only its user can read; one of our own gets a second try to start."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UserError
from coordinator.fleet import ray_session
from coordinator.fleet.ray_session import LocalSession, require_listener, require_token


def a_token(folder: Path, mode: int) -> Path:
    token = folder / "token"
    token.write_text("secret")
    token.chmod(mode)
    return token


def test_a_private_token_is_accepted(tmp_path: Path) -> None:
    token = a_token(tmp_path, 0o600)

    assert require_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}) == token


def test_without_token_mode_the_message_says_what_to_set() -> None:
    with pytest.raises(UserError, match=r"RAY_AUTH_MODE is None, expected 'token'.\n.*RAY_AUTH_TOKEN_PATH.*--insecure"):
        require_token({})


def test_a_missing_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere cannot be read: No such file"):
        require_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")})


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    token = a_token(tmp_path, 0o644)

    with pytest.raises(UserError, match=r"mode 0644, expected 0600.*\nchmod 600"):
        require_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)})


@pytest.mark.parametrize("address", ["auto", "head", "head:", ":6379x", "127.0.0.1:99999", "127.0.0.1:1"])
def test_an_address_where_no_cluster_can_be_is_named(address: str) -> None:
    with pytest.raises(UserError, match=rf"{address}.*\nGive the head's address as --address HOST:6379"):
        require_listener(address)


def test_what_a_signal_did_before_it_does_after_ray_has_set_its_own() -> None:
    def ours(_number: int, _frame: object) -> None:
        """Ask to stop."""

    previous = signal.signal(signal.SIGTERM, ours)
    try:
        with ray_session._own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, previous)


class Starter:
    """Stands for Ray, which gives up its first starts: a process has begun for its directory, then it raises."""

    def __init__(self, num_failures: int, error: Exception) -> None:
        self.num_failures = num_failures
        self.error = error
        self.tokens: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, _working_directory: Path, *, _temp_dir: str, **_: object) -> str:
        self.tokens.append((Path(_temp_dir) / "token").read_text())
        if len(self.tokens) > self.num_failures:
            return "ray"
        (Path(_temp_dir) / "session").mkdir(exist_ok=True)
        body = "import time; print(flush=True); time.sleep(600)"
        command = [sys.executable, "-S", "-c", body, f"--session-dir={_temp_dir}/session"]
        self.processes.append(process := subprocess.Popen(command, stdout=subprocess.PIPE))
        assert process.stdout is not None
        with process.stdout as told:
            told.readline()  # what has only just begun may have no arguments yet
        raise self.error


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a local session writes down its place; what it sets and what it makes are gone at the end."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    return tmp_path / "session.json"


GAVE_UP = Exception("The current node timed out during startup. The GCS is overloaded.\nA stack.")


def test_a_start_that_ray_gave_up_is_tried_again_and_said_so(record: Path) -> None:
    starter, said = Starter(1, GAVE_UP), list[str]()
    session = LocalSession(num_cpus=2, record=record, start=starter, say=said.append)

    assert session.connect() == "ray"

    (sentence,) = said
    assert sentence.startswith("Ray did not start: The current node timed out during startup. The GCS is overloaded. ")
    assert len(set(starter.tokens)) == 1, "Ray reads its token once a process"
    assert [process.wait(30) for process in starter.processes] == [-signal.SIGTERM]
    session.close()


def test_a_start_that_ray_gave_up_twice_ends_in_a_sentence_and_leaves_nothing(record: Path, tmp_path: Path) -> None:
    starter, said = Starter(2, GAVE_UP), list[str]()
    session = LocalSession(num_cpus=2, record=record, start=starter, say=said.append)

    with pytest.raises(UserError, match=r"\(--agents 2\) in 2 tries: .* overloaded\.\n.*the same command again"):
        session.connect()

    assert len(said) == 1
    assert [process.wait(30) for process in starter.processes] == [-signal.SIGTERM] * 2
    assert list((tmp_path / "t").iterdir()) == []
    assert not record.exists()


@pytest.mark.parametrize("error", [UserError("another package is in the way"), ImportError("no module named ray")])
def test_what_would_end_alike_is_not_tried_again(record: Path, error: Any) -> None:
    starter = Starter(1, error)
    session = LocalSession(num_cpus=2, record=record, start=starter)

    with pytest.raises(type(error)):
        session.connect()

    assert len(starter.tokens) == 1
    starter.processes[0].kill()
    starter.processes[0].wait()
    session.close()


def test_a_process_that_does_not_heed_term_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "END_TIMEOUT_SECONDS", 0.5)
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()

        ray_session._end_processes_of(tmp_path)

        assert deaf.wait(30) == -signal.SIGKILL


TERM_TO_THE_GROUP = """
import os, signal, sys, time
from pathlib import Path
from coordinator.fleet.ray_session import LocalSession
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
session = LocalSession(num_cpus=1, record=Path(sys.argv[1]))
ray = session.connect()
os.killpg(0, signal.SIGTERM)
time.sleep(1)
ray.shutdown()
session.close()
print("asked", len(asked))
"""


@pytest.mark.fleet
def test_term_to_the_whole_process_group_asks_to_stop_and_prints_no_stack(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TERM_TO_THE_GROUP, str(tmp_path / "session.json")],
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
        check=False,
    )
    assert ended.stdout.split() == ["asked", "1"], ended.stderr
    assert "SIGTERM received" not in ended.stderr
    assert ended.returncode == 0
