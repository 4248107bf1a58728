"""Coordinator: connects planner, dispatch, fleet and store. Runs, resumes, stops cleanly.

The loop decides nothing itself: dispatch decides who runs what, the planner what is worth running. One turn takes what
the fleet tells, asks dispatch what follows, commits all of it at once, and only then acts on the fleet: an agent never
gets work, and nobody is told of a result, that a crash could take back.

    poll -> decide -> commit -> act -> (something ended? plan -> commit -> act) -> poll ...

While the disk is full a turn cannot be committed: it is kept and tried again, and nothing else happens meanwhile.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from coordinator import failpoints, forecast, journal, shapes
from coordinator.analysis import Analysis
from coordinator.budget import Speed, speed_from_probes, token_scale
from coordinator.database import DatabaseError
from coordinator.dispatch import (
    LEASE_SECONDS,
    NUM_BASELINE_CANARIES,
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
from coordinator.errors import UserError
from coordinator.evidence import NUM_FITTED, Evidence
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
from coordinator.logs import Logs
from coordinator.plan import Plan, PlannedTrial
from coordinator.planner import StudyState
from coordinator.planning import DecisionInputs, Planner, StudyPlanner, Tally, needs_of
from coordinator.roster import Roster
from coordinator.snapshot import RunningTrial, Snapshot, View
from coordinator.store import Store
from coordinator.study import StudySpec
from coordinator.trials import Trials, failure_counts
from coordinator.vitals import Vitals
from scaling.observations import Observation, TrainingObservation

POLL_SECONDS = 0.5
PROBE_SECONDS = 1.5
JOIN_SECONDS = 120.0
DISK_CHECK_SECONDS = 5.0
VIEW_SECONDS = 0.5
"""At most this often is a snapshot made ..."""
VIEW_SHARE = 0.05
"""... and never more than this share of the time goes into making them."""
SIGN_OF_LIFE_SECONDS = 0.5
"""How often the loop's own clock and the agents' heartbeats are written where nothing else is."""
REFIT_SHARE = 0.05
"""Share of new losses that is worth a refit that no plan asks for."""


@dataclass
class Coordinator:
    """One run of one study.

    `monotonic` decides leases and spending; `wall` is only written down. `stop_requested` is asked once a turn.
    `run` is `begin`, `turn` until it is finished, and `end`.
    """

    store: Store
    fleet: Fleet
    view: View
    num_agents: int
    corpus_id: str
    started_monotonic: float
    granted_seconds: float | None = None
    """Accelerator-seconds that the study may use, earlier starts included; null when they are not limited."""
    planner: Planner = field(default_factory=StudyPlanner)
    stop_requested: Callable[[], bool] = lambda: False
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    free_bytes: Callable[[Path], int] = lambda directory: shutil.disk_usage(directory).free
    view_seconds: float = VIEW_SECONDS
    refit_share: float = REFIT_SHARE
    lease_seconds: float = LEASE_SECONDS
    vitals: Vitals = field(default_factory=Vitals)
    on_turn: Callable[[], None] = lambda: None
    """Called at every turn, and while agents are awaited: the loop is alive."""
    _study: StudySpec = field(init=False)
    _dispatch: Dispatch = field(init=False)
    _evidence: Evidence = field(init=False)
    _logs: Logs = field(init=False)
    _trials: Trials = field(init=False, default_factory=Trials)
    _roster: Roster = field(init=False, default_factory=Roster)
    _stages: list[str] = field(init=False, default_factory=list)
    _running: dict[str, RunningTrial] = field(init=False, default_factory=dict)
    _speed: Speed | None = field(init=False, default=None)
    _token_scale: float = field(init=False, default=1.0)
    _bench_hardware: str | None = field(init=False, default=None)
    _earlier_wall_seconds: float = field(init=False, default=0.0)
    _decided: list[tuple[Instruction, float]] = field(init=False, default_factory=list)
    """Instructions with the wall time of their decision, not committed yet."""
    _ended: set[str] = field(init=False, default_factory=set)
    """Phases in which a trial ended since the planner was last asked."""
    _written_monotonic: float = field(init=False, default=float("-inf"))
    _vitals_monotonic: float = field(init=False, default=float("-inf"))
    _woke_monotonic: float | None = field(init=False, default=None)
    _stalled_since: float | None = field(init=False, default=None)
    _disk_checked: float = field(init=False, default=float("-inf"))
    _next_view: float = field(init=False, default=float("-inf"))
    _missing_noted: set[tuple[str, ...]] = field(init=False, default_factory=set)
    _fleet_started: float = field(init=False, default=0.0)
    _anyone_joined: bool = field(init=False, default=False)

    def run(self) -> bool:
        """Run until the study is finished or a stop is asked for. True when it is finished."""
        finished = False
        try:
            self.begin()
            while not self.stop_requested() and not (finished := self.turn()):
                pass
            if finished:
                self.fleet.clear()
        finally:
            self.end()
        if finished:
            self.store.set_meta("state", "finished")
        return finished

    def begin(self) -> None:
        """Take up the run as the store has it, bring the agents up and price them."""
        self._study = self.store.study()
        self._logs = Logs(self.store.run_directory)
        self._recover()
        self.vitals.is_ready = True
        self.view.note("starting the agents")
        self.fleet.start()
        self._fleet_started = self.monotonic()
        if self._speed is None:
            self._await_agents()
            self._price()

    def turn(self) -> bool:
        """Plan what is due, then take, decide, commit and act once. True when the study is finished."""
        self.on_turn()
        if self._stalled_since is not None and not self._commit():
            self.sleep(POLL_SECONDS)
            return False
        self._look_at_the_disk()
        if self._plan_and_look():
            return True
        self._listen()
        self._require_a_way_on()
        self._refit_if_stale()
        self._show()
        return False

    def end(self) -> None:
        """Stop the fleet and leave the store as the next start expects it: interrupted, whatever was the reason."""
        self.fleet.stop()
        self._roster.settle(lambda _: "lost")
        with suppress(DatabaseError), self.store.transaction():  # the next start marks them too
            for row in self._roster.rows.values():
                self.store.upsert_agent(row)
            self.store.set_meta("wall_seconds", repr(self._elapsed_seconds()))
            self.store.set_meta("state", "interrupted")
            self.vitals.write(self.store)

    # Beginning

    def _recover(self) -> None:
        """Take up a stored run: what was leased is queued again, with its old epoch as the least to beat."""
        self._earlier_wall_seconds = float(self.store.meta("wall_seconds") or 0)
        self._bench_hardware = self.store.meta("bench_hardware") or self._study.budget.bench_hardware
        interrupted = self.store.requeue_running(now_unix=self.wall())
        self._trials.add(self.store.trials())
        self._roster.add(self.store.agents())
        self._stages = self.store.stages()
        self._ended = {phase for phase, _ in self._trials.counts}
        self._dispatch = Dispatch(
            lease_seconds=self.lease_seconds,
            granted_seconds=self.granted_seconds,
            canary_every_seconds=60 * self._study.budget.canary_every_minutes or None,
            spent_seconds=self._trials.spent_seconds,
            epochs={row.trial_id: row.epoch for row in self._trials.rows.values() if row.epoch},
            failures=failure_counts(self.store.attempts(unfinished=True)),
            baselines=self._baselines(),
            quarantined=journal.quarantined(self.store),
        )
        self._evidence = Evidence(self.store, self.planner, self._study)
        with self.store.transaction():
            self.store.set_meta("state", "running")
            self.store.set_meta("granted_seconds", "" if self.granted_seconds is None else repr(self.granted_seconds))
        if (speed := self.store.meta("speed")) is not None:
            self._speed, self._token_scale = (
                Speed.model_validate_json(speed),
                float(self.store.meta("token_scale") or 1),
            )
        if self._trials.rows:
            self._dispatch.enqueue(self._needs(interrupted))
            first = set(interrupted)
            queued = (name for name, row in self._trials.rows.items() if row.state == "queued")
            waiting = [name for name in queued if name not in first]
            self._dispatch.enqueue(self._needs(waiting))
            done = self._trials.num("succeeded", "failed")
            self.view.note(f"resuming: {done} trials done, {len(interrupted)} interrupted, {len(waiting)} waiting")

    def _baselines(self) -> dict[tuple[str, str], list[float]]:
        """The first canaries of every hardware and kind: what later ones are held against."""
        first: dict[tuple[str, str], list[float]] = {}
        for canary in self.store.canaries():
            rates = first.setdefault((canary.hardware, canary.kind), [])
            if len(rates) < NUM_BASELINE_CANARIES:
                rates.append(canary.rate)
        return first

    def _await_agents(self) -> None:
        """All agents join before the probe, so that its price includes their crowding one another."""
        deadline = self._fleet_started + JOIN_SECONDS
        while self._num_settled() < self._num_wanted() and self.monotonic() < deadline and not self.stop_requested():
            self.on_turn()
            self._listen()
        self._require_agents()

    def _num_wanted(self) -> int:
        """As many agents as there is room for; one where there is none yet."""
        return max(1, min(self.num_agents, self.fleet.num_slots()))

    def _num_settled(self) -> int:
        """Agents that are up and not at their canary."""
        states = map(self._dispatch.agent_state, self._dispatch.agents)
        return sum(state in ("idle", "quarantined") for state in states)

    def _price(self) -> None:
        """Measure the agents' speed once per run; the token scale that follows from it is kept for good."""
        if self.stop_requested():
            return
        self.view.note("measuring training speed on every agent")
        probes = [
            (float(shape.num_parameters), self.fleet.probe(shape, seconds=PROBE_SECONDS))
            for shape in (shapes.centre_shape(self._study, size) for size in shapes.probe_sizes(self._study))
        ]
        self._speed = speed_from_probes(probes[0], probes[-1])
        scale = token_scale(self._study, self._speed, elapsed_seconds=self._elapsed_seconds())
        with self.store.transaction():
            self.store.set_meta("token_scale", repr(scale))
            self.store.set_meta("speed", self._speed.model_dump_json())
        self._token_scale = scale
        if scale < 1:
            self.view.note(
                f"this machine allows {scale:.0%} of the wanted tokens within the budget; D is scaled alike for all"
            )

    # Planning

    def _plan_and_look(self) -> bool:
        """Plan whatever has become due, and tell whether the study is finished. Asked only when something ended."""
        if self._stages and not self._ended:
            return False
        tally = Tally(
            ended=frozenset(self._ended),
            unfinished={phase: self._trials.unfinished(phase) for phase in ("train", "bench")},
            num_agents=self._priced.num_agents,
        )
        if not self.planner.due(tally):
            self._ended.clear()
            return False
        while (plan := self._next_plan(state := self._state())) is not None:
            if not self._queue(plan, state):
                return False
        if self.planner.is_finished(state):
            return self._conclude(state)
        self._ended.clear()
        self._decide(self._dispatch.assign(now=self.monotonic()))
        self._commit()
        return False

    def _next_plan(self, state: StudyState) -> Plan | None:
        started = self.monotonic()
        plan = self.planner.next_plan(state)
        self.vitals.took("decision_seconds", self.monotonic() - started)
        return plan

    def _queue(self, plan: Plan, state: StudyState) -> bool:
        """Write a plan down with what it followed from, and queue its trials. False while it cannot be written."""
        now, hardware = self.wall(), self._bench_hardware
        benches = (trial.assignment for trial in plan.trials if trial.assignment.kind == "bench")
        if hardware is None and any(bench.hardware is None for bench in benches):
            hardware = state.bench_hardware
        inputs = DecisionInputs.of(state).model_dump(mode="json")

        def write() -> None:
            self.store.add_plan(plan, now_unix=now, inputs=inputs)
            if hardware is not None and hardware != self._bench_hardware:
                self.store.set_meta("bench_hardware", hardware)

        if not self._committed(write):
            return False
        self._bench_hardware = hardware
        self._stages.append(plan.stage)
        added = self.store.trials(after_position=self._trials.last_position)
        self._trials.add(added)
        self._dispatch.enqueue(self._needs([row.trial_id for row in added]))
        self.view.note(f"planned {len(added)} trials: {plan.stage}")
        for sentence in plan.notes:
            self.view.note(sentence)
        return True

    def _conclude(self, state: StudyState) -> bool:
        """Every trial has ended: write down what follows from them. False while it cannot be written."""
        now = self.wall()
        recommendation = self.planner.conclude(state, now_unix=now)
        if recommendation is None:
            return True
        return self._committed(lambda: self.store.add_recommendation(recommendation, now_unix=now))

    def _state(self) -> StudyState:
        return StudyState(
            study=self._study,
            corpus_id=self.corpus_id,
            token_scale=self._token_scale,
            speed=self._priced,
            stages=tuple(self._stages),
            trials=tuple(self._trials.rows.values()),
            observations=tuple(self._evidence.observations),
            elapsed_seconds=self._elapsed_seconds(),
            bench_hardware=self._bench_hardware or self._dispatch.commonest_hardware(),
            fit=self._fit,
        )

    def _needs(self, trial_ids: list[str]) -> dict[str, Needs]:
        return {
            trial_id: needs_of(self._planned(trial_id), self._study, self._priced, bench_hardware=self._bench_hardware)
            for trial_id in trial_ids
        }

    # Fits

    @property
    def _num_losses(self) -> int:
        return self._trials.counts["train", "succeeded"]

    def _refit_if_stale(self) -> None:
        """Refit what status and metrics show, unless so few losses are new that it would look the same."""
        if self._evidence.is_stale(self._num_losses, share=self.refit_share):
            self._fit()

    def _fit(self) -> Analysis | None:
        """The law from all losses so far; fitted only where there is a loss that the last fit did not know."""
        if self._evidence.num_fitted == self._num_losses:
            return self._evidence.analysis
        started = self.monotonic()
        analysis = self._evidence.fit(self._num_losses)
        if analysis is not None:
            seconds, now = self.monotonic() - started, self.wall()

            def write() -> None:
                self.store.add_fit(
                    num_points=analysis.num_points,
                    outcome="ok" if analysis.law_fit.converged else "not_converged",
                    seconds=seconds,
                    record=analysis.to_json(),
                    now_unix=now,
                )
                self.store.set_meta(NUM_FITTED, str(self._num_losses))

            self._committed(write)
        return analysis

    # One turn

    def _listen(self) -> None:
        """Take what the fleet tells, decide, commit, act."""
        if self._woke_monotonic is not None:
            self.vitals.took("loop_seconds", self.monotonic() - self._woke_monotonic)
        events = self.fleet.poll(timeout_seconds=POLL_SECONDS)
        self._woke_monotonic = self.monotonic()
        for event in events:
            self._note_agent(event)
            self._decide(self._follows_from(event))
        self._decide(self._dispatch.tick(now=self.monotonic()))
        self._logs.write()  # before the commit: who is told of an attempt's end finds its last lines
        self._commit()

    def _follows_from(self, event: FleetEvent) -> list[Instruction]:
        now = self.monotonic()
        match event:
            case AgentJoined(agent, hardware, _, node):
                return self._dispatch.agent_joined(agent, hardware=hardware, node=node, now=now)
            case AgentLost(agent, reason):
                return self._dispatch.agent_lost(agent, reason, now=now)
            case AgentDraining(agent):
                self._dispatch.agent_draining(agent)
                return []
            case CanaryMeasured(agent, kind, rate):
                return self._dispatch.canary_measured(agent, kind, rate, now=now)
            case Reported(agent, trial_id, epoch, item):
                return self._dispatch.reported(agent, trial_id, epoch, item, now=now)
            case AgentAlive(agent):
                self._dispatch.agent_alive(agent, now=now)
                return []

    def _decide(self, instructions: list[Instruction]) -> None:
        now = self.wall()
        self._decided += [(instruction, now) for instruction in instructions]

    def _commit(self) -> bool:
        """Write down all that was decided, in one transaction; then, and only then, act. False while it cannot be."""
        rows = self._roster.settle(self._dispatch.agent_state)
        is_time = self.monotonic() - self._written_monotonic >= SIGN_OF_LIFE_SECONDS
        if not self._decided and not is_time and self._stalled_since is None:
            return True
        are_vitals_due = self.monotonic() - self._vitals_monotonic >= SIGN_OF_LIFE_SECONDS

        def write() -> None:
            for instruction, unix in self._decided:
                journal.write(
                    self.store,
                    instruction,
                    unix,
                    hardware_of=self._roster.hardware,
                    lease_seconds=self.lease_seconds,
                )
            for row in rows:
                self.store.upsert_agent(row)
            self.store.set_meta("loop_unix", repr(self.wall()))
            self.store.set_meta("wall_seconds", repr(self._elapsed_seconds()))
            if are_vitals_due:
                self.vitals.write(self.store)

        if not self._committed(write):
            return False
        if are_vitals_due:
            self.vitals.written()
            self._vitals_monotonic = self.monotonic()
        failpoints.hit("loop.before_reply")
        self._written_monotonic = self.monotonic()
        self._roster.changed.clear()
        decided, self._decided = self._decided, []
        for instruction, unix in decided:
            self._act(instruction, unix)
        self.fleet.send()
        return True

    def _committed(self, write: Callable[[], None]) -> bool:
        """Whether what `write` does could be committed, as one transaction. It cannot while the disk is full."""
        started = self.monotonic()
        try:
            with self.store.transaction():
                write()
        except DatabaseError as error:
            self.vitals.not_committed(error.reason)
            if error.reason != "full":
                raise
            if self._stalled_since is None:
                self._stalled_since = self.monotonic()
                self.view.note(f"the disk is full ({error}): waiting; nothing acknowledged is lost")
            return False
        self.vitals.committed(self.monotonic() - started)
        if self._stalled_since is not None:
            self._dispatch.stalled(self.monotonic() - self._stalled_since)
            self._stalled_since = None
            self.view.note("the store can be written again")
        return True

    def _act(self, instruction: Instruction, unix: float) -> None:
        """What follows from an instruction that is in the store: on the fleet, in memory, and before people's eyes."""
        match instruction:
            case Start(agent, trial_id, epoch, ahead):
                hardware = self._roster.hardware(agent)
                self._trials.lease(trial_id, agent=agent, hardware=hardware, epoch=epoch, now_unix=unix, ahead=ahead)
                self._running[trial_id] = RunningTrial(agent=agent, description=self._describe(trial_id))
                self.fleet.assign(agent, trial_id, epoch, self._planned(trial_id).assignment)
            case Renew(trial_id, progress):
                self._trials.progress(trial_id, progress.done_fraction)
                self._running[trial_id] = self._running[trial_id].at(progress)
            case Accept(trial_id, _, observation, spent):
                self._ends(trial_id, "succeeded", observation, unix, spent)
                if isinstance(observation, TrainingObservation):
                    self.view.note(f"{self._describe(trial_id)}: loss {observation.loss:.4f} nats/token")
                else:
                    self.view.note(f"{self._describe(trial_id)}: measured")
            case Fail(trial_id, _, kind, message, final, _, spent):
                failure = journal.failure_of(instruction, unix, hardware=self._roster.hardware(instruction.agent))
                self._ends(trial_id, "failed" if final else "queued", failure, unix, spent)
                again = "given up" if final else "will be tried again"
                self.view.note(f"{self._describe(trial_id)}: {kind}, {again}: {message}")
            case Quarantine(agent, reason):
                self.view.note(f"{agent} gets no work for now: {reason}")
            case Release(agent):
                self.view.note(f"{agent} works again: its canary is as it should be")
            case Probe(agent):
                self.fleet.canary(agent)
            case Restart(agent):
                self.fleet.restart(agent)
            case Reject() | Judge():
                pass

    def _ends(self, trial_id: str, state: str, observation: Observation, unix: float, spent_seconds: float) -> None:
        self._trials.end(trial_id, state, now_unix=unix, spent_seconds=spent_seconds)
        self._ended.add(self._trials.rows[trial_id].phase)
        self._running.pop(trial_id, None)
        self._evidence.add(observation)

    def _note_agent(self, event: FleetEvent) -> None:
        now = self.wall()
        match event:
            case AgentJoined():
                self._anyone_joined = True
                self._roster.joined(journal.agent_row(event, now_unix=now))
            case AgentLost(agent, reason):
                self.view.note(f"{agent} was lost ({reason})")
            case AgentDraining(agent, reason):
                self.view.note(f"{agent} gets no new work: {reason}")
            case Reported(agent) | AgentAlive(agent) | CanaryMeasured(agent):
                self._roster.heard(agent, now_unix=now)
                if isinstance(event, AgentAlive):
                    self.vitals.heard("heartbeat")
                elif isinstance(event, Reported) and event.log:
                    self._keep_log(event)

    def _keep_log(self, report: Reported) -> None:
        """Keep what an attempt says, if it is one that was begun and there is room."""
        row = self._trials.rows.get(report.trial_id)
        if row is not None and 1 <= report.epoch <= row.epoch and self._dispatch.paused is None:
            self._logs.add(report.trial_id, report.epoch, report.log)

    # What the run needs to go on

    def _look_at_the_disk(self) -> None:
        """Below the low-water mark nothing new is started: what runs still has room to end."""
        if self.monotonic() - self._disk_checked < DISK_CHECK_SECONDS:
            return
        self._disk_checked = self.monotonic()
        free, least = self.free_bytes(self.store.run_directory), 1e9 * self._study.budget.min_free_disk_gigabytes
        before = self._dispatch.paused
        self._dispatch.paused = (
            None if free >= least else f"{free / 1e9:.2f} GB of disk are free, {least / 1e9:g} wanted"
        )
        if before is None and self._dispatch.paused is not None:
            self.view.note(f"nothing new is started until there is more room: {self._dispatch.paused}")
        elif before is not None and self._dispatch.paused is None:
            self.view.note("there is room again: going on")

    def _require_a_way_on(self) -> None:
        """A run that nothing can bring further ends with what to do about it.

        Raises:
            UserError: no agent came up, the granted hours are spent, or hardware is missing and not to be waited for.
        """
        if self.monotonic() - self._fleet_started > JOIN_SECONDS:
            self._require_agents()
            self._require_hardware()
        seconds, granted = self._dispatch.exhausted, self._dispatch.granted_seconds
        if seconds is not None and granted is not None:
            raise UserError(
                f"the accelerator hours of study {self._study.name!r} are spent: "
                f"{self._dispatch.spent_seconds / 3600:.3g} of {granted / 3600:.3g}, and the next trial needs about "
                f"{seconds / 3600:.3g}.\n"
                "Raise budget.accelerator_hours in the study file and run the same command again: the run goes on."
            )

    def _require_agents(self) -> None:
        if not self._anyone_joined and not self.stop_requested():
            raise UserError(
                f"no agent came up within {JOIN_SECONDS:.0f} s; this machine may be out of memory or too busy.\n"
                "Look at it with `free -g` and `uptime`, and run the same command again."
            )

    def _require_hardware(self) -> None:
        missing = self._dispatch.missing_hardware()
        if missing and missing.keys() != self._missing_noted:
            there = ", ".join(sorted({agent.hardware for agent in self._dispatch.agents.values()})) or "none"
            wanted = "; ".join(f"{num} trials ask for {' or '.join(kinds)}" for kinds, num in missing.items())
            sentence = f"no agent has the hardware that the study asks for: {wanted}; there is {there}."
            if self._study.budget.missing_hardware == "fail":
                raise UserError(
                    f"{sentence}\nBring such a node, name another kind under [budget] or [serving] and start anew "
                    'with `archfleet run --new`, or set budget.missing_hardware = "wait".'
                )
            self.view.note(f"{sentence} Waiting for one.")
        self._missing_noted = set(missing)

    # What people see

    def _show(self) -> None:
        """Show a snapshot, if its time has come."""
        now = self.monotonic()
        if now < self._next_view:
            return
        self.view.update(self._snapshot())
        took = self.monotonic() - now
        self._next_view = now + max(self.view_seconds, took / VIEW_SHARE)

    def _snapshot(self) -> Snapshot:
        trials = list(self._trials.rows.values())
        return Snapshot(
            num_done=self._trials.num("succeeded", "failed"),
            num_failed=self._trials.num("failed"),
            num_expected=forecast.expected_trials(self._study, trials),
            elapsed_seconds=self._elapsed_seconds(),
            budget_seconds=60 * self._study.budget.wall_minutes,
            seconds_left=forecast.seconds_left(self._study, trials, self._priced, self._token_scale),
            spent_agent_seconds=self._trials.spent_seconds,
            law=self._evidence.sentence,
            running=tuple(self._running.values()),
        )

    def _describe(self, trial_id: str) -> str:
        return forecast.describe(self._planned(trial_id))

    def _planned(self, trial_id: str) -> PlannedTrial:
        return self._trials.rows[trial_id].planned

    @property
    def _priced(self) -> Speed:
        assert self._speed is not None, "agents are priced before the first turn"
        return self._speed

    def _elapsed_seconds(self) -> float:
        """Wall seconds of this study, earlier starts included."""
        return self._earlier_wall_seconds + self.monotonic() - self.started_monotonic


def work_directory(run_directory: Path) -> Path:
    """Where this run's agents keep checkpoints and caches."""
    return run_directory / "agents"


def blob_directory(run_directory: Path) -> Path:
    """Where this run's content-addressed blobs are."""
    return run_directory / "blobs"
