"""RunSource: the pages of one run, kept as long as the store tells the same. Safe to ask from several threads.

Every page is read within one snapshot of the store, beside the coordinator that writes it. Pages that tell how the run
is at this moment are made anew every `FRESH_SECONDS` at most; those that follow from its facts alone when there is a
new one. Figures need every observation: they are read once and added to, without what no figure shows. While a run goes
on, those that were shown before are drawn again so seldom that all of them together take a small share of a core.
"""

import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from coordinator.analysis import Analysis
from coordinator.course import Course, Stint, in_order
from coordinator.dashboard.pages.hardware import read_hardware
from coordinator.dashboard.pages.overview import read_overview
from coordinator.dashboard.pages.page import Page
from coordinator.dashboard.pages.recommendation import configs_of, read_recommendation
from coordinator.dashboard.pages.study import FigureEntry, figure_entry, read_study
from coordinator.dashboard.pages.trial import read_trial
from coordinator.dashboard.pages.trials import Phase, TrialState, TrialWords, read_trials
from coordinator.dashboard.reads import PageReader
from coordinator.figures.catalogue import Entry, Reads, entries, figure, reads_of
from coordinator.garbage import without_collection
from coordinator.record import RunRecord, outline_of, whole_of
from coordinator.sharing import lean, shared
from coordinator.status import is_held
from coordinator.store import FILE_NAME
from coordinator.store_rows import TrialRow, Work
from hwprofiles.value import Value
from scaling.observations import Failure, Observation, TrainingObservation

FRESH_SECONDS = 1.0
MAX_BENCHMARKS = 1_000
MAX_KEPT = 512
"""Answers; the one that was asked for longest ago makes room."""

FIGURES_SHARE = 0.05
"""Of a core, for figures that are drawn again because of new facts."""

_Key = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A page as JSON. Two answers with one ETag tell the same, but for when they were made."""

    body: bytes
    etag: str

    @cached_property
    def packed(self) -> bytes:
        """The body as gzip, made when the first asks for it: fast rather than small, a sixth of the size."""
        return gzip.compress(self.body, compresslevel=1, mtime=0)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A figure as it was drawn last: of which facts, when, and what it took the processor."""

    answer: Answer
    facts: _Key
    unix: float
    seconds: float


class Figures(Value):
    """Every figure of a run."""

    figures: tuple[FigureEntry, ...]


