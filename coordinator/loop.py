"""Coordinator: connects planner, dispatch, fleet and store. Runs, resumes, stops cleanly.

The loop decides nothing itself: dispatch decides who runs what, the planner what is worth running, and every
fact goes into the store before anything follows from it.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator import forecast, planner, shapes
from coordinator.analysis import analyse
from coordinator.budget import Speed, speed_from_probes, token_scale
from coordinator.dispatch import (
    Accept,
    Dispatch,
    Fail,
    Instruction,
    Probe,
    Quarantine,
    Reject,
    Release,
    Renew,
    Restart,
    Start,
)
from coordinator.errors import UserError
from coordinator.fleet.base import (
    AgentAlive,
    AgentDraining,
    AgentJoined,
    AgentLost,
    CanaryMeasured,
    Fleet,
    FleetEvent,
    Reported,
)
from coordinator.plan import Plan, PlannedTrial
from coordinator.recommendation import make_recommendation
from coordinator.snapshot import RunningTrial, Snapshot, View
from coordinator.store import AgentRow, Store
from coordinator.study import StudySpec
from scaling.observations import Failure, Provenance, TrainingObservation

LEASE_SECONDS = 60.0
POLL_SECONDS = 0.5
PROBE_SECONDS = 1.5
JOIN_SECONDS = 120.0


@dataclass
class Coordinator:
    """One run of one study.

    `monotonic` decides leases; `wall` is only written down. `stop_requested` is asked once a turn.
    """

    store: Store
    fleet: Fleet
    view: View
    num_agents: int
    corpus_id: str
    started_monotonic: float
    stop_requested: Callable[[], bool] = lambda: False
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    _dispatch: Dispatch = field(init=False)
    _study: StudySpec = field(init=False)
    _planned: dict[str, PlannedTrial] = field(init=False, default_factory=dict)
    _running: dict[str, RunningTrial] = field(init=False, default_factory=dict)
    _speed: Speed | None = field(init=False, default=None)
    _law_sentence: str = field(init=False, default="")
    _something_ended: bool = field(init=False, default=True)

    def run(self) -> bool:
        """Run until the study is finished or a stop is asked for. True when it is finished."""
        self._study = self.store.study()
        self._dispatch = Dispatch(lease_seconds=LEASE_SECONDS)
        self._recover()
        try:
            self.view.note("starting the agents")
            self.fleet.start()
            self._await_agents()
            self._price()
            finished = False
            while not self.stop_requested() and not (finished := self._plan_and_look()):
                self._turn()
        finally:
            self.fleet.stop()
            self._mark_agents_gone()
        self.store.set_meta("state", "finished" if finished else "interrupted")
        return finished

    def _recover(self) -> None:
        """Take up a stored run: what was leased is queued again, with its old epoch as the least to beat."""
        interrupted = self.store.requeue_running(now_unix=self.wall())
        trials = self.store.trials()
        self._planned = {trial.trial_id: trial.planned for trial in trials}
        self._dispatch.epochs = {trial.trial_id: trial.epoch for trial in trials if trial.epoch}
        for record in self.store.observations():
            if isinstance(record, Failure):
                counts = self._dispatch.failures.setdefault(record.assignment_id, {})
                counts[record.failure_kind] = counts.get(record.failure_kind, 0) + 1
        waiting = [trial.trial_id for trial in trials if trial.state == "queued" and trial.trial_id not in interrupted]
        self._dispatch.enqueue([*interrupted, *waiting])
        self.store.set_meta("state", "running")
        if trials:
            done = sum(trial.state in ("succeeded", "failed") for trial in trials)
            self.view.note(f"resuming: {done} trials done, {len(interrupted)} interrupted, {len(waiting)} waiting")

    def _await_agents(self) -> None:
        """All agents join before the probe, so that its price includes their crowding one another."""
        deadline = self.monotonic() + JOIN_SECONDS
        while len(self._dispatch.idle) < self.num_agents and self.monotonic() < deadline and not self.stop_requested():
            for event in self.fleet.poll(timeout_seconds=POLL_SECONDS):
                self._note_agent(event)
                self._carry_out(self._decide(event))
        if not self._dispatch.idle and not self.stop_requested():
            raise UserError(
                f"no agent came up within {JOIN_SECONDS:.0f} s; this machine may be out of memory or too busy.\n"
                "Look at it with `free -g` and `uptime`, and run the same command again."
            )

    def _price(self) -> None:
        """Measure the agents' speed once per run; the token scale that follows from it is kept for good."""
        stored = self.store.meta("speed")
        if stored is not None:
            self._speed = Speed.model_validate_json(stored)
            return
        if self.stop_requested():
            return
        self.view.note("measuring training speed on every agent")
        probes = [
            (float(shape.num_parameters), self.fleet.probe(shape, seconds=PROBE_SECONDS))
            for shape in (shapes.centre_shape(self._study, size) for size in shapes.probe_sizes(self._study))
        ]
        self._speed = speed_from_probes(probes[0], probes[-1])
        elapsed = self.monotonic() - self.started_monotonic
        scale = token_scale(self._study, self._speed, elapsed_seconds=elapsed)
        self.store.set_meta("token_scale", repr(scale))
        self.store.set_meta("speed", self._speed.model_dump_json())
        if scale < 1:
            self.view.note(
                f"this machine allows {scale:.0%} of the wanted tokens within the budget; D is scaled alike for all"
            )

    def _plan_and_look(self) -> bool:
        """Plan whatever has become due, and tell whether the study is finished. Only after something ended."""
        if not self._something_ended:
            return False
        self._something_ended = False
        while (plan := planner.next_plan(state := self._state())) is not None:
            self._queue(plan)
        self._carry_out(self._dispatch.assign(now=self.monotonic()))
        if not planner.is_finished(state):
            return False
        self._conclude(state)
        return True

    def _conclude(self, state: planner.StudyState) -> None:
        """Every trial has ended: write down what follows from them."""
        choice = planner.choice_of(state)
        if choice is None or state.analysis is None:
            return
        now = self.wall()
        recommendation = make_recommendation(
            state.study, state.analysis, choice, state.observations, token_scale=state.token_scale, made_unix=now
        )
        self.store.add_recommendation(recommendation.model_dump(mode="json"), now_unix=now)

    def _state(self) -> planner.StudyState:
        return planner.state_of(self.store, corpus_id=self.corpus_id, elapsed_seconds=self._elapsed_seconds())

    def _elapsed_seconds(self) -> float:
        """Wall seconds of this study, earlier starts included."""
        return float(self.store.meta("wall_seconds") or 0) + self.monotonic() - self.started_monotonic

    def _turn(self) -> None:
        self._carry_out(self._dispatch.tick(now=self.monotonic()))
        for event in self.fleet.poll(timeout_seconds=POLL_SECONDS):
            self._note_agent(event)
            self._carry_out(self._decide(event))
        self.store.set_meta("loop_unix", repr(self.wall()))
        self.view.update(self._snapshot())

    def _decide(self, event: FleetEvent) -> list[Instruction]:
        now = self.monotonic()
        match event:
            case AgentJoined(agent):
                return self._dispatch.agent_joined(agent, now=now)
            case AgentLost(agent, reason) | AgentDraining(agent, reason):
                return self._dispatch.agent_lost(agent, reason, now=now)
            case CanaryMeasured() | AgentAlive():
                return []
            case Reported(agent, trial_id, epoch, item):
                return self._dispatch.reported(agent, trial_id, epoch, item, now=now)

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        now = self.wall()
        match instruction:
            case Start(agent, trial_id, epoch):
                self._start(agent, trial_id, epoch)
            case Renew(trial_id, progress):
                self.store.record_progress(trial_id, progress, expires_unix=now + LEASE_SECONDS)
                self._running[trial_id] = self._running[trial_id].at(progress)
            case Accept(trial_id, epoch, observation):
                self.store.record_result(trial_id, epoch, observation, now_unix=now)
                self._ended(trial_id, agent_state="idle")
                if isinstance(observation, TrainingObservation):
                    self.view.note(f"{self._describe(trial_id)}: loss {observation.loss:.4f} nats/token")
                    self._refit()
                else:
                    self.view.note(f"{self._describe(trial_id)}: measured")
            case Fail(trial_id, epoch, kind, message, final):
                failure = instruction.failure or self._failure(instruction)
                self.store.record_failure(trial_id, epoch, failure, final=final, now_unix=now)
                # Without a report of its own, the agent is gone or about to be restarted.
                self._ended(trial_id, agent_state="idle" if instruction.failure else "lost")
                again = "given up" if final else "will be tried again"
                self.view.note(f"{self._describe(trial_id)}: {kind}, {again}: {message}")
            case Reject(trial_id, epoch, agent, reason):
                self.store.reject(trial_id, epoch=epoch, agent=agent, reason=reason, now_unix=now)
            case Probe(agent):
                self.fleet.canary(agent)
            case Quarantine(agent, reason):
                self.view.note(f"{agent} gets no more work for now: {reason}")
            case Release(agent):
                self.view.note(f"{agent} works again: its canary is as it should be")
            case Restart(agent):
                self.store.count("leases_expired")
                self.fleet.restart(agent)

    def _start(self, agent: str, trial_id: str, epoch: int) -> None:
        now = self.wall()
        hardware = next((row.hardware for row in self.store.agents() if row.agent == agent), "unknown")
        self.store.lease(
            trial_id, agent=agent, hardware=hardware, epoch=epoch, now_unix=now, expires_unix=now + LEASE_SECONDS
        )
        self._set_agent_state(agent, "busy")
        self._running[trial_id] = RunningTrial(agent=agent, description=self._describe(trial_id))
        self.fleet.assign(agent, trial_id, epoch, self._planned[trial_id].assignment)

    def _ended(self, trial_id: str, *, agent_state: str) -> None:
        self._something_ended = True
        running = self._running.pop(trial_id, None)
        if running is not None:
            self._set_agent_state(running.agent, agent_state)

    def _queue(self, plan: Plan) -> None:
        added = self.store.add_plan(plan, now_unix=self.wall())
        self._planned.update({trial.trial_id: trial for trial in plan.trials})
        self._dispatch.enqueue(added)
        self.view.note(f"planned {len(added)} trials: {plan.stage}")
        for sentence in plan.notes:
            self.view.note(sentence)

    def _refit(self) -> None:
        """Refit after every loss: the newest law is what status, metrics and the next plan see."""
        started = self.monotonic()
        analysis = analyse(self._study, self.store.observations())
        if analysis is None:
            return
        self.store.add_fit(
            num_points=analysis.num_points,
            outcome="ok" if analysis.law_fit.converged else "not_converged",
            seconds=self.monotonic() - started,
            record=analysis.to_json(),
            now_unix=self.wall(),
        )
        self._law_sentence = analysis.sentence()

    def _note_agent(self, event: FleetEvent) -> None:
        now = self.wall()
        match event:
            case AgentJoined(agent, hardware, pid):
                self.store.upsert_agent(
                    AgentRow(agent=agent, hardware=hardware, state="idle", pid=pid, heartbeat_unix=now, joined_unix=now)
                )
            case AgentLost(agent, reason):
                self._set_agent_state(agent, "lost")
                self.view.note(f"{agent} was lost ({reason}); starting another")
            case Reported(agent) | AgentAlive(agent):
                self._set_agent_state(agent)

    def _set_agent_state(self, agent: str, state: str | None = None) -> None:
        """Record an agent's new state; without one, only that it was heard of."""
        for row in self.store.agents():
            if row.agent == agent:
                heard = row.heartbeat_unix if state == "lost" else self.wall()
                self.store.upsert_agent(replace(row, state=state or row.state, heartbeat_unix=heard))

    def _mark_agents_gone(self) -> None:
        for row in self.store.agents():
            self._set_agent_state(row.agent, "lost")

    def _failure(self, fail: Fail) -> Failure:
        """The coordinator's own record of an attempt whose agent could not report."""
        running = self._running.get(fail.trial_id)
        return Failure(
            assignment_id=fail.trial_id,
            failure_kind=fail.kind,
            message=fail.message,
            provenance=Provenance(
                agent=running.agent if running else "unknown",
                hostname=socket.gethostname(),
                device="unknown",
                hardware="unknown",
                started_at_unix=self.wall(),
                seconds=0,
                versions={},
            ),
        )

    def _describe(self, trial_id: str) -> str:
        return forecast.describe(self._planned[trial_id])

    def _snapshot(self) -> Snapshot:
        trials = self.store.trials()
        assert self._speed is not None, "agents are priced before the first turn"
        return Snapshot(
            num_done=sum(trial.state in ("succeeded", "failed") for trial in trials),
            num_failed=sum(trial.state == "failed" for trial in trials),
            num_expected=forecast.expected_trials(self._study, trials),
            elapsed_seconds=self._elapsed_seconds(),
            budget_seconds=60 * self._study.budget.wall_minutes,
            seconds_left=forecast.seconds_left(
                self._study, trials, self._speed, float(self.store.meta("token_scale") or 1)
            ),
            spent_agent_seconds=sum(trial.spent_seconds for trial in trials),
            law=self._law_sentence,
            running=tuple(self._running.values()),
        )


def work_directory(run_directory: Path) -> Path:
    """Where this run's agents keep checkpoints and caches."""
    return run_directory / "agents"


def blob_directory(run_directory: Path) -> Path:
    """Where this run's content-addressed blobs are."""
    return run_directory / "blobs"
