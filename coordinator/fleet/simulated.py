"""SimulatedFleet: agents under a virtual clock, and every fault a fleet can have. SIMULATED: nothing is run.

The clock moves only in `poll`: the world goes on for one pace, and whatever reached the coordinator meanwhile is
returned. All chance comes from one seed, so that a schedule of faults can be played again.

    agents        join, work at the speed of their hardware, report every `REPORT_EVERY_SECONDS`, keep checkpoints
    their reports take time on the way; faults lose them, hold them back, send them twice or in another order
    a restart     ends an agent, unless it is cut off: then its old self works on, and reports under an old epoch
    the fleet     itself knows an agent's beginning, end, draining and canary; these come in order and once
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator.dispatch import MAX_HAND
from coordinator.fleet.base import AgentDraining, AgentJoined, AgentLost, CanaryMeasured, FleetEvent, Reported
from coordinator.fleet.simulated_world import SimulatedWorld
from scaling.architecture import Architecture
from scaling.observations import Failure, FailureKind, Observation, Progress, Provenance

EPOCH_UNIX = 1_700_000_000.0
"""The virtual wall clock's first second."""
REPORT_EVERY_SECONDS = 20.0
"""Three reports in a lease of a minute."""
AGENTS_PER_NODE = 8
CANARY_SECONDS = 10.0
CANARY_NOISE = 0.01
"""Relative spread of canaries of a healthy agent."""
DRAIN_SECONDS = 30.0
"""From a preemption's announcement to the machine's end."""
STRAGGLER_SPEED = 0.2
LATENCY_SECONDS = (0.01, 0.2)


class CoordinatorCrash(BaseException):
    """The simulated end of the coordinator's process: nothing after it is carried out."""


@dataclass
class VirtualClock:
    """Time that passes only when it is told to, in seconds since the beginning of the simulation."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        """Seconds since the beginning."""
        return self.seconds

    def wall(self) -> float:
        """Seconds since the epoch."""
        return EPOCH_UNIX + self.seconds


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often each fault comes. The first group strikes agents or nodes, per agent and hour; shares are of messages,
    of attempts or of trials. All rates are made up, and far above those of a decent cluster.
    """

    death: float = 0.0
    """A process or a whole node ends; half of the time nobody is told."""
    hang: float = 0.0
    """A process stands still; half of them go on after a while, if nobody has ended them."""
    partition: float = 0.0
    """A node's reports are held back for minutes and all come at once."""
    drain: float = 0.0
    """A node is preempted, with a warning."""
    clock: float = 0.0
    """A node's wall clock jumps by up to an hour either way."""
    drift: float = 0.0
    """A node runs at 60 to 90 % of its speed for hours."""
    engine: float = 0.0
    """No engine starts on a node for hours."""
    crash: float = 0.0
    """The coordinator ends at once, and starts again from its store."""
    straggler: float = 0.0
    """Share of attempts that run at a fifth of the speed."""
    lost: float = 0.0
    """Share of reports that never come."""
    duplicated: float = 0.0
    delayed: float = 0.0
    """Share of reports that take up to two minutes: later ones overtake them."""
    diverged: float = 0.0
    """Share of trials whose every attempt ends with a loss that is not finite."""
    out_of_memory: float = 0.0
    """Share of attempts."""

    def only(self, *names: str) -> "Faults":
        """These faults at their rates, and no others."""
        return Faults(**{name: getattr(self, name) for name in names})


ALL_FAULTS = Faults(
    death=0.02,
    hang=0.02,
    partition=0.02,
    drain=0.02,
    clock=0.02,
    drift=0.005,
    engine=0.005,
    crash=0.005,
    straggler=0.01,
    lost=0.01,
    duplicated=0.01,
    delayed=0.01,
    diverged=0.005,
    out_of_memory=0.005,
)
STRIKES = ("death", "hang", "partition", "drain", "clock", "drift", "engine", "crash")
"""Faults that come at any time; the others belong to a message, an attempt or a trial."""
FAULT_NAMES = tuple(one.name for one in fields(Faults))


@dataclass(eq=False)
class _Run:
    """One attempt in an agent's hands: `fraction` was done at `since`; the whole takes `seconds` at its speed."""

    agent: "_Agent"
    trial_id: str
    epoch: int
    assignment: TrainAssignment | BenchAssignment
    seconds: float
    fraction: float
    began: float
    since: float
    num_resumes: int
    failure: FailureKind | None
    speed: float
    started_unix: float
    silent_until: float = 0.0
    held: bool = False
    """Stands still."""
    over: bool = False

    def fraction_at(self, now: float) -> float:
        return self.fraction if self.held else min(1.0, self.fraction + (now - self.since) / self.seconds)


