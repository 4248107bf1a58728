"""The dashboard's application: pages, JSON, the stream of events, static files, and the guard in front of them all.

It only reads the store. Every answer under /api is described by /openapi.json.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from anyio import to_thread
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from coordinator.dashboard.access import Access
from coordinator.dashboard.api import api_router
from coordinator.dashboard.guard import Guard, cookie_name
from coordinator.dashboard.sessions import NUM_KEY_BYTES, Sessions, Tries
from coordinator.dashboard.source import RunSource
from coordinator.dashboard.stream import EventHub, stream_router
from coordinator.errors import StoreError
from coordinator.tokens import Token, verdict
from coordinator.traffic import Traffic
from coordinator.version import version
from hwprofiles.value import Value

STATIC = Path(__file__).parent / "static"
PALETTE = Path(__file__).parents[1] / "figures"
SHELL_ROUTES = ("/", "/study", "/trials", "/trials/{trial_id}", "/hardware", "/recommendation")
_SHELL_PATH = re.compile(
    r"\A/(study|trials(/[a-z0-9][a-z0-9_.-]{0,127})?|hardware|recommendation)?(\?[A-Za-z0-9_=&.,%+-]{0,500})?\Z"
)
NUM_THREADS = 4
"""That make answers: beside a run they share its processor with the loop."""
MAX_FORM_BYTES = 4_096
FORM_SECONDS = 10.0


class Problem(Value):
    """What went wrong, in a sentence."""

    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    304: {"description": "Nothing has changed since the answer with this ETag."},
    400: {"model": Problem, "description": "The dashboard is not known by this name."},
    401: {"model": Problem, "description": "A token is needed."},
    403: {"model": Problem, "description": "The token is for something else."},
    404: {"model": Problem, "description": "There is none of this name."},
    422: {"model": Problem, "description": "A parameter cannot be used."},
    503: {"model": Problem, "description": "The store cannot be read."},
}


def create_app(
    run_directory: Path,
    *,
    access: Access,
    traffic: Traffic,
    is_ready: Callable[[], bool],
    say: Callable[[str], None] = print,
    wall: Callable[[], float] = time.time,
) -> FastAPI:
    """The dashboard of one run.

    Args:
        run_directory: its store is read.
        access: who may read it, and under which names it is known.
        traffic: where requests are counted.
        is_ready: whether the coordinator has taken up the run.
        say: told of the application's own errors.
        wall: seconds since 1970; tokens and sessions end by it.
    """
    source, hub = RunSource(run_directory), EventHub(run_directory)
    sessions = Sessions(secrets.token_bytes(NUM_KEY_BYTES))

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = NUM_THREADS
        yield
        hub.close()
        source.close()

    app = FastAPI(
        title="archfleet",
        summary="One run of one study, read-only.",
        version=version(),
        docs_url=None,  # they would fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=life,
    )
    app.state.hub = hub
    app.include_router(api_router(source), responses=PROBLEMS)
    app.include_router(stream_router(hub), responses={code: PROBLEMS[code] for code in (400, 401, 403, 422, 503)})
    app.include_router(_shell_router())
    app.include_router(_probe_router(is_ready))
    if access.book is not None:
        app.include_router(_login_router(access, sessions, traffic, wall))
    app.add_exception_handler(StoreError, _store_problem)
    app.add_exception_handler(RequestValidationError, _parameter_problem)
    app.add_middleware(Guard, access=access, sessions=sessions, traffic=traffic, say=say, wall=wall)
    return app


def _shell_router() -> APIRouter:
    """The one page that draws them all, and the files it is made of."""
    router = APIRouter(include_in_schema=False)
    files, palette = StaticFiles(directory=STATIC), StaticFiles(directory=PALETTE)

    async def shell(request: Request) -> Response:
        if not _SHELL_PATH.search(request.scope["path"]):  # `request.url` has lost its newlines
            raise HTTPException(404, "There is no page of this name.")
        return await files.get_response("index.html", request.scope)

    for path in SHELL_ROUTES:
        router.add_api_route(path, shell, methods=["GET"])

    @router.get("/static/{path:path}")
    async def static(request: Request, path: str) -> Response:
        if path == "palette.css":
            return await palette.get_response(path, request.scope)
        return await files.get_response(files.get_path({"type": "http", "path": path, "root_path": ""}), request.scope)

    return router


def _probe_router(is_ready: Callable[[], bool]) -> APIRouter:
    """For those who start and stop the coordinator."""
    router = APIRouter(include_in_schema=False, default_response_class=PlainTextResponse)

    @router.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @router.get("/readyz")
    def readyz() -> PlainTextResponse:
        return PlainTextResponse("ok") if is_ready() else PlainTextResponse("not ready yet", status_code=503)

    return router


def _login_router(access: Access, sessions: Sessions, traffic: Traffic, wall: Callable[[], float]) -> APIRouter:
    """A form takes a token and gives a session."""
    router = APIRouter(include_in_schema=False)
    files, tries = StaticFiles(directory=STATIC), Tries()
    assert access.book is not None
    book = access.book

    @router.get("/login")
    async def page(request: Request) -> Response:
        return await files.get_response("login.html", request.scope)

    @router.post("/login")
    async def login(request: Request) -> Response:
        address, now = request.client.host if request.client else "", wall()
        form = await _form(request)
        onward = form.get("next", "/")
        onward = onward if _SHELL_PATH.search(onward) else "/"
        if tries.must_wait(address, now=now):
            return _to_login(onward, "limited")
        user = verdict(book.tokens(), form["token"].strip().encode() if "token" in form else None, "read", now_unix=now)
        if not isinstance(user, Token):
            traffic.refused(user)
            tries.failed(address, now=now)
            return _to_login(onward, "failed")
        answer = RedirectResponse(onward, status_code=303)
        value, seconds = sessions.cookie(user, now_unix=now)
        answer.set_cookie(
            cookie_name(access),
            value,
            max_age=seconds,
            path="/",
            secure=access.is_secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    @router.post("/logout")
    async def logout() -> Response:
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(cookie_name(access), path="/", secure=access.is_secure, httponly=True, samesite="strict")
        return answer

    return router


def _to_login(onward: str, why: str) -> Response:
    query = {why: "1"} | ({} if onward == "/" else {"next": onward})
    return RedirectResponse(f"/login?{urlencode(query)}", status_code=303)


async def _form(request: Request) -> dict[str, str]:
    """Fields of a form, the first of each name.

    Raises:
        HTTPException: it is larger or slower than any form of ours.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM_BYTES:
                    raise HTTPException(413, f"A form may have {MAX_FORM_BYTES:,} bytes.")
    except TimeoutError:
        raise HTTPException(400, f"The form did not arrive within {FORM_SECONDS:.0f} s.") from None
    fields = parse_qs(bytes(body).decode("utf-8", errors="replace"), max_num_fields=None)
    return {name: values[0] for name, values in fields.items()}


async def _store_problem(_request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status_code=503)


async def _parameter_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"detail": "; ".join(wrong)}, status_code=422)
