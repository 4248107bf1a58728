"""Dispatch: events in, instructions out. Leases, epochs, retries, budget, quarantine. No input or output, no clock.

The coordinator's loop tells it what happened and when (`now`, monotonic seconds) and carries out what it answers.

    queued --Start--> running --result--> succeeded
      ^                  |
      +----failure, lost agent, expired lease (attempts left) ---- else --> failed

An agent is one accelerator (or one CPU slot): whatever it runs is alone on its device. Which agents may take a trial is
told by its `Needs`; trials that need the same share a lane, so that finding work for an idle agent takes as long with
ten trials in the queue as with a hundred thousand.

Trainings so short that telling of each would take longer are handed ahead: an agent holds several, each under a lease
of its own, and does one after the other. Only the first is at work: its lease alone can run out, the agent's time
counts for it alone, and when it ends the next begins. A lost agent loses all of them. What has failed before, and
every benchmark, is alone in its agent's hands.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from scaling.observations import Failure, FailureKind, Observation, Progress

Phase = Literal["train", "bench"]
AgentCondition = Literal["idle", "busy", "draining", "quarantined", "lost"]


@dataclass(frozen=True)
class Start:
    """Give a trial to an agent under a new epoch; `ahead` where it is to wait there for others to end."""

    agent: str
    trial_id: str
    epoch: int
    ahead: bool = False


@dataclass(frozen=True)
class Renew:
    """A sign of life: record progress and renew the lease."""

    trial_id: str
    progress: Progress


@dataclass(frozen=True)
class Accept:
    """A trial's result counts. `spent_seconds` is what the attempt cost, on the coordinator's clock."""

    trial_id: str
    epoch: int
    observation: Observation
    spent_seconds: float = 0.0
    agent: str = ""


@dataclass(frozen=True)
class Fail:
    """An attempt failed; `final` when no attempt is left."""

    trial_id: str
    epoch: int
    kind: FailureKind
    message: str
    final: bool
    failure: Failure | None = None
    """The agent's own report; null where the agent could not give one."""
    spent_seconds: float = 0.0
    agent: str = ""
    expired: bool = False
    """Whether its lease ran out."""


@dataclass(frozen=True)
class Reject:
    """A report of an old epoch, or of a trial nobody leased: refused and recorded."""

    trial_id: str
    epoch: int
    agent: str
    reason: Literal["fenced", "unknown_trial"]


@dataclass(frozen=True)
class Restart:
    """The agent gave no sign of life within its lease: end it and start it anew."""

    agent: str


@dataclass(frozen=True)
class Probe:
    """Run the canary on this agent, which has nothing else to do meanwhile."""

    agent: str


@dataclass(frozen=True)
class Judge:
    """A canary was measured: `accepted` unless it is off the baseline of its hardware (null while there is none)."""

    agent: str
    hardware: str
    kind: str
    rate: float
    baseline: float | None
    accepted: bool


@dataclass(frozen=True)
class Quarantine:
    """The agent gets no work until a good canary releases it."""

    agent: str
    reason: str


@dataclass(frozen=True)
class Release:
    """A good canary: the agent may work again."""

    agent: str


Instruction = Start | Renew | Accept | Fail | Reject | Restart | Probe | Judge | Quarantine | Release

# How often each kind of failure may be tried again. A diverged loss or an impossible input fails the same way
# every time; a lost agent says nothing about the trial.
RETRIES: dict[FailureKind, int] = {
    "nan-loss": 0,
    "validation": 0,
    "out-of-memory": 1,
    "engine-start": 1,
    "timeout": 1,
    "unknown": 1,
    "hardware": 2,
    "preempted": 10,
    "agent-lost": 5,
}

