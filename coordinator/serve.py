"""`archfleet serve`, and the dashboard beside `archfleet run`: the same server, alone or next to the loop."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.dashboard.access import Access, Wish, decide_access
from coordinator.errors import StoreError, UserError
from coordinator.store import StoreReader
from coordinator.traffic import Traffic

if TYPE_CHECKING:
    from coordinator.dashboard.server import Listening

NOT_INSTALLED = "what the dashboard needs is not installed: `pip install 'archfleet[dashboard]'`"
POLL_SECONDS = 0.2


def serve_run(
    run_directory: Path,
    wish: Wish,
    *,
    port: int | None,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Serve the dashboard of a run, whether it goes on or has ended, until a stop is asked for.

    Raises:
        UserError: the dashboard is not installed, the port is in use, or others could read it without a token.
    """
    if not is_installed():
        raise UserError(NOT_INSTALLED)
    from coordinator.dashboard.server import serve_dashboard

    access = decide_access(wish)
    with serve_dashboard(
        run_directory,
        access=access,
        port=port,
        traffic=Traffic(),
        is_ready=lambda: is_readable(run_directory),
        say=say,
    ) as listening:
        say(f"{run_directory}: {words_of(listening, access)}; Ctrl-C ends it")
        while listening.is_alive and not stop_requested():
            sleep(POLL_SECONDS)
        if not stop_requested():
            raise UserError("the dashboard has ended by itself; what was printed above says why.")


@contextmanager
def dashboard_beside(
    run_directory: Path,
    access: Access,
    *,
    port: int | None,
    traffic: Traffic,
    is_ready: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator["Listening | None"]:
    """Serve beside a run while the context is open. Where that fails the run goes on without; null is given then.

    Raises:
        UserError: the port that was asked for is in use.
    """
    with ExitStack() as stack:
        listening = None
        if not is_installed():
            say(f"no dashboard: {NOT_INSTALLED}")
        else:
            try:
                from coordinator.dashboard.server import serve_dashboard

                serving = serve_dashboard(
                    run_directory, access=access, port=port, traffic=traffic, is_ready=is_ready, say=say
                )
                listening = stack.enter_context(serving)
            except UserError:
                raise
            except Exception as error:  # whatever it is: a run is worth more than its dashboard
                say(f"no dashboard: {type(error).__name__}: {error}")
            else:
                say(words_of(listening, access))
        yield listening


def words_of(listening: "Listening", access: Access) -> str:
    """Where the dashboard is, and what it asks for."""
    return f"dashboard at {listening.url}" + (" (asks for a token)" if access.book is not None else "")


def is_installed() -> bool:
    """Whether the extra `dashboard` is there."""
    return all(find_spec(name) is not None for name in ("fastapi", "uvicorn"))


def is_readable(run_directory: Path) -> bool:
    """Whether the store can be read now."""
    try:
        StoreReader.open(run_directory).close()
    except StoreError:
        return False
    return True
