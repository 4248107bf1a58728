"""Dispatch: fencing, retries, needs, budget and quarantine, by example and by random histories with a checker."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.dispatch import (
    HAND_SECONDS,
    NUM_BASELINE_CANARIES,
    QUARANTINE_SECONDS,
    RETRIES,
    Accept,
    Dispatch,
    Fail,
    Instruction,
    Judge,
    Needs,
    Probe,
    Quarantine,
    Reject,
    Release,
    Renew,
    Restart,
    Start,
)
from coordinator.history import Ended, Fact, Leased, check_history
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
    """Nothing is handed ahead."""
    return Dispatch(lease_seconds=LEASE, max_hand=1)


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
    assert dispatch.reported("a", "t", 1, result, now=5) == [Accept("t", 1, result, 5, "a"), Start("a", "next", 1)]


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
    assert (fail.kind, fail.final, fail.expired) == ("agent-lost", False, True)
    assert fail.message == "no sign of life from agent a for 60 s"
    assert restart == Restart("a")


def test_a_silent_agents_trial_is_leased_again_when_its_lease_ends(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.agent_joined("b", now=1)
    assert dispatch.tick(now=LEASE + 0.001)[1:] == [Restart("a"), Start("b", "t", 2)]


def test_silence_is_never_held_against_the_trial_more_often_than_a_lost_agent(dispatch: Dispatch) -> None:
    running(dispatch)
    finals = []
    for attempt in range(RETRIES["agent-lost"] + 1):
        now = attempt * 2 * LEASE
        fail = dispatch.tick(now=now + LEASE + 1)[0]
        assert isinstance(fail, Fail)
        finals.append(fail.final)
        dispatch.agent_joined("a", now=now + 2 * LEASE)
    assert finals == [False] * RETRIES["agent-lost"] + [True]


def test_a_trial_that_hangs_on_an_agent_that_answers_has_timed_out(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.agent_alive("a", now=LEASE)
    fail, restart = dispatch.tick(now=LEASE + 1)
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.expired) == ("timeout", True)
    assert fail.message == "agent a answers, but told nothing of the trial for 60 s"
    assert restart == Restart("a")


def test_an_answer_without_news_renews_no_lease(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.agent_alive("a", now=50)
    dispatch.agent_alive("nobody", now=50)
    assert dispatch.leases["t"].expires == LEASE


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
    assert dispatch.reported("a", "t", 1, report, now=1) == [
        Fail("t", 1, "validation", "it broke", True, report, 1, "a")
    ]
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


BENCH_H200 = Needs("bench", ("h200",))


def join(
    dispatch: Dispatch, agent: str, hardware: str = "h200", *, node: str = "", now: float = 0
) -> list[Instruction]:
    return dispatch.agent_joined(agent, hardware=hardware, node=node, now=now)


def test_a_benchmark_goes_only_to_the_hardware_it_names(dispatch: Dispatch) -> None:
    join(dispatch, "a", "a100-80gb")
    dispatch.enqueue({"bench": BENCH_H200})
    assert dispatch.assign(now=1) == []
    assert join(dispatch, "b") == [Start("b", "bench", 1)]


def test_a_trial_that_cannot_start_holds_up_nobody_behind_it(dispatch: Dispatch) -> None:
    dispatch.enqueue({"bench": BENCH_H200, "train": Needs("train", ("a100-80gb", "cpu-generic"))})
    assert join(dispatch, "a", "a100-80gb") == [Start("a", "train", 1)]
    assert dispatch.queue == ["bench"]


def test_first_come_first_served_also_between_kinds_of_work(dispatch: Dispatch) -> None:
    dispatch.enqueue({"t1": Needs(), "b1": BENCH_H200, "t2": Needs(), "b2": BENCH_H200})
    started = [join(dispatch, agent)[-1] for agent in "abcd"]
    assert [start.trial_id for start in started if isinstance(start, Start)] == ["t1", "b1", "t2", "b2"]


def test_hardware_that_no_agent_has_is_told(dispatch: Dispatch) -> None:
    join(dispatch, "a", "a100-80gb")
    dispatch.enqueue({"b1": BENCH_H200, "b2": BENCH_H200, "t": Needs("train", ("a100-80gb",))})
    assert dispatch.missing_hardware() == {("h200",): 2}
    join(dispatch, "b")
    assert dispatch.missing_hardware() == {}
    dispatch.agent_lost("b", "gone", now=1)
    assert dispatch.missing_hardware() == {("h200",): 2}


def test_a_failed_attempt_prefers_another_agent(dispatch: Dispatch) -> None:
    running(dispatch)
    join(dispatch, "b")
    assert dispatch.reported("a", "t", 1, failure("t"), now=1)[1:] == [Start("b", "t", 2)]


def test_a_failed_attempt_prefers_another_node(dispatch: Dispatch) -> None:
    join(dispatch, "a", node="n1")
    dispatch.enqueue(["t"])
    dispatch.assign(now=0)
    for agent, node in (("b", "n1"), ("c", "n2"), ("d", "n3")):
        join(dispatch, agent, node=node)
    assert dispatch.agent_lost("a", "killed", now=1)[1:] == [Start("c", "t", 2)]
    assert dispatch.agent_lost("c", "killed", now=2)[1:] == [Start("d", "t", 3)]
    assert dispatch.agent_lost("d", "killed", now=3)[1:] == [Start("b", "t", 4)]


def test_an_agent_does_other_work_before_it_repeats_its_own_failure(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.enqueue(["other"])
    assert dispatch.reported("a", "t", 1, failure("t"), now=1)[1:] == [Start("a", "other", 1)]
    assert dispatch.queue == ["t"]


def test_where_there_is_no_other_agent_the_same_one_tries_again(dispatch: Dispatch) -> None:
    running(dispatch)
    assert dispatch.reported("a", "t", 1, failure("t"), now=1)[1:] == [Start("a", "t", 2)]


@pytest.fixture
def frugal() -> Dispatch:
    """100 accelerator-seconds may be spent."""
    return Dispatch(lease_seconds=LEASE, granted_seconds=100)


def test_nothing_starts_beyond_what_is_granted(frugal: Dispatch) -> None:
    frugal.enqueue({f"t{number}": Needs(seconds=40) for number in range(3)})
    assert [len(join(frugal, agent)) for agent in "abc"] == [1, 1, 0]
    assert frugal.reserved_seconds == 80
    assert frugal.exhausted is None, "two run"


def test_what_was_reserved_and_not_used_is_free_again(frugal: Dispatch) -> None:
    test_nothing_starts_beyond_what_is_granted(frugal)
    instructions = frugal.reported("a", "t0", 1, success("t0"), now=10)
    assert [type(i) for i in instructions] == [Accept, Start]
    assert (frugal.spent_seconds, frugal.reserved_seconds) == (10, 80)


def test_failed_attempts_are_spent_too(frugal: Dispatch) -> None:
    frugal.enqueue({"t": Needs(seconds=60)})
    join(frugal, "a")
    (fail,) = frugal.reported("a", "t", 1, failure("t"), now=50)
    assert isinstance(fail, Fail)
    assert not fail.final
    assert fail.spent_seconds == 50
    assert frugal.exhausted == 60


def test_a_granted_sum_that_is_raised_lets_work_go_on(frugal: Dispatch) -> None:
    test_failed_attempts_are_spent_too(frugal)
    frugal.granted_seconds = 110
    assert frugal.assign(now=51) == [Start("a", "t", 2)]


def test_without_a_grant_nothing_is_exhausted(dispatch: Dispatch) -> None:
    dispatch.enqueue({"t": Needs(seconds=1e9)})
    assert dispatch.exhausted is None
    assert len(join(dispatch, "a")) == 1


def test_nothing_starts_while_paused(dispatch: Dispatch) -> None:
    dispatch.paused = "the disk is nearly full"
    dispatch.enqueue(["t"])
    assert join(dispatch, "a") == []
    dispatch.paused = None
    assert dispatch.tick(now=1) == [Start("a", "t", 1)]


def test_a_draining_agent_gets_nothing_new_and_its_trial_goes_on_first_elsewhere(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.enqueue(["later"])
    dispatch.agent_draining("a")
    (fail,) = dispatch.reported("a", "t", 1, failure("t", "preempted"), now=5)
    assert isinstance(fail, Fail)
    assert not fail.final
    assert dispatch.idle == []
    assert join(dispatch, "b") == [Start("b", "t", 2)]


def test_an_idle_agent_that_drains_gets_nothing_more(dispatch: Dispatch) -> None:
    join(dispatch, "a")
    dispatch.agent_draining("a")
    dispatch.enqueue(["t"])
    assert dispatch.assign(now=1) == []
    assert join(dispatch, "a", now=2) == [Start("a", "t", 1)], "its machine stayed after all"


def test_silence_while_nobody_listened_is_not_held_against_an_agent(dispatch: Dispatch) -> None:
    running(dispatch)
    dispatch.stalled(500)
    assert dispatch.tick(now=LEASE + 400) == []


@pytest.fixture
def watchful() -> Dispatch:
    """Asks for canaries every hour; the baseline of h200 is 100."""
    dispatch = Dispatch(lease_seconds=LEASE, canary_every_seconds=3600)
    dispatch.baselines = {("h200", "gemm"): [99.0, 100.0, 101.0]}
    return dispatch


def test_the_first_canaries_make_the_baseline_unjudged() -> None:
    dispatch = Dispatch(lease_seconds=LEASE, canary_every_seconds=3600)
    for number, rate in enumerate((99.0, 100.0, 150.0)):
        join(dispatch, f"a{number}")
        assert dispatch.canary_measured(f"a{number}", "gemm", rate, now=1) == [
            Judge(f"a{number}", "h200", "gemm", rate, None, True)
        ]
    assert len(dispatch.baselines["h200", "gemm"]) == NUM_BASELINE_CANARIES
    judge, _ = dispatch.canary_measured("a2", "gemm", 150.0, now=2)
    assert judge == Judge("a2", "h200", "gemm", 150.0, 100.0, False)


def test_an_accelerator_is_probed_before_its_first_work(watchful: Dispatch) -> None:
    watchful.enqueue(["t"])
    assert join(watchful, "a") == [Probe("a")]
    assert watchful.canary_measured("a", "gemm", 102, now=1) == [
        Judge("a", "h200", "gemm", 102, 100.0, True),
        Start("a", "t", 1),
    ]


@pytest.mark.parametrize("rate", [94.0, 106.0])
def test_an_agent_off_the_baseline_gets_no_work_until_a_good_canary(watchful: Dispatch, rate: float) -> None:
    watchful.enqueue(["t"])
    join(watchful, "a")
    judge, quarantine = watchful.canary_measured("a", "gemm", rate, now=1)
    assert isinstance(judge, Judge)
    assert not judge.accepted
    assert isinstance(quarantine, Quarantine)
    assert "6.0% off the baseline of h200" in quarantine.reason
    assert watchful.tick(now=QUARANTINE_SECONDS) == []
    assert watchful.tick(now=QUARANTINE_SECONDS + 1) == [Probe("a")]
    assert watchful.canary_measured("a", "gemm", 100, now=70)[1:] == [Release("a"), Start("a", "t", 1)]


def test_each_further_quarantine_lasts_longer(watchful: Dispatch) -> None:
    join(watchful, "a")
    watchful.canary_measured("a", "gemm", 50, now=0)
    assert watchful.tick(now=QUARANTINE_SECONDS) == [Probe("a")]
    watchful.canary_measured("a", "gemm", 50, now=QUARANTINE_SECONDS)
    assert watchful.tick(now=2 * QUARANTINE_SECONDS) == []
    assert watchful.tick(now=3 * QUARANTINE_SECONDS) == [Probe("a")]


def test_a_quarantine_outlives_the_agents_process(watchful: Dispatch) -> None:
    join(watchful, "a")
    watchful.canary_measured("a", "gemm", 50, now=0)
    watchful.agent_lost("a", "killed", now=1)
    watchful.enqueue(["t"])
    assert join(watchful, "a", now=2) == [Probe("a")]


def test_an_idle_agent_is_probed_again_when_its_time_has_come(watchful: Dispatch) -> None:
    join(watchful, "a")
    watchful.canary_measured("a", "gemm", 100, now=0)
    assert watchful.tick(now=3599) == []
    assert watchful.tick(now=3600) == [Probe("a")]


def test_a_busy_agent_is_probed_between_two_trials(watchful: Dispatch) -> None:
    join(watchful, "a")
    watchful.canary_measured("a", "gemm", 100, now=0)
    watchful.enqueue({"t": Needs(seconds=60), "the next": Needs(seconds=60)})
    watchful.assign(now=3590)
    assert watchful.tick(now=3620) == []
    assert watchful.reported("a", "t", 1, success("t"), now=3630)[1:] == [Probe("a")]
    assert watchful.tick(now=3631) == []


def test_an_agent_whose_canary_does_not_end_is_restarted(watchful: Dispatch) -> None:
    join(watchful, "a")
    quarantine, restart = watchful.tick(now=LEASE + 1)
    assert quarantine == Quarantine("a", "its canary did not end")
    assert restart == Restart("a")
    assert join(watchful, "a", now=70) == [Probe("a")]


def test_a_cpu_is_not_judged_by_its_canary(watchful: Dispatch) -> None:
    assert join(watchful, "a", "cpu-generic") == []
    for rate in (1.0, 1.0, 1.0, 5.0):
        (judge,) = watchful.canary_measured("a", "gemm", rate, now=1)
        assert isinstance(judge, Judge)
        assert judge.accepted
    assert watchful.idle == ["a"]


def test_a_canary_of_an_unknown_agent_says_nothing(watchful: Dispatch) -> None:
    assert watchful.canary_measured("ghost", "gemm", 1, now=0) == []


def test_what_an_agent_does_in_a_word(watchful: Dispatch) -> None:
    told = [watchful.agent_state("a")]
    join(watchful, "a")
    told.append(watchful.agent_state("a"))
    watchful.canary_measured("a", "gemm", 100, now=1)
    told.append(watchful.agent_state("a"))
    watchful.canary_measured("a", "gemm", 50, now=2)
    told.append(watchful.agent_state("a"))
    watchful.agent_draining("a")
    told.append(watchful.agent_state("a"))
    assert told == ["lost", "busy", "idle", "quarantined", "draining"]


def engine_failure(trial: str) -> Failure:
    return failure(trial, "engine-start").model_copy(update={"detail": "loading\nno kernel image for this GPU"})


def test_a_node_whose_engine_does_not_start_for_two_trials_is_quarantined(dispatch: Dispatch) -> None:
    for agent in "ab":
        join(dispatch, agent, node="n")
    dispatch.enqueue(["t", "u"])
    dispatch.assign(now=0)
    first = dispatch.reported("a", "t", 1, engine_failure("t"), now=1)
    assert not any(isinstance(i, Quarantine) for i in first)
    second = dispatch.reported("b", "u", 1, engine_failure("u"), now=2)
    reasons = {i.agent: i.reason for i in second if isinstance(i, Quarantine)}
    assert set(reasons) == {"a", "b"}
    assert "no kernel image for this GPU" in reasons["b"]
    assert join(dispatch, "c", node="other", now=3) != []


def test_one_trial_whose_engine_never_starts_condemns_no_node(dispatch: Dispatch) -> None:
    join(dispatch, "a", node="n")
    dispatch.enqueue(["t"])
    dispatch.assign(now=0)
    for epoch in (1, 2):
        assert not any(
            isinstance(i, Quarantine) for i in dispatch.reported("a", "t", epoch, engine_failure("t"), now=epoch)
        )
    assert dispatch.idle == ["a"]


SHORT = Needs(seconds=0.3)


@pytest.fixture
def generous() -> Dispatch:
    """Hands up to three trials to an agent."""
    return Dispatch(lease_seconds=LEASE, max_hand=3)


def with_a_full_hand(dispatch: Dispatch) -> None:
    """Agent `a` holds t1, at work, and behind it t2 and t3; t4 waits."""
    dispatch.enqueue(dict.fromkeys(("t1", "t2", "t3", "t4"), SHORT))
    assert join(dispatch, "a") == [
        Start("a", "t1", 1),
        Start("a", "t2", 1, ahead=True),
        Start("a", "t3", 1, ahead=True),
    ]


def test_short_trainings_are_handed_ahead_up_to_the_most_an_agent_holds(generous: Dispatch) -> None:
    with_a_full_hand(generous)
    assert generous.queue == ["t4"]
    assert generous.reserved_seconds == pytest.approx(0.9)
    result = success("t1")
    assert generous.reported("a", "t1", 1, result, now=0.25) == [
        Accept("t1", 1, result, 0.25, "a"),
        Start("a", "t4", 1, ahead=True),
    ]


def test_idle_agents_come_before_any_hand(generous: Dispatch) -> None:
    join(generous, "a")
    join(generous, "b")
    generous.enqueue(dict.fromkeys(("t1", "t2", "t3"), SHORT))
    assert generous.assign(now=1) == [Start("a", "t1", 1), Start("b", "t2", 1), Start("a", "t3", 1, ahead=True)]


@pytest.mark.parametrize("longer", [Needs(seconds=HAND_SECONDS + 1), Needs("bench", seconds=0.1)])
def test_nothing_follows_a_long_training_or_a_benchmark(generous: Dispatch, longer: Needs) -> None:
    generous.enqueue({"long": longer, "next": SHORT})
    assert join(generous, "a") == [Start("a", "long", 1)]


def test_a_benchmark_is_waited_for_and_not_passed_over(generous: Dispatch) -> None:
    generous.enqueue({"t1": SHORT, "bench": BENCH_H200, "t2": SHORT})
    assert join(generous, "a") == [Start("a", "t1", 1)]
    assert generous.reported("a", "t1", 1, success("t1"), now=1)[1:] == [Start("a", "bench", 1)]


def test_what_has_failed_before_is_alone_in_its_agents_hands(generous: Dispatch) -> None:
    with_a_full_hand(generous)
    generous.agent_lost("a", "killed", now=1)
    assert generous.queue == ["t1", "t2", "t3", "t4"]
    assert join(generous, "b", now=2) == [Start("b", "t1", 2)]
    assert generous.reported("b", "t1", 2, success("t1"), now=3)[1:] == [Start("b", "t2", 2)]


def test_an_agents_time_counts_for_the_trial_at_work_alone(generous: Dispatch) -> None:
    with_a_full_hand(generous)
    generous.reported("a", "t1", 1, success("t1"), now=0.5)
    generous.reported("a", "t2", 1, success("t2"), now=0.75)
    fails = generous.agent_lost("a", "killed", now=2)
    assert {fail.trial_id: fail.spent_seconds for fail in fails if isinstance(fail, Fail)} == {"t3": 1.25, "t4": 0}
    assert generous.spent_seconds == 2
    assert generous.reserved_seconds == 0


def test_a_trial_handed_ahead_waits_without_its_lease_running_out(generous: Dispatch) -> None:
    with_a_full_hand(generous)
    generous.reported("a", "t1", 1, progress("t1"), now=50)
    assert generous.tick(now=100) == []
    generous.reported("a", "t1", 1, success("t1"), now=105)
    assert generous.tick(now=105 + LEASE) == []
    *fails, restart = generous.tick(now=106 + LEASE)
    ends = [(fail.trial_id, fail.kind, fail.expired) for fail in fails if isinstance(fail, Fail)]
    assert ends == [("t4", "agent-lost", False), ("t3", "agent-lost", False), ("t2", "agent-lost", True)]
    assert restart == Restart("a")


def test_a_result_that_overtakes_the_one_before_it_counts(generous: Dispatch) -> None:
    with_a_full_hand(generous)
    accept = generous.reported("a", "t2", 1, success("t2"), now=1)[0]
    assert isinstance(accept, Accept)
    assert accept.spent_seconds == 0
    accept = generous.reported("a", "t1", 1, success("t1"), now=2)[0]
    assert isinstance(accept, Accept)
    assert accept.spent_seconds == 2


def test_a_draining_agent_is_handed_nothing_ahead(generous: Dispatch) -> None:
    with_a_full_hand(generous)
    generous.agent_draining("a")
    assert [type(i) for i in generous.reported("a", "t1", 1, success("t1"), now=1)] == [Accept]


def test_a_canary_that_is_due_comes_when_the_hand_is_empty(watchful: Dispatch) -> None:
    join(watchful, "a")
    watchful.canary_measured("a", "gemm", 100, now=0)
    watchful.enqueue(dict.fromkeys(("t1", "t2"), SHORT))
    assert len(watchful.assign(now=1)) == 2
    watchful.enqueue({"t3": SHORT})
    assert [type(i) for i in watchful.reported("a", "t1", 1, success("t1"), now=3630)] == [Accept]
    assert watchful.reported("a", "t2", 1, success("t2"), now=3631)[1:] == [Probe("a")]


def test_nothing_is_handed_ahead_beyond_what_is_granted() -> None:
    dispatch = Dispatch(lease_seconds=LEASE, granted_seconds=0.7)
    dispatch.enqueue(dict.fromkeys(("t1", "t2", "t3"), SHORT))
    assert len(join(dispatch, "a")) == 2


TRIALS = [f"t{number}" for number in range(6)]
AGENTS = {"a": "h200", "b": "h200", "c": "a100-80gb", "d": "cpu-generic"}
NEEDS = [
    *(Needs(seconds=30), Needs("bench", ("h200",), 20), Needs("train", ("a100-80gb", "cpu-generic"), 10)),
    *(SHORT, Needs("train", ("h200",), 0.5)),
]
GRANTED = 2000.0


class Histories(RuleBasedStateMachine):
    """Agents, a network that repeats, drops, delays and reorders, and clocks that jump; the history is checked."""

    @initialize(
        num=st.integers(1, len(TRIALS)), watchful=st.booleans(), max_hand=st.sampled_from([1, 3]), data=st.data()
    )
    def plan(self, num: int, watchful: bool, max_hand: int, data: st.DataObject) -> None:
        self.dispatch = Dispatch(
            lease_seconds=LEASE,
            granted_seconds=GRANTED,
            canary_every_seconds=600 if watchful else None,
            max_hand=max_hand,
        )
        self.now = 0.0
        self.needs = {trial: data.draw(st.sampled_from(NEEDS)) for trial in TRIALS[:num]}
        self.facts: list[Fact] = []
        self.holder: dict[str, tuple[str, int]] = {}  # what the instructions say of each trial
        self.ended: set[str] = set()
        self.working: dict[str, list[tuple[str, int]]] = {}  # what each agent believes it was given
        self.probed: set[str] = set()
        self.network: list[tuple[str, str, int, str]] = []
        self.dispatch.enqueue(self.needs)

    def follow(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Start(agent, trial, epoch, ahead):
                    needs = self.needs[trial]
                    assert needs.hardware is None or AGENTS[agent] in needs.hardware, "the wrong hardware"
                    assert agent not in self.dispatch.quarantined
                    self.facts.append(Leased(trial, epoch, agent, needs.seconds))
                    self.holder[trial] = (agent, epoch)
                    self.working.setdefault(agent, []).append((trial, epoch))
                    assert not ahead or (needs.phase == "train" and trial not in self.dispatch.failures)
                case Accept(trial, epoch, _, spent):
                    self.facts.append(Ended(trial, epoch, "succeeded", spent))
                    self.ended.add(trial)
                    del self.holder[trial]
                case Fail(trial, epoch, _, _, final, _, spent):
                    self.facts.append(Ended(trial, epoch, "failed" if final else "retried", spent))
                    self.ended |= {trial} if final else set()
                    del self.holder[trial]
                case Renew(trial):
                    assert trial in self.holder
                case Probe(agent):
                    assert agent not in {held_by for held_by, _ in self.holder.values()}, "a canary beside a trial"
                    self.probed.add(agent)
                case Restart(agent):
                    self.working.pop(agent, None)

    @rule(agent=st.sampled_from(sorted(AGENTS)))
    def join(self, agent: str) -> None:
        self.working.pop(agent, None)
        self.follow(self.dispatch.agent_joined(agent, hardware=AGENTS[agent], node=agent, now=self.now))

    @rule(agent=st.sampled_from(sorted(AGENTS)))
    def lose(self, agent: str) -> None:
        self.follow(self.dispatch.agent_lost(agent, "killed", now=self.now))

    @rule(agent=st.sampled_from(sorted(AGENTS)))
    def drain(self, agent: str) -> None:
        self.dispatch.agent_draining(agent)

    @precondition(lambda self: self.probed)
    @rule(data=st.data(), rate=st.sampled_from([100.0, 101.0, 90.0]))
    def measure(self, data: st.DataObject, rate: float) -> None:
        agent = data.draw(st.sampled_from(sorted(self.probed)))
        self.probed.discard(agent)
        self.follow(self.dispatch.canary_measured(agent, "gemm", rate, now=self.now))

    @rule(seconds=st.floats(0, 2 * LEASE))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.follow(self.dispatch.tick(now=self.now))

    @rule(seconds=st.sampled_from([-3600.0, 3600.0]))
    def jump(self, seconds: float) -> None:
        self.now += seconds
        self.follow(self.dispatch.tick(now=self.now))

    @rule(seconds=st.floats(0, LEASE))
    def stall(self, seconds: float) -> None:
        self.now += seconds
        self.dispatch.stalled(seconds)

    @rule(paused=st.sampled_from([None, "no disk"]))
    def pause(self, paused: str | None) -> None:
        self.dispatch.paused = paused
        self.follow(self.dispatch.assign(now=self.now))

    @precondition(lambda self: any(self.working.values()))
    @rule(data=st.data(), outcome=st.sampled_from(["progress", "success", *RETRIES]))
    def send(self, data: st.DataObject, outcome: str) -> None:
        agent = data.draw(st.sampled_from(sorted(agent for agent, hand in self.working.items() if hand)))
        trial, epoch = self.working[agent][0]
        self.network.append((agent, trial, epoch, outcome))
        if outcome != "progress":
            self.working[agent].pop(0)

    @precondition(lambda self: self.network)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "repeat", "drop"]))
    def network_acts(self, data: st.DataObject, fate: str) -> None:
        message = data.draw(st.sampled_from(self.network))
        if fate != "repeat":
            self.network.remove(message)
        if fate != "drop":
            self.deliver(*message)

    @rule(
        agent=st.sampled_from(sorted(AGENTS)),
        trial=st.sampled_from([*TRIALS, "never-planned"]),
        epoch=st.integers(0, 4),
        outcome=st.sampled_from(["progress", "success", "unknown"]),
    )
    def deliver(self, agent: str, trial: str, epoch: int, outcome: str) -> None:
        held = self.holder.get(trial) == (agent, epoch)
        instructions = self.dispatch.reported(agent, trial, epoch, report_of(trial, outcome), now=self.now)
        assert held or [type(i) for i in instructions] == [Reject]
        self.follow(instructions)

    @invariant()
    def every_promise_is_kept(self) -> None:
        verdict = check_history(self.facts, granted_seconds=GRANTED, max_hand=self.dispatch.max_hand)
        assert verdict.kept, verdict.sentence()

    @invariant()
    def trials_are_nowhere_twice(self) -> None:
        queue = self.dispatch.queue
        assert len(queue) == len(set(queue))
        assert not set(queue) & set(self.dispatch.leases)
        assert not self.ended & (set(queue) | set(self.dispatch.leases))
        assert {*queue, *self.dispatch.leases, *self.ended} == set(self.needs), "a trial was dropped"

    @invariant()
    def leases_are_what_the_instructions_said(self) -> None:
        leases = {trial: (lease.agent, lease.epoch) for trial, lease in self.dispatch.leases.items()}
        assert leases == self.holder

    @invariant()
    def an_agent_that_holds_a_lease_is_not_idle(self) -> None:
        agents = {lease.agent for lease in self.dispatch.leases.values()}
        assert not agents & set(self.dispatch.idle)
        assert not set(self.dispatch.quarantined) & set(self.dispatch.idle)

    @invariant()
    def of_an_agents_leases_one_is_at_work(self) -> None:
        at_work = [lease.agent for lease in self.dispatch.leases.values() if lease.started is not None]
        assert sorted(at_work) == sorted({lease.agent for lease in self.dispatch.leases.values()})

    @invariant()
    def what_is_reserved_is_what_the_leases_need(self) -> None:
        assert self.dispatch.reserved_seconds == pytest.approx(sum(self.needs[trial].seconds for trial in self.holder))

    @invariant()
    def no_agent_waits_while_there_is_work_for_it(self) -> None:
        if self.dispatch.paused is None:
            idle = {AGENTS[agent] for agent in self.dispatch.idle}
            left = GRANTED - self.dispatch.spent_seconds - self.dispatch.reserved_seconds
            fits = [self.needs[trial] for trial in self.dispatch.queue if self.needs[trial].seconds <= left]
            assert not any(idle & set(needs.hardware or AGENTS.values()) for needs in fits)


def report_of(trial: str, outcome: str) -> Progress | TrainingObservation | Failure:
    if outcome == "progress":
        return progress(trial)
    return success(trial) if outcome == "success" else failure(trial, outcome)  # type: ignore[arg-type]


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, derandomize=True)
