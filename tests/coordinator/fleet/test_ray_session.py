"""A cluster is used with a token that only its user can read."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.errors import UserError
from coordinator.fleet import ray_session
from coordinator.fleet.ray_session import require_listener, require_token


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
