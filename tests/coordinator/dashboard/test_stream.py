"""The stream: every event once and in order, whatever is cut, slow or broken; told over real connections too."""

import asyncio
import contextlib
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coordinator.dashboard import stream
from coordinator.dashboard.stream import EventHub, EventStream, Listener, Tail, number_of, stream_router
from coordinator.schema import checksum
from coordinator.store import Store

POLL_SECONDS = 0.01
PATIENCE_SECONDS = 20


@dataclass
class Page:
    """What a browser makes of a stream: events, the last id, and what is not complete yet."""

    last_id: int | None = None
    events: list[tuple[str, Any]] = field(default_factory=list)
    rest: bytes = b""

    def take(self, chunk: bytes) -> None:
        *blocks, self.rest = (self.rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "id" in fields:
                self.last_id = int(fields["id"])
            if "data" in fields:
                self.events.append((fields["event"], json.loads(fields["data"])))

    def numbers(self) -> list[int]:
        return [data["seq"] for kind, data in self.events if kind not in ("pulse", "resync")]

    def told(self, kind: str) -> list[Any]:
        return [data for one, data in self.events if one == kind]


def append(store: Store, num: int = 1) -> None:
    with store.transaction():
        for _ in range(num):
            store.add_canary(agent="agent-0", hardware="h200", kind="gemm", rate=1.0, deviation=None, now_unix=0)


@contextlib.asynccontextmanager
async def listening(hub: EventHub, page: Page) -> AsyncIterator[None]:
    """Listen as an open page does; the stream is cut at the end."""
    listener = hub.join(page.last_id)

    async def read() -> None:
        async for chunk in listener.chunks(seconds=60):
            page.take(chunk)

    reading = asyncio.ensure_future(read())
    try:
        yield
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        hub.leave(listener)
        page.rest = b""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


def with_hub(run_directory: Path, test: Callable[[EventHub], Awaitable[None]], **options: Any) -> None:
    """Run a test on an event loop, with a hub that is closed at its end."""

    async def run() -> None:
        hub = EventHub(run_directory, **{"poll_seconds": POLL_SECONDS} | options)
        try:
            await test(hub)
        finally:
            hub.close()

    asyncio.run(run())


# Once and in order


@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.generate],  # a stream that stands still takes its time to fail
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(min_value=1, max_value=30)),
            st.tuples(st.just("cut"), st.floats(min_value=0, max_value=0.03)),
            st.tuples(st.just("wait"), st.floats(min_value=0, max_value=0.03)),
        ),
        max_size=12,
    ),
    page_size=st.integers(min_value=1, max_value=7),
)
def test_whoever_comes_back_sees_every_event_once_and_in_order(
    store: Store, monkeypatch, steps: list[tuple[str, Any]], page_size: int
) -> None:
    monkeypatch.setattr(stream, "PAGE", page_size)
    first = store.last_seq()
    page = Page(last_id=first)

    async def test(hub: EventHub) -> None:
        left = list(steps)
        while left:
            async with listening(hub, page):
                while left:
                    what, value = left.pop(0)
                    if what == "append":
                        append(store, value)
                    else:
                        await asyncio.sleep(value)
                    if what == "cut":
                        break
        async with listening(hub, page):
            await until(lambda: page.last_id == store.last_seq())

    with_hub(store.run_directory, test)
    assert page.numbers() == list(range(first + 1, store.last_seq() + 1))
    assert not page.told("resync")


