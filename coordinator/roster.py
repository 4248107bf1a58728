"""Roster: what the coordinator remembers of its agents, and which of their rows the store does not know yet."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from coordinator.store import AgentRow


@dataclass
class Roster:
    """Every agent that ever joined this run, as last heard of."""

    rows: dict[str, AgentRow] = field(default_factory=dict)
    """As of the last `settle`."""
    changed: set[str] = field(default_factory=set)
    """Agents whose row is newer than the store's."""
    _heard: dict[str, float] = field(default_factory=dict)
    """Last sign of life since the last `settle`, in seconds since the epoch: an agent may give many in a turn."""

    def add(self, rows: Iterable[AgentRow]) -> None:
        """Take up what the store holds."""
        self.rows.update({row.agent: row for row in rows})

    def joined(self, row: AgentRow) -> None:
        """An agent is up."""
        self.rows[row.agent] = row
        self.changed.add(row.agent)

    def heard(self, agent: str, *, now_unix: float) -> None:
        """A sign of life."""
        if agent in self.rows:
            self._heard[agent] = now_unix

    def hardware(self, agent: str) -> str:
        """The kind of an agent's device."""
        return self.rows[agent].hardware if agent in self.rows else "unknown"

    def settle(self, state_of: Callable[[str], str]) -> list[AgentRow]:
        """Give every agent its state and its last sign of life; the rows that the store must learn of."""
        for agent, row in self.rows.items():
            state = state_of(agent)
            if state != row.state or agent in self._heard:
                heartbeat_unix = self._heard.get(agent, row.heartbeat_unix)
                self.rows[agent] = replace(row, state=state, heartbeat_unix=heartbeat_unix)
                self.changed.add(agent)
        self._heard.clear()
        return [self.rows[agent] for agent in sorted(self.changed)]