LEASE_SECONDS = 60.0
"""Without a sign of life for so long, a lease ends."""
CANARY_TOLERANCE = 0.05
"""Largest relative distance of a canary from its baseline, either way."""
NUM_BASELINE_CANARIES = 3
"""The first canaries of a hardware and kind are accepted unjudged; their median is the baseline for good."""
ENGINE_FAILURES_TO_QUARANTINE = 2
"""Different trials whose engine did not start on one node."""
QUARANTINE_SECONDS = 60.0
"""Until the first canary of a quarantine; twice as long each further time, at most an hour."""
LONGEST_QUARANTINE_SECONDS = 3600.0
MAX_HAND = 16
"""So many trials are in an agent's hands at most: the one at work, and those handed ahead."""
HAND_SECONDS = 1.0
"""A training is handed ahead where all before it in the agent's hands are estimated to take no longer than this."""
NUM_ALTERNATIVES = 16
"""How far into the queue one looks for other work for an agent on which the next trial has failed already."""
SHOWN_REASON_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Needs:
    """What a trial needs: `hardware` lists the kinds that may take it, null any; `seconds` is its estimated cost."""

    phase: Phase = "train"
    hardware: tuple[str, ...] | None = None
    seconds: float = 0.0

    @property
    def lane(self) -> "Lane":
        """Trials of one lane can be done by the same agents."""
        return self.phase, self.hardware


Lane = tuple[Phase, tuple[str, ...] | None]
ANYTHING = Needs()


@dataclass(frozen=True)
class Lease:
    """Who holds a trial, under which epoch, since and until when (monotonic seconds), and what was reserved for it."""

    agent: str
    epoch: int
    expires: float
    """Never, for a trial handed ahead that is not at work yet."""
    started: float | None = 0.0
    """Since when the agent's time counts for it; null for a trial handed ahead that is not at work yet."""
    reserved_seconds: float = 0.0
    node: str = ""


@dataclass
class AgentState:
    """What dispatch knows of a living agent."""

    hardware: str
    node: str
    heard: float = 0.0
    """When it last gave a sign of life."""
    draining: bool = False
    canary_expires: float | None = None
    """When a canary under way counts as hung; null when none is."""
    next_canary: float | None = None
    """When the next one is due; null for never."""