def test_what_is_committed_while_the_hub_reads_is_told_once(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(stream, "PAGE", 3)
    page = Page()

    def write() -> None:
        for _ in range(500):
            append(store)

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await until(lambda: page.last_id == 0)
        writing = asyncio.ensure_future(asyncio.to_thread(write))
        while not writing.done():
            async with listening(hub, page):
                await asyncio.sleep(0.01)
        async with listening(hub, page):
            await until(lambda: page.last_id == 500)

    with_hub(store.run_directory, test, poll_seconds=0.0005)
    assert page.numbers() == list(range(1, 501))


def test_what_is_given_up_is_never_told(store: Store) -> None:
    page = Page()

    def give_up() -> None:
        with store.transaction():
            append(store, 3)
            time.sleep(5 * POLL_SECONDS)
            raise KeyError

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await until(lambda: page.last_id is not None)
            with pytest.raises(KeyError):
                await asyncio.to_thread(give_up)
            store.reject("train-0", epoch=1, agent="agent-0", reason="fenced", now_unix=0)
            await until(lambda: bool(page.numbers()))

    with_hub(store.run_directory, test)
    assert [kind for kind, _ in page.events if kind != "pulse"] == ["refused"]
    assert page.numbers() == [1]


def test_a_new_page_hears_what_comes_and_knows_its_place_before_anything_came(store: Store) -> None:
    append(store, 3)
    page = Page()

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await until(lambda: page.last_id == 3)
        append(store, 2)
        async with listening(hub, page):
            await until(lambda: page.last_id == 5)

    with_hub(store.run_directory, test)
    assert page.numbers() == [4, 5]


def test_events_are_read_and_turned_into_bytes_once_for_all(store: Store, monkeypatch) -> None:
    framed = []
    monkeypatch.setattr(stream, "event_frame", lambda event: framed.append(event.seq) or b"id: %d\n\n" % event.seq)
    pages = [Page() for _ in range(20)]

    async def test(hub: EventHub) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for page in pages:
                await stack.enter_async_context(listening(hub, page))
            await until(lambda: all(page.last_id == 0 for page in pages))
            append(store, 5)
            await until(lambda: all(page.last_id == 5 for page in pages))

    with_hub(store.run_directory, test)
    assert framed == [1, 2, 3, 4, 5]


# Too far behind, or of another run


@pytest.mark.parametrize("last_id", [0, 9, 99, -1])
def test_who_lacks_too_much_or_knows_what_never_was_fetches_anew_and_goes_on(
    store: Store, monkeypatch, last_id: int
) -> None:
    monkeypatch.setattr(stream, "MAX_BEHIND", 10)
    append(store, 20)
    page = Page(last_id=last_id)

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await until(lambda: page.last_id == 20)
            append(store)
            await until(lambda: page.last_id == 21)

    with_hub(store.run_directory, test)
    assert page.told("resync") == [{"seq": 20}]
    assert page.numbers() == [21]


def test_who_lacks_just_so_much_is_told_all_of_it(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(stream, "MAX_BEHIND", 10)
    monkeypatch.setattr(stream, "PAGE", 3)
    append(store, 20)
    tail = Tail(store.run_directory)
    tail.read()
    pages = {after: Page(last_id=after) for after in (17, 10, 20, 14)}
    for after, page in pages.items():
        page.take(tail.since(after))
    tail.close()
    assert {after: page.numbers() for after, page in pages.items()} == {
        after: list(range(after + 1, 21)) for after in pages
    }


def test_more_at_once_than_is_told_again_is_told_as_a_resync(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(stream, "MAX_BEHIND", 10)
    page = Page()

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await until(lambda: page.last_id == 0)
            append(store, 50)
            await until(lambda: page.last_id == 50)
            append(store)
            await until(lambda: page.last_id == 51)

    with_hub(store.run_directory, test)
    assert page.told("resync") == [{"seq": 50}]
    assert page.numbers() == [51]


@pytest.mark.parametrize(("told", "number"), [("17", 17), ("", -1), ("-3", -1), ("1e3", -1), ("९", -1), ("9" * 40, -1)])
def test_a_last_id_that_is_none_of_ours_is_followed_by_nothing(told: str, number: int) -> None:
    assert number_of(told) == number


# Slow, broken, over


async def ask(hub: EventHub, send: Callable[[Any], Awaitable[None]]) -> None:
    """One request of a client that stays until it is cancelled."""

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    await EventStream(hub, 0)({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)


def test_a_slow_client_holds_nobody_and_is_told_to_fetch_anew(store: Store) -> None:
    slow, quick = Page(), Page()
    num_before = len(threading.enumerate())

    async def test(hub: EventHub) -> None:
        may_go_on = asyncio.Event()

        async def send(message: dict[str, Any]) -> None:
            slow.take(message.get("body", b""))
            if slow.last_id is not None:  # it has been greeted, and takes no more
                await may_go_on.wait()

        asking = asyncio.ensure_future(ask(hub, send))
        async with listening(hub, quick):
            await until(lambda: slow.last_id == 0 == quick.last_id)
            for number in range(1, 30):
                append(store)
                await until(lambda number=number: quick.last_id == number)
            may_go_on.set()
            append(store)
            await until(lambda: slow.last_id == 30 == quick.last_id)
        asking.cancel()
        await asyncio.wait([asking])
        assert hub.num_clients == 0
        await until(lambda: len(threading.enumerate()) == num_before)

    with_hub(store.run_directory, test, queue_size=5)
    assert quick.numbers() == list(range(1, 31))
    assert not quick.told("resync")
    (resync,) = slow.told("resync")
    assert slow.numbers() == list(range(resync["seq"] + 1, 31))


def test_a_full_queue_gives_way_to_the_newest_resync() -> None:
    async def run() -> bytes:
        listener = Listener(None, queue_size=2)
        for seq in range(1, 6):
            listener.offer(b"%d " % seq, seq=seq)
        listener.offer(b"6 ", seq=6)
        return await anext(listener.chunks(seconds=1))

    assert asyncio.run(run()) == stream.resync_frame(5) + b"6 "


def test_a_row_that_cannot_be_read_for_a_while_is_told_afterwards(store: Store) -> None:
    page = Page()

    def sign(agent: str) -> None:
        (row,) = store._database.rows("SELECT seq, agent, hardware, kind, rate, deviation, unix FROM canaries")
        store._database.execute("UPDATE canaries SET checksum = ?", (checksum("canaries", (row[0], agent, *row[2:])),))

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await until(lambda: page.last_id == 0)
            with store.transaction():
                append(store)
                sign("somebody else")
            await asyncio.sleep(5 * POLL_SECONDS)
            assert page.numbers() == []
            sign("agent-0")
            await until(lambda: page.last_id == 1)

    with_hub(store.run_directory, test)
    assert page.numbers() == [1]


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path: Path, study) -> None:
    page = Page(last_id=0)

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await asyncio.sleep(3 * POLL_SECONDS)
            with Store.create(tmp_path / "run", study, now_unix=0) as store:
                append(store, 2)
                await until(lambda: page.last_id == 2)

    with_hub(tmp_path / "run", test)
    assert page.numbers() == [1, 2]


def test_a_store_that_was_put_back_to_an_earlier_copy_is_fetched_anew(store: Store, tmp_path: Path) -> None:
    append(store, 2)
    shutil.copytree(store.run_directory, tmp_path / "copy")
    append(store, 5)
    tail = Tail(store.run_directory)
    assert tail.read() == b""
    assert tail.seq == 7
    tail.close()
    tail._run_directory = tmp_path / "copy"
    assert tail.read() is None
    assert tail.seq == 2
    tail.close()


def test_closing_ends_every_stream_and_the_thread(store: Store) -> None:
    async def run() -> None:
        hub = EventHub(store.run_directory, poll_seconds=30)
        listener = hub.join(None)
        chunks = listener.chunks(seconds=60)
        await anext(chunks)
        hub.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert [chunk async for chunk in chunks if b"pulse" not in chunk] == []
        hub.leave(listener)
        assert hub.is_full
        late = hub.join(None)
        assert [chunk async for chunk in late.chunks(seconds=60)] == []

    asyncio.run(run())
    assert not [thread for thread in threading.enumerate() if thread.name == "event-hub"]


def test_nobody_is_read_for_when_nobody_listens(store: Store) -> None:
    page = Page()

    async def test(hub: EventHub) -> None:
        for number in (1, 2):
            async with listening(hub, page):
                append(store)
                await until(lambda number=number: page.last_id == number)
            await until(lambda: not [one for one in threading.enumerate() if one.name == "event-hub"])

    with_hub(store.run_directory, test)


# Pulse, keep-alive, end


def test_a_pulse_tells_what_runs_when_it_changes_and_not_more_often(driver, monkeypatch) -> None:
    monkeypatch.setattr(stream, "PULSE_SECONDS", 0.2)
    driver.plan()
    trial_id = driver.queued()[0]
    page = Page()

    async def test(hub: EventHub) -> None:
        async with listening(hub, page):
            await until(lambda: len(page.told("pulse")) == 1)
            driver.store.set_meta("harmless", "changes the file, but nothing that a pulse tells")
            await asyncio.sleep(0.25)
            driver.lease(trial_id)
            driver.store.set_meta("state", "stopping")
            await until(lambda: page.told("pulse")[-1]["state"] == "stopping")

    started = time.monotonic()
    with_hub(driver.store.run_directory, test)
    idle, *_, busy = page.told("pulse")  # one may fall between the lease and the state
    assert 1 < len(page.told("pulse")) <= 1 + (time.monotonic() - started) / 0.2
    assert idle["running"] == []
    assert busy["running"] == [{"trial_id": trial_id, "agent": "agent-0", "done_fraction": 0}]
    assert (idle["trials"]["queued"], busy["trials"]["queued"]) == (len(driver.queued()) + 1, len(driver.queued()))
    assert (idle["state"], busy["state"]) == ("running", "stopping")
    assert busy["agents"] == {"idle": 1}
    assert busy["seq"] == driver.store.last_seq()


def test_a_quiet_stream_is_kept_alive(monkeypatch) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.02)

    async def run() -> list[bytes]:
        chunks = Listener(None, queue_size=1).chunks(seconds=60)
        return [await anext(chunks) for _ in range(3)]

    assert asyncio.run(run()) == [b": keep-alive\n\n"] * 3


def test_a_stream_ends_when_its_time_is_over() -> None:
    async def run() -> list[bytes]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [chunk async for chunk in Listener(None, queue_size=1).chunks(seconds=0.02)]

    assert asyncio.run(run()) in ([], [b": keep-alive\n\n"])


# Over real connections


@dataclass(frozen=True)
class Served:
    url: str
    hub: EventHub


@pytest.fixture
def served(store: Store) -> Iterator[Served]:
    hub = EventHub(store.run_directory, poll_seconds=POLL_SECONDS, max_clients=2)
    app = FastAPI()
    app.include_router(stream_router(hub))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/api/events", hub)
    finally:
        hub.close()
        server.should_exit = True
        thread.join(timeout=PATIENCE_SECONDS)
        assert not thread.is_alive(), "an open stream held the server"


def read_until(url: str, page: Page, number: int) -> httpx2.Headers:
    """Open the stream as a browser does, and cut it in the middle when a number has come."""
    headers = {} if page.last_id is None else {"Last-Event-ID": str(page.last_id)}
    with httpx2.stream("GET", url, headers=headers, timeout=PATIENCE_SECONDS) as response:
        for chunk in response.iter_bytes():
            page.take(chunk)
            if page.last_id is not None and page.last_id >= number:
                page.rest = b""
                return response.headers
    raise AssertionError("the stream ended by itself")


def test_a_cut_connection_resumes_without_gap_or_repeat(store: Store, served: Served) -> None:
    page = Page()
    append(store, 3)
    headers = read_until(f"{served.url}?after=1", page, 3)
    append(store, 700)  # more than a page
    read_until(f"{served.url}?after=1", page, 300)
    read_until(f"{served.url}?after=1", page, 703)
    assert page.numbers() == list(range(2, 704))
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"


def test_a_client_that_goes_is_forgotten_and_one_too_many_is_told(store: Store, served: Served) -> None:
    with contextlib.ExitStack() as stack:
        responses = [stack.enter_context(httpx2.stream("GET", served.url, timeout=PATIENCE_SECONDS)) for _ in range(2)]
        assert [response.status_code for response in responses] == [200, 200]
        refused = httpx2.get(served.url)
        assert served.hub.num_clients == 2
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert "too many pages" in refused.json()["detail"]
    ends = time.monotonic() + PATIENCE_SECONDS
    while served.hub.num_clients and time.monotonic() < ends:
        time.sleep(0.01)
    assert served.hub.num_clients == 0


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 30])
def test_a_number_that_is_none_is_refused(served: Served, after: str) -> None:
    assert httpx2.get(served.url, params={"after": after}).status_code == 422


def test_an_open_stream_does_not_hold_the_server(store: Store, served: Served) -> None:
    ended = threading.Event()

    def listen() -> None:
        with contextlib.suppress(httpx2.HTTPError), httpx2.stream("GET", served.url, timeout=60) as response:
            for _ in response.iter_bytes():
                pass
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    while not served.hub.num_clients:
        time.sleep(0.01)
    served.hub.close()
    assert ended.wait(PATIENCE_SECONDS)
