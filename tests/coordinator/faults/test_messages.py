"""Any order of messages, faults and clock jumps that hypothesis can think of, through the real dispatch and store.

What an agent was once given it may report on at any time, as often as it likes, in any order, or never, also long after
its process ended. The coordinator may end before or after any commit. The history checker reads what came of it. In CI
the schedules are always the same; a long run by hand:

    ARCHFLEET_FUZZ_EXAMPLES=2000 pytest tests/coordinator/faults/test_messages.py
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coordinator import journal
from coordinator.dispatch import RETRIES, Accept, Dispatch, Fail, Instruction, Needs, Probe, Reject, Start
from coordinator.history import Ended, Fact, Leased, check_history, history_of
from coordinator.store import Store
from coordinator.trials import failure_counts
from scaling.observations import Progress

AGENTS = ("a", "b", "c")
NUM_TRIALS = 6
LEASE_SECONDS = 60.0
EPOCH_UNIX = 1_700_000_000.0
WANTED = int(os.environ.get("ARCHFLEET_FUZZ_EXAMPLES", "0"))
agents = st.sampled_from(AGENTS)
any_index = st.integers(0, 10_000)
ages = st.one_of(st.integers(0, 3), st.integers(0, 100))


class Wire(RuleBasedStateMachine):
    """A coordinator, three agents, and the wire between them."""

    def __init__(self, template: Path, trial_ids: list[str], result: Callable, failure: Callable) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="wire-", dir=template.parent))
        self.trial_ids, self.result, self.failure = trial_ids[:NUM_TRIALS], result, failure
        self.store = Store.resume(Path(shutil.copytree(template, self.folder / "run")))
        self.now, self.wall_offset = 0.0, 0.0
        self.facts: list[Fact] = []
        self.acknowledged: dict[str, int] = {}
        self.given: list[tuple[str, str, int]] = []
        self.wire: list[tuple[str, str, int, Any]] = []
        self.dies: str | None = None

    @initialize(cost=st.sampled_from([0.1, 300.0]), budget=st.sampled_from([None, 900.0, 5_000.0]))
    def begin(self, cost: float, budget: float | None) -> None:
        """Trials of a moment are handed ahead, those of minutes are not."""
        self.cost, self.granted = cost, budget
        self.recover()
        for agent in AGENTS:
            self.join(agent)

    # The coordinator

    def recover(self) -> None:
        """A new process knows what the store holds; as in the loop."""
        before = {(one.trial_id, one.epoch): one for one in self.store.attempts()}
        self.store.requeue_running(now_unix=self.wall)
        spent = {(one.trial_id, one.epoch): one.spent_seconds for one in self.store.attempts()}
        self.facts += [Ended(*key, "interrupted", spent[key]) for key, one in before.items() if one.outcome is None]
        rows = [row for row in self.store.trials() if row.trial_id in self.trial_ids]
        self.dispatch = Dispatch(
            lease_seconds=LEASE_SECONDS,
            granted_seconds=self.granted,
            spent_seconds=sum(row.spent_seconds for row in rows),
            epochs={row.trial_id: row.epoch for row in rows if row.epoch},
            failures=failure_counts(self.store.attempts(unfinished=True)),
            quarantined=journal.quarantined(self.store),
        )
        self.dispatch.enqueue({row.trial_id: Needs(seconds=self.cost) for row in rows if row.state == "queued"})
        self.acknowledged |= {a.trial_id: a.epoch for a in self.store.attempts() if a.outcome == "succeeded"}

    @property
    def wall(self) -> float:
        return EPOCH_UNIX + self.now + self.wall_offset

    def decide(self, instructions: list[Instruction]) -> None:
        """Commit, then act; or die before or after the commit."""
        dies, self.dies = (self.dies, None) if instructions else (None, self.dies)
        if dies != "before":
            with self.store.transaction():
                for instruction in instructions:
                    journal.write(
                        self.store, instruction, self.wall, hardware_of=lambda _: "h200", lease_seconds=LEASE_SECONDS
                    )
            for instruction in instructions:
                self.note(instruction)
        if dies is not None:
            self.die()
            return
        for instruction in instructions:
            self.act(instruction)

    def note(self, instruction: Instruction) -> None:
        match instruction:
            case Start(agent, trial_id, epoch):
                self.facts.append(Leased(trial_id, epoch, agent, self.cost))
            case Accept(trial_id, epoch, spent_seconds=spent):
                self.facts.append(Ended(trial_id, epoch, "succeeded", spent))
            case Fail(trial_id, epoch, final=final, spent_seconds=spent):
                self.facts.append(Ended(trial_id, epoch, "failed" if final else "retried", spent))

    def act(self, instruction: Instruction) -> None:
        match instruction:
            case Start(agent, trial_id, epoch):
                self.given.append((agent, trial_id, epoch))
            case Probe(agent):
                self.wire.append((agent, "", 0, "canary"))

    def die(self) -> None:
        self.store.close()
        self.store = Store.resume(self.store.run_directory)
        self.recover()

    # What happens to it

    @rule(agent=agents)
    def join(self, agent: str) -> None:
        self.decide(self.dispatch.agent_joined(agent, hardware="h200", node=f"node-{agent}", now=self.now))

    @rule(agent=agents)
    def lose(self, agent: str) -> None:
        self.decide(self.dispatch.agent_lost(agent, "its process ended", now=self.now))

    @rule(agent=agents)
    def drain(self, agent: str) -> None:
        self.dispatch.agent_draining(agent)

    @precondition(lambda self: self.given)
    @rule(age=ages, what=st.sampled_from(["result", "result", "progress", *sorted(RETRIES)]), at_once=st.booleans())
    def say(self, age: int, what: str, at_once: bool) -> None:
        """An agent tells of what it was given lately, or long ago."""
        agent, trial_id, epoch = self.given[-1 - age % len(self.given)]
        item: Any = Progress(assignment_id=trial_id, done_fraction=0.5)
        if what != "progress":
            item = self.result(trial_id) if what == "result" else self.failure(trial_id, what)
        message = (agent, trial_id, epoch, item)
        if at_once:
            self.hear(message)
        else:
            self.wire.append(message)

    @precondition(lambda self: self.wire)
    @rule(index=any_index, again=st.booleans())
    def deliver(self, index: int, again: bool) -> None:
        """Any message, whatever was sent before it; it may come again."""
        at = index % len(self.wire)
        message = self.wire[at] if again else self.wire.pop(at)
        self.hear(message)

    def hear(self, message: tuple[str, str, int, Any]) -> None:
        agent, trial_id, epoch, item = message
        if item == "canary":
            self.decide(self.dispatch.canary_measured(agent, "gemm", 1.0, now=self.now))
        else:
            live = self.dispatch.leases.get(trial_id)
            is_live = live is not None and (live.agent, live.epoch) == (agent, epoch)
            instructions = self.dispatch.reported(agent, trial_id, epoch, item, now=self.now)
            kinds = {type(one) for one in instructions if getattr(one, "trial_id", None) == trial_id}
            assert (Reject in kinds) != is_live, "what is told under a live lease counts, and nothing else does"
            self.decide(instructions)

    @precondition(lambda self: self.wire)
    @rule(index=any_index)
    def lose_message(self, index: int) -> None:
        self.wire.pop(index % len(self.wire))

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0, 61.0, 600.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.decide(self.dispatch.tick(now=self.now))

    @rule(seconds=st.floats(-3600, 3600))
    def jump_clock(self, seconds: float) -> None:
        self.wall_offset += seconds

    @rule(when=st.sampled_from(["before", "after"]))
    def die_at_the_next_commit(self, when: str) -> None:
        self.dies = when

    @rule()
    def die_now(self) -> None:
        self.die()

    # What must hold

    @invariant()
    def no_trial_is_in_two_hands(self) -> None:
        if hasattr(self, "dispatch"):
            waiting = self.dispatch.queue
            assert len(set(waiting)) == len(waiting)
            assert not set(waiting) & set(self.dispatch.leases)

    def teardown(self) -> None:
        try:
            if hasattr(self, "dispatch"):
                self.check()
                self.heal()
                self.check()
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    def check(self) -> None:
        hand = self.dispatch.max_hand
        verdict = check_history(self.facts, granted_seconds=self.granted, acknowledged=self.acknowledged, max_hand=hand)
        assert verdict.kept, verdict.violations
        stored = check_history(history_of(self.store), acknowledged=self.acknowledged, max_hand=hand)
        assert stored.kept, stored.violations
        self.store.verify()
        results = [one.assignment_id for one in self.store.observations() if one.kind != "failure"]
        succeeded = [row.trial_id for row in self.store.trials() if row.state == "succeeded"]
        assert sorted(results) == sorted(succeeded)
        assert len(succeeded) == verdict.num_succeeded == stored.num_succeeded

    def heal(self) -> None:
        """Once all goes well again, every trial comes to its end."""
        self.dies, self.granted, self.wire = None, None, []
        self.dispatch.granted_seconds = None
        for _ in range(400):
            if not self.dispatch.leases and not self.dispatch.num_queued:
                break
            for agent in AGENTS:
                if agent not in self.dispatch.agents or self.dispatch.agents[agent].draining:
                    self.join(agent)
            for trial_id, lease in list(self.dispatch.leases.items()):
                self.hear((lease.agent, trial_id, lease.epoch, self.result(trial_id)))
            while self.wire:
                self.hear(self.wire.pop())
            self.pass_time(20)
        states = {row.state for row in self.store.trials() if row.trial_id in self.trial_ids}
        assert states <= {"succeeded", "failed"}


@pytest.mark.slow
def test_no_schedule_of_messages_breaks_a_promise(planned_run, world) -> None:
    template, trial_ids, result = planned_run
    run_state_machine_as_test(
        lambda: Wire(template, trial_ids, result, world.failure),
        settings=settings(
            max_examples=WANTED or 40,
            stateful_step_count=80,
            derandomize=not WANTED,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
