"""A cluster is used with a token that only its user can read."""

from pathlib import Path

import pytest

from coordinator.errors import UserError
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
