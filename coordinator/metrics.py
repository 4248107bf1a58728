"""Prometheus metrics of a run, computed from the store at scrape time, and where Prometheus finds what to scrape.

Reading state instead of counting events means that counters survive restarts and that a metric can never disagree with
the store. The families are in `coordinator/metric_catalogue.py`; beside them stand the `process_*` of the coordinator.

    /metrics    text, or OpenMetrics with exemplars where that is asked for
    /targets    what is to be scraped, for Prometheus' http_sd: this coordinator. Agents have no metrics of their own.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from coordinator.errors import StoreError, UserError
from coordinator.metric_families import build, readable, store_families, writable
from coordinator.store import StoreReader
from coordinator.vitals import Vitals

JOB = "archfleet-coordinator"

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class StudyCollector:
    """Reads one run's store whenever it is scraped. With `vitals` it also tells whether the store can be written."""

    def __init__(
        self, run_directory: Path, *, vitals: Vitals | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._run_directory = run_directory
        self._vitals = vitals
        self._wall = wall
        self._build = build()

    def collect(self) -> Iterator[Metric]:
        """All metric families; of the store only `archfleet_store_readable` = 0 where it cannot be read."""
        try:
            with StoreReader.open(self._run_directory) as store:
                families = [readable(is_readable=True), *store_families(store, now_unix=self._wall())]
        except StoreError:
            families = [readable(is_readable=False)]
        families.append(self._build)
        if self._vitals is not None:
            families.append(writable(is_writable=self._vitals.is_writable))
        yield from families


@contextmanager
def serve_metrics(run_directory: Path, *, port: int, vitals: Vitals | None = None) -> Iterator[int]:
    """Serve on loopback while the context is open; port 0 takes a free one. Yields the port.

    Args:
        run_directory: its store is read at every scrape.
        port: of the listener.
        vitals: the running coordinator's own; without them nobody can say whether the store is writable.

    Raises:
        UserError: the port is in use.
    """
    registry = CollectorRegistry()
    registry.register(StudyCollector(run_directory, vitals=vitals))
    ProcessCollector(registry=registry)
    try:
        server = make_server("127.0.0.1", port, _nothing, ThreadingWSGIServer, handler_class=_SilentHandler)
    except OSError as error:
        raise UserError(
            f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror}.\n"
            "Give another port with --metrics-port PORT, or 0 for any free one."
        ) from None
    server.set_app(_application(registry, address=f"127.0.0.1:{server.server_port}"))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _application(registry: CollectorRegistry, *, address: str) -> _Application:
    metrics = make_wsgi_app(registry)
    targets = json.dumps([{"targets": [address], "labels": {"job": JOB}}]).encode()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return metrics(environ, start_response)  # type: ignore[no-any-return]
            case "/targets":
                start_response("200 OK", [("Content-Type", "application/json")])
                return [targets]
            case _:
                return _nothing(environ, start_response)

    return answer


def _nothing(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"Here are /metrics and /targets.\n"]


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""
