"""How long fits take on one core, beside a plain multi-start with scipy.optimize measured in the same run.

    python tests/benchmarks/bench_fit.py [--json] [--points 240] [--bootstrap 1000] [--runs 300]

Not a timed test: a busy machine must not fail anyone's check. Times are processor seconds of this process, the least
of a few repeats. The data are simulated from published laws, with the sizes of the published data sets.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares, minimize

from scaling.chinchilla import fit_chinchilla
from scaling.fit import ShapePoints, fit_conditional
from scaling.law import Floats
from scaling.simulation import drifting_truth, grid_design, paper_truth, simulate_study

HUBER_DELTA = 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--points", type=int, default=240, help="points of the Chinchilla fit")
    parser.add_argument("--bootstrap", type=int, default=1000, help="refits of the Chinchilla bootstrap")
    parser.add_argument("--runs", type=int, default=300, help="observations of the conditional fit")
    options = parser.parse_args(arguments)
    rows = measure(num_points=options.points, num_bootstrap=options.bootstrap, num_runs=options.runs)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        Console().print(table(rows))


def measure(*, num_points: int, num_bootstrap: int, num_runs: int) -> list[dict[str, Any]]:
    """One row a figure: seconds of ours, of the plain way where there is one, both objectives, and the goal."""
    N, D, L = chinchilla_data(num_points)
    runs = conditional_data(num_runs)
    rows = [_chinchilla_row(N, D, L)]
    refits, _ = _timed(lambda: fit_chinchilla(N, D, L, num_bootstrap=num_bootstrap), repeats=1)
    rows.append(_row(f"Chinchilla, {num_points} points, {num_bootstrap} refits", refits, goal=5.0))
    rows.append(_conditional_row(runs))
    partial, _ = _timed(lambda: fit_conditional(runs, pooling="partial"), repeats=2)
    rows.append(_row(f"conditional, {len(runs)} runs, 200 refits, partial pooling", partial, goal=1.0))
    return rows


def _chinchilla_row(N: Floats, D: Floats, L: Floats) -> dict[str, Any]:
    ours, fit = _timed(lambda: fit_chinchilla(N, D, L), repeats=5)
    plain, lowest = _timed(lambda: plain_chinchilla(N, D, L), repeats=1)
    name = f"Chinchilla, {len(L)} points, 16 starts"
    return _row(name, ours, goal=0.1, plain=plain, objective=fit.objective, plain_objective=lowest)


def _conditional_row(runs: ShapePoints) -> dict[str, Any]:
    ours, fit = _timed(lambda: fit_conditional(runs), repeats=3)
    plain, lowest = _timed(lambda: plain_conditional(runs), repeats=1)
    name = f"conditional, {len(runs)} runs, 200 refits"
    return _row(name, ours, goal=1.0, plain=plain, objective=fit.objective, plain_objective=lowest)


def _row(
    name: str,
    seconds: float,
    *,
    goal: float,
    plain: float | None = None,
    objective: float | None = None,
    plain_objective: float | None = None,
) -> dict[str, Any]:
    return {
        "figure": name,
        "seconds": seconds,
        "goal_seconds": goal,
        "plain_scipy_seconds": plain,
        "objective": objective,
        "plain_scipy_objective": plain_objective,
    }


def _timed(call: Callable[[], Any], *, repeats: int) -> tuple[float, Any]:
    """Least processor seconds over the repeats, and the last result."""
    least = np.inf
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        least = min(least, time.process_time() - start)
    return float(least), result


def chinchilla_data(num_points: int) -> tuple[Floats, Floats, Floats]:
    """N, D and loss of runs as scattered and as noisy (heavy-tailed, about 0.5 %) as the published 240."""
    generator = np.random.default_rng(0)
    N = np.exp(generator.uniform(np.log(5e7), np.log(1.5e10), num_points))
    D = N * np.exp(generator.uniform(np.log(2), np.log(200), num_points))
    noise = np.exp(0.004 * generator.standard_t(3, num_points))
    return N, D, paper_truth().reference_loss(N, D) * noise


def conditional_data(num_runs: int) -> ShapePoints:
    """Runs of three sizes in a world whose shape terms drift."""
    side = int(np.ceil(np.sqrt(num_runs / 3)))
    design = grid_design([80e6, 145e6, 297e6], num_x=side, num_r=side)
    points = simulate_study(drifting_truth(), design, generator=np.random.default_rng(0))
    return points.take(np.random.default_rng(1).permutation(len(points))[:num_runs])


def plain_chinchilla(N: Floats, D: Floats, L: Floats) -> float:
    """The usual way: BFGS from 16 starts on (ln E, ln A, alpha, ln B, beta), gradients by finite differences."""

    def objective(u: Floats) -> float:
        terms = np.stack([np.full_like(N, u[0]), u[1] - u[2] * np.log(N), u[3] - u[4] * np.log(D)])
        residual = np.logaddexp.reduce(terms) - np.log(L)
        size = np.abs(residual)
        inner = np.minimum(size, HUBER_DELTA)
        return float((inner * (size - 0.5 * inner)).sum())

    starts = [
        (np.log(E), lna, exponent, lnb, exponent)
        for E in (1.0, 1.7)
        for lna in (5.0, 8.0)
        for lnb in (5.0, 8.0)
        for exponent in (0.3, 0.5)
    ]
    return min(float(minimize(objective, start, method="BFGS").fun) for start in starts)


def plain_conditional(runs: ShapePoints, *, num_bootstrap: int = 200) -> float:
    """The usual way: Levenberg-Marquardt on (levels, a1, a2, b1, b2), then one refit after the other."""
    sizes, cell = np.unique(np.round(np.log(runs.num_parameters), 2), return_inverse=True)

    def predict(u: Floats) -> Floats:
        level, (a1, a2, b1, b2) = u[: len(sizes)], u[len(sizes) :]
        shape = (1 + a1 * np.log(runs.x) + a2 / runs.x) * (1 + b1 * np.log(runs.r) + b2 / runs.r)
        return np.asarray(level[cell] * shape)

    def fit(losses: Floats, start: Floats) -> Any:
        return least_squares(lambda u: predict(u) - losses, start, method="lm", max_nfev=20000)

    start = np.concatenate([np.full(len(sizes), runs.loss.mean()), [0.01, 0.001, 0.01, 0.01]])
    found = fit(runs.loss, start)
    expected, generator = predict(found.x), np.random.default_rng(0)
    for _ in range(num_bootstrap):
        fit(expected + generator.choice(found.fun, len(runs)), found.x)
    return float(2 * found.cost)


def table(rows: list[dict[str, Any]]) -> Table:
    """The figures for people."""
    result = Table(title="Fits on one core, processor seconds (scipy: plain multi-start)")
    result.add_column("figure")
    for head in ("ours s", "goal s", "scipy s", "objective", "scipy objective"):
        result.add_column(head, justify="right")
    for row in rows:
        values = (row[key] for key in ("seconds", "goal_seconds", "plain_scipy_seconds"))
        objectives = (row[key] for key in ("objective", "plain_scipy_objective"))
        result.add_row(
            row["figure"],
            *("" if value is None else f"{value:.3g}" for value in values),
            *("" if value is None else f"{value:.6g}" for value in objectives),
        )
    return result


if __name__ == "__main__":
    main()
