"""Pulse: how a run is at this moment, for pages that are open. No fact of the log: the next one takes its place."""

from coordinator.store import StoreReader
from hwprofiles.value import Value


class RunningTrial(Value):
    """A trial that an agent holds."""

    trial_id: str
    agent: str
    done_fraction: float
    """From 0 to 1, as the agent told last."""


class Pulse(Value):
    """Counts, and what runs."""

    run: str
    """Name of the run directory: a page that was opened for another run is to be fetched anew."""
    state: str
    """Of the run: running, interrupted, finished ..."""
    seq: int
    """Number of the newest fact of the run."""
    trials: dict[str, int]
    """How many trials are in each state."""
    running: tuple[RunningTrial, ...]
    """In planned order."""
    agents: dict[str, int]
    """How many agents are in each state, as last heard of."""
    spent_seconds: float
    """Agent-seconds of attempts that have ended."""
    unix: float
    """When this was read, in seconds since the epoch."""

    def tells_the_same(self, other: "Pulse | None") -> bool:
        """Whether nothing is different but the time."""
        return other is not None and self == other.model_copy(update={"unix": self.unix})


def read_pulse(store: StoreReader, *, now_unix: float) -> Pulse:
    """How the run is now; costs the same however many trials it has."""
    trials: dict[str, int] = {}
    spent_seconds = 0.0
    for count in store.counts():
        trials[count.state] = trials.get(count.state, 0) + count.num
        spent_seconds += count.spent_seconds
    agents: dict[str, int] = {}
    for agent in store.agents():
        agents[agent.state] = agents.get(agent.state, 0) + 1
    return Pulse(
        run=store.run_directory.resolve().name,
        state=store.meta("state") or "running",
        seq=store.last_seq(),
        trials=trials,
        running=tuple(
            RunningTrial(trial_id=trial_id, agent=agent, done_fraction=done_fraction)
            for trial_id, agent, done_fraction in store.running()
        ),
        agents=agents,
        spent_seconds=spent_seconds,
        unix=now_unix,
    )
