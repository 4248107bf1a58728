"""A real headless Chromium on the dashboard of a synthetic run, and what it complained of."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from coordinator.dashboard.access import Access
from coordinator.traffic import Traffic

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",  # as root, in a container
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`);
});
window.seqs = [];
document.addEventListener("archfleet:event", (event) => window.seqs.push(event.detail.seq));
"""


@dataclass
class Visit:
    """One browser page and everything that it did wrong."""

    page: object
    origin: str
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        """Open a page of the dashboard and wait until it is drawn."""
        self.page.goto(self.origin + path)
        self.page.wait_for_selector("main[aria-busy=false] h1")

    def everything(self) -> list[str]:
        """Errors of the console, failed scripts, requests elsewhere, and breaches of the content security policy."""
        return self.complaints + self.page.evaluate("window.violations")


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A browser for all tests of this process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visiting(chromium) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def open_page(origin: str, *, width: int = 1280, theme: str = "light") -> Visit:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a bound, not a wish: other tests may have the processors
        opened = Visit(page=page, origin=origin.rstrip("/"))
        host = urlsplit(origin).netloc

        def look(request: object) -> None:
            at = urlsplit(request.url)
            if at.scheme not in ("data", "blob") and at.netloc != host:
                opened.complaints.append(f"asked {request.url}")

        def listen(message: object) -> None:
            if message.type in ("error", "warning"):
                opened.complaints.append(message.text)

        page.on("request", look)
        page.on("console", listen)
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        return opened

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Visit]]:
    """A function that opens a fresh profile: (origin, width, theme) -> Visit."""
    with visiting(chromium) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def visits(chromium) -> Iterator[Callable[..., Visit]]:
    """The same for what several tests look at."""
    with visiting(chromium) as open_page:
        yield open_page


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[object]]:
    """A function of a run directory (and a port): the real server, in a thread, while its context is open."""
    pytest.importorskip("fastapi", reason="the extra dashboard is not installed: pip install '.[dashboard]'")
    pytest.importorskip("uvicorn", reason="the extra dashboard is not installed: pip install '.[dashboard]'")
    from coordinator.dashboard.server import serve_dashboard

    defaults = {"access": Access(), "traffic": Traffic(), "is_ready": lambda: True, "say": print}
    return lambda run, **wishes: serve_dashboard(run, **(defaults | wishes))


@pytest.fixture(scope="module")
def dashboard(chromium, finished_run: Path, tmp_path_factory: pytest.TempPathFactory, serve) -> Iterator[str]:
    """Where the dashboard of a finished synthetic run is."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("served") / finished_run.name))
    with serve(run, port=0) as listening:
        yield listening.url
