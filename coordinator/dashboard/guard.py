"""Guard: what stands before every request of the dashboard, and what every answer carries.

probe?  -> answered        /healthz and /readyz say one word to anybody
host    -> 400             the name that was asked for is none of this dashboard's (DNS rebinding)
size    -> 413, 431        nothing here takes a large body or head
origin  -> 403             a form of another site
token   -> 401, 403, 303   the last for a browser that wants a page: to /login
else    -> the application, its answer with the headers below; an error in it is a 500 that tells nothing
"""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.dashboard.access import Access, host_of, is_host_allowed
from coordinator.dashboard.sessions import Sessions
from coordinator.tokens import Refusal, Token, bearer, verdict
from coordinator.traffic import Traffic

PROBES = frozenset({"/healthz", "/readyz"})
OPEN_TO_ALL = ("/login", "/static/")
"""The way in, and files that are the same in every archfleet."""
MAX_BODY_BYTES = 16_384
MAX_HEAD_BYTES = 16_384
"""The server stops reading a longer one, but for what comes with one read."""
RECHECK_SECONDS = 1.0
"""So long may a stream outlive its token."""
EVENT_STREAM = "text/event-stream"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # without any, browsers say of our own forms that they come from nowhere
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_REFUSED: dict[Refusal, str] = {
    "missing": "A token is needed: send `Authorization: Bearer TOKEN`, or log in at /login.",
    "bad": "This token or session is not known here, or not any more; log in at /login.",
    "expired": "This token or session has expired; log in at /login, or ask for a new token.",
    "scope": "This token is not for reading: its scopes do not hold `read`.",
}


