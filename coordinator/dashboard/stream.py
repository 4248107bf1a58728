"""Stream: what happens in a run, told to every open page while it happens (server-sent events).

One thread reads the store for all listeners and turns every event into bytes once; each listener has a short queue.
The id of an event is its number in the run, so that a listener who was cut off and comes back with the last number it
saw gets everything after it, once and in order. One who is too slow, or too far behind, is told to fetch its pages
anew (`resync`) and goes on from there; nobody waits for anybody else.

    store --(Tail, in the hub's thread)--> bytes --> Listener's queue --(event loop)--> response
"""

import asyncio
import math
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from coordinator.dashboard.pulse import Pulse, read_pulse
from coordinator.database import DatabaseError
from coordinator.errors import StoreError
from coordinator.events import Event
from coordinator.store import StoreReader

MAX_BEHIND = 5_000
"""Events that are told again; who lacks more fetches its pages anew."""
PAGE = 500
"""Events read at a time."""
KEEP_ALIVE_SECONDS = 15.0
PULSE_SECONDS = 1.0
"""Least time between two pulses."""
RETRY_MILLISECONDS = 2_000
"""After which a browser comes back."""
MAX_STREAM_SECONDS = 900.0
"""A stream ends after this and its listener comes back, so that its token is looked at anew."""
MAX_SEQ = 2**62
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event_frame(event: Event) -> bytes:
    """One event as it is sent."""
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()


def pulse_frame(pulse: Pulse) -> bytes:
    """A pulse as it is sent; it has no id, and the last one that a listener saw stays."""
    return f"event: pulse\ndata: {pulse.model_dump_json()}\n\n".encode()


def resync_frame(seq: int) -> bytes:
    """What tells a listener to fetch its pages anew, and to go on from a number."""
    return f'id: {seq}\nevent: resync\ndata: {{"seq": {seq}}}\n\n'.encode()


class Tail:
    """The newest events of a run as bytes. Used by one thread; opens the store when it is first asked."""

    def __init__(self, run_directory: Path) -> None:
        self._run_directory = run_directory
        self._store: StoreReader | None = None
        self._version: int | None = None
        """Of the data that were read to their end."""
        self._frames: deque[tuple[int, bytes]] = deque()
        """Every event after `_low` and up to `seq`."""
        self._low = 0
        self._seq: int | None = None
        self._pulse: Pulse | None = None
        self._pulse_version: int | None = None
        self._pulsed_monotonic = -math.inf

    @property
    def seq(self) -> int:
        """Number up to which everything was read; asked after the first `read`."""
        assert self._seq is not None, "nothing was read yet"
        return self._seq

    def read(self) -> bytes | None:
        """What is new since the last time, at most a page of it; null where it does not follow on what was told.

        Raises:
            StoreError, DatabaseError: the store cannot be read now.
        """
        store = self._opened()
        version = store.data_version()  # first: what is committed meanwhile changes it again
        if version == self._version:
            return b""
        last = store.last_seq()
        if self._seq is None:
            self._seq = self._low = last
        if not 0 <= last - self._seq <= MAX_BEHIND:
            self._frames.clear()
            self._seq = self._low = last
            return None
        frames = _framed(store.events(self._seq, limit=min(PAGE, last - self._seq)))
        self._seq = min(self._seq + PAGE, last)
        self._frames.extend(frames)
        self._forget(self._seq - MAX_BEHIND)
        if self._seq == last:
            self._version = version
        return _joined(frames)

    def since(self, after_seq: int) -> bytes | None:
        """What happened after a number and up to `seq`; null where that is too much, or not of this run.

        Raises:
            StoreError, DatabaseError: the store cannot be read now.
        """
        if after_seq < 0 or not 0 <= self.seq - after_seq <= MAX_BEHIND:
            return None
        while after_seq < self._low:
            start = max(after_seq, self._low - PAGE)
            frames = _framed(self._opened().events(start, limit=self._low - start))
            self._frames.extendleft(reversed(frames))
            self._low = start
        return _joined(frame for frame in self._frames if frame[0] > after_seq)

    def pulse(self, *, now_monotonic: float, now_unix: float) -> bytes:
        """How the run is, where that is something new and the last pulse was long enough ago; else nothing.

        Raises:
            StoreError, DatabaseError: the store cannot be read now.
        """
        if self._pulse_version == self._version or now_monotonic - self._pulsed_monotonic < PULSE_SECONDS:
            return b""
        pulse = read_pulse(self._opened(), now_unix=now_unix)
        self._pulse_version = self._version
        if pulse.tells_the_same(self._pulse):
            return b""
        self._pulse, self._pulsed_monotonic = pulse, now_monotonic
        return pulse_frame(pulse)

    def last_pulse(self) -> bytes:
        """The newest pulse, told again."""
        return b"" if self._pulse is None else pulse_frame(self._pulse)

    def close(self) -> None:
        """Give the store back; the next look opens it again and follows on what was told."""
        if self._store is not None:
            self._store.close()
        self._store, self._version, self._pulse, self._pulse_version = None, None, None, None

    def _opened(self) -> StoreReader:
        if self._store is None:
            self._store = StoreReader.open(self._run_directory)
        return self._store

    def _forget(self, low: int) -> None:
        self._low = max(self._low, low)
        while self._frames and self._frames[0][0] <= low:
            self._frames.popleft()


