"""The dashboard's server: uvicorn in a thread of its own, with limits on whoever is slow, large or many."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.dashboard.access import Access
from coordinator.dashboard.app import create_app
from coordinator.dashboard.guard import MAX_HEAD_BYTES
from coordinator.errors import UserError
from coordinator.traffic import Traffic

DEFAULT_PORT = 8420
MAX_CONNECTIONS = 512
HEAD_SECONDS = 15.0
"""From a connection, or from an answer, to the end of the next request's head."""
KEEP_ALIVE_SECONDS = 10
START_SECONDS = 20.0
STOP_SECONDS = 3


@dataclass(frozen=True, kw_only=True)
class Listening:
    """A dashboard that can be reached."""

    port: int
    url: str
    thread: Thread

    @property
    def is_alive(self) -> bool:
        """False when it has ended by itself."""
        return self.thread.is_alive()


@contextmanager
def serve_dashboard(
    run_directory: Path,
    *,
    access: Access,
    port: int | None = None,
    traffic: Traffic,
    is_ready: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[Listening]:
    """Serve a run's dashboard while the context is open.

    Args:
        run_directory: its store is read.
        access: where it listens, and who may read.
        port: 0 takes a free one; without any it is the usual one, or a free one where that is in use.
        traffic: where requests are counted.
        is_ready: whether the coordinator has taken up the run.
        say: told of what goes wrong later.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    app = create_app(run_directory, access=access, traffic=traffic, is_ready=is_ready, say=say)
    config = uvicorn.Config(
        app,
        http=_TimedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=access.is_behind_proxy,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_certfile=None if access.tls is None else str(access.tls[0]),
        ssl_keyfile=None if access.tls is None else str(access.tls[1]),
    )
    server, listener = uvicorn.Server(config), _listen(access.host, port, say)
    thread = Thread(target=_run, args=(server, listener, say), name="dashboard", daemon=True)
    thread.start()
    bound = listener.getsockname()[1]
    try:
        yield Listening(port=bound, url=access.url(bound), thread=thread)
    finally:
        app.state.hub.close()  # else the server would wait for streams that have no end
        server.should_exit = True
        thread.join(timeout=2 * STOP_SECONDS + 1)


def _run(server: uvicorn.Server, listener: socket.socket, say: Callable[[str], None]) -> None:
    try:
        asyncio.run(server.serve(sockets=[listener]))
    except BaseException as error:  # a coordinator does not end with its dashboard
        say(f"the dashboard has ended: {type(error).__name__}: {error}; the run goes on without it")
    finally:
        listener.close()


def _listen(host: str, port: int | None, say: Callable[[str], None]) -> socket.socket:
    try:
        return _bound(host, DEFAULT_PORT if port is None else port)
    except OSError as error:
        if port is not None:
            raise UserError(
                f"cannot serve the dashboard on {host}:{port}: {error.strerror}.\n"
                "Give another port with --port PORT (--dashboard-port beside a run), or 0 for any free one."
            ) from None
    try:
        found = _bound(host, 0)
    except OSError as error:
        raise UserError(f"cannot serve the dashboard on {host}: {error.strerror}.") from None
    say(f"port {DEFAULT_PORT} is in use: the dashboard takes {found.getsockname()[1]}")
    return found


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError:
        found.close()
        raise
    return found


class _TimedProtocol(H11Protocol):
    """HTTP/1.1, where a connection may not take for ever to say what it wants."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def _await_head(self) -> None:
        self.loop.call_later(HEAD_SECONDS, self._give_up, self.cycle)

    def _give_up(self, cycle: Any) -> None:
        if self.cycle is cycle and (cycle is None or cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()