class RunSource:
    """Pages of one run. Every method raises StoreError where the store cannot be read."""

    def __init__(
        self,
        run_directory: Path,
        *,
        wall: Callable[[], float] = time.time,
        is_held: Callable[[Path], bool] = is_held,
        work: Callable[[], float] = time.thread_time,
    ) -> None:
        """Take a run.

        Args:
            run_directory: its store is opened when it is asked for.
            wall: seconds since the epoch.
            is_held: whether a living coordinator holds a run.
            work: processor seconds that the calling thread has used.
        """
        self._run_directory = run_directory
        self._wall = wall
        self._is_held = is_held
        self._work = work
        self._pages = _Desk(run_directory)
        self._figures = _Desk(run_directory)
        """A desk of its own: nobody waits for a page because somebody wants a figure."""
        self._records = _Records()
        self._drawn: dict[str, _Drawn] = {}
        self._known: tuple[int, TrialWords] = (0, TrialWords())
        """What trials are found by, and in which opening of the store it was read."""

    def close(self) -> None:
        """Close the store; asked again, it is opened again."""
        self._pages.close()
        self._figures.close()

    # Pages

    def overview(self) -> Answer:
        """The run at a glance."""
        return self._now("overview", lambda store, now, held: read_overview(store, now_unix=now, is_held=held))

    def hardware(self) -> Answer:
        """Every kind of hardware."""

        def read(store: PageReader, now: float, held: bool) -> Page:
            analysis, figures = _analysis(store), _entries(store)
            return read_hardware(store, analysis=analysis, figures=figures, is_held=held, now_unix=now)

        return self._now("hardware", read)

    def study(self) -> Answer:
        """The study and its law."""

        def read(store: PageReader, now: float) -> Page:
            return read_study(store, analysis=_analysis(store), figures=_entries(store), now_unix=now)

        return self._of_facts("study", read)

    def recommendation(self) -> Answer:
        """The answers."""

        def read(store: PageReader, now: float) -> Page:
            return read_recommendation(store, analysis=_analysis(store), record=_outline(store), now_unix=now)

        return self._of_facts("recommendation", read)

    def trials(
        self, *, after: int, limit: int, state: TrialState | None = None, phase: Phase | None = None, query: str = ""
    ) -> Answer:
        """Some of the trials."""
        with self._pages.reading() as store:
            key = ("trials", after, limit, state, phase, query)

            def read() -> Page:
                asked = {"after": after, "limit": limit, "state": state, "phase": phase, "query": query}
                return read_trials(store, self._words(), now_unix=self._wall(), **asked)  # type: ignore[arg-type]

            return self._pages.kept(key, (self._pages.version,), lambda: answer_of(read(), store.last_seq()))

    def _words(self) -> TrialWords:
        if self._known[0] != self._pages.generation:
            self._known = (self._pages.generation, TrialWords())
        return self._known[1]

    def trial(self, trial_id: str) -> Answer | None:
        """One trial; null where there is none of this name."""
        with self._pages.reading() as store:
            version = (self._pages.version,)
            if (kept := self._pages.look("trial", trial_id, version=version)) is not None:
                return kept
            page = read_trial(store, trial_id, now_unix=self._wall())
            if page is None:
                return None
            return self._pages.kept(("trial", trial_id), version, lambda: answer_of(page, page.seq))

    def config(self, name: str) -> Answer | None:
        """config.json of a named architecture; null where there is none of this name."""
        with self._pages.reading() as store:
            shapes = configs_of(_outline(store))
            return plain_answer(shapes[name].to_hf_config(), store.last_seq()) if name in shapes else None

    # Figures

    def figures(self) -> Answer:
        """Which figures there are."""
        with self._pages.reading() as store:
            seq = store.last_seq()

            def make() -> Answer:
                return answer_of(Figures(figures=tuple(figure_entry(entry) for entry in _entries(store))), seq)

            return self._pages.kept(("figures",), (seq,), make)

    def figure(self, name: str) -> Answer | None:
        """One figure, while the run goes on perhaps an older one; null where there is none of this name."""
        with self._figures.reading() as store:
            facts = (self._figures.generation, *_facts(store))
            before, now = self._drawn.get(name), self._wall()
            if before is not None and (before.facts == facts or self._is_too_soon(before, store, now)):
                return before.answer
            began = self._work()
            try:
                with without_collection():
                    drawn = figure(self._records.of(store, reads_of(name), facts, self._figures.generation), name)
            except KeyError:
                return None
            answer = answer_of(drawn, store.last_seq())
            self._drawn[name] = _Drawn(answer=answer, facts=facts, unix=now, seconds=self._work() - began)
            return answer

    def _is_too_soon(self, before: "_Drawn", store: PageReader, now: float) -> bool:
        """Whether to draw a figure again would take more than its part of the share. Of a run that has ended it never
        is: nobody would ask once more.
        """
        pause = before.seconds * len(self._drawn) / FIGURES_SHARE
        return store.meta("state") == "running" and before.unix <= now < before.unix + pause

    # What is kept

    def _now(self, name: str, read: Callable[[PageReader, float, bool], Page]) -> Answer:
        """A page that tells how the run is at this moment."""
        with self._pages.reading() as store:
            now, held = self._wall(), self._is_held(self._run_directory)
            version = (now // FRESH_SECONDS, held)
            return self._pages.kept((name,), version, lambda: answer_of(read(store, now, held), store.last_seq()))

    def _of_facts(self, name: str, read: Callable[[PageReader, float], Page]) -> Answer:
        """A page that follows from the facts of the run."""
        with self._pages.reading() as store:
            return self._pages.kept(
                (name,), _facts(store), lambda: answer_of(read(store, self._wall()), store.last_seq())
            )


class _Desk:
    """One connection, which one thread uses at a time, and the answers that were made at it."""

    def __init__(self, run_directory: Path) -> None:
        self._run_directory = run_directory
        self._lock = Lock()
        self._store: PageReader | None = None
        self._file: tuple[int, ...] = ()
        self._kept: dict[_Key, tuple[_Key, Answer]] = {}
        self.generation = 0
        """How often the store was opened: versions of different connections cannot be compared."""
        self.version: _Key = ()
        """Another one whenever anything was committed."""

    @contextmanager
    def reading(self) -> Iterator[PageReader]:
        """The store as it is now."""
        with self._lock:
            store = self._opened()
            try:
                with store.snapshot():
                    self.version = (self.generation, store.data_version())
                    yield store
            except BaseException as error:
                self._store = None
                store.__exit__(type(error), error, error.__traceback__)
                raise

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._forget()

    def look(self, *key: object, version: _Key) -> Answer | None:
        """An answer of this version that was kept."""
        found = self._kept.get(key)
        if found is None or found[0] != version:
            return None
        self._kept[key] = self._kept.pop(key)
        return found[1]

    def kept(self, key: _Key, version: _Key, make: Callable[[], Answer]) -> Answer:
        """The answer of this version, made if need be."""
        if (found := self.look(*key, version=version)) is not None:
            return found
        answer = make()
        self._kept.pop(key, None)
        self._kept[key] = (version, answer)
        if len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        return answer

    def _opened(self) -> PageReader:
        """The connection; a new one where another file has come in the place of the one that was read."""
        path = self._run_directory / FILE_NAME
        if self._store is not None and self._file != _identity(path, self._store):
            self._forget()
        if self._store is None:
            self._store = PageReader.open(self._run_directory)
            self._file = _identity(path, self._store)
            self.generation += 1
            self._kept.clear()
        return self._store

    def _forget(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = None


def _identity(path: Path, store: PageReader) -> tuple[int, ...]:
    """Which file it is; of one that is read from a migrated copy also when it was written."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns) if store.is_copy else (found.st_ino,)


class _Records:
    """The run's records for figures, added to as facts come in; at one desk."""

    def __init__(self) -> None:
        self._generation = 0
        self._forget()

    def _forget(self) -> None:
        self._observations: list[Observation] = []
        self._num_observed = 0
        self._works: dict[str, Work] = {}
        self._courses = _Courses()
        self._timed: tuple[_Key, RunRecord] | None = None
        self._whole: tuple[_Key, RunRecord] | None = None

    def of(self, store: PageReader, reads: Reads, version: _Key, generation: int) -> RunRecord:
        """As much of the record as is asked for, as the store tells it now."""
        if generation != self._generation:
            self._forget()
            self._generation = generation
        match reads:
            case "benchmarks":
                return outline_of(store, observations=tuple(one.observation for one in store.benchmarks(newest=-1)))
            case "leases":
                return self._timed_of(store, version)
            case "everything":
                return self._whole_of(store, version)

    def _timed_of(self, store: PageReader, version: _Key) -> RunRecord:
        """With the course of the run in place of its trials and attempts."""
        if self._timed is None or self._timed[0] != version:
            self._timed = (version, replace(outline_of(store, observations=()), read_course=self._courses.of(store)))
        return self._timed[1]

    def _whole_of(self, store: PageReader, version: _Key) -> RunRecord:
        if self._whole is None or self._whole[0] != version:
            self._observations += map(_kept_of, store.each_observation(after_seq=self._num_observed))
            self._num_observed = store.last_seq()
            record = whole_of(store, trials=self._trials(store), observations=tuple(self._observations))
            self._whole = (version, record)
        return self._whole[1]

    def _trials(self, store: PageReader) -> tuple[TrialRow, ...]:
        """Rows are new, what they consist of was read before."""
        rows = tuple(row._replace(work=self._works.get(row.trial_id, row.work)) for row in store.trials())
        self._works = {row.trial_id: row.work for row in rows}
        return rows


class _Courses:
    """The course of a run, of which only what may have changed is read again."""

    def __init__(self) -> None:
        self._works: dict[str, Work] = {}
        self._num_works = 0
        """Position of the last of them."""
        self._ended: list[Stint] = []
        """The stints before the first that is held: they stay as they are."""
        self._next_seq = 0

    def of(self, store: PageReader) -> Course:
        """As the store tells it now."""
        for position, trial_id, work in store.works(after_position=self._num_works):
            self._works[trial_id], self._num_works = work, position
        found, held = store.stints(self._works, from_seq=self._next_seq), store.first_held()
        stints = self._ended + found
        if held is None:
            self._ended, self._next_seq = stints, store.last_seq() + 1
        else:
            self._ended, self._next_seq = [*self._ended, *(one for one in found if one.seq < held)], held
        return Course(stints, in_order(store.spent()), store.latest_unix())


def _kept_of(observation: Observation) -> Observation:
    """Without what no figure shows: of 10,000 runs their windows would be hundreds of megabytes. It must be new."""
    parts: dict[str, object] = {}
    match observation:
        case TrainingObservation(architecture=architecture, recipe=recipe):
            lean(observation.provenance)
            parts = {"architecture": shared(architecture), "recipe": shared(recipe), "curve": (), "window_losses": ()}
        case Failure():
            parts = {"detail": ""}
    for name, value in parts.items():
        object.__setattr__(observation, name, value)
    return lean(observation) if parts else observation


def _facts(store: PageReader) -> _Key:
    """Another one whenever there is a new fact, or the run has begun or ended."""
    return (store.last_seq(), store.meta("state"), store.num_trials(state="running"))


def _analysis(store: PageReader) -> Analysis | None:
    fit = store.last_fit()
    return None if fit is None else Analysis.from_json(fit.record)


def _outline(store: PageReader) -> RunRecord:
    """The run without its trials and losses: what it has figures and names of does not depend on them."""
    return outline_of(store, observations=tuple(one.observation for one in store.benchmarks(newest=MAX_BENCHMARKS)))


def _entries(store: PageReader) -> tuple[Entry, ...]:
    return entries(_outline(store))


def answer_of(value: Value, seq: int) -> Answer:
    """A value as JSON, named by the newest fact and by its content, but for when it was made."""
    body = value.model_dump_json().encode()
    return Answer(body=body, etag=_etag(_without_moment(body) if isinstance(value, Page) else body, seq))


def _without_moment(page: bytes) -> bytes:
    """The JSON of a page without its field `unix`, the first so called: names and a number stand before it. To write
    the page once more without it would take as long again.
    """
    start = page.index(b'"unix":')
    return page[:start] + page[page.index(b",", start) :]


def plain_answer(plain: dict[str, Any], seq: int) -> Answer:
    """Plain JSON, indented as in the file."""
    body = (json.dumps(plain, indent=2) + "\n").encode()
    return Answer(body=body, etag=_etag(body, seq))


def _etag(content: bytes, seq: int) -> str:
    return f'"{seq}-{hashlib.sha256(content).hexdigest()[:16]}"'