@dataclass(frozen=True)
class Guard:
    """An ASGI middleware."""

    app: ASGIApp
    _: KW_ONLY
    access: Access
    sessions: Sessions
    traffic: Traffic
    say: Callable[[str], None]
    """Told once of every kind of error in the application."""
    wall: Callable[[], float] = time.time
    _told: set[str] = field(default_factory=set, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let the application do it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with ExitStack() as stack:
            answer = _Answer(send, stack, self, scope)
            try:
                await (self._refusal(scope) or self.app)(scope, receive, answer.send)
            except _StreamEndedError:
                await answer.end()
            except Exception as error:  # whatever it is: the dashboard goes on, and the coordinator beside it
                self._tell(scope, error)
                if answer.code is None:
                    await _problem(500, "This is a mistake of the dashboard's own.")(scope, receive, answer.send)
                else:
                    await answer.end()

    def user(self, headers: Headers) -> Token | Refusal:
        """Whose request this is, where tokens are needed."""
        assert self.access.book is not None
        tokens, now = self.access.book.tokens(), self.wall()
        if (header := headers.get("authorization")) is not None:
            return verdict(tokens, bearer(header.encode("latin-1")), "read", now_unix=now)
        cookie = cookie_of(headers.get("cookie", ""), cookie_name(self.access))
        return self.sessions.verdict(tokens, cookie, "read", now_unix=now)

    def _refusal(self, scope: Scope) -> Response | None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in PROBES:
            return None
        server = scope.get("server")
        host = headers.get("host", "")
        if not is_host_allowed(host.encode("latin-1"), self.access.names, own_address=server[0] if server else None):
            return _problem(400, f"This dashboard is not {host!r:.100}; start it with --allowed-host to make it so.")
        if not _is_small(headers.get("content-length", "0")):
            return _problem(413, f"A body may have {MAX_BODY_BYTES:,} bytes.")
        if _head_bytes(scope) > MAX_HEAD_BYTES:
            return _problem(431, f"A request's address and headers may have {MAX_HEAD_BYTES:,} bytes.")
        if scope["method"] == "POST" and not _is_own_form(headers, self.access):
            return _problem(403, "This form came from another site.")
        if self.access.book is None or path.startswith(OPEN_TO_ALL):
            return None
        user = self.user(headers)
        if isinstance(user, Token):
            return None
        self.traffic.refused(user)
        return self._turned_away(scope, headers, user)

    def _turned_away(self, scope: Scope, headers: Headers, refusal: Refusal) -> Response:
        wants_page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        if wants_page and not scope["path"].startswith("/api/"):
            return RedirectResponse(f"/login?next={quote(scope['path'], safe='/')}", status_code=303)
        code = 403 if refusal == "scope" else 401
        answer = _problem(code, _REFUSED[refusal])
        if code == 401:
            answer.headers["www-authenticate"] = "Bearer"
        return answer

    def _tell(self, scope: Scope, error: Exception) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        sentence = f"dashboard: {route_of(scope)}: {type(error).__name__}: {error}{where}"
        if sentence not in self._told and len(self._told) < 100:
            self._told.add(sentence)
            self.say(sentence)


class _StreamEndedError(Exception):
    """The token of an open stream is not valid any more."""


class _Answer:
    """One answer on its way out: gets its headers, is counted, and stops where its reader may not read any more."""

    def __init__(self, send: Send, stack: ExitStack, guard: Guard, scope: Scope) -> None:
        self._send = send
        self._stack = stack
        self._guard = guard
        self._scope = scope
        self._started = time.perf_counter()
        self._checked = self._started
        self._is_stream = False
        self._is_over = False
        self.code: int | None = None
        stack.callback(self._count)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif self._is_stream:
            self._require_still_permitted()
        self._is_over = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """Say that nothing more follows."""
        if self.code is not None and not self._is_over:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _begin(self, message: Message) -> None:
        self.code = message["status"]
        headers = MutableHeaders(scope=message)
        for name, value in HEADERS.items():
            headers[name] = value
        headers.setdefault("cache-control", "private, no-cache")
        if headers.get("content-type", "").startswith(EVENT_STREAM):
            self._is_stream = True
            self._stack.enter_context(self._guard.traffic.streaming())

    def _require_still_permitted(self) -> None:
        now = time.perf_counter()
        if self._guard.access.book is None or now - self._checked < RECHECK_SECONDS:
            return
        self._checked = now
        if not isinstance(self._guard.user(Headers(scope=self._scope)), Token):
            raise _StreamEndedError

    def _count(self) -> None:
        seconds = None if self._is_stream else time.perf_counter() - self._started
        if self.code is not None:  # else its reader went away before it began
            self._guard.traffic.answered(route_of(self._scope), self._scope["method"], self.code, seconds=seconds)


def route_of(scope: Scope) -> str:
    """Template of the route that was found, or "unknown"."""
    path = getattr(scope.get("route"), "path", "unknown")
    return str(path).replace(":path}", "}")


def cookie_name(access: Access) -> str:
    """Of the session. The prefix makes browsers refuse it from anything but this host over https."""
    return "__Host-archfleet" if access.is_secure else "archfleet"


def cookie_of(header: str, name: str) -> str | None:
    """Value of a cookie in a Cookie header."""
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return None


def _is_small(content_length: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", content_length) is not None and int(content_length) <= MAX_BODY_BYTES


def _head_bytes(scope: Scope) -> int:
    """About what the request's head has, without its line ends."""
    address = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    return address + sum(len(name) + len(value) for name, value in scope["headers"])


def _is_own_form(headers: Headers, access: Access) -> bool:
    """Browsers name the origin of every form, programs do not. A proxy may have put another host in its place.

    Under some policies of a proxy the origin is "null", of our own forms and of others': then the site decides, which
    browsers tell and no page can set.
    """
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    if origin == "null":
        return headers.get("sec-fetch-site") == "same-origin"
    netloc = origin.partition("://")[2].lower()
    return netloc == headers.get("host", "").lower() or (access.is_behind_proxy and host_of(netloc) in access.names)


def _problem(code: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status_code=code)
