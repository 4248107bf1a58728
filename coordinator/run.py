"""One study from the command to its report: set up, run the loop, write what came out.

What can be wrong with the user's input is looked at before anything is written or started.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from coordinator import failpoints
from coordinator.dashboard.access import LOOPBACK, Access, Wish, address_of, decide_access
from coordinator.database import DatabaseError
from coordinator.errors import StoreError, UserError
from coordinator.fleet.ray_fleet import RayFleet
from coordinator.fleet.ray_session import ClusterSession, LocalSession, RaySession
from coordinator.live import clock, open_view
from coordinator.loop import POLL_SECONDS, Coordinator, blob_directory, work_directory
from coordinator.metrics import metrics_book, serve_metrics
from coordinator.outputs import write_outputs
from coordinator.runs import last_run, new_run_directory, unfinished_run
from coordinator.serve import dashboard_beside, is_readable
from coordinator.shapes import check_feasible
from coordinator.snapshot import View
from coordinator.stopping import signals_ask_to_stop
from coordinator.store import Store, StoreReader
from coordinator.study import MAY_CHANGE, StudySpec, changed_keys
from coordinator.study_corpus import open_corpus, prepared_corpus
from coordinator.supervisor import Supervisor
from coordinator.tokens import TokenBook
from coordinator.traffic import Traffic
from coordinator.vitals import Vitals


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a study is run here."""

    runs: Path
    start_new: bool = False
    metrics_port: int = 9464
    num_agents: int | None = None
    address: str | None = None
    """Of a Ray cluster that is there already; without one, a local cluster is started."""
    insecure: bool = False
    """Use a cluster that takes whoever comes."""
    dashboard: Wish | None = field(default_factory=Wish)
    """Null for a run without one."""
    dashboard_port: int | None = None
    """The usual one, or a free one where that is in use."""
    metrics_host: str = LOOPBACK
    tokens: Path | None = None
    """Those for metrics; the dashboard's are in its wish."""
    stay: bool = False
    """Go on serving after the study's end; do not begin a study anew that is finished."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """Where the run is, and whether it came to its end."""

    run_directory: Path
    finished: bool


def run_study(study: StudySpec, options: RunOptions, *, console: Console) -> RunOutcome:
    """Run a study, or go on with its last unfinished run; write report and recommendation when it is finished.

    Raises:
        UserError: something about the study, the corpus, the port, the disk or the budget; nothing half-written stays.
    """
    started = time.monotonic()
    check_feasible(study)
    prepared_corpus(study)
    faces = _Faces.of(options)
    if options.stay and (finished_run := _finished(study, options)) is not None:
        with signals_ask_to_stop() as stop_requested, open_view(console) as view:
            faces.show_finished(finished_run, view, stop_requested)
        return RunOutcome(run_directory=finished_run, finished=True)
    if options.address is not None:
        ClusterSession(options.address, insecure=options.insecure).require()
    with ExitStack() as stack:
        stop_requested = stack.enter_context(signals_ask_to_stop())
        view = stack.enter_context(open_view(console))
        store, is_new = _open_store(study, options)
        stack.callback(store.close)
        run_directory = store.run_directory
        try:
            view.note(f"run {run_directory}{' (new)' if is_new else ' (resumed)'}, study {store.study().name}")
            vitals, supervisor = Vitals(), Supervisor.of_environment()
            addresses = stack.enter_context(faces.open(run_directory, view, vitals=vitals))
            with store.transaction():
                for key, value in addresses.items():
                    store.set_meta(key, value)
            hours = study.budget.accelerator_hours  # of the file as it is now: raising them lets a stopped run go on
            coordinator = _coordinator(
                store,
                view,
                options,
                granted_seconds=None if hours is None else 3600 * hours,
                started=started,
                stop_requested=stop_requested,
                vitals=vitals,
                supervisor=supervisor,
            )
            finished = coordinator.run()
        except DatabaseError as error:
            raise StoreError(
                f"the store of {run_directory} cannot be written any more: {error}.\n{_FREE_DISK}"
            ) from None
        except UserError:
            if is_new and not store.plans():
                _forget(run_directory)
            raise
        if finished:
            view.note("writing the report")
            write_outputs(run_directory)
            # Every result is in the store: checkpoints and caches have served.
            shutil.rmtree(work_directory(run_directory), ignore_errors=True)
            view.note(f"done in {clock(time.monotonic() - started)}")
            if options.stay:
                _wait(view, stop_requested, supervisor)
        supervisor.stopping()
    return RunOutcome(run_directory=run_directory, finished=finished)


_FREE_DISK = "Free some disk and run the same command again: what was acknowledged is kept, and the run goes on."


@dataclass(frozen=True, kw_only=True)
class _Faces:
    """What a run shows of itself on the network, decided before anything is written."""

    options: RunOptions
    access: Access | None
    """Null where no dashboard is wanted."""
    metrics_book: TokenBook | None

    @classmethod
    def of(cls, options: RunOptions) -> "_Faces":
        wish = options.dashboard
        return cls(
            options=options,
            access=None if wish is None else decide_access(wish),
            metrics_book=metrics_book(options.metrics_host, options.tokens),
        )

    @contextmanager
    def open(self, run_directory: Path, view: View, *, vitals: Vitals | None) -> Iterator[dict[str, str]]:
        """Show metrics and dashboard while the context is open; gives what the store is to know of where they are."""
        options, traffic = self.options, Traffic()
        is_ready = (lambda: vitals.is_ready) if vitals is not None else (lambda: is_readable(run_directory))
        with ExitStack() as stack:
            metrics = serve_metrics(
                run_directory,
                port=options.metrics_port,
                host=options.metrics_host,
                book=self.metrics_book,
                vitals=vitals,
                traffic=traffic,
                is_ready=is_ready,
            )
            port = stack.enter_context(metrics)
            metrics_url = f"http://{address_of(options.metrics_host, port)}/metrics"
            view.note(f"metrics at {metrics_url}")
            addresses = {
                "metrics_port": str(port),
                "metrics_url": metrics_url,
                "dashboard_port": "",
                "dashboard_url": "",
            }
            if self.access is not None:
                dashboard = dashboard_beside(
                    run_directory,
                    self.access,
                    port=options.dashboard_port,
                    traffic=traffic,
                    is_ready=is_ready,
                    say=view.note,
                )
                if (listening := stack.enter_context(dashboard)) is not None:
                    addresses |= {"dashboard_port": str(listening.port), "dashboard_url": listening.url}
            yield addresses

    def show_finished(self, run_directory: Path, view: View, stop_requested: Callable[[], bool]) -> None:
        """Show a run that has come to its end, until a stop is asked for."""
        supervisor = Supervisor.of_environment()
        view.note(f"run {run_directory} is finished; --new runs the study anew")
        with self.open(run_directory, view, vitals=None):
            supervisor.ready()
            _wait(view, stop_requested, supervisor)
        supervisor.stopping()


def _wait(view: View, stop_requested: Callable[[], bool], supervisor: Supervisor) -> None:
    view.note("nothing is left to do; dashboard and metrics stay until Ctrl-C or TERM")
    while not stop_requested():
        supervisor.alive()
        time.sleep(POLL_SECONDS)


def _finished(study: StudySpec, options: RunOptions) -> Path | None:
    """The last run of this very study, if it is finished."""
    last = None if options.start_new else last_run(options.runs, study.name)
    if last is None or last[1] != "finished":
        return None
    with StoreReader.open(last[0]) as store:
        return None if changed_keys(store.study(), study) else last[0]


def _open_store(study: StudySpec, options: RunOptions) -> tuple[Store, bool]:
    last = None if options.start_new else unfinished_run(options.runs, study.name)
    if last is not None:
        return _resume(last, study), False
    now = time.time()
    return Store.create(new_run_directory(options.runs, study.name, now_unix=now), study, now_unix=now), True


def _resume(run_directory: Path, study: StudySpec) -> Store:
    """Go on with a run, unless the study is not any more the one that it was begun with."""
    with StoreReader.open(run_directory) as stored:
        changed = changed_keys(stored.study(), study)
    if changed:
        raise UserError(
            f"{run_directory} is unfinished, and its study {study.name!r} has changed since: {', '.join(changed)}.\n"
            "Put the old values back to go on with it, or start a new run beside it with --new. "
            f"Only {' and '.join(MAY_CHANGE)} may change on the way."
        )
    return Store.resume(run_directory)


def _coordinator(
    store: Store,
    view: View,
    options: RunOptions,
    *,
    granted_seconds: float | None,
    started: float,
    stop_requested: Callable[[], bool],
    vitals: Vitals,
    supervisor: Supervisor,
) -> Coordinator:
    run_directory = store.run_directory
    corpus_id = _open_corpus(store, view)
    max_agents = store.study().budget.max_agents
    if options.address is None:
        num_agents = options.num_agents or min(len(os.sched_getaffinity(0)), max_agents)
        session: RaySession = LocalSession(
            num_cpus=num_agents, record=work_directory(run_directory) / "ray-session.json", say=view.note
        )
        work = work_directory(run_directory).resolve()
    else:
        num_agents = options.num_agents or max_agents
        session = ClusterSession(options.address, insecure=options.insecure)
        # On each node: the run's own directory need not be there.
        work = Path(tempfile.gettempdir()) / f"archfleet-{run_directory.name}"
    fleet = RayFleet(session, max_agents=num_agents, blob_directory=blob_directory(run_directory), work_directory=work)
    return Coordinator(
        store=store,
        fleet=fleet,
        view=view,
        num_agents=num_agents,
        corpus_id=corpus_id,
        started_monotonic=started,
        granted_seconds=granted_seconds,
        stop_requested=stop_requested,
        vitals=vitals,
        on_turn=supervisor.alive,
    )


def _open_corpus(store: Store, view: View) -> str:
    """The id of the run's corpus, which is built or linked where that was not done before."""
    known = store.meta("corpus_id")
    try:
        corpus = open_corpus(
            store.study(),
            blob_directory(store.run_directory),
            corpus_id=known,
            stamps=work_directory(store.run_directory) / "blobs",
            say=view.note,
        )
    except OSError as error:
        raise StoreError(f"the corpus cannot be written to {store.run_directory}: {error}.\n{_FREE_DISK}") from None
    if known is not None or corpus is None:
        assert known is not None, "a new run always has its corpus built or linked"
        return known
    failpoints.hit("run.before_corpus_commit")
    store.set_meta("corpus_id", corpus.id)
    store.set_meta("corpus", corpus.manifest.model_dump_json())
    return corpus.id


def _forget(run_directory: Path) -> None:
    shutil.rmtree(run_directory, ignore_errors=True)
