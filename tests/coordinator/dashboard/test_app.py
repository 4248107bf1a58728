"""The application: every route with and without a token, hostile paths, logging in, and what is said when it fails."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the dashboard is not installed; pip install 'archfleet[dashboard]'")

from starlette.testclient import TestClient

from coordinator.dashboard.access import Access
from coordinator.dashboard.app import MAX_FORM_BYTES, STATIC, create_app
from coordinator.store import FILE_NAME, StoreReader
from coordinator.tokens import NUM_RANDOM_BYTES, TokenBook, create_token, revoke_token
from coordinator.traffic import ROUTES, Traffic

PUBLIC = ("/login", "/healthz", "/readyz", "/static/app.js", "/static/palette.css")
PAGE = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path, made = tmp_path_factory.mktemp("access") / "tokens.toml", {}
    for number, (name, scope) in enumerate([("ada", "read"), ("prom", "metrics")]):
        made[name], _ = create_token(
            path, name, scopes=(scope,), random_bytes=bytes([number + 1]) * NUM_RANDOM_BYTES, now_unix=0
        )
    return path, made


def client_of(run: Path, book: TokenBook | None = None, **access: Any) -> TestClient:
    app = create_app(run, access=Access(book=book, **access), traffic=Traffic(), is_ready=lambda: True)
    return TestClient(app, base_url="http://localhost:8420", follow_redirects=False)


@pytest.fixture(scope="module")
def open_client(finished_run: Path) -> Iterator[TestClient]:
    with client_of(finished_run) as client:
        yield client


@pytest.fixture(scope="module")
def client(finished_run: Path, tokens: tuple[Path, dict[str, str]]) -> Iterator[TestClient]:
    with client_of(finished_run, TokenBook(tokens[0])) as client:
        yield client


@pytest.fixture(scope="module")
def names(finished_run: Path, open_client: TestClient) -> dict[str, str]:
    """What stands in routes' places."""
    with StoreReader.open(finished_run) as store:
        trial_id = store.trials()[0].trial_id
    figures = open_client.get("/api/figures").json()["figures"]
    return {"trial_id": trial_id, "figure": figures[0]["name"], "config": "recommended", "path": "app.js"}


def path_of(route: str, names: dict[str, str]) -> str:
    """A path that the route answers with 200."""
    route = route.replace("{trial_id}", names["trial_id"]).replace("{path}", names["path"])
    return route.replace("{name}", names["config" if "configs" in route else "figure"])


OTHERS = {"/metrics", "/targets", "unknown", "/login", "/logout", "/api/events"}
GUARDED = sorted(route for route in set(ROUTES) - OTHERS if not route.startswith(PUBLIC[1:3]) and "static" not in route)


def test_the_list_of_routes_is_the_applications(client: TestClient) -> None:
    described = set(client.app.openapi()["paths"])
    assert described <= set(ROUTES)
    assert {route for route in ROUTES if route.startswith("/api/")} == described


@pytest.mark.parametrize("route", GUARDED)
def test_every_route_answers_who_may_read_and_nobody_else(
    client: TestClient, open_client: TestClient, tokens: tuple[Path, dict[str, str]], names: dict[str, str], route: str
) -> None:
    path = path_of(route, names)
    assert open_client.get(path).status_code == 200
    assert client.get(path).status_code == 401
    assert client.get(path, headers={"Authorization": "Bearer aft_wrong"}).status_code == 401
    assert client.get(path, headers={"Authorization": f"Bearer {tokens[1]['prom']}"}).status_code == 403
    assert client.get(path, headers={"Authorization": f"Bearer {tokens[1]['ada']}"}).status_code == 200


def test_the_stream_of_events_asks_for_a_token_too(client: TestClient, tokens: tuple[Path, dict[str, str]]) -> None:
    assert client.get("/api/events").status_code == 401
    assert client.get("/api/events", headers={"Authorization": f"Bearer {tokens[1]['prom']}"}).status_code == 403