@dataclass(eq=False)
class _Node:
    """What the agents of a machine share."""

    name: str
    clock_offset: float = 0.0
    silent_until: float = 0.0
    speed: float = 1.0
    """Times its healthy speed."""
    engine_broken_until: float = 0.0
    agents: list["_Agent"] = field(default_factory=list)


@dataclass(eq=False)
class _Agent:
    name: str
    hardware: str
    node: _Node
    life: int = 0
    """Rises whenever its process begins or ends: what was meant for an earlier one is dropped."""
    alive: bool = False
    coming: bool = False
    """Its next process is on the way."""
    announced: bool = False
    """The coordinator has been told of this life."""
    draining: bool = False
    run: _Run | None = None
    hand: deque[tuple[str, int, TrainAssignment | BenchAssignment]] = field(default_factory=deque)
    """What follows the run."""


@dataclass(frozen=True)
class Started:
    """The fleet was asked to start this; what the history checker holds against the store."""

    trial_id: str
    epoch: int
    agent: str


class SimulatedFleet:
    """`agents` counts them by hardware, a key of `simulated_world.SPEEDS`."""

    def __init__(
        self,
        agents: Mapping[str, int],
        *,
        clock: VirtualClock,
        world: SimulatedWorld | None = None,
        faults: Faults | None = None,
        seed: int = 0,
        pace_seconds: float = 5.0,
    ) -> None:
        self.clock = clock
        self.world = world or SimulatedWorld()
        self.faults = faults or Faults()
        self.started: list[Started] = []
        self.struck: Counter[str] = Counter()
        """How often each fault came."""
        self.busy_seconds = 0.0
        """Agents' time at work, useful or not."""
        self.num_events = 0
        self._random = random.Random(seed)
        self._seed = seed
        self._pace_seconds = pace_seconds
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._num_scheduled = 0
        self._inbox: list[FleetEvent] = []
        self._checkpoints: dict[str, tuple[float, int]] = {}
        """Share done and number of resumes, by trial; every agent can read them."""
        self._crash_at: str | None = None
        self._agents = _make_agents(agents)
        for name in STRIKES:
            self._schedule_strike(name)

    @property
    def num_agents(self) -> int:
        """All agents, present or on their way."""
        return len(self._agents)

    @property
    def hardware(self) -> dict[str, int]:
        """Number of agents by hardware."""
        return dict(Counter(agent.hardware for agent in self._agents.values()))

    # The Fleet protocol

    def start(self) -> None:
        """Bring the agents up. After a coordinator's crash every agent begins anew; reports under way still come."""
        self._inbox[:] = [event for event in self._inbox if isinstance(event, Reported)]
        for agent in self._agents.values():
            if agent.run is not None and self._random.random() < 0.5:
                self._leave_to_itself(agent.run)
            self._end(agent)
            self._come(agent, self._random.uniform(1, 10))

    def num_slots(self) -> int:
        """All agents, present or on their way."""
        return len(self._agents)

    def probe(self, architecture: Architecture, *, seconds: float) -> list[float]:
        """Training tokens/s of this shape on every agent, crowding and drift left out."""
        self._advance(self.clock.seconds + seconds)
        return [
            1 / self.world.seconds_per_token(architecture, batch_tokens=512, hardware=agent.hardware)
            for agent in self._agents.values()
            if agent.alive
        ]

    def canary(self, agent: str) -> None:
        """Run the canary; its healthy rate is 1, in units of the agent's hardware."""
        slot = self._agents[agent]
        if slot.alive and slot.announced:
            rate = slot.node.speed * self._random.gauss(1, CANARY_NOISE)
            self._in(CANARY_SECONDS, partial(self._tell_of_life, slot, slot.life, CanaryMeasured(agent, "gemm", rate)))

    def assign(self, agent: str, trial_id: str, epoch: int, assignment: TrainAssignment | BenchAssignment) -> None:
        """Start an assignment; one for an agent that is gone is lost."""
        self._crash_if_due("assign")
        self.started.append(Started(trial_id, epoch, agent))
        slot = self._agents[agent]
        if not (slot.alive and slot.announced):
            return
        slot.hand.append((trial_id, epoch, assignment))
        assert len(slot.hand) < MAX_HAND, f"{agent} was given {trial_id} while it holds {len(slot.hand)} others"
        if slot.run is None:
            self._begin_next(slot)

    def send(self) -> None:
        """Everything was sent when it was assigned."""

    def restart(self, agent: str) -> None:
        """End an agent and start another in its place; one that is cut off works on by itself."""
        slot = self._agents[agent]
        if slot.run is not None and slot.run.silent_until > self.clock.seconds:
            self._leave_to_itself(slot.run)
        if slot.coming:
            return
        self._end(slot)
        self._in(1, partial(self._tell_of_life, slot, slot.life, AgentLost(agent, "it was ended")))
        self._come(slot, self._random.uniform(20, 60))

    def poll(self, *, timeout_seconds: float) -> list[FleetEvent]:
        """Let the world go on for a pace, or for the time-out where that is longer; what came meanwhile."""
        self._crash_if_due("poll")
        self._advance(self.clock.seconds + max(timeout_seconds, self._pace_seconds))
        events = list(self._inbox)
        self._inbox.clear()
        self._crash_if_due("commit")  # what was taken is gone, and nothing of it was written
        self.num_events += len(events)
        return events

    def clear(self) -> None:
        """Nothing was kept."""

    def stop(self) -> None:
        """Nothing runs that would have to be ended."""

    # Time

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        self._num_scheduled += 1
        heapq.heappush(self._agenda, (self.clock.seconds + seconds, self._num_scheduled, action))

    def _advance(self, until: float) -> None:
        while self._agenda and self._agenda[0][0] <= until:
            when, _, action = heapq.heappop(self._agenda)
            self.clock.seconds = max(self.clock.seconds, when)
            action()
        self.clock.seconds = until

    # An agent's life

    def _come(self, agent: _Agent, seconds: float) -> None:
        """Begin after so long, or as soon as its node can be reached."""
        agent.coming = True
        cut_off_seconds = agent.node.silent_until - self.clock.seconds
        self._in(max(seconds, cut_off_seconds), partial(self._begin, agent, agent.life))

    def _begin(self, agent: _Agent, life: int) -> None:
        if agent.life != life:
            return
        agent.life += 1
        agent.alive, agent.coming, agent.draining = True, False, False
        joined = AgentJoined(
            agent.name,
            agent.hardware,
            pid=agent.life,
            node=agent.node.name,
            versions={"archfleet": "SIMULATED"},
            clock_offset_seconds=agent.node.clock_offset,
        )
        self._in(self._latency(), partial(self._tell_of_life, agent, agent.life, joined))

    def _tell_of_life(self, agent: _Agent, life: int, event: FleetEvent) -> None:
        if agent.life == life:
            agent.announced = agent.announced or isinstance(event, AgentJoined)
            self._inbox.append(event)

    def _end(self, agent: _Agent) -> None:
        """The process ends; its training's last checkpoint stays."""
        if agent.run is not None:
            self._drop(agent.run)
        agent.hand.clear()
        agent.life += 1
        agent.alive = agent.coming = agent.announced = False

    # An attempt

    def _begin_next(self, agent: _Agent) -> None:
        if agent.hand:
            agent.run = self._new_run(agent, *agent.hand.popleft())
            self._in(REPORT_EVERY_SECONDS, partial(self._report_progress, agent.run))
            self._schedule_ending(agent.run)

    def _new_run(self, agent: _Agent, trial_id: str, epoch: int, assignment: TrainAssignment | BenchAssignment) -> _Run:
        speed = agent.node.speed
        if self._chance("straggler"):
            speed *= STRAGGLER_SPEED
        failure, share = self._fate(agent, trial_id, assignment)
        fraction, num_resumes = self._checkpoints.get(trial_id, (0.0, -1))
        now = self.clock.seconds
        return _Run(
            agent=agent,
            trial_id=trial_id,
            epoch=epoch,
            assignment=assignment,
            seconds=self.world.seconds(assignment, agent.hardware) / speed * share,
            fraction=fraction,
            began=now,
            since=now,
            num_resumes=num_resumes + 1,
            failure=failure,
            speed=speed,
            started_unix=self.clock.wall() + agent.node.clock_offset,
            silent_until=agent.node.silent_until,
        )

    def _fate(
        self, agent: _Agent, trial_id: str, assignment: TrainAssignment | BenchAssignment
    ) -> tuple[FailureKind | None, float]:
        """How the attempt will end, and after which share of its time."""
        if isinstance(assignment, BenchAssignment):
            return ("engine-start", 0.05) if agent.node.engine_broken_until > self.clock.seconds else (None, 1.0)
        if random.Random(f"{self._seed}/{trial_id}/diverged").random() < self.faults.diverged:
            self.struck["diverged"] += 1
            return "nan-loss", 0.3
        return ("out-of-memory", 0.02) if self._chance("out_of_memory") else (None, 1.0)

    def _schedule_ending(self, run: _Run) -> None:
        self._in(run.seconds * (1 - run.fraction), partial(self._reach_ending, run, run.since))

    def _reach_ending(self, run: _Run, since: float) -> None:
        if run.over or run.held or run.since != since:
            return
        self._drop(run, keep_checkpoint=False)
        self._send(run, self._ending_of(run))
        self._begin_next(run.agent)

    def _ending_of(self, run: _Run) -> Observation:
        if run.failure is not None:
            return self._failure(run, run.failure, f"SIMULATED {run.failure} on {run.agent.node.name}")
        provenance = self._provenance(run)
        if isinstance(run.assignment, TrainAssignment):
            return self.world.train(
                run.assignment, seconds=run.seconds, num_resumes=run.num_resumes, provenance=provenance
            )
        return self.world.bench(run.assignment, hardware=run.agent.hardware, speed=run.speed, provenance=provenance)

    def _report_progress(self, run: _Run) -> None:
        if run.over:
            return
        if not run.held:
            done = run.fraction_at(self.clock.seconds)
            self._send(run, Progress(assignment_id=run.trial_id, done_fraction=done, message="SIMULATED"))
        self._in(REPORT_EVERY_SECONDS, partial(self._report_progress, run))

    def _drop(self, run: _Run, *, keep_checkpoint: bool = True) -> None:
        """The agent works on it no more; a training goes on elsewhere from its last checkpoint."""
        if run.over:
            return
        now = self.clock.seconds
        if keep_checkpoint and run.failure is None and isinstance(run.assignment, TrainAssignment):
            step = run.assignment.checkpoint_every_seconds / run.seconds
            done = run.fraction + (run.fraction_at(now) - run.fraction) // step * step
            if done > self._checkpoints.get(run.trial_id, (0.0, 0))[0]:
                self._checkpoints[run.trial_id] = (done, run.num_resumes)
        elif not keep_checkpoint and run.failure is None:
            self._checkpoints.pop(run.trial_id, None)
        run.over = True
        self.busy_seconds += now - run.began
        if run.agent.run is run:
            run.agent.run = None

    def _leave_to_itself(self, run: _Run) -> None:
        """Cut off from the coordinator, the old process finishes what it has, and tells it when it can."""
        if run.over or run.held:
            return
        self.struck["zombie"] += 1
        seconds = run.seconds * (1 - run.fraction_at(self.clock.seconds))
        self._in(seconds, partial(self._finish_as_zombie, replace(run)))
        self._drop(run)

    def _finish_as_zombie(self, run: _Run) -> None:
        self._send(run, self._ending_of(run))

    def _failure(self, run: _Run, kind: FailureKind, message: str) -> Failure:
        return Failure(assignment_id=run.trial_id, failure_kind=kind, message=message, provenance=self._provenance(run))

    def _provenance(self, run: _Run) -> Provenance:
        return Provenance(
            agent=run.agent.name,
            hostname=run.agent.node.name,
            device=f"SIMULATED {run.agent.hardware}",
            hardware=run.agent.hardware,
            started_at_unix=run.started_unix,
            seconds=self.clock.seconds - run.began,
            versions={"archfleet": "SIMULATED"},
        )

    # Reports on their way

    def _send(self, run: _Run, item: Progress | Observation) -> None:
        report = Reported(run.agent.name, run.trial_id, run.epoch, item)
        if self._chance("lost"):
            return
        wait = max(0.0, run.silent_until - self.clock.seconds) + self._latency()
        if self._chance("delayed"):
            wait += self._random.uniform(1, 120)
        self._in(wait, partial(self._inbox.append, report))
        if self._chance("duplicated"):
            self._in(wait + self._random.uniform(0, 120), partial(self._inbox.append, report))

    def _latency(self) -> float:
        return self._random.uniform(*LATENCY_SECONDS)

    def _chance(self, name: str) -> bool:
        share = getattr(self.faults, name)
        if not share or self._random.random() >= share:
            return False
        self.struck[name] += 1
        return True

    # Faults that strike at any time

    def _schedule_strike(self, name: str) -> None:
        if rate := getattr(self.faults, name):
            self._in(self._random.expovariate(rate * self.num_agents / 3600), partial(self._strike, name))

    def _strike(self, name: str) -> None:
        self.struck[name] += 1
        victim = self._random.choice(list(self._agents.values()))
        _STRIKE[name](self, victim)
        self._schedule_strike(name)

    def _death(self, victim: _Agent) -> None:
        whole_node, told = self._random.random() < 0.5, self._random.random() < 0.5
        for agent in victim.node.agents if whole_node else [victim]:
            if agent.alive:
                self._end(agent)
                if told:
                    self._lose(agent, "its process ended")

    def _lose(self, agent: _Agent, reason: str) -> None:
        self._in(self._random.uniform(1, 30), partial(self._tell_of_loss, agent, agent.life, reason))

    def _tell_of_loss(self, agent: _Agent, life: int, reason: str) -> None:
        if agent.life == life and not agent.coming:
            self._inbox.append(AgentLost(agent.name, reason))
            self._come(agent, self._random.uniform(30, 300))

    def _hang(self, victim: _Agent) -> None:
        run = victim.run
        if run is None or run.held:
            return
        run.fraction, run.held = run.fraction_at(self.clock.seconds), True
        if self._random.random() < 0.5:
            self._in(self._random.uniform(30, 600), partial(self._wake, run))

    def _wake(self, run: _Run) -> None:
        if not run.over:
            run.since, run.held = self.clock.seconds, False
            self._schedule_ending(run)

    def _partition(self, victim: _Agent) -> None:
        node = victim.node
        node.silent_until = self.clock.seconds + self._random.uniform(30, 600)
        for agent in node.agents:
            if agent.run is not None:
                agent.run.silent_until = node.silent_until

    def _drain(self, victim: _Agent) -> None:
        for agent in victim.node.agents:
            if agent.alive and not agent.draining:
                agent.draining = True
                if agent.announced:
                    self._inbox.append(AgentDraining(agent.name, "preempted"))
                self._in(self._random.uniform(1, 20), partial(self._save, agent, agent.life))
                self._in(DRAIN_SECONDS, partial(self._take_away, agent, agent.life))

    def _save(self, agent: _Agent, life: int) -> None:
        """A draining agent keeps what it has and says so."""
        if agent.life != life or agent.run is None or agent.run.held:
            return
        run = agent.run
        if isinstance(run.assignment, TrainAssignment) and run.failure is None:
            self._checkpoints[run.trial_id] = (run.fraction_at(self.clock.seconds), run.num_resumes)
        self._drop(run)
        self._send(run, self._failure(run, "preempted", "SIMULATED preemption"))
        while agent.hand:
            unbegun = self._new_run(agent, *agent.hand.popleft())
            self._send(unbegun, self._failure(unbegun, "preempted", "SIMULATED preemption"))

    def _take_away(self, agent: _Agent, life: int) -> None:
        if agent.life == life:
            self._end(agent)
            self._lose(agent, "its machine was taken away")

    def _clock_jump(self, victim: _Agent) -> None:
        victim.node.clock_offset += self._random.uniform(-3600, 3600)

    def _drift(self, victim: _Agent) -> None:
        node = victim.node
        if node.speed == 1.0:
            node.speed = self._random.uniform(0.6, 0.9)
            self._in(self._random.uniform(1, 4) * 3600, partial(setattr, node, "speed", 1.0))

    def _break_engine(self, victim: _Agent) -> None:
        victim.node.engine_broken_until = self.clock.seconds + self._random.uniform(1, 4) * 3600

    def _crash_coordinator(self, _victim: _Agent) -> None:
        self._crash_at = self._random.choice(("poll", "commit", "assign"))

    def _crash_if_due(self, where: str) -> None:
        if self._crash_at == where:
            self._crash_at = None
            raise CoordinatorCrash


_STRIKE: Mapping[str, Callable[[SimulatedFleet, _Agent], None]] = {
    "death": SimulatedFleet._death,
    "hang": SimulatedFleet._hang,
    "partition": SimulatedFleet._partition,
    "drain": SimulatedFleet._drain,
    "clock": SimulatedFleet._clock_jump,
    "drift": SimulatedFleet._drift,
    "engine": SimulatedFleet._break_engine,
    "crash": SimulatedFleet._crash_coordinator,
}


def _make_agents(counts: Mapping[str, int]) -> dict[str, _Agent]:
    """Agents by name; a node holds up to `AGENTS_PER_NODE` of one hardware."""
    agents: dict[str, _Agent] = {}
    for hardware, count in counts.items():
        for number in range(count):
            if number % AGENTS_PER_NODE == 0:
                node = _Node(f"{hardware}-node-{number // AGENTS_PER_NODE}")
            agent = _Agent(f"{hardware}-{number}", hardware, node)
            node.agents.append(agent)
            agents[agent.name] = agent
    return agents