def _framed(events: Iterable[Event]) -> list[tuple[int, bytes]]:
    return [(event.seq, event_frame(event)) for event in events]


def _joined(frames: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(frame for _, frame in frames)


class Listener:
    """What one open page is still to be sent. Used on the event loop."""

    def __init__(self, after_seq: int | None, *, queue_size: int) -> None:
        self.after_seq = after_seq
        """The last number that it knows; null where it only wants what comes."""
        self._queue_size = queue_size
        self._chunks: deque[bytes] = deque()
        self._filled = asyncio.Event()
        self._is_closed = False

    def offer(self, chunk: bytes, *, seq: int) -> None:
        """Have something sent; where too much waits already, all of it gives way to one resync to `seq`."""
        if len(self._chunks) >= self._queue_size:
            self._chunks.clear()
            chunk = resync_frame(seq)
        self._chunks.append(chunk)
        self._filled.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._is_closed = True
        self._filled.set()

    async def chunks(self, *, seconds: float) -> AsyncIterator[bytes]:
        """What to send, as it comes, and comments that keep the connection; ends after `seconds`, or when closed."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while not self._is_closed and (left := ends - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(left, KEEP_ALIVE_SECONDS)):
                    await self._filled.wait()
            except TimeoutError:
                yield b": keep-alive\n\n"
                continue
            self._filled.clear()
            if self._chunks:
                chunk = b"".join(self._chunks)
                self._chunks.clear()
                yield chunk


class EventHub:
    """All listeners of one run, and the thread that reads for them while there are any. For one event loop."""

    def __init__(
        self, run_directory: Path, *, poll_seconds: float = 0.5, max_clients: int = 256, queue_size: int = 512
    ) -> None:
        self._tail = Tail(run_directory)
        self._poll_seconds = poll_seconds
        self._max_clients = max_clients
        self._queue_size = queue_size
        self._listeners: set[Listener] = set()
        """Everybody; changed on the event loop alone."""
        self._greeted: set[Listener] = set()
        """Who gets what is published; used on the event loop alone."""
        self._newcomers: deque[Listener] = deque()
        """Who has not been told yet what it lacks; filled on the event loop, emptied by the thread."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()
        self._wanted = threading.Event()
        """Somebody came, or it is over: the thread need not wait for the next poll."""
        self._is_closed = False

    @property
    def num_clients(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @property
    def is_full(self) -> bool:
        """Whether nobody more is taken up."""
        return self._is_closed or len(self._listeners) >= self._max_clients

    def join(self, after_seq: int | None) -> Listener:
        """Take somebody up, on the event loop.

        Args:
            after_seq: the last number that it knows; null where it only wants what comes.
        """
        listener = Listener(after_seq, queue_size=self._queue_size)
        if self._is_closed:
            listener.close()
            return listener
        self._loop = self._loop or asyncio.get_running_loop()
        self._listeners.add(listener)
        self._newcomers.append(listener)
        with self._thread_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._read_while_wanted, name="event-hub", daemon=True)
                self._thread.start()
        self._wanted.set()
        return listener

    def leave(self, listener: Listener) -> None:
        """Forget somebody, on the event loop."""
        self._listeners.discard(listener)
        self._greeted.discard(listener)

    def close(self) -> None:
        """End every stream and the thread. From any thread, before the server waits for its connections to end."""
        self._is_closed = True
        self._wanted.set()
        self._on_loop(self._close_listeners)
        with self._thread_lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout=5)

    # On the event loop

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _admit(self, listener: Listener, greeting: bytes, seq: int) -> None:
        if listener in self._listeners:  # it may have left
            self._greeted.add(listener)
            listener.offer(greeting, seq=seq)

    def _publish(self, chunk: bytes, seq: int) -> None:
        for listener in self._greeted:
            listener.offer(chunk, seq=seq)

    # In the thread

    def _read_while_wanted(self) -> None:
        while self._is_wanted():
            self._wanted.clear()
            try:
                self._turn()
            except (StoreError, DatabaseError):  # the disk, a lock: the pages tell what it is, and this tries again
                self._tail.close()
            self._wanted.wait(self._poll_seconds)

    def _is_wanted(self) -> bool:
        with self._thread_lock:
            if not self._is_closed and self._listeners:
                return True
            self._tail.close()  # before another thread may begin
            self._thread = None
            return False

    def _turn(self) -> None:
        """Tell everybody what is new, and newcomers what they lack."""
        tail = self._tail
        while (chunk := tail.read()) != b"":
            self._on_loop(self._publish, resync_frame(tail.seq) if chunk is None else chunk, tail.seq)
        while self._newcomers:
            self._on_loop(self._admit, self._newcomers[0], self._greeting(self._newcomers[0]), tail.seq)
            self._newcomers.popleft()
        if pulse := tail.pulse(now_monotonic=time.monotonic(), now_unix=time.time()):
            self._on_loop(self._publish, pulse, tail.seq)

    def _greeting(self, listener: Listener) -> bytes:
        """What somebody is told first: its number, so that it comes back with one, what it lacks, how the run is."""
        tail = self._tail
        after = tail.seq if listener.after_seq is None else listener.after_seq
        missed = tail.since(after)
        told = resync_frame(tail.seq) if missed is None else f"id: {after}\n\n".encode() + missed
        return f"retry: {RETRY_MILLISECONDS}\n\n".encode() + told + tail.last_pulse()

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        """Have something done on the event loop, in the order of asking; when that has ended nobody listens."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *arguments)


class EventStream(StreamingResponse):
    """The response to one listener: it lasts until one of the two goes, or for `MAX_STREAM_SECONDS`."""

    media_type = "text/event-stream"

    def __init__(self, hub: EventHub, after_seq: int | None) -> None:
        super().__init__(self._told(), headers=HEADERS)
        self._hub, self._after_seq = hub, after_seq
        self._listener: Listener | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Listen while the connection lasts."""
        self._listener = self._hub.join(self._after_seq)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._hub.leave(self._listener)

    async def _told(self) -> AsyncIterator[bytes]:
        assert self._listener is not None
        async for chunk in self._listener.chunks(seconds=MAX_STREAM_SECONDS):
            yield chunk


