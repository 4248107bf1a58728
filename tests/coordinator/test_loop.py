"""The coordinator over the simulated fleet: commits before it acts, survives its own end, and waits where it must."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator.errors import UserError
from coordinator.fleet.simulated import CoordinatorCrash, Faults, SimulatedFleet, VirtualClock
from coordinator.history import check_history, history_of
from coordinator.loop import Coordinator
from coordinator.plan import Plan
from coordinator.planner import StudyState
from coordinator.planning import StudyPlanner
from coordinator.replay import replan
from coordinator.snapshot import Snapshot
from coordinator.store import Store, StoreReader
from coordinator.study import StudySpec, parse_study, read_study

MIX = {"h200": 2, "a100-80gb": 2}


class Notes:
    """A view that remembers."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.snapshots: list[Snapshot] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


class CountingPlanner(StudyPlanner):
    """The study's planner, counting how often it is really asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def next_plan(self, state: StudyState) -> Plan | None:
        self.num_asked += 1
        return super().next_plan(state)


class Bench:
    """A run on a simulated fleet, whose coordinator can be ended and begun again."""

    def __init__(
        self, directory: Path, *, faults: Faults | None = None, mix: dict[str, int] = MIX, **budget: Any
    ) -> None:
        self.clock = VirtualClock()
        self.fleet = SimulatedFleet(mix, clock=self.clock, faults=faults)
        self.view = Notes()
        self.planner = CountingPlanner()
        self.free_bytes = 1e12
        self.granted_seconds: float | None = None
        self.sleep: Callable[[float], None] = self.wait
        self.store = Store.create(directory / "run", study_of(**budget), now_unix=self.clock.wall())

    def wait(self, seconds: float) -> None:
        self.clock.seconds += seconds

    def coordinator(self) -> Coordinator:
        return Coordinator(
            store=self.store,
            fleet=self.fleet,
            view=self.view,
            num_agents=self.fleet.num_agents,
            corpus_id="c" * 64,
            started_monotonic=self.clock.monotonic(),
            granted_seconds=self.granted_seconds,
            planner=self.planner,
            monotonic=self.clock.monotonic,
            wall=self.clock.wall,
            sleep=lambda seconds: self.sleep(seconds),
            free_bytes=lambda _: int(self.free_bytes),
        )

    def reopen(self) -> None:
        """As after a kill: what is not in the store is gone."""
        self.store.close()
        self.store = Store.resume(self.store.run_directory)

    @property
    def states(self) -> set[str]:
        return {row.state for row in self.store.trials()}


def study_of(**budget: Any) -> StudySpec:
    table = read_study("quick").model_dump(mode="json")
    table["serving"]["recipe"] |= {"engine": "fake", "dtype": "bfloat16"}
    table["budget"] |= {"wall_minutes": 1e5, **budget}
    return parse_study(table, source="a test")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(**options: Any) -> Bench:
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield bench
    for one in made:
        one.store.close()


def test_a_study_comes_to_its_end_and_keeps_every_promise(make: Callable[..., Bench]) -> None:
    bench = make()
    assert bench.coordinator().run()
    assert bench.states == {"succeeded"}
    assert bench.store.recommendation() is not None
    assert bench.store.meta("state") == "finished"
    verdict = check_history(history_of(bench.store))
    assert verdict.kept, verdict.sentence()
    assert verdict.num_open == 0


def test_a_plan_made_again_of_its_log_and_inputs_is_the_same(make: Callable[..., Bench]) -> None:
    bench = make(faults=Faults(death=2.0, out_of_memory=0.2))
    assert bench.coordinator().run()
    plans = bench.store.plans()
    assert [plan.stage for plan in plans] == ["first-round", "round-1", "round-2", "serving", "check", "verdict"]
    for plan in plans:
        assert replan(bench.store, plan.stage) == plan


def test_a_stage_that_was_never_planned_cannot_be_replayed(make: Callable[..., Bench]) -> None:
    with pytest.raises(ValueError, match="no inputs of stage 'verdict'"):
        replan(make().store, "verdict")


def test_ended_at_any_turn_it_goes_on_without_losing_or_repeating_a_result(make: Callable[..., Bench]) -> None:
    bench = make()
    acknowledged: dict[str, int] = {}
    finished, num_turns = False, 3
    while not finished:
        num_turns += 4  # what cannot be resumed needs some time in one piece
        coordinator = bench.coordinator()
        coordinator.begin()
        for _ in range(num_turns):
            if finished := coordinator.turn():
                break
        acknowledged |= {o.trial_id: o.epoch for o in bench.store.attempts() if o.outcome == "succeeded"}
        bench.reopen()
    verdict = check_history(history_of(bench.store), acknowledged=acknowledged)
    assert verdict.kept, verdict.sentence()
    assert bench.states == {"succeeded"}
    assert float(bench.store.meta("wall_seconds") or 0) == pytest.approx(bench.clock.seconds, abs=30)


class AfterCommit(SimulatedFleet):
    """Looks into the store, from outside, whenever it is given work."""

    run_directory: Path

    def assign(self, agent: str, trial_id: str, epoch: int, assignment: TrainAssignment | BenchAssignment) -> None:
        with StoreReader.open(self.run_directory) as store:
            (row,) = [row for row in store.trials() if row.trial_id == trial_id]
        assert (row.state, row.agent, row.epoch) == ("running", agent, epoch)
        super().assign(agent, trial_id, epoch, assignment)


def test_an_agent_gets_work_only_after_its_lease_is_in_the_store(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.fleet = AfterCommit(MIX, clock=bench.clock)
    bench.fleet.run_directory = bench.store.run_directory
    assert bench.coordinator().run()


def test_the_planner_is_asked_only_when_agents_would_run_dry(make: Callable[..., Bench]) -> None:
    bench = make(mix={"h200": 1})
    assert bench.coordinator().run()
    num_trials = len(bench.store.trials())
    assert bench.planner.num_asked <= 2 * len(bench.store.plans()) + 2 < num_trials


def test_a_crash_takes_nothing_back(make: Callable[..., Bench]) -> None:
    bench = make(faults=Faults(crash=2.0, death=1.0, duplicated=0.2, delayed=0.1))
    finished = False
    while not finished:
        try:
            coordinator = bench.coordinator()
            coordinator.begin()
            while not (finished := coordinator.turn()):
                pass
        except CoordinatorCrash:
            bench.reopen()
            bench.wait(30)
    assert bench.fleet.struck["crash"]
    verdict = check_history(history_of(bench.store))
    assert verdict.kept, verdict.sentence()


def test_benchmarks_run_on_one_kind_of_hardware_and_training_on_any(make: Callable[..., Bench]) -> None:
    bench = make()
    assert bench.coordinator().run()
    rows = bench.store.trials()
    assert {row.hardware for row in rows if row.phase == "bench"} == {"a100-80gb"}
    assert {row.hardware for row in rows if row.phase == "train"} == set(MIX)


def test_training_goes_only_to_the_kinds_that_the_study_names(make: Callable[..., Bench]) -> None:
    bench = make(training_hardware=["h200"], bench_hardware="a100-80gb")
    assert bench.coordinator().run()
    kinds = {(row.phase, row.hardware) for row in bench.store.trials()}
    assert kinds == {("train", "h200"), ("bench", "a100-80gb")}


def test_hardware_that_no_node_has_ends_a_study_that_must_not_wait(make: Callable[..., Bench]) -> None:
    bench = make(bench_hardware="b200", missing_hardware="fail")
    with pytest.raises(UserError, match="ask for b200; there is a100-80gb, h200"):
        bench.coordinator().run()
    assert {row.phase for row in bench.store.trials() if row.state == "succeeded"} == {"train"}


def test_hardware_that_no_node_has_is_waited_for_and_said_once(make: Callable[..., Bench]) -> None:
    bench = make(bench_hardware="b200")
    coordinator = bench.coordinator()
    coordinator.begin()
    while bench.clock.seconds < 3600:
        assert not coordinator.turn()
    assert [s for s in bench.view.sentences if "b200" in s] == [
        "no agent has the hardware that the study asks for: 3 trials ask for b200; there is a100-80gb, h200. "
        "Waiting for one."
    ]


def test_granted_hours_are_never_overspent_and_more_of_them_let_the_run_go_on(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.granted_seconds = 60.0
    with pytest.raises(UserError, match=r"budget\.accelerator_hours"):
        bench.coordinator().run()
    assert bench.states > {"queued"}
    assert bench.store.meta("state") == "interrupted"
    verdict = check_history(history_of(bench.store), granted_seconds=bench.granted_seconds)
    assert verdict.kept, verdict.sentence()
    bench.reopen()
    bench.granted_seconds = None
    assert bench.coordinator().run()


def test_a_run_that_ends_in_an_error_is_interrupted_and_was_ready(make: Callable[..., Bench]) -> None:
    bench = make()
    coordinator = bench.coordinator()
    turns = []

    def on_turn() -> None:
        turns.append((bench.store.meta("state"), coordinator.vitals.is_ready))
        if len(turns) == 10:
            raise KeyboardInterrupt

    coordinator.on_turn = on_turn
    assert not coordinator.vitals.is_ready
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    assert turns == [("running", True)] * 10
    assert bench.store.meta("state") == "interrupted"


def test_with_little_disk_nothing_new_starts_until_there_is_more(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.free_bytes = 1e9
    coordinator = bench.coordinator()
    coordinator.begin()
    for _ in range(10):
        coordinator.turn()
    assert bench.states == {"queued"}
    assert not bench.fleet.started
    bench.free_bytes = 3e9
    while not coordinator.turn():
        pass
    assert bench.states == {"succeeded"}
    assert any("there is room again" in sentence for sentence in bench.view.sentences)


def test_a_full_disk_is_waited_out_and_loses_nothing(make: Callable[..., Bench]) -> None:
    bench = make()
    coordinator = bench.coordinator()
    coordinator.begin()
    coordinator.turn()
    fill(bench.store)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        bench.wait(60 * seconds)
        waited.append(seconds)
        if len(waited) == 20:
            make_room(bench.store)

    bench.sleep = wait
    while not coordinator.turn():
        pass
    assert len(waited) >= 20
    assert bench.states == {"succeeded"}
    verdict = check_history(history_of(bench.store))
    assert verdict.kept, verdict.sentence()
    assert verdict.num_attempts == verdict.num_succeeded, "nobody was thought lost while nobody could listen"


def fill(store: Store) -> None:
    """No page can be added to the database any more: SQLite's own "disk full"."""
    store._database.execute(f"PRAGMA max_page_count = {store._database.number('PRAGMA page_count')}")


def make_room(store: Store) -> None:
    store._database.execute("PRAGMA max_page_count = 1000000")


def test_a_drifting_node_is_quarantined_by_the_baseline_of_an_earlier_start(make: Callable[..., Bench]) -> None:
    bench = make(mix={"h200": 3})
    first = bench.coordinator()
    first.begin()
    bench.reopen()
    bench.fleet = SimulatedFleet({"h200": 1}, clock=bench.clock, faults=Faults(drift=1e6))
    again = bench.coordinator()
    again.begin()
    while not any("off the baseline of h200" in sentence for sentence in bench.view.sentences):
        assert bench.clock.seconds < 3 * 3600
        again.turn()


def test_snapshots_are_rare(make: Callable[..., Bench]) -> None:
    bench = make()
    assert bench.coordinator().run()
    assert 0 < len(bench.view.snapshots) <= bench.clock.seconds / 0.5
    assert bench.view.snapshots[-1].num_failed == 0
