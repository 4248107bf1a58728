"""RayFleet: one agent actor per accelerator of a Ray cluster, or per CPU where a node has none.

Agents are pinned to their node. Reports come through one channel an agent: a fetch that waits on the agent for
something to tell and takes all there is. Blobs travel through Ray's object store and are verified by hash where they
arrive. Nodes may come and go: their agents join and are lost. Ray is transport and placement; leases, epochs and
retries are dispatch's.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agent.assignment import BenchAssignment, TrainAssignment
from agent.device import PRETENDED_VARIABLE
from agent.engines.canary import KIND as CANARY_KIND
from agent.worker import DEVICES_VARIABLE, Worker
from coordinator.errors import UserError
from coordinator.fleet.actor import AgentActor, Work
from coordinator.fleet.base import (
    AgentAlive,
    AgentDraining,
    AgentJoined,
    AgentLost,
    CanaryMeasured,
    FleetEvent,
    Reported,
)
from coordinator.fleet.outbox import Message
from coordinator.fleet.placement import Slot, slots_of
from coordinator.fleet.ray_blobs import Published, fetch, publish
from coordinator.fleet.ray_session import RaySession, listens
from coordinator.version import code_digest, version
from scaling.architecture import Architecture
from scaling.observations import Observation, ObservationAdapter, Progress

MAX_FAILED_STARTS = 3
"""A fleet of which no agent ever came up gives up after this many tries."""
FIRST_REST_SECONDS, LONGEST_REST_SECONDS = 5.0, 300.0
"""Between two tries to start an agent that does not come up; doubled each time."""
FETCH_SECONDS = 5.0
"""An agent that has nothing to tell answers after this long: its sign of life."""
NODE_CHECK_SECONDS = 5.0
CLEAR_SECONDS = 20.0
"""For nodes to remove their files at the end."""
HEAD_PATIENCE_SECONDS = 25.0
"""A cluster whose head is away for longer is given up in our words. Ray ends this process after 60 s, in its own."""


class RayActor(AgentActor):
    """An agent's actor whose blobs come through Ray's object store."""

    def __init__(self, agent: str, work_directory: str, blobs: Published, worker: type[Worker] = Worker) -> None:
        super().__init__(agent, work_directory, partial(fetch, blobs=blobs), worker)


@dataclass
class _Agent:
    slot: Slot
    handle: Any
    pending: dict[Any, Callable[[Any], list[FleetEvent]]] = field(default_factory=dict)
    """Calls that have not returned, each with what to make of its result."""
    work: list[Work] = field(default_factory=list)
    """Assigned, and not sent yet."""
    joined: bool = False
    listening: bool = False
    """Whether a fetch waits on it."""
    draining: bool = False


class RayFleet:
    """Agents on the Ray cluster that `session` reaches. `worker` does their work."""

    def __init__(
        self,
        session: RaySession,
        *,
        max_agents: int,
        blob_directory: Path,
        work_directory: Path,
        worker: type[Worker] = Worker,
    ) -> None:
        self._session = session
        self._max_agents = max_agents
        self._blob_directory = blob_directory
        self._work_directory = work_directory
        self._worker = worker
        self._agents: dict[str, _Agent] = {}
        self._blobs: Published = {}
        self._checkpoints: dict[str, Any] = {}
        """Packed checkpoints of trials that were interrupted, in Ray's object store."""
        self._rests: dict[str, tuple[float, float]] = {}
        """Agents that did not come up → (not before, seconds of this rest)."""
        self._slots: dict[str, Slot] = {}
        self._code = ""
        self._failed_starts = 0
        self._ever_joined = False
        self._nodes_checked = 0.0
        self._head = ""
        self._head_seen = 0.0
        self._ray: Any = None

    def start(self) -> None:
        """Connect to Ray, publish the blobs, start the agents."""
        self._ray = self._session.connect()
        self._head, self._head_seen = self._ray.get_runtime_context().gcs_address, time.monotonic()
        self._code = code_digest()
        self._blobs = publish(self._blob_directory, self._ray)
        self._follow_nodes()

    def num_slots(self) -> int:
        """Agents that the living nodes have room for, but those that did not come up."""
        return len(self._slots.keys() - self._rests.keys())

    def probe(self, architecture: Architecture, *, seconds: float) -> list[float]:
        """Training tokens/s of this shape on every joined agent, all probed at the same time."""
        text = architecture.model_dump_json()
        return list(self._ray.get([a.handle.probe.remote(text, seconds) for a in self._agents.values() if a.joined]))

    def canary(self, agent: str) -> None:
        """Run the canary on an idle agent; `poll` tells its rate."""
        self._call(self._agents[agent], "canary", then=lambda rate: [CanaryMeasured(agent, CANARY_KIND, rate)])

    def assign(self, agent: str, trial_id: str, epoch: int, assignment: TrainAssignment | BenchAssignment) -> None:
        """Start an assignment on an agent, from the checkpoint that an interrupted attempt sent along.

        One for an agent that was lost meanwhile is lost with it.
        """
        known = self._agents.get(agent)
        if known is not None and known.joined:
            known.work.append((trial_id, epoch, assignment.model_dump_json()))

    def send(self) -> None:
        """Send what was assigned, in one call an agent."""
        for agent in self._agents.values():
            if not agent.work:
                continue
            work, agent.work = agent.work, []
            checkpoints = (self._checkpoints.get(trial_id) for trial_id, *_ in work)
            if agent.listening:
                self._call(agent, "start", work, *checkpoints, then=lambda _: [])
            else:  # one call for both: half the cost of short trials
                self._listen(agent, "start_and_fetch", work, *checkpoints)

    def restart(self, agent: str) -> None:
        """Kill an agent; `poll` notices its end and starts another in its place."""
        known = self._agents.get(agent)
        if known is not None:
            self._ray.kill(known.handle)
            self._call(known, "describe", then=lambda _: [])

    def poll(self, *, timeout_seconds: float) -> list[FleetEvent]:
        """What happened since the last call; waits up to the time-out for a first event."""
        self.send()
        gone = self._follow_nodes() if time.monotonic() - self._nodes_checked >= NODE_CHECK_SECONDS else []
        for agent in self._agents.values():
            if agent.joined and not agent.listening:
                self._listen(agent, "fetch")
        waiting = {call: agent for agent in self._agents.values() for call in agent.pending}
        if gone or not waiting:
            if not gone:
                time.sleep(timeout_seconds)
            return gone
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=timeout_seconds, fetch_local=False)
        if ready:
            ready, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0, fetch_local=False)
        return [event for call in ready for event in self._returned(waiting[call], call)]

    def clear(self) -> None:
        """Have every node remove its agents' files; those of a local run lie in the run directory."""
        if self._session.is_local:
            return
        one_a_node = {agent.slot.node_id: agent.handle for agent in self._agents.values() if agent.joined}
        with suppress(Exception):  # a node that cannot do it any more keeps them
            calls = [handle.clear.remote() for handle in one_a_node.values()]
            self._ray.wait(calls, num_returns=len(calls), timeout=CLEAR_SECONDS)

    def stop(self) -> None:
        """Leave the cluster, ending the agents; a local cluster ends with all it started."""
        if self._ray is not None:
            if listens(self._head):  # without a head nobody carries orders, and Ray waits long for one
                for agent in self._agents.values():
                    with suppress(Exception):
                        self._ray.kill(agent.handle)
            with suppress(Exception):
                self._ray.shutdown()
            self._ray = None
        self._session.close()

    def _follow_nodes(self) -> list[FleetEvent]:
        """Start agents on nodes that came; drop those of nodes that went."""
        self._nodes_checked = time.monotonic()
        if not self._head_is_there():
            return []
        prefix = "agent" if self._session.is_local else None
        found = slots_of(self._ray.nodes(), max_agents=self._max_agents, prefix=prefix)
        slots = self._slots = {slot.agent: slot for slot in found}
        gone = [name for name in self._agents if name not in slots]
        for name in gone:
            del self._agents[name]
        for name, slot in slots.items():
            if name not in self._agents and self._rests.get(name, (0.0, 0.0))[0] <= self._nodes_checked:
                self._start_agent(slot)
        return [AgentLost(name, "its node left the cluster") for name in gone]

    def _head_is_there(self) -> bool:
        """Whether the head listens. While it does not, agents go on and are heard; whatever asks Ray would hang.

        Raises:
            UserError: it has been away for too long.
        """
        if listens(self._head):
            self._head_seen = time.monotonic()
            return True
        if (seconds := time.monotonic() - self._head_seen) > HEAD_PATIENCE_SECONDS:
            raise UserError(
                f"the head of the Ray cluster at {self._head} has not answered for {seconds:.0f} s.\n"
                "Start the cluster anew and run the same command again: what was acknowledged is kept, and the run "
                "goes on."
            )
        return False

    def _start_agent(self, slot: Slot) -> None:
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        # One thread works, one waits in `fetch`, the others answer at once.
        actor = self._ray.remote(
            num_cpus=0 if slot.num_gpus else slot.num_devices,
            num_gpus=slot.num_gpus,
            max_restarts=0,
            max_concurrency=8,
            scheduling_strategy=affinity(slot.node_id, soft=False),
            runtime_env={"env_vars": variables} if (variables := _variables(slot)) else None,
        )(RayActor)
        handle = actor.remote(slot.agent, str(self._work_directory), self._blobs, self._worker)
        agent = self._agents[slot.agent] = _Agent(slot, handle)
        asked = time.time()
        self._call(agent, "describe", then=lambda facts: self._described(agent, facts, asked))

    def _described(self, agent: _Agent, facts: dict[str, Any], asked_unix: float) -> list[FleetEvent]:
        if facts["code"] != self._code:
            return self._refused(agent, facts)
        agent.joined = self._ever_joined = True
        self._rests.pop(agent.slot.agent, None)
        return [
            AgentJoined(
                agent.slot.agent,
                facts["hardware"],
                facts["pid"],
                node=agent.slot.node,
                versions=facts["versions"],
                clock_offset_seconds=None if self._session.is_local else facts["unix"] - (asked_unix + time.time()) / 2,
            )
        ]

    def _listen(self, agent: _Agent, method: str, *work: Any) -> None:
        agent.listening = True
        self._call(agent, method, FETCH_SECONDS, *work, then=lambda answer: self._fetched(agent, *answer))

    def _fetched(self, agent: _Agent, messages: list[Message], drain_reason: str) -> list[FleetEvent]:
        agent.listening = False
        name = agent.slot.agent
        events: list[FleetEvent] = []
        if drain_reason and not agent.draining:
            agent.draining = True
            events.append(AgentDraining(name, drain_reason))
        for message in messages:
            self._keep_checkpoint(message)
            events.append(Reported(name, message.trial_id, message.epoch, _item(message), message.log))
        return events or [AgentAlive(name)]

    def _keep_checkpoint(self, message: Message) -> None:
        if message.is_final:
            self._checkpoints.pop(message.trial_id, None)
        if message.checkpoint is not None and not self._session.is_local:
            self._checkpoints[message.trial_id] = self._ray.put(message.checkpoint)

    def _call(self, agent: _Agent, method: str, *arguments: Any, then: Callable[[Any], list[FleetEvent]]) -> None:
        agent.pending[getattr(agent.handle, method).remote(*arguments)] = then

    def _returned(self, agent: _Agent, call: Any) -> list[FleetEvent]:
        then = agent.pending.pop(call, None)
        if then is None:  # the agent was lost by an earlier call of this poll
            return []
        try:
            return then(self._ray.get(call))
        except self._ray.exceptions.RayError as error:
            return self._lost(agent, error)

    def _lost(self, agent: _Agent, error: Exception) -> list[FleetEvent]:
        """Forget an agent. One that had joined is started anew at once, one that never did after a rest."""
        reason = _first_line(error)
        if not agent.joined:
            self._rest(agent.slot.agent, f"agents do not start: {reason}. `python -m agent --help` may tell more.")
        return self._forget(agent, reason)

    def _refused(self, agent: _Agent, facts: dict[str, Any]) -> list[FleetEvent]:
        """An agent whose code is not ours must not work: what it measures, and how it reports, may differ."""
        theirs = f"{facts['versions'].get('archfleet', 'unknown')} (code {facts['code'][:12]})"
        reason = (
            f"node {agent.slot.node} runs another archfleet, {theirs}; "
            f"this coordinator is {version()} (code {self._code[:12]})"
        )
        self._rest(
            agent.slot.agent,
            f"{reason}.\nOurs travels along: uninstall archfleet on that node, or take its folder from PYTHONPATH.",
        )
        return self._forget(agent, reason)

    def _forget(self, agent: _Agent, reason: str) -> list[FleetEvent]:
        agent.pending.clear()
        with suppress(Exception):
            self._ray.kill(agent.handle)
        self._agents.pop(agent.slot.agent, None)
        return [AgentLost(agent.slot.agent, reason), *self._follow_nodes()]

    def _rest(self, name: str, why_none: str) -> None:
        """Try later; give up with `why_none` where no agent ever came up."""
        self._failed_starts += 1
        if not self._ever_joined and self._failed_starts >= MAX_FAILED_STARTS:
            raise UserError(why_none)
        _, last = self._rests.get(name, (0.0, FIRST_REST_SECONDS / 2))
        seconds = min(2 * last, LONGEST_REST_SECONDS)
        self._rests[name] = (time.monotonic() + seconds, seconds)


def _item(message: Message) -> Progress | Observation:
    if message.is_final:
        return ObservationAdapter.validate_json(message.item)
    return Progress.model_validate_json(message.item)


def _variables(slot: Slot) -> dict[str, str]:
    """What the agent of a slot is to know from its environment."""
    pretence = {PRETENDED_VARIABLE: slot.pretended_hardware} if slot.pretended_hardware else {}
    return pretence | ({DEVICES_VARIABLE: str(slot.num_devices)} if slot.num_devices > 1 else {})


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next(
        (line for line in lines if "Worker exit detail" in line or "Error:" in line), lines[0] if lines else ""
    )
    return f"{type(error).__name__}: {cause}"[:300]