def stream_router(hub: EventHub) -> APIRouter:
    """The route that listeners come to."""
    router = APIRouter(tags=["events"])

    @router.get(
        "/api/events",
        summary="What happens in the run, as it happens",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            503: {"description": "There are too many listeners, or the run ends."},
        },
    )
    async def events(
        after: Annotated[int | None, Query(ge=0, le=MAX_SEQ)] = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> EventStream:
        """Server-sent events after number `after`, or after the header Last-Event-ID, which a browser sends by itself
        when it comes back; without either what happens from now on.

        Facts (`planned`, `leased`, `result`, `failure`, `refused`, `fit`, `recommendation`, `canary`) have their number
        as id, in order, without gap or repeat. `pulse` tells how the run is, at most once a second. `resync` tells to
        fetch the pages anew: too much was missed, and what comes follows on the number it names.
        """
        if hub.is_full:
            raise HTTPException(503, "too many pages listen already; close one", headers={"Retry-After": "10"})
        return EventStream(hub, after if last_event_id is None else number_of(last_event_id))

    return router


def number_of(last_event_id: str) -> int:
    """The number in a Last-Event-ID; what is none of ours gives -1, which nothing follows on."""
    return int(last_event_id) if re.fullmatch(r"[0-9]{1,18}", last_event_id) else -1
