"""How long it takes to propose a batch from many candidates, beside a plain implementation, both measured in this run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_propose.py [--rows 100000] [--batch 16] [--json]

The plain implementation asks the same question the obvious way: for every candidate, factorise the posterior afresh
with this one run more and read off the variance at the target. It is timed on a sample of the candidates and for the
first pick alone; its figure for the whole batch is that time scaled up, and labelled so.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from scaling.belief import RunMenu, ShapeModel, Target, make_model
from scaling.design import DesignRules
from scaling.propose import near_optimal, propose_runs
from scaling.simulation import paper_truth

GOAL_SECONDS = 1.0
NUM_RUNS = 40
_NO_RULES = DesignRules(num_ratios=0, num_replicates=0, min_other_sizes=0, max_condition_number=np.inf)


def make_problem(num_rows: int, seed: int = 0) -> tuple[RunMenu, Target, list[int], np.ndarray[Any, Any]]:
    """A menu of `num_rows` shapes over three sizes and three ratios, a target of 2,000 shapes, 40 finished runs."""
    generator = np.random.default_rng(seed)
    N = generator.choice([80e6, 145e6, 297e6], num_rows)
    D = N * generator.choice([20.0, 50.0, 100.0], num_rows)
    x, r = (_log_uniform(generator, *limits, num_rows) for limits in ((0.05, 0.25), (0.5, 5.0)))
    menu = RunMenu(x=x, r=r, num_parameters=N, num_tokens=D, seconds=6 * N * D / 4e14)
    shapes = generator.integers(num_rows, size=2000)
    rows = generator.integers(num_rows, size=NUM_RUNS)
    losses = paper_truth().observe(x[rows], r[rows], N[rows], D[rows], generator=generator)
    return menu, Target(x=x[shapes], r=r[shapes], num_parameters=1e9, num_tokens=1e11), rows.tolist(), losses


def _log_uniform(generator: np.random.Generator, low: float, high: float, num: int) -> np.ndarray[Any, Any]:
    return np.asarray(np.exp(generator.uniform(np.log(low), np.log(high), num)), dtype=float)


def plain_gains(
    model: ShapeModel, rows: list[int], losses: np.ndarray[Any, Any], sample: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Drop of the target's weighted variance for one run of each sampled row, by a dense refactorisation for each."""
    belief = model.belief(rows, losses)
    weights = near_optimal(belief, tolerance=0.001, generator=np.random.default_rng(0))
    moment = belief.target_moment(weights, level=False)
    precision = np.linalg.inv(belief.covariance)
    before = (moment * belief.covariance).sum()
    gains = []
    for row in sample:
        phi = model.menu_features[row]
        covariance = np.linalg.inv(precision + np.outer(phi, phi) / belief.noise**2)
        gains.append(before - (moment * covariance).sum())
    return np.array(gains)


def measure(num_rows: int = 100_000, batch: int = 16, num_sample: int = 200, repeats: int = 5) -> dict[str, Any]:
    """Best of `repeats` wall times in seconds; ours with and without building the model."""
    menu, target, rows, losses = make_problem(num_rows)
    build, ours = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        model = make_model(menu, target)
        built = time.perf_counter()
        proposals = propose_runs(model, existing=rows, losses=losses, num=batch, rules=_NO_RULES)
        build.append(built - start)
        ours.append(time.perf_counter() - built)
    sample = np.append(np.random.default_rng(1).integers(num_rows, size=num_sample - 1), proposals[0].index)
    start = time.perf_counter()
    gains = plain_gains(model, rows, losses, sample)
    plain = time.perf_counter() - start
    first = gains[-1] / menu.seconds[sample[-1]]
    return {
        "num_rows": num_rows,
        "batch": batch,
        "num_features": int(model.menu_features.shape[1]),
        "build_seconds": min(build),
        "propose_seconds": min(ours),
        "total_seconds": min(b + p for b, p in zip(build, ours, strict=True)),
        "goal_seconds": GOAL_SECONDS,
        "plain_sample": num_sample,
        "plain_sample_seconds": plain,
        "plain_scaled_seconds": plain / num_sample * num_rows * batch,
        # The same quantity both ways: where they disagree, the speed means nothing.
        "first_gain": proposals[0].gain,
        "first_gain_plain": float(first),
        "none_of_the_sample_is_better": bool((gains / menu.seconds[sample]).max() <= first * (1 + 1e-6)),
    }


def as_table(result: dict[str, Any]) -> Table:
    """The figures for people."""
    table = Table(
        title=f"Proposing {result['batch']} runs from {result['num_rows']:,} candidates",
        caption=(
            f"Goal: {result['goal_seconds']:g} s on one core (OMP_NUM_THREADS=1). Gain of the first pick per second "
            f"of its run: {result['first_gain']:.4g}, plain {result['first_gain_plain']:.4g}."
        ),
    )
    for column in ("what", "seconds", "how"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    table.add_row("features of menu and target", f"{result['build_seconds']:.3f}", "measured")
    table.add_row("batch by rank-one updates", f"{result['propose_seconds']:.3f}", "measured")
    table.add_row("both together", f"{result['total_seconds']:.3f}", "measured")
    sample = f"measured on {result['plain_sample']} candidates, one pick"
    table.add_row("plain: refactorise per candidate", f"{result['plain_sample_seconds']:.3f}", sample)
    table.add_row("plain, whole batch", f"{result['plain_scaled_seconds']:,.0f}", "SCALED from the line above")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    result = measure(arguments.rows, arguments.batch)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        Console().print(as_table(result))


if __name__ == "__main__":
    main()
