"""The loop keeps what attempts say: under their trial and epoch, before their end is committed, while there is room."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.fleet.base import FleetEvent, Reported
from coordinator.fleet.simulated import SimulatedFleet, VirtualClock
from coordinator.logs import FOLDER, read_logs
from coordinator.loop import Coordinator
from coordinator.plan import Plan
from coordinator.planner import StudyState
from coordinator.planning import StudyPlanner
from coordinator.snapshot import Snapshot
from coordinator.store import Store
from coordinator.study import read_study
from scaling.observations import Progress


class TalkingFleet(SimulatedFleet):
    """Agents that say how far they are; one report in a turn is also told of a trial that nobody planned."""

    def poll(self, *, timeout_seconds: float) -> list[FleetEvent]:
        events: list[FleetEvent] = []
        for event in super().poll(timeout_seconds=timeout_seconds):
            if isinstance(event, Reported):
                word = f"{event.item.done_fraction:.2f}" if isinstance(event.item, Progress) else "ended"
                event = replace(event, log=f"{word}\n")
                events.append(replace(event, trial_id="../../elsewhere"))
                events.append(replace(event, epoch=event.epoch + 1))
            events.append(event)
        return events


class Silent:
    def note(self, sentence: str) -> None:
        pass

    def update(self, snapshot: Snapshot) -> None:
        pass


class OneStage(StudyPlanner):
    """The study's first plan alone."""

    def next_plan(self, state: StudyState) -> Plan | None:
        return None if state.stages else super().next_plan(state)

    def is_finished(self, state: StudyState) -> bool:
        return all(row.state == "succeeded" for row in state.trials)

    def conclude(self, state: StudyState, *, now_unix: float) -> None:
        pass


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[[int], Store]:
    """A finished run whose disk had so many bytes free."""

    def run(free_bytes: int) -> Store:
        clock = VirtualClock()
        fleet = TalkingFleet({"cpu-generic": 2}, clock=clock)
        store = Store.create(tmp_path / "run", read_study("quick"), now_unix=clock.wall())
        coordinator = Coordinator(
            store=store,
            fleet=fleet,
            view=Silent(),
            num_agents=2,
            corpus_id="c" * 64,
            started_monotonic=clock.monotonic(),
            planner=OneStage(),
            monotonic=clock.monotonic,
            wall=clock.wall,
            sleep=lambda _: None,
            free_bytes=lambda _: free_bytes,
        )
        coordinator.begin()
        for _ in range(10_000):
            if coordinator.turn() or (free_bytes == 0 and clock.seconds > 100):
                break
        coordinator.end()
        return store

    return run


def test_every_attempt_has_its_log_up_to_its_end(run_of: Callable[[int], Store]) -> None:
    with run_of(10**12) as store:
        attempts = store.attempts()
        kept = [read_logs(store.run_directory, one.trial_id) for one in attempts]
        written = "".join(file.read_text() for file in (store.run_directory / FOLDER).iterdir())

    assert attempts
    assert all(logs[one.epoch].text.splitlines()[-1] == "ended" for one, logs in zip(attempts, kept, strict=True))
    assert {line.partition(" ")[0] for line in written.splitlines()} == {
        f"{one.trial_id}.{one.epoch}" for one in attempts
    }, "neither of a trial that nobody planned nor of a lease that was never given"


def test_while_the_disk_is_nearly_full_no_log_is_written(run_of: Callable[[int], Store]) -> None:
    with run_of(0) as store:
        assert not (store.run_directory / FOLDER).exists()
