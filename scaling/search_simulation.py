"""Simulated searches: what a policy's recommendation at the target costs in loss, against what its proxy runs cost.

A world is a menu of proxy runs (every legal shape at every proxy size, at several tokens-per-parameter ratios) and the
legal shapes of the target; a truth (scaling/simulation.py) says their losses. A strategy is a policy that spends
(scaling/policies.py) and a recommender that chooses. Each study runs batches of `num_agents`, all of one batch before
the next, and after every batch the recommendation's regret is looked up:

    regret = true loss of the recommended shape / true loss of the best legal shape - 1,   at the target's N and D

A run costs 6 N D FLOPs / `flops_per_second` GPU-seconds. Nothing here was measured on a device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from scaling.belief import RunMenu, ShapeModel, Target, make_model
from scaling.fit import fit_conditional
from scaling.law import Floats
from scaling.points import ShapePoints
from scaling.policies import POLICIES, Policy, SearchState
from scaling.simulation import NOISE_SD_NATS, TOKENS_PER_PARAMETER, Truth, grid_design
from scaling.space import Candidates, SearchSpace
from scaling.stopping import Decision, StopRule, decide, reason_to_stop


@dataclass(frozen=True, kw_only=True)
class SearchSetting:
    """One kind of study. Sizes are those of arXiv 2510.18245; layer counts, cheaper ratios and FLOP/s are ours.

    `sizes` holds (N, layers) of the proxies. The ranges are not centred on the optimum, or a guess would find it.
    `num_grid` is the grid's points along x and along r. A study ends after `max_runs`, or at the grid's cost.
    """

    sizes: tuple[tuple[float, int], ...] = ((80e6, 12), (145e6, 12), (297e6, 16))
    tokens_per_parameter: tuple[float, ...] = (20.0, 50.0, TOKENS_PER_PARAMETER)
    target_size: tuple[float, int] = (1e9, 16)
    target_tokens_per_parameter: float = TOKENS_PER_PARAMETER
    x_range: tuple[float, float] = (0.05, 0.25)
    r_range: tuple[float, float] = (0.5, 5.0)
    noise_sd_nats: float = NOISE_SD_NATS
    flops_per_second: float = 4e14
    """Assumed: 40 % of the dense bfloat16 peak of an H200."""
    num_agents: int = 8
    max_runs: int = 96
    num_grid: int = 4
    gamma: float = 0.5
    """Knowledge is bought per GPU-second^gamma: below 1, since agents that wait for a decision cost as well."""
    stop: StopRule = field(default_factory=StopRule)


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """A setting with its menu and grid worked out; the same for every truth, policy and seed."""

    setting: SearchSetting
    model: ShapeModel
    grid: tuple[tuple[int, ...], ...]
    """Rows of the grid, size by size."""

    @property
    def grid_seconds(self) -> float:
        """What the whole grid costs, in GPU-seconds."""
        return float(sum(self.model.menu.seconds[list(rows)].sum() for rows in self.grid))

    @property
    def num_grid_runs(self) -> int:
        """Runs of the whole grid."""
        return sum(len(rows) for rows in self.grid)


def make_world(setting: SearchSetting) -> World:
    """List what may be run and what may be chosen, and place the grid on the nearest legal shapes."""
    columns: dict[str, list[Floats]] = {name: [] for name in ("x", "r", "num_parameters", "num_tokens")}
    grid, first = [], 0
    for N, num_layers in setting.sizes:
        shapes = _legal_shapes(setting, N, num_layers)
        for ratio in setting.tokens_per_parameter:
            if ratio == setting.target_tokens_per_parameter:
                grid.append(tuple(first + index for index in _grid_on(setting, shapes)))
            columns["x"].append(shapes.x)
            columns["r"].append(shapes.r)
            columns["num_parameters"].append(shapes.num_parameters.astype(float))
            columns["num_tokens"].append(np.full(len(shapes), ratio * N))
            first += len(shapes)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    seconds = 6 * joined["num_parameters"] * joined["num_tokens"] / setting.flops_per_second
    size, num_layers = setting.target_size
    choices = _legal_shapes(setting, size, num_layers)
    target = Target(
        x=choices.x, r=choices.r, num_parameters=size, num_tokens=setting.target_tokens_per_parameter * size
    )
    return World(setting=setting, model=make_model(RunMenu(**joined, seconds=seconds), target), grid=tuple(grid))


def _legal_shapes(setting: SearchSetting, num_parameters: float, num_layers: int) -> Candidates:
    return SearchSpace(
        num_parameters=round(num_parameters),
        num_hidden_layers=num_layers,
        head_dim=64,
        query_group_sizes=(4,),
        hidden_multiple_of=64,
        intermediate_multiple_of=64,
        vocab_size=128_256,
        x_range=setting.x_range,
        r_range=setting.r_range,
    ).enumerate()


def _grid_on(setting: SearchSetting, shapes: Candidates) -> list[int]:
    points = grid_design(
        num_x=setting.num_grid, num_r=setting.num_grid, x_range=setting.x_range, r_range=setting.r_range
    )
    return [shapes.nearest(x=float(x), r=float(r)) for x, r in zip(points.x, points.r, strict=True)]


# Strategies

Recommender = Callable[[World, Sequence[int], Floats, int], Decision | None]
"""(world, rows run, losses, seed) -> what would be recommended now; None where it cannot tell yet."""


def recommend_by_belief(world: World, existing: Sequence[int], losses: Floats, seed: int) -> Decision:
    """The lowest expected loss under the belief of scaling/belief.py."""
    return decide(world.model.belief(existing, losses), tolerance=world.setting.stop.tolerance, seed=seed)


def recommend_by_law(world: World, existing: Sequence[int], losses: Floats, seed: int) -> Decision | None:
    """The lowest loss under the conditional law fitted with the best observed loss of each cell: the paper's way."""
    menu, rows, target = world.model.menu, np.asarray(existing), world.model.target
    points = ShapePoints(
        x=menu.x[rows],
        r=menu.r[rows],
        num_parameters=menu.num_parameters[rows],
        num_tokens=menu.num_tokens[rows],
        loss=losses,
    )
    fit = fit_conditional(points, reference="best", num_bootstrap=1, seed=seed)
    if fit.law is None:
        return None
    expected = fit.law.predict(target.x, target.r, 1.0)
    # A plain fit has no probability of being right; NaN never stops a study.
    return Decision(
        index=int(np.argmin(expected)),
        expected_regret=np.nan,
        probability=np.nan,
        tolerance=world.setting.stop.tolerance,
    )


