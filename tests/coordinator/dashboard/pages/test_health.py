"""Health: each thing that may be wrong is told with its level, its numbers and what to do."""

from dataclasses import replace

import pytest

from coordinator.dashboard.pages.health import HealthFacts, HealthLine, judge, worst
from coordinator.store_rows import AgentRow

NOW = 1_700_000_000.0


def agent(name: str = "a", **changes: object) -> AgentRow:
    told = {"agent": name, "hardware": "h200", "state": "busy", "pid": 1, "heartbeat_unix": NOW, "joined_unix": NOW}
    return AgentRow(**told | changes)  # type: ignore[arg-type]


WELL = HealthFacts(
    state="running",
    now_unix=NOW,
    created_unix=NOW - 3600,
    loop_unix=NOW - 1,
    agents=(agent(),),
    quarantined={},
    missing_hardware={},
    canary_deviations={"a": 0.01},
    num_attempts=20,
    num_failed=1,
    commonest_failure="timeout",
    num_benchmarks=5,
    num_invalid=0,
    num_refused=0,
    spent_seconds=100.0,
    granted_seconds=1000.0,
    wall_seconds=60.0,
    granted_wall_seconds=600.0,
    wall_seconds_left=300.0,
    store_bytes=10**6,
    free_bytes=10**11,
    least_free_bytes=2e9,
    num_store_errors=0,
    backup_unix=NOW - 60,
    num_fits=3,
    law="",
    heldout_error=None,
)


def line(facts: HealthFacts, name: str) -> HealthLine:
    return next(one for one in judge(facts) if one.name == name)


def test_a_run_that_is_well_is_ok_in_every_line() -> None:
    lines = judge(WELL)
    assert {one.level for one in lines} == {"ok"}
    assert worst(lines) == "ok"
    assert not any(one.what_to_do for one in lines)


@pytest.mark.parametrize(
    ("name", "level", "changes"),
    [
        ("Coordinator", "problem", {"state": "killed"}),
        ("Coordinator", "problem", {"loop_unix": NOW - 121}),
        ("Coordinator", "warning", {"state": "interrupted"}),
        ("Agents", "problem", {"agents": (agent(state="lost"),)}),
        ("Agents", "warning", {"agents": (agent(heartbeat_unix=NOW - 61),)}),
        ("Agents", "warning", {"agents": (agent(clock_offset_seconds=-2.5),)}),
        ("Agents", "warning", {"quarantined": {"a": "12 % slower than its kind"}}),
        ("Hardware", "problem", {"missing_hardware": {"a100-80gb": 3}}),
        ("Trials", "warning", {"num_failed": 7}),
        ("Benchmarks", "warning", {"num_invalid": 2}),
        ("Budget", "warning", {"spent_seconds": 950.0}),
        ("Canaries", "warning", {"canary_deviations": {"a": -0.051}}),
        ("Law", "warning", {"heldout_error": 0.06}),
        ("Budget", "warning", {"granted_seconds": None, "wall_seconds": 400.0, "wall_seconds_left": 261.0}),
        ("Budget", "warning", {"granted_seconds": None, "wall_seconds": 661.0, "wall_seconds_left": None}),
        ("Law", "warning", {"law": "The newest fit has no optimum x*.", "state": "finished"}),
        ("Store", "problem", {"free_bytes": 10**9}),
        ("Store", "warning", {"num_store_errors": 1}),
        ("Backup", "warning", {"backup_unix": NOW - 86_401}),
        ("Backup", "warning", {"backup_unix": None, "created_unix": NOW - 86_401}),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(name: str, level: str, changes: dict[str, object]) -> None:
    facts = replace(WELL, **changes)
    told = line(facts, name)
    assert told.level == level
    assert told.what_to_do
    assert worst(judge(facts)) == level


def test_what_nobody_has_looked_at_yet_is_unknown_and_leaves_the_run_well() -> None:
    facts = replace(WELL, canary_deviations={}, num_fits=0, num_attempts=0, num_failed=0)
    assert {line(facts, name).level for name in ("Canaries", "Law", "Trials")} == {"unknown"}
    assert worst(judge(facts)) == "ok"


def test_a_law_without_an_optimum_is_no_alarm_while_runs_are_planned() -> None:
    told = line(replace(WELL, law="The newest fit has no optimum x*."), "Law")
    assert (told.level, told.sentence[:37]) == ("unknown", "The newest fit has no optimum x* yet;")


def test_a_study_that_will_be_a_little_late_is_no_alarm() -> None:
    assert (
        line(replace(WELL, granted_seconds=None, wall_seconds=400.0, wall_seconds_left=259.0), "Budget").level == "ok"
    )


def test_a_finished_run_asks_nothing_of_agents_loop_or_backup() -> None:
    facts = replace(WELL, state="finished", loop_unix=NOW - 1e6, agents=(agent(state="lost"),), backup_unix=None)
    facts = replace(facts, created_unix=NOW - 1e6, spent_seconds=999.0)
    assert worst(judge(facts)) == "ok"


def test_a_few_failures_of_few_attempts_are_no_alarm() -> None:
    assert line(replace(WELL, num_attempts=4, num_failed=2), "Trials").level == "ok"


def test_many_silent_agents_are_counted_and_some_named() -> None:
    silent = tuple(agent(f"a{number}", heartbeat_unix=NOW - 100) for number in range(5))
    assert "a0, a1, a2 and 2 more" in line(replace(WELL, agents=silent), "Agents").sentence
