"""`archfleet simulate search`: what each way of choosing proxy runs reaches on simulated truths, as data and a table.

Everything is simulated: losses come from scaling/simulation.py, costs from 6 N D FLOPs at an assumed FLOP/s.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from scaling.law import Floats
from scaling.search_simulation import (
    STRATEGIES,
    SearchSetting,
    SearchTrace,
    World,
    make_world,
    regret_at,
    simulate_search,
    true_regret,
)
from scaling.simulation import TRUTHS

COST_FRACTIONS = tuple(2.0 ** (half / 2) for half in range(-14, 1))
"""Shares of the grid's cost at which regrets are compared: 1/128 to 1 in steps of a factor sqrt(2)."""
_SHOWN = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
GOAL_REGRET = 0.001
GOAL_COST_FRACTION = 0.5
OURS = "v-optimal"


def run_search_simulation(
    *,
    num_seeds: int = 50,
    truths: Iterable[str] = tuple(TRUTHS),
    strategies: Iterable[str] = tuple(STRATEGIES),
    setting: SearchSetting | None = None,
    first_seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Play `num_seeds` studies with every strategy in every truth.

    Args:
        num_seeds: studies for each pair; their noise differs.
        truths: names in `scaling.simulation.TRUTHS`.
        strategies: names in `scaling.search_simulation.STRATEGIES`.
        setting: sizes, ratios, noise, agents, stop rule.
        first_seed: seeds are first_seed, first_seed + 1 ...
        on_progress: told a line before each pair.

    Returns:
        Plain JSON: setting, assumptions, the grid's cost, and per truth and strategy the median and quartiles of the
        regret at each cost, when the stop rule would have ended the study, and whether the goal is reached.

    Raises:
        ValueError: an unknown truth or strategy, or no seeds.
    """
    truths, strategies = list(truths), list(strategies)
    _check_names("truth", truths, TRUTHS)
    _check_names("strategy", strategies, STRATEGIES)
    if num_seeds < 1:
        raise ValueError(f"num_seeds is {num_seeds}; a simulation needs at least 1, 50 for steady quartiles")
    world = make_world(setting if setting is not None else SearchSetting())
    results = []
    for name in truths:
        for strategy in strategies:
            if on_progress is not None:
                on_progress(f"truth {name}: {strategy}, {num_seeds} studies")
            truth, (policy, recommend) = TRUTHS[name](), STRATEGIES[strategy]
            seeds = range(first_seed, first_seed + num_seeds)
            traces = [simulate_search(world, truth, policy, recommend, seed=seed) for seed in seeds]
            results.append({"truth": name, "strategy": strategy, **_summary(world, traces)})
    return {
        "schema_version": 1,
        "kind": "simulated",
        "assumptions": _assumptions(world),
        "setting": asdict(world.setting),
        "num_seeds": num_seeds,
        "first_seed": first_seed,
        "num_menu_rows": len(world.model.menu),
        "num_target_shapes": len(world.model.target),
        "grid_runs": world.num_grid_runs,
        "grid_gpu_seconds": world.grid_seconds,
        "cost_fractions": list(COST_FRACTIONS),
        "truths": [_about_truth(world, name) for name in truths],
        "results": results,
    }


def _check_names(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"unknown {what} {', '.join(unknown) or '(none given)'}; choose from {', '.join(known)}")


def _assumptions(world: World) -> str:
    setting = world.setting
    sizes = ", ".join(f"{N / 1e6:.0f} M" for N, _ in setting.sizes)
    ratios = ", ".join(f"{ratio:g}" for ratio in setting.tokens_per_parameter)
    return (
        f"Simulated, not measured. Target {setting.target_size[0]:.3g} parameters at "
        f"{setting.target_tokens_per_parameter:g} tokens per parameter; proxies of {sizes} at {ratios}; noise "
        f"{setting.noise_sd_nats:g} nats a run; {setting.num_agents} agents; a run costs 6 N D FLOPs at "
        f"{setting.flops_per_second:.3g} FLOP/s. The grid is {setting.num_grid} x {setting.num_grid} shapes at every "
        f"size, {world.num_grid_runs} runs, {world.grid_seconds / 3600:.0f} GPU-hours."
    )


def _about_truth(world: World, name: str) -> dict[str, Any]:
    """The optimum of a truth at the target, and what guesses without any run would cost."""
    truth, target = TRUTHS[name](), world.model.target
    x_best, r_best = truth.optimum(target.num_parameters)
    regrets, at = true_regret(world, truth), np.stack([np.log(target.x), np.log(target.r)], axis=1)
    middle = (at.min(axis=0) + at.max(axis=0)) / 2
    return {
        "name": name,
        "x_opt": float(x_best),
        "r_opt": float(r_best),
        "regret_of_the_centre": float(regrets[np.argmin(((at - middle) ** 2).sum(axis=1))]),
        "median_regret_of_a_random_shape": float(np.median(regrets)),
    }


def _summary(world: World, traces: Sequence[SearchTrace]) -> dict[str, Any]:
    costs = np.array(COST_FRACTIONS) * world.grid_seconds
    regret = np.stack([regret_at(trace, costs) for trace in traces])
    first, median, third = (_quantile(regret, share) for share in (0.25, 0.5, 0.75))
    return {
        "gpu_seconds": [float(cost) for cost in costs],
        "regret_median": median,
        "regret_first_quartile": first,
        "regret_third_quartile": third,
        "median_runs": float(np.median([trace.num_runs[-1] for trace in traces])),
        "median_gpu_seconds": float(np.median([trace.seconds[-1] for trace in traces])),
        "stop": _stops(world, traces),
        "goal": _goal(median),
    }


def _quantile(regret: Floats, share: float) -> list[float | None]:
    """Over studies; where no shape could be recommended the regret counts as infinite, and None is told."""
    ranked = np.sort(np.where(np.isnan(regret), np.inf, regret), axis=0)
    place = share * (len(ranked) - 1)
    low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
    part = place - math.floor(place)
    values = [a if a == b else (1 - part) * a + part * b for a, b in zip(low, high, strict=True)]
    return [float(value) if np.isfinite(value) else None for value in values]


def _stops(world: World, traces: Sequence[SearchTrace]) -> dict[str, Any]:
    """When the stop rule would have ended the studies, and how right it was to."""
    ended = [(trace, trace.stopped_at) for trace in traces if trace.stopped_at is not None]
    regrets = np.array([trace.regret[row] for trace, row in ended])
    return {
        "share_of_studies": len(ended) / len(traces),
        "median_runs": float(np.median([trace.num_runs[row] for trace, row in ended])) if ended else None,
        "median_cost_fraction": (
            float(np.median([trace.seconds[row] for trace, row in ended])) / world.grid_seconds if ended else None
        ),
        "median_regret": float(np.median(regrets)) if ended else None,
        "share_within_tolerance": float((regrets < world.setting.stop.tolerance).mean()) if ended else None,
    }


def _goal(median: Sequence[float | None]) -> dict[str, Any]:
    """The least cost from which on the median regret stays within the goal, and whether that is cheap enough."""
    good = [value is not None and value <= GOAL_REGRET for value in median]
    from_there_on = next((i for i in range(len(good)) if all(good[i:])), None)
    cost = COST_FRACTIONS[from_there_on] if from_there_on is not None else None
    return {
        "regret": GOAL_REGRET,
        "cost_fraction": GOAL_COST_FRACTION,
        "reached_from_cost_fraction": cost,
        "reached": cost is not None and cost <= GOAL_COST_FRACTION,
    }


def search_table(result: dict[str, Any]) -> Table:
    """Median regret and its quartiles, in per cent of the loss, at shares of the grid's cost."""
    table = Table(
        title="Regret of the recommended architecture, % of the loss: median (quartiles) by share of the grid's cost",
        caption=f"{result['assumptions']} {result['num_seeds']} studies each. {_verdict(result)}",
    )
    table.add_column("truth")
    table.add_column("strategy")
    shown = [i for i, fraction in enumerate(result["cost_fractions"]) if fraction in _SHOWN]
    hours = result["grid_gpu_seconds"] / 3600
    for i in shown:
        fraction = result["cost_fractions"][i]
        table.add_column(f"1/{1 / fraction:.0f}\n{fraction * hours:.0f} GPU-h", justify="right", no_wrap=True)
    table.add_column("stop rule: studies,\ncost, regret, right", justify="right")
    previous = None
    for row in result["results"]:
        if previous is not None and row["truth"] != previous:
            table.add_section()
        name = row["truth"] if row["truth"] != previous else ""
        previous = row["truth"]
        table.add_row(name, row["strategy"], *(_cell(row, i) for i in shown), _stop_cell(row["stop"]))
    return table


def _cell(row: dict[str, Any], i: int) -> str:
    middle, low, high = (row[f"regret_{name}"][i] for name in ("median", "first_quartile", "third_quartile"))
    return f"{_percent(middle)}\n({_percent(low)}, {_percent(high)})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3f}"


def _stop_cell(stop: dict[str, Any]) -> str:
    if stop["median_regret"] is None:
        return "never"
    return (
        f"{stop['share_of_studies']:.0%}, {stop['median_cost_fraction']:.1%},\n"
        f"{_percent(stop['median_regret'])}, {stop['share_within_tolerance']:.0%}"
    )


def _verdict(result: dict[str, Any]) -> str:
    ours = [row for row in result["results"] if row["strategy"] == OURS]
    sentences = []
    for row in ours:
        goal = row["goal"]
        cost = goal["reached_from_cost_fraction"]
        if goal["reached"]:
            sentences.append(f"{row['truth']}: reached from {cost:.1%} of the grid's cost on")
        else:
            sentences.append(f"{row['truth']}: not reached" if cost is None else f"{row['truth']}: only at {cost:.0%}")
    goal_words = f"Goal of {OURS}, median regret <= {GOAL_REGRET:.1%} at <= {GOAL_COST_FRACTION:.0%} of that cost"
    return f"{goal_words}: {'; '.join(sentences)}." if sentences else ""
