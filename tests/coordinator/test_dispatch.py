"""Dispatch: fencing, retries and leases, by example and by random histories with a checker."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.dispatch import RETRIES, Accept, Dispatch, Fail, Instruction, Reject, Renew, Restart, Start
from scaling.observations import Failure, FailureKind, Progress, Provenance, TrainingObservation

LEASE = 60.0
PROVENANCE = Provenance(
    agent="a", hostname="h", device="d", hardware="cpu-generic", started_at_unix=0, seconds=0, versions={}
)


def failure(trial: str, kind: FailureKind = "unknown") -> Failure:
    return Failure(assignment_id=trial, failure_kind=kind, message="it broke", provenance=PROVENANCE)


def progress(trial: str) -> Progress:
    return Progress(assignment_id=trial, done_fraction=0.5)


def success(trial: str) -> TrainingObservation:
    """A result; dispatch looks at its kind alone."""
    return TrainingObservation.model_construct(assignment_id=trial)


@pytest.fixture
def dispatch() -> Dispatch:
    return Dispatch(lease_seconds=LEASE)


def running(dispatch: Dispatch, *, agent: str = "a", trial: str = "t") -> None:
    dispatch.enqueue([trial])
    assert dispatch.agent_joined(agent, now=0) == [Start(agent, trial, 1)]


def test_trials_are_started_in_order_on_the_agent_idle_longest(dispatch: Dispatch) -> None:
    dispatch.agent_joined("a", now=0)
    dispatch.agent_joined("b", now=1)
    dispatch.enqueue(["t1", "t2", "t3"])
    assert dispatch.assign(now=2) == [Start("a", "t1", 1), Start("b", "t2", 1)]
    assert list(dispatch.queue) == ["t3"]


def test_interrupted_trials_go_first_and_keep_their_order(dispatch: Dispatch) -> None:
    dispatch.enqueue(["t3"])
    dispatch.enqueue(["t1", "t2"], front=True)
    assert list(dispatch.queue) == ["t1", "t2", "t3"]


def test_a_result_is_accepted_and_its_agent_gets_the_next_trial(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.enqueue(["next"])
    result = success("t")
    assert dispatch.reported("a", "t", 1, result, now=5) == [Accept("t", 1, result), Start("a", "next", 1)]


def test_a_second_result_of_the_same_lease_is_rejected(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.reported("a", "t", 1, success("t"), now=5)
    assert dispatch.reported("a", "t", 1, success("t"), now=6) == [Reject("t", 1, "a", "fenced")]


def test_a_result_of_an_old_epoch_is_fenced(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.agent_lost("a", "killed", now=1)
    assert dispatch.agent_joined("b", now=2) == [Start("b", "t", 2)]
    assert dispatch.reported("a", "t", 1, success("t"), now=3) == [Reject("t", 1, "a", "fenced")]


def test_the_same_agent_under_an_old_epoch_is_fenced(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.agent_lost("a", "killed", now=1)
    assert dispatch.agent_joined("a", now=2) == [Start("a", "t", 2)]
    assert dispatch.reported("a", "t", 1, success("t"), now=3) == [Reject("t", 1, "a", "fenced")]


def test_another_agent_cannot_report_for_the_holder(dispatch: Dispatch) -> None:
    running(dispatch)
    assert dispatch.reported("b", "t", 1, success("t"), now=3) == [Reject("t", 1, "b", "fenced")]
    assert "b" not in dispatch.idle


def test_a_report_on_a_trial_nobody_leased_is_rejected_as_unknown(dispatch: Dispatch) -> None:
    assert dispatch.reported("a", "t", 1, success("t"), now=3) == [Reject("t", 1, "a", "unknown_trial")]


def test_epochs_of_an_earlier_session_are_the_least_to_beat(dispatch: Dispatch) -> None:
    dispatch.epochs = {"t": 7}
    dispatch.enqueue(["t"])
    assert dispatch.agent_joined("a", now=0) == [Start("a", "t", 8)]


def test_a_lost_agents_trial_goes_to_the_front_of_the_queue(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.enqueue(["later"])
    (fail,) = dispatch.agent_lost("a", "killed", now=1)
    assert isinstance(fail, Fail)
    assert (fail.trial_id, fail.kind, fail.final) == ("t", "agent-lost", False)
    assert list(dispatch.queue) == ["t", "later"]


def test_a_lost_agents_trial_moves_to_an_idle_agent_at_once(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.agent_joined("b", now=0)
    assert dispatch.agent_lost("a", "killed", now=1)[1:] == [Start("b", "t", 2)]


def test_losing_an_idle_agent_fails_nothing(dispatch: Dispatch) -> None:
    dispatch.agent_joined("a", now=0)
    assert dispatch.agent_lost("a", "killed", now=1) == []
    dispatch.enqueue(["t"])
    assert dispatch.assign(now=2) == []


def test_an_agent_that_joins_anew_no_longer_holds_what_it_held(dispatch: Dispatch) -> None:
    running(dispatch)
    fail, start = dispatch.agent_joined("a", now=1)
    assert isinstance(fail, Fail)
    assert (fail.trial_id, fail.epoch, fail.kind) == ("t", 1, "agent-lost")
    assert start == Start("a", "t", 2)


def test_a_silent_agent_loses_its_lease_and_is_restarted(dispatch: Dispatch) -> None:
    running(dispatch)
    assert dispatch.tick(now=LEASE) == []
    fail, restart = dispatch.tick(now=LEASE + 1)
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.final) == ("timeout", False)
    assert "a" in fail.message
    assert restart == Restart("a")


def test_a_restarted_agent_gets_nothing_before_it_joins(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.tick(now=LEASE + 1)
    assert dispatch.tick(now=LEASE + 2) == []
    assert dispatch.agent_joined("a", now=LEASE + 3) == [Start("a", "t", 2)]


def test_a_sign_of_life_renews_the_lease(dispatch: Dispatch) -> None:
    running(dispatch)
    sign = progress("t")
    assert dispatch.reported("a", "t", 1, sign, now=50) == [Renew("t", sign)]
    assert dispatch.tick(now=50 + LEASE) == []
    assert len(dispatch.tick(now=51 + LEASE)) == 2


def test_a_late_sign_of_life_of_an_old_epoch_renews_nothing(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.tick(now=LEASE + 1)
    dispatch.agent_joined("b", now=LEASE + 1)
    lease = dispatch.leases["t"]
    dispatch.reported("a", "t", 1, progress("t"), now=LEASE + 30)
    assert dispatch.leases["t"] == lease


def test_a_failed_agent_is_idle_again(dispatch: Dispatch) -> None:
    running(dispatch)
    report = failure("t", "validation")
    assert dispatch.reported("a", "t", 1, report, now=1) == [Fail("t", 1, "validation", "it broke", True, report)]
    assert list(dispatch.idle) == ["a"]


@pytest.mark.parametrize("kind", sorted(RETRIES))
def test_each_kind_of_failure_has_its_number_of_retries(dispatch: Dispatch, kind: FailureKind) -> None:
    running(dispatch)
    finals = []
    for attempt in range(1, RETRIES[kind] + 2):
        fail = dispatch.reported("a", "t", attempt, failure("t", kind), now=attempt)[0]
        assert isinstance(fail, Fail)
        finals.append(fail.final)
    assert finals == [False] * RETRIES[kind] + [True]
    assert not dispatch.queue
    assert not dispatch.leases


def test_every_kind_of_failure_has_a_rule() -> None:
    from typing import get_args

    assert set(RETRIES) == set(get_args(FailureKind))


def test_failures_of_different_kinds_are_counted_apart(dispatch: Dispatch) -> None:
    running(dispatch)
    for attempt, kind in enumerate(("timeout", "unknown"), 1):
        fail = dispatch.reported("a", "t", attempt, failure("t", kind), now=attempt)[0]
        assert isinstance(fail, Fail)
        assert not fail.final


TRIALS = [f"t{number}" for number in range(6)]
AGENTS = ["a", "b", "c"]


class Histories(RuleBasedStateMachine):
    """Random events, stale and repeated ones included; every instruction goes into a history that is checked."""

    @initialize(num=st.integers(1, len(TRIALS)))
    def plan(self, num: int) -> None:
        self.dispatch = Dispatch(lease_seconds=LEASE)
        self.now = 0.0
        self.planned = TRIALS[:num]
        self.epochs: dict[str, list[int]] = {}
        self.holder: dict[str, tuple[str, int]] = {}  # what the instructions say of each trial
        self.ended: dict[str, list[Instruction]] = {}
        self.dispatch.enqueue(self.planned)

    def follow(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Start(agent, trial, epoch):
                    assert trial not in self.holder, "started while another holds it"
                    assert trial not in self.ended, "started after its end"
                    assert agent not in {held_by for held_by, _ in self.holder.values()}, "an agent holds two"
                    assert epoch > max(self.epochs.get(trial, [0])), "the epoch does not rise"
                    self.epochs.setdefault(trial, []).append(epoch)
                    self.holder[trial] = (agent, epoch)
                case Accept(trial, epoch):
                    assert self.holder.pop(trial)[1] == epoch, "accepted under an old epoch"
                    self.ended.setdefault(trial, []).append(instruction)
                case Fail(trial, epoch, _, _, final):
                    assert self.holder.pop(trial)[1] == epoch, "failed under an old epoch"
                    if final:
                        self.ended.setdefault(trial, []).append(instruction)
                case Renew(trial):
                    assert trial in self.holder

    @rule(agent=st.sampled_from(AGENTS))
    def join(self, agent: str) -> None:
        self.follow(self.dispatch.agent_joined(agent, now=self.now))

    @rule(agent=st.sampled_from(AGENTS))
    def lose(self, agent: str) -> None:
        self.follow(self.dispatch.agent_lost(agent, "killed", now=self.now))

    @rule(seconds=st.floats(0, 2 * LEASE))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.follow(self.dispatch.tick(now=self.now))

    @precondition(lambda self: self.holder)
    @rule(data=st.data(), outcome=st.sampled_from(["progress", "success", *RETRIES]))
    def report(self, data: st.DataObject, outcome: str) -> None:
        trial = data.draw(st.sampled_from(sorted(self.holder)))
        agent, epoch = self.holder[trial]
        self.follow(self.dispatch.reported(agent, trial, epoch, report_of(trial, outcome), now=self.now))

    @rule(
        agent=st.sampled_from(AGENTS),
        trial=st.sampled_from([*TRIALS, "never-planned"]),
        epoch=st.integers(0, 4),
        outcome=st.sampled_from(["progress", "success", "unknown"]),
    )
    def stray_report(self, agent: str, trial: str, epoch: int, outcome: str) -> None:
        held = self.holder.get(trial) == (agent, epoch)
        instructions = self.dispatch.reported(agent, trial, epoch, report_of(trial, outcome), now=self.now)
        assert held or [type(i) for i in instructions] == [Reject]
        self.follow(instructions)

    @invariant()
    def trials_are_nowhere_twice(self) -> None:
        queue = list(self.dispatch.queue)
        assert len(queue) == len(set(queue))
        assert not set(queue) & set(self.dispatch.leases)
        assert not set(self.ended) & (set(queue) | set(self.dispatch.leases))
        assert {*queue, *self.dispatch.leases, *self.ended} == set(self.planned), "a trial was dropped"

    @invariant()
    def leases_are_what_the_instructions_said(self) -> None:
        leases = {trial: (lease.agent, lease.epoch) for trial, lease in self.dispatch.leases.items()}
        assert leases == self.holder

    @invariant()
    def an_agent_holds_at_most_one_lease_and_is_then_not_idle(self) -> None:
        agents = [lease.agent for lease in self.dispatch.leases.values()]
        assert len(agents) == len(set(agents))
        assert not set(agents) & set(self.dispatch.idle)

    @invariant()
    def a_trial_ends_once(self) -> None:
        assert all(len(endings) == 1 for endings in self.ended.values())

    @invariant()
    def no_agent_waits_while_there_is_work(self) -> None:
        assert not (self.dispatch.idle and self.dispatch.queue)


def report_of(trial: str, outcome: str) -> Progress | TrainingObservation | Failure:
    if outcome == "progress":
        return progress(trial)
    return success(trial) if outcome == "success" else failure(trial, outcome)  # type: ignore[arg-type]


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
