"""The server on a real socket: TLS, and limits on what is large, slow or not HTTP at all."""

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the dashboard is not installed; pip install 'archfleet[dashboard]'")

from coordinator.dashboard import server
from coordinator.dashboard.access import Access, Wish, decide_access
from coordinator.dashboard.guard import MAX_HEAD_BYTES
from coordinator.dashboard.server import Listening, serve_dashboard
from coordinator.tokens import NUM_RANDOM_BYTES, create_token
from coordinator.traffic import Traffic

PATIENCE_SECONDS = 30.0
SERVER_HAS_NO_WORD_FOR_IT = b""


def served(run: Path, access: Access) -> AbstractContextManager[Listening]:
    return serve_dashboard(run, access=access, port=0, traffic=Traffic(), is_ready=lambda: True, say=print)


@pytest.fixture(scope="module")
def listening(finished_run: Path) -> Iterator[Listening]:
    with served(finished_run, Access()) as found:
        yield found


def answer_to(port: int, request: bytes) -> bytes:
    """All that comes back on one connection until the server closes it."""
    found = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection,
        suppress(ConnectionResetError, BrokenPipeError),  # it closed before it had read all of ours
    ):
        connection.sendall(request)
        while chunk := connection.recv(65_536):
            found += chunk
    return found


# Limits


def request_with_a_head_of(num_bytes: int) -> bytes:
    start, end = b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Long: ", b"\r\n\r\n"
    return start + b"a" * (num_bytes - len(start) - len(end)) + end


def test_a_head_up_to_the_limit_is_read(listening: Listening) -> None:
    assert answer_to(listening.port, request_with_a_head_of(MAX_HEAD_BYTES)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("num_bytes", [MAX_HEAD_BYTES + 100, 20 * MAX_HEAD_BYTES, 200 * MAX_HEAD_BYTES])
def test_a_longer_head_is_refused_however_long_it_is(listening: Listening, num_bytes: int) -> None:
    found = answer_to(listening.port, request_with_a_head_of(num_bytes))
    assert found == SERVER_HAS_NO_WORD_FOR_IT or found.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert listening.is_alive
    assert answer_to(listening.port, request_with_a_head_of(200)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "request_",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"HELO me\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100 + b"x\r\n\r\n"],
)
def test_what_is_no_http_is_refused(listening: Listening, request_: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)  # half a greeting of TLS waits for its other half
    assert b" 200 " not in answer_to(listening.port, request_)
    assert listening.is_alive


def test_who_does_not_finish_a_request_is_hung_up_on(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    assert answer_to(listening.port, b"GET /healthz HTTP/1.1\r\nHost: loc") == b""
    assert answer_to(listening.port, b"") == b""


def test_a_connection_is_used_again(listening: Listening) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", listening.port, timeout=PATIENCE_SECONDS)
    for path in ("/healthz", "/readyz", "/healthz"):
        connection.request("GET", path)
        own_port = connection.sock.getsockname()[1]
        assert connection.getresponse().read() == b"ok"
        assert connection.sock.getsockname()[1] == own_port
    connection.close()


# TLS


@pytest.fixture(scope="module")
def secret_and_secure(
    finished_run: Path, certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Listening]]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    secret, _ = create_token(tokens, "ada", scopes=("read",), random_bytes=b"t" * NUM_RANDOM_BYTES, now_unix=0)
    wish = Wish(host="0.0.0.0", tokens=tokens, tls_cert=certificate[0], tls_key=certificate[1])
    with served(finished_run, decide_access(wish)) as found:
        yield secret, found


def ask(port: int, context: ssl.SSLContext, method: str, path: str, **settings) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_SECONDS, context=context)
    try:
        connection.request(method, path, **settings)
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_over_tls_a_token_opens_and_a_browser_logs_in(
    secret_and_secure: tuple[str, Listening], certificate: tuple[Path, Path]
) -> None:
    secret, listening = secret_and_secure
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    assert listening.url == f"https://127.0.0.1:{listening.port}/"
    assert ask(listening.port, trusting, "GET", "/api/overview")[0] == 401
    assert (
        ask(listening.port, trusting, "GET", "/api/overview", headers={"Authorization": f"Bearer {secret}"})[0] == 200
    )
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://localhost:{listening.port}"}
    code, headers = ask(listening.port, trusting, "POST", "/login", body=f"token={secret}", headers=form)
    assert code == 303
    cookie, *flags = headers["set-cookie"].split("; ")
    assert cookie.startswith("__Host-archfleet=")
    assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(flags)
    assert ask(listening.port, trusting, "GET", "/api/overview", headers={"Cookie": cookie})[0] == 200


def test_who_does_not_trust_the_certificate_reads_nothing(secret_and_secure: tuple[str, Listening]) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(secret_and_secure[1].port, ssl.create_default_context(), "GET", "/healthz")


def test_in_the_clear_nothing_is_said(secret_and_secure: tuple[str, Listening]) -> None:
    _, listening = secret_and_secure
    assert b"HTTP/" not in answer_to(listening.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert listening.is_alive