@dataclass
class Dispatch:
    """The queue, the leases and the agents of one run.

    `canary_every_seconds` asks every accelerator for a canary when it joins and whenever it is idle and so long has
    passed; null asks only those in quarantine. A CPU shares its cores with whoever else is there: its canaries are
    recorded and never held against it.
    """

    lease_seconds: float
    granted_seconds: float | None = None
    """Accelerator-seconds that the study may use; null when it is not limited."""
    canary_every_seconds: float | None = None
    max_hand: int = MAX_HAND
    """1 hands nothing ahead."""
    spent_seconds: float = 0.0
    reserved_seconds: float = 0.0
    paused: str | None = None
    """Why nothing new is started; null when it may be."""
    leases: dict[str, Lease] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    failures: dict[str, dict[FailureKind, int]] = field(default_factory=dict)
    agents: dict[str, AgentState] = field(default_factory=dict)
    baselines: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """The first accepted canaries by (hardware, kind)."""
    quarantined: dict[str, str] = field(default_factory=dict)
    """Why, by agent; it outlives the agent's process."""
    _needs: dict[str, Needs] = field(default_factory=dict)
    _lanes: dict[Lane, deque[tuple[int, str]]] = field(default_factory=dict)
    """Waiting trials with their places in the queue, which rise within a lane."""
    _back: int = 0
    _front: int = 0
    _idle: dict[str, dict[str, int]] = field(default_factory=dict)
    """Idle agents by hardware, each with its place: smaller is idle for longer."""
    _idle_count: int = 0
    _held: dict[str, list[str]] = field(default_factory=dict)
    """Trials by the agent that holds them, the one at work first."""
    _failed_on: dict[str, set[str]] = field(default_factory=dict)
    """Agents, and their nodes, on which a trial failed."""
    _num_quarantines: dict[str, int] = field(default_factory=dict)
    _engine_failures: dict[str, set[str]] = field(default_factory=dict)
    """Trials whose engine did not start, by node."""

    def agent_state(self, agent: str) -> AgentCondition:
        """What an agent is doing, in a word."""
        if agent not in self.agents:
            return "lost"
        if self.agents[agent].draining:
            return "draining"
        if agent in self.quarantined:
            return "quarantined"
        return "busy" if agent in self._held or self.agents[agent].canary_expires is not None else "idle"

    # What waits, and for whom

    @property
    def queue(self) -> list[str]:
        """Waiting trials, first to be started first."""
        return [trial for _, trial in sorted(entry for lane in self._lanes.values() for entry in lane)]

    @property
    def num_queued(self) -> int:
        """How many trials wait."""
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def idle(self) -> list[str]:
        """Agents that wait for work, longest first."""
        places = [(place, agent) for group in self._idle.values() for agent, place in group.items()]
        return [agent for _, agent in sorted(places)]

    @property
    def exhausted(self) -> float | None:
        """What the next trial would cost, where the budget allows none of those that wait and nothing runs any more."""
        if self.leases or self.granted_seconds is None:
            return None
        heads = [self._needs[lane[0][1]].seconds for lane in self._lanes.values() if lane]
        return min(heads) if heads and not any(self._affordable(seconds) for seconds in heads) else None

    def commonest_hardware(self) -> str | None:
        """The kind of which most agents are alive; the first by name where two are as common."""
        kinds = Counter(agent.hardware for agent in self.agents.values())
        return min(kinds, key=lambda kind: (-kinds[kind], kind)) if kinds else None

    def missing_hardware(self) -> dict[tuple[str, ...], int]:
        """Kinds that waiting trials ask for and no living agent has, with the number of those trials."""
        present = {agent.hardware for agent in self.agents.values()}
        missing: dict[tuple[str, ...], int] = {}
        for (_, wanted), lane in self._lanes.items():
            if lane and wanted is not None and not present & set(wanted):
                missing[wanted] = missing.get(wanted, 0) + len(lane)
        return missing

    def enqueue(self, trials: Mapping[str, Needs] | Iterable[str], *, front: bool = False) -> None:
        """Add trials to the queue, in order; `front` for those that were interrupted. Bare ids need nothing special."""
        needs = trials if isinstance(trials, Mapping) else dict.fromkeys(trials, ANYTHING)
        self._needs.update(needs)
        for trial_id in reversed(list(needs)) if front else needs:
            self._enqueue(trial_id, front=front)

    def _enqueue(self, trial_id: str, *, front: bool) -> None:
        lane = self._lanes.setdefault(self._needs[trial_id].lane, deque())
        if front:
            self._front -= 1
            lane.appendleft((self._front, trial_id))
        else:
            self._back += 1
            lane.append((self._back, trial_id))

    # Events

    def agent_joined(self, agent: str, *, hardware: str = "unknown", node: str = "", now: float) -> list[Instruction]:
        """An agent is ready for work. One that joins anew has lost whatever it held, but not its quarantine."""
        failed = self._fail_held(agent, "it was started anew", now)
        self._not_idle(agent)
        self.agents[agent] = AgentState(hardware, node or agent, heard=now)
        if agent in self.quarantined or (self.canary_every_seconds is not None and judged(hardware)):
            return [*failed, self._probe(agent, now), *self.assign(now=now)]
        self._idles(agent)
        return [*failed, *self.assign(now=now)]

    def agent_lost(self, agent: str, reason: str, *, now: float) -> list[Instruction]:
        """An agent is gone; what it held is tried elsewhere."""
        self._not_idle(agent)
        self.agents.pop(agent, None)
        failed = self._fail_held(agent, reason, now)
        return [*failed, *self.assign(now=now)]

    def agent_draining(self, agent: str) -> None:
        """The agent's machine is about to be taken away: no new work. What it runs ends by itself or with the agent."""
        if agent in self.agents:
            self.agents[agent].draining = True
            self._not_idle(agent)

    def agent_alive(self, agent: str, *, now: float) -> None:
        """An agent with nothing to tell has answered: it lives, but that renews no lease."""
        if agent in self.agents:
            self.agents[agent].heard = now

    def canary_measured(self, agent: str, kind: str, rate: float, *, now: float) -> list[Instruction]:
        """A canary: the first ones of a hardware make its baseline, later ones are held against it."""
        state = self.agents.get(agent)
        if state is None:
            return []
        state.canary_expires = None
        state.next_canary = None if self.canary_every_seconds is None else now + self.canary_every_seconds
        first = self.baselines.setdefault((state.hardware, kind), [])
        baseline = median(first) if len(first) >= NUM_BASELINE_CANARIES else None
        is_off = baseline is not None and judged(state.hardware) and abs(rate / baseline - 1) > CANARY_TOLERANCE
        if baseline is None:
            first.append(rate)
        verdict = Judge(agent, state.hardware, kind, rate, baseline, not is_off)
        if is_off and baseline is not None:
            reason = f"its {kind} canary is {rate / baseline - 1:+.1%} off the baseline of {state.hardware}"
            return [verdict, *self._quarantine(agent, reason, now)]
        released: list[Instruction] = []
        if self.quarantined.pop(agent, None) is not None:
            self._engine_failures.pop(state.node, None)
            released = [Release(agent)]
        self._idles_if_free(agent)
        return [verdict, *released, *self.assign(now=now)]

    def reported(
        self, agent: str, trial_id: str, epoch: int, item: Progress | Observation, *, now: float
    ) -> list[Instruction]:
        """An agent reports on a trial it was given."""
        self.agent_alive(agent, now=now)
        lease = self.leases.get(trial_id)
        if lease is None or (lease.agent, lease.epoch) != (agent, epoch):
            return [Reject(trial_id, epoch, agent, "fenced" if trial_id in self.epochs else "unknown_trial")]
        if isinstance(item, Progress):
            if lease.started is not None:
                self.leases[trial_id] = replace(lease, expires=now + self.lease_seconds)
            return [Renew(trial_id, item)]
        ending: list[Instruction]
        if isinstance(item, Failure):
            ending = [self._fail(trial_id, item.failure_kind, item.message, now, failure=item)]
            if item.failure_kind == "engine-start":
                ending += self._engine_did_not_start(agent, trial_id, item, now)
        else:
            ending = [Accept(trial_id, epoch, item, self._settle(trial_id, now), agent)]
            self._forget(trial_id)
        return [*ending, *self._canary_or_idle(agent, now), *self.assign(now=now), *self._hand_ahead(agent, now)]

    def tick(self, *, now: float) -> list[Instruction]:
        """Time has passed: end expired leases and hung canaries, ask for canaries that are due."""
        instructions: list[Instruction] = []
        for trial_id, lease in [(trial, lease) for trial, lease in self.leases.items() if lease.expires < now]:
            instructions += [*self._expire(trial_id, lease, now), Restart(lease.agent)]
        for agent, state in self.agents.items():
            if state.canary_expires is not None and state.canary_expires < now:
                state.canary_expires = state.next_canary = None
                reason = self.quarantined.setdefault(agent, "its canary did not end")
                instructions += [Quarantine(agent, reason), Restart(agent)]
            elif state.next_canary is not None and state.next_canary <= now and self._has_nothing_to_do(agent):
                instructions.append(self._probe(agent, now))
        return [*instructions, *self.assign(now=now)]

    def stalled(self, seconds: float) -> None:
        """For so long nobody could listen: the agents' silence is not their fault."""
        for trial_id, lease in self.leases.items():
            self.leases[trial_id] = replace(lease, expires=lease.expires + seconds)
        for state in self.agents.values():
            state.heard += seconds
            if state.canary_expires is not None:
                state.canary_expires += seconds

    def assign(self, *, now: float) -> list[Instruction]:
        """Give waiting trials to idle agents, first come first served, as far as the budget allows."""
        started: list[Start] = []
        served: list[str] = []
        if self.paused is not None:
            return []
        while self._idle_count and (choice := self._choose()) is not None:
            agent, lane, place = choice
            trial_id = lane[place][1]
            del lane[place]
            self._not_idle(agent)
            started.append(self._lease(trial_id, agent, now))
            served.append(agent)
        # Handing ahead comes last: no agent waits while there is work for it.
        return [*started, *(start for agent in served for start in self._hand_ahead(agent, now))]

    def _lease(self, trial_id: str, agent: str, now: float) -> Start:
        """Put a trial into an agent's hands: at work, or behind what it has."""
        hand = self._held.setdefault(agent, [])
        epoch = self.epochs[trial_id] = self.epochs.get(trial_id, 0) + 1
        seconds = self._needs[trial_id].seconds
        lease = Lease(agent, epoch, math.inf, None, seconds, self.agents[agent].node)
        self.leases[trial_id] = lease if hand else self._begun(lease, now)
        self.reserved_seconds += seconds
        hand.append(trial_id)
        return Start(agent, trial_id, epoch, ahead=len(hand) > 1)

    def _begun(self, lease: Lease, now: float) -> Lease:
        return replace(lease, started=now, expires=now + self.lease_seconds)

    # Who takes what

    def _hand_ahead(self, agent: str, now: float) -> list[Start]:
        """As many short trainings as follow one another at the head of what this agent may take."""
        started: list[Start] = []
        while self._takes_more(agent, now) and (lane := self._next_lane(agent)) is not None:
            trial_id = lane[0][1]
            if not self._is_plain_training(trial_id) or not self._affordable(self._needs[trial_id].seconds):
                break
            lane.popleft()
            started.append(self._lease(trial_id, agent, now))
        return started

    def _takes_more(self, agent: str, now: float) -> bool:
        """Whether something may be handed ahead to an agent: it works through short trainings, and is to go on so."""
        hand, state = self._held.get(agent, ()), self.agents.get(agent)
        if self.paused is not None or state is None or state.draining or agent in self.quarantined:
            return False
        is_canary_due = state.next_canary is not None and state.next_canary <= now
        if not 0 < len(hand) < self.max_hand or is_canary_due or not self._is_plain_training(hand[0]):
            return False
        return sum(self._needs[trial_id].seconds for trial_id in hand) <= HAND_SECONDS

    def _is_plain_training(self, trial_id: str) -> bool:
        return self._needs[trial_id].phase == "train" and trial_id not in self.failures

    def _next_lane(self, agent: str) -> deque[tuple[int, str]] | None:
        """The lane whose first trial is this agent's next."""
        hardware = self.agents[agent].hardware
        fit = (lane for (_, wanted), lane in self._lanes.items() if lane and (wanted is None or hardware in wanted))
        return min(fit, key=lambda lane: lane[0][0], default=None)

    def _choose(self) -> tuple[str, deque[tuple[int, str]], int] | None:
        """The first trial that an idle agent can take: that agent, the trial's lane, and its place there.

        A trial that failed before goes to a node on which it did not, where one has an idle agent; else to another
        agent; else such an agent does something else, where there is something; else it tries again. No agent waits
        while there is work for it.
        """
        for _, needs, lane in sorted(self._heads()):
            fit = self._idle_for(needs)
            failed_on = self._failed_on.get(lane[0][1], set())
            if (fresh := self._fresh_among(fit, failed_on)) is not None:
                return fresh, lane, 0
            agent = _longest_idle(fit, ())
            assert agent is not None, "only lanes with an idle agent have a head"
            other = self._other_work(agent)
            return (agent, lane, 0) if other is None else (agent, *other)
        return None

    def _heads(self) -> Iterator[tuple[int, tuple[str, ...], deque[tuple[int, str]]]]:
        """Place, idle hardware kinds and lane of every lane whose first trial can start now."""
        kinds = [kind for kind, group in self._idle.items() if group]
        for (_, wanted), lane in self._lanes.items():
            if lane and self._affordable(self._needs[lane[0][1]].seconds):
                fit = tuple(kind for kind in kinds if wanted is None or kind in wanted)
                if fit:
                    yield lane[0][0], fit, lane

    def _fresh_among(self, fit: list[dict[str, int]], failed_on: set[str]) -> str | None:
        """The agent idle for longest on another node than those of `failed_on`; else the one that is not in it."""
        if failed_on:
            elsewhere = [
                {agent: place for agent, place in group.items() if self.agents[agent].node not in failed_on}
                for group in fit
            ]
            if (agent := _longest_idle(elsewhere, failed_on)) is not None:
                return agent
        return _longest_idle(fit, failed_on)

    def _idle_for(self, kinds: Iterable[str]) -> list[dict[str, int]]:
        return [self._idle[kind] for kind in kinds]

    def _other_work(self, agent: str) -> tuple[deque[tuple[int, str]], int] | None:
        hardware = self.agents[agent].hardware
        for (_, wanted), lane in self._lanes.items():
            if wanted is not None and hardware not in wanted:
                continue
            for place in range(min(len(lane), NUM_ALTERNATIVES)):
                trial_id = lane[place][1]
                if agent not in self._failed_on.get(trial_id, ()) and self._affordable(self._needs[trial_id].seconds):
                    return lane, place
        return None

    def _affordable(self, seconds: float) -> bool:
        granted = self.granted_seconds
        return granted is None or self.spent_seconds + self.reserved_seconds + seconds <= granted

    def _canary_or_idle(self, agent: str, now: float) -> list[Instruction]:
        """Between two trials a canary that is due comes first: a fleet with enough work is never idle."""
        state = self.agents.get(agent)
        is_due = state is not None and state.next_canary is not None and state.next_canary <= now
        if is_due and self._has_nothing_to_do(agent):
            return [self._probe(agent, now)]
        self._idles_if_free(agent)
        return []

    def _idles_if_free(self, agent: str) -> None:
        if agent in self.agents and agent not in self.quarantined and self._has_nothing_to_do(agent):
            self._idles(agent)

    def _has_nothing_to_do(self, agent: str) -> bool:
        state = self.agents[agent]
        return agent not in self._held and not state.draining and state.canary_expires is None

    def _idles(self, agent: str) -> None:
        group = self._idle.setdefault(self.agents[agent].hardware, {})
        if agent not in group:
            self._back += 1
            self._idle_count += 1
            group[agent] = self._back

    def _not_idle(self, agent: str) -> None:
        if agent in self.agents and self._idle.get(self.agents[agent].hardware, {}).pop(agent, None) is not None:
            self._idle_count -= 1

    # Endings

    def _fail_held(self, agent: str, reason: str, now: float) -> list[Instruction]:
        """An agent is lost with all it held. Each goes to the front of the queue, so that the first is first again."""
        message = f"agent {agent} was lost: {reason}"
        return [self._fail(trial_id, "agent-lost", message, now) for trial_id in reversed(self._held.get(agent, ()))]

    def _expire(self, trial_id: str, lease: Lease, now: float) -> list[Instruction]:
        """A lease ran out: with its agent, of which nothing is known, or, where the agent answers, for the trial."""
        state = self.agents.pop(lease.agent, None)
        behind = self._held[lease.agent][1:]
        ended = [self._fail(other, "agent-lost", f"agent {lease.agent} was ended", now) for other in reversed(behind)]
        if state is not None and state.heard > now - self.lease_seconds:
            stuck = f"agent {lease.agent} answers, but told nothing of the trial for {self.lease_seconds:g} s"
            return [*ended, self._fail(trial_id, "timeout", stuck, now, expired=True)]
        silence = f"no sign of life from agent {lease.agent} for {self.lease_seconds:g} s"
        return [*ended, self._fail(trial_id, "agent-lost", silence, now, expired=True)]

    def _fail(
        self,
        trial_id: str,
        kind: FailureKind,
        message: str,
        now: float,
        *,
        failure: Failure | None = None,
        expired: bool = False,
    ) -> Fail:
        lease = self.leases[trial_id]
        spent = self._settle(trial_id, now)
        counts = self.failures.setdefault(trial_id, {})
        counts[kind] = counts.get(kind, 0) + 1
        final = counts[kind] > RETRIES[kind]
        if final:
            self._forget(trial_id)
        else:
            self._failed_on.setdefault(trial_id, set()).update((lease.agent, lease.node))
            self._enqueue(trial_id, front=True)
        return Fail(trial_id, lease.epoch, kind, message, final, failure, spent, lease.agent, expired)

    def _settle(self, trial_id: str, now: float) -> float:
        """End a lease: what was reserved for it is free again, what it took is spent. Returns the latter.

        What its agent was handed ahead begins.
        """
        lease = self.leases.pop(trial_id)
        spent = 0.0 if lease.started is None else max(0.0, now - lease.started)
        self._held[lease.agent].remove(trial_id)
        if not self._held[lease.agent]:
            del self._held[lease.agent]
        elif lease.started is not None:
            following = self._held[lease.agent][0]
            self.leases[following] = self._begun(self.leases[following], now)
        self.reserved_seconds = self.reserved_seconds - lease.reserved_seconds if self.leases else 0.0
        self.spent_seconds += spent
        return spent

    def _forget(self, trial_id: str) -> None:
        """A trial has ended for good: only its epoch is kept, to fence what comes late."""
        self._needs.pop(trial_id, None)
        self.failures.pop(trial_id, None)
        self._failed_on.pop(trial_id, None)

    # Canaries and quarantine

    def _probe(self, agent: str, now: float) -> Probe:
        self._not_idle(agent)
        self.agents[agent].canary_expires = now + self.lease_seconds
        self.agents[agent].next_canary = None
        return Probe(agent)

    def _engine_did_not_start(self, agent: str, trial_id: str, failure: Failure, now: float) -> list[Instruction]:
        if agent not in self.agents:
            return []
        node = self.agents[agent].node
        trials = self._engine_failures.setdefault(node, set())
        trials.add(trial_id)
        if len(trials) < ENGINE_FAILURES_TO_QUARANTINE:
            return []
        said = (failure.detail.strip() or failure.message)[-SHOWN_REASON_CHARACTERS:]
        reason = f"the engine did not start for {len(trials)} trials on {node}; its last lines: {said}"
        mates = [name for name, state in self.agents.items() if state.node == node and name not in self.quarantined]
        return [instruction for name in mates for instruction in self._quarantine(name, reason, now)]

    def _quarantine(self, agent: str, reason: str, now: float) -> list[Instruction]:
        """No work for this agent until a canary is good; one is asked for later each time."""
        self._not_idle(agent)
        state = self.agents[agent]
        count = self._num_quarantines[agent] = self._num_quarantines.get(agent, 0) + 1
        state.next_canary = now + min(QUARANTINE_SECONDS * 2 ** (count - 1), LONGEST_QUARANTINE_SECONDS)
        return [Quarantine(agent, self.quarantined.setdefault(agent, reason))]


def judged(hardware: str) -> bool:
    """Whether a canary of this kind of hardware can be held against it: a CPU shares its cores."""
    return not hardware.startswith("cpu")


def _longest_idle(groups: Iterable[Mapping[str, int]], avoid: Iterable[str]) -> str | None:
    """The agent idle for longest that is not to be avoided. Within a group the order is that of becoming idle."""
    firsts = []
    for group in groups:
        first = next((agent for agent in group if agent not in avoid), None)
        if first is not None:
            firsts.append((group[first], first))
    return min(firsts)[1] if firsts else None
