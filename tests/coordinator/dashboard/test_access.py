"""Who may reach the dashboard is decided before anything listens."""

from pathlib import Path

import pytest

from coordinator.dashboard.access import (
    LOOPBACK_NAMES,
    Wish,
    address_of,
    decide_access,
    host_of,
    is_host_allowed,
    is_loopback,
)
from coordinator.errors import UserError
from coordinator.tokens import NUM_RANDOM_BYTES, create_token


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    create_token(path, "ada", scopes=("read",), random_bytes=bytes(NUM_RANDOM_BYTES), now_unix=0)
    return path


@pytest.mark.parametrize(
    ("host", "is_so"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_is_known(host: str, is_so: bool) -> None:
    assert is_loopback(host) is is_so


def test_loopback_asks_nobody_for_a_token() -> None:
    access = decide_access(Wish())
    assert access.book is None
    assert access.url(8420) == "http://127.0.0.1:8420/"


def test_loopback_asks_for_a_token_where_a_file_is_given(tokens: Path) -> None:
    access = decide_access(Wish(tokens=tokens))
    assert access.book is not None
    assert not access.is_secure


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "fleet.example"])
def test_another_address_without_tls_is_refused_even_with_tokens(tokens: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"without TLS(?s:.*)--tls-cert(?s:.*)--behind-proxy(?s:.*)ssh -L"):
        decide_access(Wish(host=host, tokens=tokens))


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_behind_a_proxy_others_come_and_need_a_token(tmp_path: Path, tokens: Path, host: str) -> None:
    with pytest.raises(UserError, match=r"no token in .*\n.*archfleet token create NAME --scope read"):
        decide_access(Wish(host=host, is_behind_proxy=True, tokens=tmp_path / "none.toml"))
    access = decide_access(Wish(host=host, is_behind_proxy=True, tokens=tokens))
    assert access.book is not None
    assert access.is_secure


def test_the_usual_file_is_taken_where_tokens_are_needed(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(UserError, match="no token in"):
        decide_access(Wish(host="0.0.0.0", is_behind_proxy=True))
    (tmp_path / "config" / "archfleet").mkdir(parents=True)
    tokens.rename(tmp_path / "config" / "archfleet" / "tokens.toml")
    assert decide_access(Wish(host="0.0.0.0", is_behind_proxy=True)).book is not None


def test_a_file_without_a_token_for_reading_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    create_token(path, "prometheus", scopes=("metrics",), random_bytes=bytes(NUM_RANDOM_BYTES), now_unix=0)
    with pytest.raises(UserError, match="no token of scope read"):
        decide_access(Wish(tokens=path))


def test_tls_serves_others_with_a_token(tokens: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    access = decide_access(Wish(host="0.0.0.0", tokens=tokens, tls_cert=cert, tls_key=key))
    assert access.tls == certificate
    assert access.url(443) == "https://127.0.0.1:443/"
    with pytest.raises(UserError, match="needs both --tls-cert FILE and --tls-key FILE"):
        decide_access(Wish(tls_cert=cert))
    with pytest.raises(UserError, match="cannot use the certificate"):
        decide_access(Wish(tls_cert=cert, tls_key=cert))
    with pytest.raises(UserError, match="cannot use the certificate"):
        decide_access(Wish(tls_cert=cert, tls_key=cert.with_name("none.pem")))


@pytest.mark.parametrize(
    ("netloc", "host"),
    [
        ("Fleet.Example", "fleet.example"),
        ("fleet.example:8420", "fleet.example"),
        ("fleet.example.", "fleet.example"),
        ("127.0.0.1:8420", "127.0.0.1"),
        ("[::1]:8420", "::1"),
        ("[::1]", "::1"),
        ("", None),
        (":8420", None),
        ("a:b", None),
        ("localhost:8420@evil.example", None),
        ("::1", None),
    ],
)
def test_a_host_header_names_a_host(netloc: str, host: str | None) -> None:
    assert host_of(netloc) == host


@pytest.mark.parametrize(
    ("header", "is_allowed"),
    [
        (b"localhost:8420", True),
        (b"127.0.0.1", True),
        (b"[::1]:8420", True),
        (b"fleet.example", True),
        (b"10.0.0.7:8420", True),
        (b"10.0.0.8:8420", False),
        (b"evil.example:8420", False),
        (b"localhost.evil.example", False),
        (b"127.0.0.1.evil.example", False),
        (b"evil.example#localhost", False),
        (b"\xff", False),
        (b"", False),
        (None, False),
    ],
)
def test_only_its_own_names_and_address_are_answered(header: bytes | None, is_allowed: bool) -> None:
    names = LOOPBACK_NAMES | {"fleet.example"}
    assert is_host_allowed(header, names, own_address="10.0.0.7") is is_allowed


def test_names_that_people_type_are_given(tokens: Path) -> None:
    wish = Wish(host="0.0.0.0", tokens=tokens, is_behind_proxy=True, allowed_hosts=("Fleet.Example", "[fd00::1]"))
    assert {"fleet.example", "fd00::1", "localhost"} <= decide_access(wish).names


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:1"), ("::", "[::1]:1"), ("::1", "[::1]:1"), ("10.0.0.1", "10.0.0.1:1")],
)
def test_an_address_is_one_to_go_to(host: str, address: str) -> None:
    assert address_of(host, 1) == address