@pytest.mark.parametrize("path", PUBLIC)
def test_the_way_in_is_open(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


def test_where_no_token_is_needed_there_is_no_login(open_client: TestClient) -> None:
    assert open_client.get("/login").status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/api/overview", "/static/app.js"])
def test_nothing_can_be_changed(open_client: TestClient, method: str, path: str) -> None:
    assert open_client.request(method, path).status_code == 405


# Paths

HOSTILE = [
    "../app.py",
    "../../errors.py",
    "..%2fapp.py",
    "%2e%2e/app.py",
    "%2e%2e%2f%2e%2e%2ferrors.py",
    "..%5capp.py",
    "....//app.py",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "vendor/../../app.py",
    "palette.css/../figure.py",
    "app.js%00.css",
    ".",
    "",
    "%c0%ae%c0%ae/app.py",
    "a" * 5000,
]


def ask(client: TestClient, path: str) -> tuple[int, str]:
    """Code and body for a path as it stands: a client of its own kind would have cleaned it."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}  # nothing here has a body

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "server": ("127.0.0.1", 8420),
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:]).decode()


@pytest.mark.parametrize("path", HOSTILE)
def test_nothing_beside_the_static_files_is_served(open_client: TestClient, path: str) -> None:
    assert ask(open_client, f"/static/{path}")[0] == 404


def test_the_static_files_are(open_client: TestClient) -> None:
    assert ask(open_client, "/static/app.js")[0] == 200


def test_a_link_out_of_the_static_files_is_not_followed(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = Path(shutil.copytree(STATIC, tmp_path / "static"))
    (tmp_path / "secret.txt").write_text("secret")
    (static / "link.txt").symlink_to(tmp_path / "secret.txt")
    (static / "folder").symlink_to(tmp_path)
    monkeypatch.setattr("coordinator.dashboard.app.STATIC", static)
    with client_of(finished_run) as client:
        assert client.get("/static/index.html").status_code == 200
        assert client.get("/static/link.txt").status_code == 404
        assert client.get("/static/folder/secret.txt").status_code == 404


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["..", ".", "", "%2e%2e", "%2f", "etc", "app.py", "vendor", "\\", "%5c", "%01"])),
    prefix=st.sampled_from(["/static/", "/api/trials/", "/api/configs/", "/api/figures/", "/trials/"]),
)
def test_no_path_gives_a_file_of_ours_or_a_mistake(open_client: TestClient, prefix: str, parts: list[str]) -> None:
    code, text = ask(open_client, prefix + "/".join(parts))
    # A trial's page is the same for every name of the alphabet, of a trial or not.
    assert code in ((200, 404, 422) if prefix == "/trials/" else (404, 422)), text[:200]
    assert "import " not in text


@pytest.mark.parametrize(
    "trial_id",
    ["Train-1", "train-1%0a", "%0atrain-1", "-x", "a" * 129, "train-1%20", "%00", "..", "..%2f..", "a%2fb", "é"],
)
@pytest.mark.parametrize("route", ["/trials", "/api/trials", "/api/figures", "/api/configs"])
def test_a_name_is_of_the_alphabet_or_nothing(open_client: TestClient, route: str, trial_id: str) -> None:
    assert ask(open_client, f"{route}/{trial_id}")[0] in (404, 422)


def test_wrong_parameters_are_told_in_a_sentence(open_client: TestClient) -> None:
    answer = open_client.get("/api/trials?limit=0&after=x")
    assert answer.status_code == 422
    assert re.search("after: .*integer.*; limit: .*greater", answer.json()["detail"])
    assert isinstance(open_client.get("/api/trials/train-0").json()["detail"], str)


def test_what_the_reader_has_is_not_sent_again(open_client: TestClient) -> None:
    for path in ("/api/study", "/api/trials", "/", "/static/palette.css", "/static/app.js"):
        first = open_client.get(path)
        again = open_client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), path
        assert "no-cache" in again.headers["cache-control"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/static/app.js", "text/javascript"),
        ("/static/palette.css", "text/css"),
        ("/static/icon.svg", "image/svg+xml"),
        ("/api/overview", "application/json"),
    ],
)
def test_a_file_says_what_it_is(open_client: TestClient, path: str, kind: str) -> None:
    assert open_client.get(path).headers["content-type"].split(";")[0] == kind


def test_a_store_that_cannot_be_read_is_told_and_comes_back(run_copy: Path) -> None:
    with client_of(run_copy) as client:
        (run_copy / FILE_NAME).rename(run_copy / "gone")
        answer = client.get("/api/overview")
        assert answer.status_code == 503
        assert FILE_NAME in answer.json()["detail"] or "run" in answer.json()["detail"]
        assert client.get("/").status_code == 200
        (run_copy / "gone").rename(run_copy / FILE_NAME)
        assert client.get("/api/overview").status_code == 200


# Logging in


@pytest.fixture
def own_tokens(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "tokens.toml"
    secret, _ = create_token(path, "ada", scopes=("read",), random_bytes=b"x" * NUM_RANDOM_BYTES, now_unix=0)
    return path, secret


Login = Callable[..., TestClient]


@pytest.fixture
def visitor(finished_run: Path, own_tokens: tuple[Path, str]) -> Iterator[Login]:
    clients = []

    def make(*, base_url: str = "http://localhost:8420", **access: Any) -> TestClient:
        client = client_of(finished_run, TokenBook(own_tokens[0]), **access)
        client.base_url = base_url
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def test_a_browser_logs_in_reads_and_logs_out(visitor: Login, own_tokens: tuple[Path, str]) -> None:
    client = visitor()
    assert client.get("/trials", headers=PAGE).headers["location"] == "/login?next=/trials"
    answer = client.post("/login", data={"token": f" {own_tokens[1]} ", "next": "/trials"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/trials")
    cookie = answer.headers["set-cookie"]
    assert own_tokens[1] not in cookie
    assert re.search(r"^archfleet=[^;]+; HttpOnly; Max-Age=43200; Path=/; SameSite=strict$", cookie)
    assert client.get("/trials", headers=PAGE).status_code == 200
    assert client.get("/api/overview").status_code == 200
    assert client.post("/logout").headers["location"] == "/login"
    assert client.get("/api/overview").status_code == 401


def test_over_https_the_cookie_is_for_https_and_this_host(visitor: Login, own_tokens: tuple[Path, str]) -> None:
    client = visitor(base_url="https://localhost:8420", is_behind_proxy=True)
    cookie = client.post("/login", data={"token": own_tokens[1]}).headers["set-cookie"]
    assert cookie.startswith("__Host-archfleet=")
    assert "; Secure" in cookie
    assert client.get("/api/overview").status_code == 200


def test_a_revoked_token_ends_its_sessions(visitor: Login, own_tokens: tuple[Path, str]) -> None:
    client = visitor()
    client.post("/login", data={"token": own_tokens[1]})
    assert client.get("/api/overview").status_code == 200
    revoke_token(own_tokens[0], "ada")
    assert client.get("/api/overview").status_code == 401


@pytest.mark.parametrize(
    "data", [{"token": "aft_wrong"}, {"token": "é\udc00".encode("utf-8", "replace")}, {}, {"x": "y"}]
)
def test_a_wrong_token_leads_back_and_opens_nothing(visitor: Login, data: dict[str, str]) -> None:
    client = visitor()
    answer = client.post("/login", data=data)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?failed=1")
    assert "set-cookie" not in answer.headers
    assert client.get("/api/overview").status_code == 401


@pytest.mark.parametrize(
    ("onward", "taken"),
    [
        ("/study", "/study"),
        ("/trials/train-0a", "/trials/train-0a"),
        ("/trials?state=failed&query=x%20y", "/trials?state=failed&query=x%20y"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/study\r\nSet-Cookie: x=y", "/"),
        ("/study\n", "/"),
        ("javascript:alert(1)", "/"),
        ("/logout", "/"),
        ("", "/"),
    ],
)
def test_a_login_leads_to_pages_of_its_own_only(
    visitor: Login, own_tokens: tuple[Path, str], onward: str, taken: str
) -> None:
    answer = visitor().post("/login", data={"token": own_tokens[1], "next": onward})
    assert answer.headers["location"] == taken


def test_who_guesses_has_to_wait_and_the_right_token_with_him(visitor: Login, own_tokens: tuple[Path, str]) -> None:
    client = visitor()
    for _ in range(10):
        assert client.post("/login", data={"token": "aft_guess"}).headers["location"] == "/login?failed=1"
    answer = client.post("/login", data={"token": own_tokens[1], "next": "/study"})
    assert answer.headers["location"] == "/login?limited=1&next=%2Fstudy"
    assert "set-cookie" not in answer.headers


def test_a_form_is_small(visitor: Login) -> None:
    client = visitor()
    assert client.post("/login", content=b"token=" + b"x" * MAX_FORM_BYTES).status_code == 413
    chunks = (b"token=" + b"x" * 1000 for _ in range(10))
    assert client.post("/login", content=chunks).status_code == 413
    assert client.post("/login", content="&".join(f"a{n}=" for n in range(600))).status_code == 303


def test_no_token_is_in_any_log_or_answer(
    visitor: Login, own_tokens: tuple[Path, str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, client, told = own_tokens[1], visitor(), []
    told.append(client.post("/login", data={"token": secret}))
    told += [client.get(path) for path in ("/", "/api/overview", "/openapi.json", "/static/app.js", "/nothing")]
    told.append(client.get("/api/study", headers={"Authorization": f"Bearer {secret}x"}))
    told.append(client.get("/api/study", headers={"Authorization": f"Bearer {secret}", "Host": "evil.example"}))
    written = caplog.text + "".join(capfd.readouterr()) + own_tokens[0].read_text()
    written += "".join(answer.text + json.dumps(dict(answer.headers)) for answer in told)
    assert secret.removeprefix("aft_") not in written