STRATEGIES: Mapping[str, tuple[Policy, Recommender]] = MappingProxyType(
    {
        "v-optimal": (POLICIES["v-optimal"], recommend_by_belief),
        "d-optimal": (POLICIES["d-optimal"], recommend_by_belief),
        "random": (POLICIES["random"], recommend_by_belief),
        "grid": (POLICIES["grid"], recommend_by_belief),
        "grid, law fit": (POLICIES["grid"], recommend_by_law),
    }
)
"""Name -> (how runs are chosen, how the shape is chosen). All but the last share one recommender: only runs differ."""


# One study


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchTrace:
    """One simulated study, a row after each batch: columns (K,) of GPU-seconds spent, runs made and regret.

    Regret is NaN where nothing could be recommended yet. `stopped_at` is the first row at which the stop rule would
    have ended the study, None if it never did; the study goes on, so that no curve ends because of its course.
    """

    seconds: Floats
    num_runs: Floats
    regret: Floats
    stopped_at: int | None


def simulate_search(world: World, truth: Truth, policy: Policy, recommend: Recommender, *, seed: int) -> SearchTrace:
    """Play one study with one strategy in one truth; equal seeds give equal studies."""
    setting, menu = world.setting, world.model.menu
    generator = np.random.default_rng(seed)
    grid = [int(row) for rows in world.grid for row in generator.permutation(rows)]
    regrets = true_regret(world, truth)
    rows: list[int] = []
    losses = np.zeros(0)
    trace: list[tuple[float, int, float]] = []
    stopped_at = None
    while len(rows) < setting.max_runs and menu.seconds[rows].sum() < world.grid_seconds * (1 - 1e-9):
        state = SearchState(
            model=world.model,
            existing=rows,
            losses=losses,
            pending=(),
            grid=grid,
            gamma=setting.gamma,
            seed=int(generator.integers(2**31)),
        )
        batch = [proposal.index for proposal in policy(state, min(setting.num_agents, setting.max_runs - len(rows)))]
        if not batch:
            break
        losses = np.concatenate([losses, _run(world, truth, batch, generator)])
        rows = [*rows, *batch]
        decision = recommend(world, rows, losses, state.seed)
        spent = float(menu.seconds[rows].sum())
        trace.append((spent, len(rows), float(regrets[decision.index]) if decision is not None else np.nan))
        if stopped_at is None and decision is not None:
            reason = reason_to_stop(
                decision, setting.stop, num_runs=len(rows), seconds_spent=spent, budget_seconds=np.inf
            )
            stopped_at = len(trace) - 1 if reason is not None else None
    seconds, counts, regret = (np.asarray(column, dtype=float) for column in zip(*trace, strict=True))
    return SearchTrace(seconds=seconds, num_runs=counts, regret=regret, stopped_at=stopped_at)


def true_regret(world: World, truth: Truth) -> Floats:
    """Of every shape of the target, (T,): true loss over the best true loss, minus 1, at the nominal N and D."""
    target = world.model.target
    ratio = truth.ratio(target.x, target.r, target.num_parameters)
    return np.asarray(ratio / ratio.min() - 1.0, dtype=float)


def _run(world: World, truth: Truth, rows: Sequence[int], generator: np.random.Generator) -> Floats:
    menu, at = world.model.menu, np.asarray(rows)
    return truth.observe(
        menu.x[at],
        menu.r[at],
        menu.num_parameters[at],
        menu.num_tokens[at],
        generator=generator,
        noise_sd=world.setting.noise_sd_nats,
    )


def regret_at(trace: SearchTrace, seconds: Floats) -> Floats:
    """Regret of the recommendation that stands once so many GPU-seconds are spent; NaN before the first one."""
    row = np.searchsorted(trace.seconds, np.asarray(seconds) * (1 + 1e-9), side="right") - 1
    return np.asarray(np.where(row >= 0, trace.regret[np.maximum(row, 0)], np.nan), dtype=float)
