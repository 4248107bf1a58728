"""The simulated fleet under the real dispatch, and the history checker over what it was asked to do."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator.dispatch import (
    MAX_HAND,
    Accept,
    Dispatch,
    Fail,
    Instruction,
    Needs,
    Probe,
    Quarantine,
    Reject,
    Release,
    Restart,
    Start,
)
from coordinator.fleet.base import (
    AgentDraining,
    AgentJoined,
    AgentLost,
    CanaryMeasured,
    FleetEvent,
    Reported,
)
from coordinator.fleet.simulated import (
    ALL_FAULTS,
    FAULT_NAMES,
    STRIKES,
    CoordinatorCrash,
    Faults,
    SimulatedFleet,
    VirtualClock,
)
from coordinator.history import Ended, Fact, Leased, Verdict, check_history
from coordinator.shapes import centre_shape
from coordinator.study import read_study
from scaling.observations import ServingObservation, TrainingObservation
from scaling.recipes import ServingRecipe, TrainingRecipe, Workload

AGENTS = {"h200": 8, "a100-80gb": 8, "cpu-generic": 2}
SHAPE = centre_shape(read_study("laptop"), 200e3)


def assignments(num: int) -> dict[str, TrainAssignment | BenchAssignment]:
    """Nine trainings to one benchmark."""
    made: list[TrainAssignment | BenchAssignment] = []
    for seed in range(num):
        if seed % 10 == 9:
            workload = Workload(batch_size=seed, input_tokens=64, output_tokens=64)
            recipe = ServingRecipe(engine="fake", dtype="bfloat16")
            made.append(BenchAssignment(architecture=SHAPE, recipe=recipe, workload=workload))
        else:
            training = TrainingRecipe(num_tokens=40_000_000, seed=seed)
            made.append(TrainAssignment(architecture=SHAPE, recipe=training, corpus_id="c" * 64, num_eval_windows=2))
    return {assignment.id: assignment for assignment in made}


@dataclass
class Player:
    """A coordinator without a store: the real dispatch over the simulated fleet, remembering what happened."""

    fleet: SimulatedFleet
    work: dict[str, TrainAssignment | BenchAssignment]
    facts: list[Fact] = field(default_factory=list)
    instructions: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    accepted: dict[str, TrainingObservation | ServingObservation] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    dispatch: Dispatch = field(init=False)

    def play(self, max_hours: float = 100) -> Verdict:
        self.dispatch = Dispatch(lease_seconds=60, canary_every_seconds=1800)
        self.dispatch.enqueue(
            {
                name: Needs("bench", ("h200",)) if isinstance(one, BenchAssignment) else Needs()
                for name, one in self.work.items()
            }
        )
        self.fleet.start()
        while len(self.accepted) + len(self.given_up) < len(self.work) and self.fleet.clock.seconds < 3600 * max_hours:
            try:
                self._carry_out(self.dispatch.tick(now=self.fleet.clock.monotonic()))
                for event in self.fleet.poll(timeout_seconds=0.5):
                    self._carry_out(self._decide(event))
            except CoordinatorCrash:
                self._begin_again()
        return check_history(self.facts, max_hand=MAX_HAND)

    def _decide(self, event: FleetEvent) -> list[Instruction]:
        now = self.fleet.clock.monotonic()
        match event:
            case AgentJoined(agent, hardware, node=node):
                return self.dispatch.agent_joined(agent, hardware=hardware, node=node, now=now)
            case AgentLost(agent, reason):
                return self.dispatch.agent_lost(agent, reason, now=now)
            case AgentDraining(agent):
                self.dispatch.agent_draining(agent)
                return []
            case CanaryMeasured(agent, kind, rate):
                return self.dispatch.canary_measured(agent, kind, rate, now=now)
            case Reported(agent, trial_id, epoch, item):
                return self.dispatch.reported(agent, trial_id, epoch, item, now=now)
            case _:
                raise AssertionError(event)

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            self.instructions[type(instruction).__name__] += 1
            match instruction:
                case Start(agent, trial_id, epoch):
                    self.facts.append(Leased(trial_id, epoch, agent))
                    self.fleet.assign(agent, trial_id, epoch, self.work[trial_id])
                case Accept(trial_id, epoch, observation):
                    self.facts.append(Ended(trial_id, epoch, "succeeded"))
                    assert not hasattr(observation, "failure_kind")
                    self.accepted[trial_id] = observation
                case Fail(trial_id, epoch, kind, final=final):
                    self.failures[kind] += 1
                    self.facts.append(Ended(trial_id, epoch, "failed" if final else "retried"))
                    if final:
                        self.given_up.add(trial_id)
                case Restart(agent):
                    self.fleet.restart(agent)
                case Probe(agent):
                    self.fleet.canary(agent)

    def _begin_again(self) -> None:
        """A new process: of the old one, only what a store would hold is left."""
        before = self.dispatch
        self.dispatch = Dispatch(lease_seconds=60, canary_every_seconds=1800, epochs=before.epochs)
        self.facts += [Ended(name, lease.epoch, "interrupted") for name, lease in before.leases.items()]
        left = [name for name in self.work if name not in self.accepted and name not in self.given_up]
        self.dispatch.enqueue({name: Needs() for name in left})
        self.fleet.start()


def player(faults: Faults, *, seed: int = 0, num: int = 200) -> Player:
    return Player(SimulatedFleet(AGENTS, clock=VirtualClock(), faults=faults, seed=seed), assignments(num))


def often(name: str) -> Faults:
    """One fault alone, far more often than among all."""
    return Faults(**{name: 0.5 if name in STRIKES else 0.1})


def test_a_healthy_fleet_does_everything_once():
    healthy = player(Faults())
    verdict = healthy.play()
    assert verdict.kept, verdict.sentence()
    assert (verdict.num_succeeded, verdict.num_attempts) == (200, 200)
    assert not healthy.failures


@pytest.mark.parametrize("name", FAULT_NAMES)
def test_every_fault_alone_breaks_no_promise(name: str):
    one = player(often(name))
    verdict = one.play()
    assert one.fleet.struck[name] > 0
    assert verdict.kept, verdict.sentence()
    assert verdict.num_succeeded + verdict.num_failed == 200
    if name != "diverged":
        assert verdict.num_succeeded >= 150


@pytest.mark.parametrize("seed", range(5))
def test_all_faults_together_break_no_promise(seed: int):
    everything = player(ALL_FAULTS, seed=seed)
    verdict = everything.play()
    assert verdict.kept, verdict.sentence()
    assert verdict.num_succeeded + verdict.num_failed == 200


def test_equal_seeds_give_equal_histories():
    first, again, other = (player(ALL_FAULTS, seed=seed, num=60) for seed in (1, 1, 2))
    for one in (first, again, other):
        one.play()
    assert first.facts == again.facts
    assert first.facts != other.facts


def test_what_is_simulated_says_so_in_every_observation():
    done = player(Faults(), num=20)
    done.play()
    for observation in done.accepted.values():
        assert observation.provenance.device.startswith("SIMULATED")
        if isinstance(observation, ServingObservation):
            assert "fake" in observation.flags
            assert observation.engine_version.startswith("fake")


def test_a_death_costs_no_more_than_the_time_since_the_last_checkpoint():
    done = player(often("death"))
    done.play()
    resumed = [one for one in done.accepted.values() if isinstance(one, TrainingObservation) and one.num_resumes]
    assert resumed


def test_a_drained_training_goes_on_elsewhere_from_where_it_was():
    drained = player(often("drain"))
    drained.play()
    assert drained.failures["preempted"] > 0
    assert any(one.num_resumes for one in drained.accepted.values() if isinstance(one, TrainingObservation))


def test_a_process_that_was_cut_off_reports_under_its_old_epoch_and_is_refused():
    cut_off = player(often("partition"))
    cut_off.play()
    assert cut_off.fleet.struck["zombie"] > 0
    assert cut_off.instructions[Reject.__name__] > 0


def test_a_drifting_node_is_found_by_its_canaries_and_released_when_it_is_well():
    drifting = player(Faults(drift=0.05), num=1000)
    drifting.play()
    assert drifting.instructions[Quarantine.__name__] > 0
    assert drifting.instructions[Release.__name__] > 0


def test_a_node_whose_engine_does_not_start_is_quarantined():
    broken = player(Faults(engine=1.0), num=300)
    broken.play()
    assert broken.failures["engine-start"] > 0
    assert broken.instructions[Quarantine.__name__] > 0


def test_jumping_clocks_show_in_what_agents_write_and_decide_nothing():
    jumping, steady = player(often("clock"), num=100), player(Faults(), num=100)
    jumping.play()
    steady.play()
    offsets = [
        one.provenance.started_at_unix - steady.accepted[name].provenance.started_at_unix
        for name, one in jumping.accepted.items()
    ]
    assert max(map(abs, offsets)) > 60
    assert jumping.failures == steady.failures == Counter()


def test_the_clock_moves_only_in_poll():
    fleet = SimulatedFleet({"h200": 1}, clock=VirtualClock())
    fleet.start()
    assert fleet.clock.monotonic() == 0
    assert fleet.poll(timeout_seconds=60) == [
        AgentJoined("h200-0", "h200", 2, "h200-node-0", {"archfleet": "SIMULATED"}, 0.0)
    ]
    assert fleet.clock.monotonic() == 60
