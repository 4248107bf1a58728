"""Ways to spend a budget of proxy runs, in one table: ours, and the baselines that it has to beat.

v-optimal   most knowledge about the decision per GPU-second (scaling/propose.py)
d-optimal   most knowledge about all coefficients per GPU-second, whatever they matter for the decision
random      any row of the menu, uniformly
grid        a fixed grid of shapes at every size and one ratio, small sizes first: the way of arXiv 2510.18245
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from scaling.belief import ShapeModel
from scaling.law import Floats
from scaling.propose import Proposal, propose_informative, propose_runs


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchState:
    """All that a policy may look at: the study's model, what was run with which losses, what still runs.

    `grid` holds the menu rows of the fixed grid in the order in which it runs them. `losses` (n,) in nats per token.
    """

    model: ShapeModel
    existing: Sequence[int]
    losses: Floats
    pending: Sequence[int]
    grid: Sequence[int]
    gamma: float
    seed: int

    @property
    def taken(self) -> list[int]:
        """Rows that were run or are pending, once for each run."""
        return [*self.existing, *self.pending]


Policy = Callable[[SearchState, int], list[Proposal]]
"""(state, number of free agents) -> the next runs; fewer where the policy has no more to propose."""


def v_optimal(state: SearchState, num: int) -> list[Proposal]:
    """The runs that narrow the choice at the target most per GPU-second^gamma."""
    return propose_runs(
        state.model,
        existing=state.existing,
        losses=state.losses,
        pending=state.pending,
        num=num,
        gamma=state.gamma,
        seed=state.seed,
    )


def d_optimal(state: SearchState, num: int) -> list[Proposal]:
    """The runs that shrink the volume of the coefficients' posterior most per GPU-second^gamma."""
    return propose_informative(
        state.model,
        existing=state.existing,
        losses=state.losses,
        pending=state.pending,
        num=num,
        gamma=state.gamma,
        seed=state.seed,
    )


def random_runs(state: SearchState, num: int) -> list[Proposal]:
    """Rows of the menu, drawn uniformly."""
    drawn = np.random.default_rng(state.seed).integers(len(state.model.menu), size=num)
    return _listed(state, [int(row) for row in drawn], "Drawn at random.")


def fixed_grid(state: SearchState, num: int) -> list[Proposal]:
    """The next rows of the grid; none once it is done."""
    first = len(state.taken)
    return _listed(state, list(state.grid[first : first + num]), "Next on the grid.")


def _listed(state: SearchState, rows: Sequence[int], reason: str) -> list[Proposal]:
    before = state.taken
    return [
        Proposal(index=row, num_replicate=[*before, *rows[:place]].count(row), reason=reason, gain=None)
        for place, row in enumerate(rows)
    ]


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {"v-optimal": v_optimal, "d-optimal": d_optimal, "random": random_runs, "grid": fixed_grid}
)
