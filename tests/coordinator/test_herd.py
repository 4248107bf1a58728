"""A hundred agents that join at once, again and again, since their coordinator was started anew."""

from pathlib import Path

from coordinator.fleet.simulated import SimulatedFleet, VirtualClock
from coordinator.history import check_history, history_of
from coordinator.loop import Coordinator
from coordinator.snapshot import Snapshot
from coordinator.store import Store
from coordinator.study import parse_study, read_study

NUM_AGENTS, NUM_STARTS, NUM_TURNS = 100, 6, 12


class Nobody:
    """A view without eyes."""

    def note(self, sentence: str) -> None:
        pass

    def update(self, snapshot: Snapshot) -> None:
        pass


def coordinator_over(store: Store, fleet: SimulatedFleet, clock: VirtualClock) -> Coordinator:
    return Coordinator(
        store=store,
        fleet=fleet,
        view=Nobody(),
        num_agents=fleet.num_agents,
        corpus_id="c" * 64,
        started_monotonic=clock.monotonic(),
        monotonic=clock.monotonic,
        wall=clock.wall,
        sleep=lambda seconds: None,
        free_bytes=lambda _: 10**12,
    )


def test_a_hundred_agents_that_join_at_once_after_every_restart_break_no_promise(tmp_path: Path) -> None:
    table = read_study("quick").model_dump(mode="json")
    table["serving"]["recipe"] |= {"engine": "fake", "dtype": "bfloat16"}
    table["budget"] |= {"wall_minutes": 1e5}
    clock = VirtualClock()
    fleet = SimulatedFleet({"h200": NUM_AGENTS}, clock=clock)
    store = Store.create(tmp_path / "run", parse_study(table, source="a test"), now_unix=clock.wall())
    acknowledged: dict[str, int] = {}
    for _ in range(NUM_STARTS):
        coordinator = coordinator_over(store, fleet, clock)
        coordinator.begin()
        for _ in range(NUM_TURNS):
            coordinator.turn()
        assert sum(agent.state != "lost" for agent in store.agents()) == NUM_AGENTS
        acknowledged |= {one.trial_id: one.epoch for one in store.attempts() if one.outcome == "succeeded"}
        store.close()
        store = Store.resume(store.run_directory)
    assert coordinator_over(store, fleet, clock).run()
    verdict = check_history(history_of(store), acknowledged=acknowledged)
    states = {row.state for row in store.trials()}
    store.close()
    assert verdict.kept, verdict.sentence()
    assert acknowledged
    assert states == {"succeeded"}
