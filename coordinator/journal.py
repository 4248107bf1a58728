"""Journal: what an instruction and a new agent leave in the store. Nothing else happens, so it can be repeated."""

import json
import socket
from collections.abc import Callable

from coordinator.dispatch import (
    LEASE_SECONDS,
    Accept,
    Fail,
    Instruction,
    Judge,
    Probe,
    Quarantine,
    Reject,
    Release,
    Renew,
    Restart,
    Start,
)
from coordinator.fleet.base import AgentJoined
from coordinator.store import AgentRow, Store, StoreReader
from coordinator.vitals import tally_result
from scaling.observations import Failure, Provenance


def write(
    store: Store,
    instruction: Instruction,
    unix: float,
    *,
    hardware_of: Callable[[str], str],
    lease_seconds: float = LEASE_SECONDS,
) -> None:
    """An instruction's trace in the store.

    Args:
        store: within a transaction; when that fails the same is written again.
        instruction: as dispatch gave it.
        unix: when it was decided.
        hardware_of: the kind of an agent's device.
        lease_seconds: after which a lease ends without a sign of life.
    """
    match instruction:
        case Start(agent, trial_id, epoch, ahead):
            store.lease(
                trial_id,
                agent=agent,
                hardware=hardware_of(agent),
                epoch=epoch,
                now_unix=unix,
                expires_unix=unix + lease_seconds,
                ahead=ahead,
            )
        case Renew(trial_id, progress):
            store.record_progress(trial_id, progress, expires_unix=unix + lease_seconds)
            store.tally("reports", "progress")
        case Accept(trial_id, epoch, observation, spent):
            store.record_result(trial_id, epoch, observation, now_unix=unix, spent_seconds=spent)
            tally_result(store, observation)
        case Fail(trial_id, epoch, _, _, final, told, spent):
            hardware = hardware_of(instruction.agent)
            failure = failure_of(instruction, unix, hardware=hardware)
            store.record_failure(trial_id, epoch, failure, final=final, now_unix=unix, spent_seconds=spent)
            if told is not None:
                tally_result(store, told)
            elif instruction.expired:
                store.tally("leases_expired", phase=trial_id.partition("-")[0], hardware=hardware)
        case Reject(trial_id, epoch, agent, reason):
            store.reject(trial_id, epoch=epoch, agent=agent, reason=reason, now_unix=unix)
        case Judge(agent, hardware, kind, rate, baseline):
            deviation = None if baseline is None else rate / baseline - 1
            store.add_canary(agent=agent, hardware=hardware, kind=kind, rate=rate, deviation=deviation, now_unix=unix)
        case Quarantine(agent, reason):
            store.count("quarantines")
            store.set_meta("quarantined", json.dumps(quarantined(store) | {agent: reason}))
        case Release(agent):
            left = {name: reason for name, reason in quarantined(store).items() if name != agent}
            store.set_meta("quarantined", json.dumps(left))
        case Probe() | Restart():
            pass


def quarantined(store: StoreReader) -> dict[str, str]:
    """Why, by the agents that get no work until a good canary."""
    found: dict[str, str] = json.loads(store.meta("quarantined") or "{}")
    return found


def failure_of(fail: Fail, unix: float, *, hardware: str) -> Failure:
    """The agent's report, or the coordinator's own record of an attempt whose agent could not report."""
    return fail.failure or Failure(
        assignment_id=fail.trial_id,
        failure_kind=fail.kind,
        message=fail.message,
        provenance=Provenance(
            agent=fail.agent,
            hostname=socket.gethostname(),
            device="unknown",
            hardware=hardware,
            started_at_unix=unix,
            seconds=0,
            versions={},
        ),
    )


def agent_row(event: AgentJoined, *, now_unix: float) -> AgentRow:
    """The store's row of an agent that just joined."""
    return AgentRow(
        agent=event.agent,
        hardware=event.hardware,
        state="idle",
        pid=event.pid,
        heartbeat_unix=now_unix,
        joined_unix=now_unix,
        node=event.node,
        clock_offset_seconds=event.clock_offset_seconds,
        versions=event.versions,
    )
