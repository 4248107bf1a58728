"""The dashboard alone and beside a run: it never ends the run."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import serve
from coordinator.dashboard.access import Access, Wish
from coordinator.errors import UserError
from coordinator.serve import dashboard_beside, is_readable, serve_run
from coordinator.store import FILE_NAME
from coordinator.traffic import Traffic

pytest.importorskip("fastapi", reason="the dashboard is not installed; pip install 'archfleet[dashboard]'")


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


class Served:
    """`serve_run` in a thread, until it is asked to stop."""

    def __init__(self, run: Path, wish: Wish) -> None:
        self.said: list[str] = []
        self._stop, self._told = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(run, wish))

    def _serve(self, run: Path, wish: Wish) -> None:
        serve_run(run, wish, port=0, say=self._say, stop_requested=self._stop.is_set)

    def _say(self, sentence: str) -> None:
        self.said.append(sentence)
        self._told.set()

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._told.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return next(word for word in self.said[0].replace(";", " ").split() if word.startswith("http"))


def test_a_finished_run_is_served_alone_until_a_stop_is_asked_for(run_copy: Path) -> None:
    with Served(run_copy, Wish()) as served:
        url = served.url
        assert fetch(f"{url}api/overview")[0] == 200
        assert fetch(f"{url}healthz") == (200, "ok")
        assert fetch(f"{url}readyz") == (200, "ok")
        (run_copy / FILE_NAME).unlink()
        assert fetch(f"{url}readyz")[0] == 503
    with pytest.raises(urllib.error.URLError):
        fetch(f"{url}healthz")


def test_what_is_wrong_is_told_before_anything_listens(run_copy: Path, tmp_path: Path, taken_port: int) -> None:
    def call(wish: Wish, port: int = 0) -> None:
        serve_run(run_copy, wish, port=port, say=print, stop_requested=lambda: True)

    with pytest.raises(UserError, match="without TLS"):
        call(Wish(host="0.0.0.0"))
    with pytest.raises(UserError, match="no token in"):
        call(Wish(host="0.0.0.0", is_behind_proxy=True, tokens=tmp_path / "none.toml"))
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{taken_port}: .*in use.\n.*--port"):
        call(Wish(), port=taken_port)
    with pytest.raises(UserError, match=r"cannot serve the dashboard on 203\.0\.113\.9"):
        call(Wish(host="203.0.113.9", is_behind_proxy=True, tokens=token_file(tmp_path)))


def token_file(directory: Path) -> Path:
    from coordinator.tokens import NUM_RANDOM_BYTES, create_token

    path = directory / "tokens.toml"
    create_token(path, "ada", scopes=("read",), random_bytes=bytes(NUM_RANDOM_BYTES), now_unix=0)
    return path


def test_without_the_extra_serving_alone_says_what_to_install(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'archfleet\[dashboard\]'"):
        serve_run(run_copy, Wish(), port=0, say=print, stop_requested=lambda: True)


def beside(run: Path, said: list[str], port: int | None = 0):
    return dashboard_beside(run, Access(), port=port, traffic=Traffic(), is_ready=lambda: False, say=said.append)


def test_beside_a_run_it_is_there_before_the_run_is_taken_up(run_copy: Path) -> None:
    said: list[str] = []
    with beside(run_copy, said) as listening:
        assert listening is not None
        assert fetch(f"{listening.url}healthz") == (200, "ok")
        assert fetch(f"{listening.url}readyz")[0] == 503
        assert said == [f"dashboard at {listening.url}"]
    assert not listening.is_alive


def test_without_the_extra_a_run_goes_on_and_says_what_to_install(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda _: None)
    said: list[str] = []
    with beside(run_copy, said) as listening:
        assert listening is None
    assert said == ["no dashboard: what the dashboard needs is not installed: `pip install 'archfleet[dashboard]'`"]


def test_a_dashboard_that_cannot_begin_does_not_end_the_run(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no static files")

    monkeypatch.setattr("coordinator.dashboard.server.create_app", broken)
    said: list[str] = []
    with beside(run_copy, said) as listening:
        assert listening is None
    assert said == ["no dashboard: RuntimeError: no static files"]


def test_a_dashboard_that_ends_by_itself_is_told_and_the_run_goes_on(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(*_: object, **__: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr("uvicorn.Server.main_loop", crash)
    said: list[str] = []
    with beside(run_copy, said) as listening:
        assert listening is not None
        listening.thread.join(20)
        assert not listening.is_alive
    assert said[-1] == "the dashboard has ended: SystemExit: 3; the run goes on without it"


def test_the_usual_port_in_use_is_no_reason_to_stop(
    run_copy: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.dashboard.server.DEFAULT_PORT", taken_port)
    said: list[str] = []
    with beside(run_copy, said, port=None) as listening:
        assert listening is not None
        assert said[0] == f"port {taken_port} is in use: the dashboard takes {listening.port}"
        assert fetch(f"{listening.url}healthz")[0] == 200


def test_a_port_that_was_asked_for_and_is_in_use_is_told(run_copy: Path, taken_port: int) -> None:
    with (
        pytest.raises(UserError, match=r"--dashboard-port"),
        dashboard_beside(run_copy, Access(), port=taken_port, traffic=Traffic(), is_ready=lambda: True, say=print),
    ):
        pass


def test_a_store_is_readable_or_not(run_copy: Path) -> None:
    assert is_readable(run_copy)
    (run_copy / FILE_NAME).unlink()
    assert not is_readable(run_copy)
