"""`archfleet simulate coverage`: do nominal 90 % intervals hold the truth 90 % of the time?

Simulated studies of a known law (`scaling/simulation.py`), each fitted as a real one would be; how often the interval
of every quantity holds the true value is printed with its binomial standard error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from scaling.fit import LawFit, fit_conditional
from scaling.quantity import Interval
from scaling.simulation import NOISE_SD_NATS, TRUTHS, Truth, grid_design, simulate_study

BASELINE_SHAPE = (0.0657, 4.8)
"""(x, r) of Llama-3.2-1B: where a law is asked most often, besides at its optimum."""
NUM_PARAMETERS = 145e6
NUM_TOKENS = 100 * NUM_PARAMETERS


def run_coverage(
    num_studies: int = 1000,
    seed: int = 0,
    *,
    truth: str = "paper",
    noise_sd: float = NOISE_SD_NATS,
    num_x: int = 4,
    num_r: int = 4,
    level: float = 0.9,
    num_bootstrap: int = 200,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Fit `num_studies` simulated studies of num_x · num_r runs at one size, and count intervals that hold the truth.

    Args:
        num_studies: how many studies.
        seed: of the simulated noise and of the bootstraps; study i of seed s is always the same.
        truth: a name in `scaling.simulation.TRUTHS`.
        noise_sd: of one run, in nats per token.
        num_x: values of x in the grid of shapes.
        num_r: values of r in the grid of shapes.
        level: nominal coverage.
        num_bootstrap: replicates a fit.
        progress: called with the number of finished studies after each.

    Raises:
        ValueError: an unknown truth, or a number of studies below one.
    """
    if truth not in TRUTHS:
        raise ValueError(f"truth {truth!r} is unknown; choose one of {', '.join(sorted(TRUTHS))}")
    if num_studies < 1:
        raise ValueError(f"num_studies must be at least 1, got {num_studies}")
    world, design = TRUTHS[truth](), grid_design(NUM_PARAMETERS, num_x=num_x, num_r=num_r)
    outcomes: list[dict[str, Interval | None]] = []
    for study, stream in enumerate(np.random.SeedSequence(seed).spawn(num_studies)):
        noise, bootstrap = stream.spawn(2)
        points = simulate_study(world, design, generator=np.random.default_rng(noise), noise_sd=noise_sd)
        fit = fit_conditional(
            points, level=level, num_bootstrap=num_bootstrap, seed=int(bootstrap.generate_state(1)[0])
        )
        outcomes.append(_intervals(fit, world, level))
        progress(study + 1)
    return {
        "truth": truth,
        "num_studies": num_studies,
        "num_runs": len(design),
        "noise_sd_nats": noise_sd,
        "level": level,
        "seed": seed,
        "quantities": [_coverage(name, unit, value, outcomes) for name, unit, value in _true_values(world)],
    }


def _optimum(world: Truth) -> tuple[float, float]:
    x, r = world.optimum(NUM_PARAMETERS)
    return float(x), float(r)


def _true_values(world: Truth) -> list[tuple[str, str, float]]:
    """Name, unit and true value of every quantity."""
    x, r = _optimum(world)
    at_best, at_baseline = (float(world.loss(*shape, NUM_PARAMETERS, NUM_TOKENS)) for shape in ((x, r), BASELINE_SHAPE))
    return [
        ("loss at the best shape", "nats/token", at_best),
        ("loss at the baseline's shape", "nats/token", at_baseline),
        ("x*", "", x),
        ("r*", "", r),
    ]


def _intervals(fit: LawFit, world: Truth, level: float) -> dict[str, Interval | None]:
    """The interval of every quantity, in the order of `_true_values`; None where the fit gives none."""
    names = [name for name, _, _ in _true_values(world)]
    if fit.law is None:
        return dict.fromkeys(names)
    x, r = _optimum(world)
    shapes = np.array([(x, r), BASELINE_SHAPE])
    loss = fit.predict_loss(shapes[:, 0], shapes[:, 1], NUM_PARAMETERS, NUM_TOKENS)
    found = [
        Interval(low=float(low), high=float(high), level=level, method="fit")
        for low, high in zip(loss.low, loss.high, strict=True)
    ]
    optima = [None if optimum is None else optimum.interval for optimum in (fit.x_opt, fit.r_opt)]
    return dict(zip(names, [*found, *optima], strict=True))


def _coverage(name: str, unit: str, value: float, outcomes: list[dict[str, Interval | None]]) -> dict[str, Any]:
    """Share of given intervals that hold `value`, its binomial standard error, and how wide they are."""
    intervals = [interval for outcome in outcomes if (interval := outcome[name]) is not None]
    without = 1 - len(intervals) / len(outcomes)
    if not intervals:
        return {"name": name, "unit": unit, "truth": value, "without": without, "coverage": None}
    share = float(np.mean([interval.low <= value <= interval.high for interval in intervals]))
    return {
        "name": name,
        "unit": unit,
        "truth": value,
        "without": without,
        "coverage": share,
        "coverage_standard_error": float(np.sqrt(max(share * (1 - share), 1e-12) / len(intervals))),
        "mean_width": float(np.mean([interval.high - interval.low for interval in intervals])),
        "misses_below": float(np.mean([value < interval.low for interval in intervals])),
        "misses_above": float(np.mean([value > interval.high for interval in intervals])),
    }


def coverage_table(result: dict[str, Any]) -> Table:
    """The result of `run_coverage` for people."""
    table = Table(
        title=f"Coverage of nominal {result['level']:.0%} intervals: {result['num_studies']} simulated studies of "
        f"{result['num_runs']} runs, truth '{result['truth']}', noise {result['noise_sd_nats']:g} nats/token"
    )
    table.add_column("quantity")
    for head in ("truth", "coverage ± s.e.", "mean width", "truth below / above", "no interval"):
        table.add_column(head, justify="right")
    for row in result["quantities"]:
        truth = f"{row['truth']:.4g} {row['unit']}".strip()
        if row["coverage"] is None:
            table.add_row(row["name"], truth, "none given", "", "", f"{row['without']:.1%}")
            continue
        table.add_row(
            row["name"],
            truth,
            f"{row['coverage']:.1%} ± {row['coverage_standard_error']:.1%}",
            f"{row['mean_width']:.3g} {row['unit']}".strip(),
            f"{row['misses_below']:.1%} / {row['misses_above']:.1%}",
            f"{row['without']:.1%}",
        )
    return table
