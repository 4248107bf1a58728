"""Whole studies on the simulated fleet: the real planner, dispatch, store and loop under faults."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.errors import UserError
from coordinator.fleet.simulated import STRIKES, Faults, Started
from coordinator.history import Leased
from coordinator.record import read_record
from coordinator.simulate_fleet import (
    FleetSimulation,
    chosen_faults,
    contradictions,
    fleet_mix,
    fleet_table,
    simulate_fleet,
    simulated_study,
)
from coordinator.status import read_status

SOME = {"num_agents": 16, "num_trials": 100}
OFTEN = Faults(
    **dict.fromkeys(STRIKES, 0.1),
    **dict.fromkeys(("straggler", "lost", "duplicated", "delayed", "diverged", "out_of_memory"), 0.02),
)
"""Everything, five times as often as the command has it."""


def simulated(faults: Faults, *, seed: int = 0) -> dict[str, Any]:
    return simulate_fleet(FleetSimulation(**SOME, faults=faults, seed=seed))


def test_a_healthy_fleet_runs_the_study_once_through():
    result = simulated(Faults())
    assert result["kept"], result["violations"]
    assert result["num_trials"] == result["num_succeeded"] == result["num_attempts"]
    # Asked for are the planned ones; a faster shape that no run is near may be checked at the target as well.
    assert 100 <= result["num_trials"] <= 104
    assert result["failed_attempts"] == result["rejected_reports"] == {}
    assert 0 < result["ideal_hours"] < result["simulated_hours"]
    assert result["utilisation"] == pytest.approx(result["useful_share"], rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_under_all_faults_every_promise_is_kept_and_the_study_ends(seed: int):
    result = simulated(OFTEN, seed=seed)
    assert result["kept"], result["violations"]
    assert result["num_succeeded"] + result["num_failed"] == result["num_trials"]
    assert result["num_attempts"] > result["num_trials"]
    assert result["coordinator_crashes"] > 0


def test_a_coordinator_that_crashes_again_and_again_loses_nothing():
    result = simulated(Faults(crash=1.0))
    assert result["kept"], result["violations"]
    assert result["coordinator_crashes"] >= 5
    assert result["num_acknowledged_at_crashes"] > 0
    assert result["num_succeeded"] == result["num_trials"]


def test_spend_stays_within_the_granted_hours_and_the_work_in_flight():
    result = simulate_fleet(FleetSimulation(**SOME, faults=OFTEN, accelerator_hours=10))
    assert result["kept"], result["violations"]
    assert not result["finished"]
    assert "accelerator hours" in result["stopped_because"]
    assert 5 < result["accelerator_hours"] < 10 + 16 * 1.5  # agents times the longest run, in hours
    assert 0 < result["num_succeeded"] < result["num_trials"]


def test_equal_seeds_give_equal_runs():
    runs = [simulated(OFTEN, seed=seed) for seed in (5, 5)]
    for result in runs:
        del result["wall_seconds"], result["soak"]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("num_trials", [100, 500, 10_000])
def test_the_study_asks_for_about_as_many_trials_as_wanted(num_trials: int):
    study = simulated_study(num_trials)
    asked = 54 + study.fit.num_rounds * study.fit.num_runs_per_round
    assert asked == pytest.approx(num_trials, rel=0.01)


def test_a_study_of_the_users_is_simulated_and_kept_for_the_dashboard(tmp_path: Path):
    out = tmp_path / "kept"
    result = simulate_fleet(FleetSimulation(num_agents=8, study="quick", accelerator_hours=1), out=out)
    assert result["kept"], result["violations"]
    assert result["granted_accelerator_hours"] == 1
    record = read_record(out)
    assert record.state == "finished"
    assert record.study.name == "simulated-quick"
    assert record.recommendation is not None
    told = read_status(out)["recommendation"]
    assert told.startswith("SIMULATED: ")
    assert "its simulated loss" in told
    assert "(measured)" not in told
    with pytest.raises(UserError, match="kept"):
        simulate_fleet(FleetSimulation(study="quick"), out=out)


def test_a_fleet_that_remembers_what_the_store_does_not_is_a_broken_promise():
    facts = [Leased("t", 1, "a"), Leased("u", 1, "b")]
    started = [Started("t", 1, "a"), Started("u", 1, "b")]
    assert contradictions(facts, started) == []
    assert contradictions(facts, started[:1]) == []  # it crashed between commit and start
    assert contradictions(facts, [*started, started[0]]) == ["t: epoch 1 was started 2 times"]
    (unwritten,) = contradictions(facts, [Started("t", 2, "a")])
    assert "the store knows nothing" in unwritten


def test_a_fleet_is_mixed_in_proportion():
    assert fleet_mix(64) == {"h200": 24, "a100-80gb": 32, "cpu-generic": 8}
    assert fleet_mix(1) == {"h200": 1}
    assert sum(fleet_mix(13).values()) == 13


def test_what_cannot_be_simulated_is_refused_with_what_to_type():
    with pytest.raises(UserError, match="--trials 100"):
        simulated_study(10)
    with pytest.raises(UserError, match="'rain' is unknown; choose among death, "):
        chosen_faults(["rain"])


def test_the_command_says_that_everything_is_simulated():
    arguments = ["simulate", "fleet", "--agents", "16", "--trials", "100", "--fault", "drain", "--json"]
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)
    assert result["simulated"] is True
    assert "SIMULATED" in result["assumptions"]
    assert str(fleet_table(result).title).startswith("SIMULATED")


SOAK_TRIALS = int(os.environ.get("ARCHFLEET_SOAK_TRIALS", "3000"))
"""Ten thousand take some three minutes."""


@pytest.mark.slow
def test_thousands_of_trials_on_sixty_four_agents_keep_every_promise_and_leak_nothing():
    faults = chosen_faults([], every=True)
    result = simulate_fleet(FleetSimulation(num_agents=64, num_trials=SOAK_TRIALS, faults=faults))
    assert result["kept"], result["violations"]
    assert result["num_trials"] >= 0.99 * SOAK_TRIALS
    assert result["fleet_hours"] > SOAK_TRIALS / 10
    assert result["coordinator_crashes"] > 0
    soak = result["soak"]
    assert soak["open_files_growth"] <= 0
    assert soak["largest_wal_bytes"] < 64e6
    assert soak["resident_bytes_per_trial"] < 50e3
    assert soak["series_growth"] <= 60, "later stages and new kinds of failure have some; trials have none"
