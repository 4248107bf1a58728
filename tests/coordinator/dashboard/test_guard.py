"""The guard before every request, around a small application of its own."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from coordinator.dashboard.access import LOOPBACK_NAMES, Access
from coordinator.dashboard.guard import HEADERS, MAX_BODY_BYTES, Guard, cookie_name
from coordinator.dashboard.sessions import Sessions
from coordinator.tokens import NUM_RANDOM_BYTES, TokenBook, create_token, read_tokens, revoke_token
from coordinator.traffic import Traffic

SESSIONS = Sessions(b"k" * 32)
NOW = 1_000_000.0
PAGE = {"Accept": "text/html,application/xhtml+xml"}


async def hello(_request: Request) -> Response:
    return PlainTextResponse("hello")


async def fail(_request: Request) -> Response:
    raise ZeroDivisionError("by nothing")


async def fail_late(_request: Request) -> Response:
    async def chunks():
        yield b"a"
        raise ZeroDivisionError("too late")

    return StreamingResponse(chunks())


async def stream(_request: Request) -> Response:
    async def chunks():
        for number in range(1000):
            yield f"id: {number}\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(chunks(), media_type="text/event-stream")


APP = Starlette(
    routes=[
        Route("/", hello, methods=["GET", "POST"]),
        Route("/study", hello),
        Route("/healthz", hello),
        Route("/login", hello, methods=["GET", "POST"]),
        Route("/static/{path:path}", hello),
        Route("/api/trials/{trial_id}", hello),
        Route("/api/fail", fail),
        Route("/api/late", fail_late),
        Route("/api/events", stream),
    ]
)


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    made = {}
    for number, (name, scope, ends) in enumerate(
        [("ada", "read", None), ("prom", "metrics", None), ("old", "read", NOW - 1)]
    ):
        made[name], _ = create_token(
            tmp_path / "tokens.toml",
            name,
            scopes=(scope,),
            random_bytes=bytes([number]) * NUM_RANDOM_BYTES,
            now_unix=0,
            expires_unix=ends,
        )
    return made


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


Guarded = Callable[..., TestClient]


@pytest.fixture
def guarded(tmp_path: Path, tokens: dict[str, str], traffic: Traffic) -> Guarded:
    """A client of the guarded application; `asks` for a token or not."""

    def make(*, asks: bool = True, said: list[str] | None = None, **access: Any) -> TestClient:
        book = TokenBook(tmp_path / "tokens.toml") if asks else None
        guard = Guard(
            APP,
            access=Access(book=book, **access),
            sessions=SESSIONS,
            traffic=traffic,
            say=[].append if said is None else said.append,
            wall=lambda: NOW,
        )
        return TestClient(guard, base_url="http://localhost:8420", follow_redirects=False)

    return make


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("user", "code", "reason"),
    [(None, 401, "missing"), ("nobody", 401, "bad"), ("old", 401, "expired"), ("prom", 403, "scope"), ("ada", 200, "")],
)
@pytest.mark.parametrize("path", ["/api/trials/train-1", "/study", "/nothing"])
def test_a_token_decides(
    guarded: Guarded, tokens: dict[str, str], traffic: Traffic, path: str, user: str | None, code: int, reason: str
) -> None:
    headers = {} if user is None else bearer(tokens.get(user, "aft_nobody"))
    answer = guarded().get(path, headers=headers)
    assert answer.status_code == (404 if code == 200 and path == "/nothing" else code)
    assert ("www-authenticate" in answer.headers) is (code == 401)
    assert sum(traffic.auth_failures.values()) == traffic.auth_failures.get(reason, 0) == (code != 200)


def test_without_a_file_of_tokens_nobody_is_asked(guarded: Guarded) -> None:
    assert guarded(asks=False).get("/api/trials/train-1", headers=bearer("anything")).text == "hello"


@pytest.mark.parametrize("token", [b"Bearer \xff\xfe\xf0", "Bearer žluťoučký".encode(), b"Bearer " + b"x" * 10_000])
def test_no_token_makes_a_mistake_of_ours(guarded: Guarded, token: bytes) -> None:
    answer = guarded().get("/api/trials/train-1", headers=[(b"authorization", token)])
    assert answer.status_code == 401


def test_a_token_in_the_address_opens_nothing(guarded: Guarded, tokens: dict[str, str]) -> None:
    assert guarded().get(f"/api/trials/train-1?token={tokens['ada']}").status_code == 401


def test_a_page_that_needs_a_session_leads_to_the_login(guarded: Guarded) -> None:
    answer = guarded().get("/study", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/study")
    assert guarded().get("/api/trials/x", headers=PAGE).status_code == 401
    odd = guarded().get("/a%0d%0ab%22", headers=PAGE)
    assert odd.headers["location"] == "/login?next=/a%0D%0Ab%22"


@pytest.mark.parametrize("path", ["/login", "/static/app.js", "/healthz"])
def test_the_way_in_is_open(guarded: Guarded, path: str) -> None:
    assert guarded().get(path).status_code == 200


def test_a_session_opens_until_its_token_is_revoked(guarded: Guarded, tmp_path: Path) -> None:
    (token, *_) = read_tokens(tmp_path / "tokens.toml")
    cookie, _ = SESSIONS.cookie(token, now_unix=NOW)
    client = guarded()
    header = {"Cookie": f"theme=dark; archfleet={cookie}"}
    assert client.get("/study", headers=header).status_code == 200
    assert client.get("/study", headers={"Cookie": f"__Host-archfleet={cookie}"}).status_code == 401
    revoke_token(tmp_path / "tokens.toml", token.id)
    assert client.get("/study", headers=header).status_code == 401


def test_over_https_the_cookie_is_of_this_host_alone(tmp_path: Path) -> None:
    assert cookie_name(Access(is_behind_proxy=True)) == cookie_name(Access(tls=(tmp_path, tmp_path)))
    assert cookie_name(Access(is_behind_proxy=True)).startswith("__Host-")
    assert not cookie_name(Access()).startswith("__Host-")


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "localhost.evil.example", "192.168.0.1", ""])
def test_another_name_is_not_answered(guarded: Guarded, tokens: dict[str, str], asks: bool, host: str) -> None:
    answer = guarded(asks=asks).get("/api/trials/x", headers={"Host": host, **bearer(tokens["ada"])})
    assert answer.status_code == 400
    assert "--allowed-host" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8420", "[::1]:8420", "LOCALHOST:8420", "fleet.example"])
def test_its_own_names_are_answered(guarded: Guarded, host: str) -> None:
    client = guarded(asks=False, names=LOOPBACK_NAMES | {"fleet.example"})
    assert client.get("/study", headers={"Host": host}).status_code == 200


def test_a_probe_comes_by_any_name(guarded: Guarded) -> None:
    assert guarded().get("/healthz", headers={"Host": "10.1.2.3:8420"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:8420"}, 200),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_form_comes_from_its_own_pages(guarded: Guarded, headers: dict[str, str], code: int) -> None:
    assert guarded().post("/login", headers=headers).status_code == code


def test_a_proxy_may_put_another_host_in_its_place(guarded: Guarded) -> None:
    client = guarded(is_behind_proxy=True, names=LOOPBACK_NAMES | {"fleet.example"})
    assert client.post("/login", headers={"Origin": "https://fleet.example"}).status_code == 200
    assert client.post("/login", headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("length", [str(MAX_BODY_BYTES + 1), "-1", "x", "1" * 5000, "\xb2"])
def test_a_large_or_odd_length_is_refused_unread(guarded: Guarded, length: str) -> None:
    headers = [(b"content-length", length.encode("latin-1"))]
    assert guarded(asks=False).request("POST", "/", headers=headers).status_code == 413


@pytest.mark.parametrize(("path", "code"), [("/study", 200), ("/nothing", 404), ("/api/fail", 500), ("/static/x", 200)])
@pytest.mark.parametrize("asks", [True, False])
def test_every_answer_carries_the_headers(guarded: Guarded, path: str, code: int, asks: bool) -> None:
    answer = guarded(asks=asks).get(path)
    assert answer.status_code == (401 if asks and not path.startswith("/static") else code)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "server" not in answer.headers


def test_other_sites_are_told_nothing_and_our_own_where_a_form_comes_from() -> None:
    assert HEADERS["referrer-policy"] == "same-origin"  # with "no-referrer" Chromium sends `Origin: null`


def test_nothing_is_taken_from_elsewhere_or_run_inline() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }


def test_a_mistake_tells_the_reader_nothing_and_the_coordinator_once(guarded: Guarded) -> None:
    said: list[str] = []
    client = guarded(asks=False, said=said)
    answers = [client.get("/api/fail") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500] * 3
    assert "by nothing" not in answers[0].text
    (sentence,) = said
    assert "ZeroDivisionError: by nothing" in sentence
    assert "test_guard.py:" in sentence


def test_a_mistake_in_the_middle_ends_the_answer(guarded: Guarded) -> None:
    said: list[str] = []
    assert guarded(asks=False, said=said).get("/api/late").text == "a"
    assert len(said) == 1


def test_requests_are_counted_by_template(guarded: Guarded, traffic: Traffic) -> None:
    client = guarded(asks=False)
    for path in ("/api/trials/a", "/api/trials/b", "/static/x/y.js", "/nothing/at/all"):
        client.get(path)
    client.get("/study", headers={"Host": "evil.example"})
    assert traffic.requests == {
        ("/api/trials/{trial_id}", "GET", "200"): 2,
        ("/static/{path}", "GET", "200"): 1,
        ("unknown", "GET", "404"): 1,
        ("unknown", "GET", "400"): 1,
    }
    assert sum(traffic.durations["/api/trials/{trial_id}"].nums) == 2


def drive(app: Guard, headers: dict[str, str], *, on_chunk: Callable[[int], None]) -> list[dict[str, Any]]:
    """What is sent for a stream of events whose reader stays; `on_chunk` is told of each chunk."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))
        on_chunk(len(sent))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/api/events",
        "raw_path": b"/api/events",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "server": ("127.0.0.1", 8420),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    asyncio.run(asyncio.wait_for(app(scope, receive, send), timeout=30))
    return sent


def test_an_open_stream_ends_when_its_token_is_revoked(
    tmp_path: Path, tokens: dict[str, str], traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.dashboard.guard.RECHECK_SECONDS", 0.0)
    path = tmp_path / "tokens.toml"
    access = Access(book=TokenBook(path))
    guard = Guard(APP, access=access, sessions=SESSIONS, traffic=traffic, say=print, wall=lambda: NOW)
    open_streams = []

    def on_chunk(number: int) -> None:
        open_streams.append(traffic.num_streams)
        if number == 10:
            revoke_token(path, "ada")

    sent = drive(guard, {"Host": "localhost", **bearer(tokens["ada"])}, on_chunk=on_chunk)
    assert len(sent) == 11
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert set(open_streams) == {1}
    assert traffic.num_streams == 0
    assert traffic.requests == {("/api/events", "GET", "200"): 1}
    assert "/api/events" not in traffic.durations
