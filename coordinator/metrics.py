"""Prometheus metrics of a run, computed from the store at scrape time, and where Prometheus finds what to scrape.

Reading state instead of counting events means that counters survive restarts and that a metric can never disagree with
the store. The families are in `coordinator/metric_catalogue.py`; beside them stand the `process_*` of the coordinator.

    /metrics            text, or OpenMetrics with exemplars where that is asked for
    /targets            what is to be scraped, for Prometheus' http_sd: this coordinator. Agents have no metrics.
    /healthz /readyz    for those who start and stop the coordinator

Whoever comes from another machine needs a token of scope `metrics` for the first two.
"""

import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from coordinator.dashboard.access import LOOPBACK, address_of, is_loopback, require_book
from coordinator.errors import StoreError, UserError
from coordinator.metric_families import build, readable, store_families, traffic_families, writable
from coordinator.store import StoreReader
from coordinator.tokens import Token, TokenBook, bearer, verdict
from coordinator.traffic import Traffic
from coordinator.vitals import Vitals

JOB = "archfleet-coordinator"
MAX_CONNECTIONS = 32
TIMEOUT_SECONDS = 15.0
"""In which whoever asks must say something."""

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_PROBES = ("/healthz", "/readyz")
_ROUTES = (*_PROBES, "/metrics", "/targets")
_ADDRESS = re.compile(r"\A[A-Za-z0-9.-]+(:[0-9]+)?\Z|\A\[[0-9A-Fa-f:.]+\](:[0-9]+)?\Z")


class StudyCollector:
    """Reads one run's store whenever it is scraped. With `vitals` it also tells whether the store can be written."""

    def __init__(
        self,
        run_directory: Path,
        *,
        vitals: Vitals | None = None,
        traffic: Traffic | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._run_directory = run_directory
        self._vitals = vitals
        self._traffic = traffic or Traffic()
        self._wall = wall
        self._build = build()

    def collect(self) -> Iterator[Metric]:
        """All metric families; of the store only `archfleet_store_readable` = 0 where it cannot be read."""
        try:
            with StoreReader.open(self._run_directory) as store:
                families = [readable(is_readable=True), *store_families(store, now_unix=self._wall())]
        except StoreError:
            families = [readable(is_readable=False)]
        families += [self._build, *traffic_families(self._traffic)]
        if self._vitals is not None:
            families.append(writable(is_writable=self._vitals.is_writable))
        yield from families


def metrics_book(host: str, tokens: Path | None) -> TokenBook | None:
    """The tokens that open the metrics; null where none is needed.

    Raises:
        UserError: another machine could read without a token.
    """
    return None if is_loopback(host) else require_book(tokens, "metrics", what="the metrics")


@contextmanager
def serve_metrics(
    run_directory: Path,
    *,
    port: int,
    host: str = LOOPBACK,
    book: TokenBook | None = None,
    vitals: Vitals | None = None,
    traffic: Traffic | None = None,
    is_ready: Callable[[], bool] = lambda: True,
) -> Iterator[int]:
    """Serve while the context is open; port 0 takes a free one. Yields the port.

    Args:
        run_directory: its store is read at every scrape.
        port: of the listener.
        host: the address it is bound to.
        book: tokens of which one of scope `metrics` is asked for; see `metrics_book`.
        vitals: the running coordinator's own; without them nobody can say whether the store is writable.
        traffic: where this listener's requests are counted, beside the dashboard's.
        is_ready: whether the coordinator has taken up the run.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    traffic = traffic or Traffic()
    registry = CollectorRegistry()
    registry.register(StudyCollector(run_directory, vitals=vitals, traffic=traffic))
    ProcessCollector(registry=registry)
    kind = _ServerOfIPv6 if ":" in host else _Server
    try:
        server = make_server(host, port, _nothing, kind, handler_class=_SilentHandler)
    except OSError as error:
        raise UserError(
            f"cannot serve metrics on {address_of(host, port)}: {error.strerror}.\n"
            "Give another port with --metrics-port PORT, or 0 for any free one."
        ) from None
    server.set_app(_Listener(make_wsgi_app(registry), host, server.server_port, book, traffic, is_ready).answer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class _Listener:
    """The WSGI application: who may have what, and the counting of it."""

    metrics: _Application
    host: str
    port: int
    book: TokenBook | None
    traffic: Traffic
    is_ready: Callable[[], bool]

    def answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        started, path = time.perf_counter(), environ["PATH_INFO"]

        def start(status: str, *rest: Any) -> Any:
            seconds = time.perf_counter() - started
            route = path if path in _ROUTES else "unknown"
            self.traffic.answered(route, environ["REQUEST_METHOD"], int(status[:3]), seconds=seconds)
            return start_response(status, *rest)

        return self._application(path, environ)(environ, start)

    def _application(self, path: str, environ: dict[str, Any]) -> _Application:
        if path in _PROBES:
            is_well = path == "/healthz" or self.is_ready()
            return _text("200 OK", b"ok") if is_well else _text("503 Service Unavailable", b"not ready yet")
        if (refused := self._refusal(environ)) is not None:
            return refused
        match path:
            case "/metrics":
                return self.metrics
            case "/targets":
                return _text("200 OK", self._targets(environ), kind="application/json")
            case _:
                return _nothing

    def _refusal(self, environ: dict[str, Any]) -> _Application | None:
        if self.book is None:
            return None
        presented = bearer(environ.get("HTTP_AUTHORIZATION", "").encode("latin-1"))
        user = verdict(self.book.tokens(), presented, "metrics", now_unix=time.time())
        if isinstance(user, Token):
            return None
        self.traffic.refused(user)
        if user == "scope":
            return _text("403 Forbidden", b"This token is not for metrics: its scopes do not hold `metrics`.\n")
        return _text("401 Unauthorized", b"Send `Authorization: Bearer TOKEN`, a token of scope `metrics`.\n")

    def _targets(self, environ: dict[str, Any]) -> bytes:
        """This listener, under the name by which it was found where it has many."""
        asked, address = environ.get("HTTP_HOST", ""), address_of(self.host, self.port)
        if not is_loopback(self.host) and _ADDRESS.search(asked):
            address = asked
        return json.dumps([{"targets": [address], "labels": {"job": JOB}}]).encode()


def _text(status: str, content: bytes, *, kind: str = "text/plain; charset=utf-8") -> _Application:
    def answer(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [("Content-Type", kind), ("X-Content-Type-Options", "nosniff")]
        if status.startswith("401"):
            headers.append(("WWW-Authenticate", "Bearer"))
        start_response(status, headers)
        return [content]

    return answer


_nothing = _text("404 Not Found", b"Here are /metrics and /targets.\n")


class _Server(ThreadingWSGIServer):
    """A thread for every request, and only so many of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _ServerOfIPv6(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    timeout = TIMEOUT_SECONDS

    def log_message(self, *_: object) -> None:
        """Log nothing."""
