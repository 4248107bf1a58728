"""Roster: what the coordinator remembers of its agents, and which of their rows the store does not know yet."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from coordinator.store import AgentRow


@dataclass
class Roster:
    """Every agent that ever joined this run, as last heard of."""

    rows: dict[str, AgentRow] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Agents whose row is newer than the store's."""

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
            self.rows[agent] = replace(self.rows[agent], heartbeat_unix=now_unix)
            self.changed.add(agent)

    def hardware(self, agent: str) -> str:
        """The kind of an agent's device."""
        return self.rows[agent].hardware if agent in self.rows else "unknown"

    def settle(self, state_of: Callable[[str], str]) -> list[AgentRow]:
        """Give every agent its state; the rows that the store must learn of."""
        for agent, row in self.rows.items():
            state = state_of(agent)
            if state != row.state:
                self.rows[agent] = replace(row, state=state)
                self.changed.add(agent)
        return [self.rows[agent] for agent in sorted(self.changed)]
