"""How fast legal architectures are listed and scored, beside a plain loop over `Architecture` objects.

    python tests/benchmarks/bench_space.py [--json] [--smoke]

Scoring a candidate is its predicted loss by the conditional law, its N and its total parameters. Rates are candidates a
second of processor time of one thread; the best of a few passes, since other processes only ever slow one down. The
plain loop lists the same candidates with the same rules, on a smaller part of the space (it would take minutes), and
its figures must agree with the vectorised ones.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from scaling.architecture import Architecture
from scaling.law import ConditionalLaw
from scaling.space import Candidates, SearchSpace

LAW = ConditionalLaw(a=(2.697, 0.0974, 0.0078), b=(0.387, 0.0063, 0.0065))
LEVEL = 2.8
GOAL_PER_SECOND = 2_000_000
LOOP_LAYERS = (16,)


def space(layers: tuple[int, ...]) -> SearchSpace:
    """A billion parameters, multiples of 64, eight groupings, every intermediate size within 2 %."""
    return SearchSpace(
        num_parameters=1_000_000_000,
        tolerance=0.02,
        num_hidden_layers=layers,
        head_dim=64,
        query_group_sizes=(1, 2, 3, 4, 5, 6, 7, 8),
        hidden_multiple_of=64,
        intermediate_multiple_of=64,
        intermediate_sizes="all",
        vocab_size=128_256,
        x_range=(0.04, 0.16),
        r_range=(0.5, 5.0),
    )


def list_and_score(of: SearchSpace) -> tuple[int, float]:
    """Number of candidates and the lowest loss, vectorised."""
    found: Candidates = of.enumerate()
    loss = LAW.predict(found.x, found.r, LEVEL)
    assert len(found.num_parameters) == len(found.num_total_parameters)
    return len(found), float(loss.min())


def loop_and_score(of: SearchSpace) -> tuple[int, float]:
    """The same by a plain loop over `Architecture` objects."""
    count, lowest = 0, math.inf
    for shape in plain_shapes(of):
        off = abs(shape.num_parameters / of.num_parameters - 1)
        x, r = shape.width_ratio, shape.mlp_attention_ratio
        if off > of.tolerance or not (0.04 <= x <= 0.16 and 0.5 <= r <= 5.0):
            continue
        assert shape.num_total_parameters > shape.num_parameters
        count, lowest = count + 1, min(lowest, plain_loss(x, r))
    return count, lowest


def plain_shapes(of: SearchSpace) -> Iterator[Architecture]:
    """Every shape that could be legal, in pure Python; bounds as a careful author of a loop would set them."""
    step = of.hidden_multiple_of
    N, slack = of.num_parameters, of.tolerance
    for layers in of.layer_counts:
        target = N / layers
        for d in range(step, math.ceil(0.16 * math.sqrt(N * (1 + slack))) + 1, step):
            if d < 0.04 * math.sqrt(N * (1 - slack)):
                continue
            for g in of.query_group_sizes:
                unit = 2 * d * of.head_dim * (1 + g)
                for kv_heads in range(1, math.floor(target * (1 + slack) / 1.5 / unit) + 1):
                    room = target - unit * kv_heads
                    lowest = max(1, math.ceil((room - slack * target) / (3 * d * step)))
                    for steps in range(lowest, math.floor((room + slack * target) / (3 * d * step)) + 1):
                        yield Architecture(
                            hidden_size=d,
                            intermediate_size=step * steps,
                            num_hidden_layers=layers,
                            num_attention_heads=g * kv_heads,
                            num_key_value_heads=kv_heads,
                            head_dim=of.head_dim,
                            vocab_size=of.vocab_size,
                        )


def plain_loss(x: float, r: float) -> float:
    """The law with the standard library's logarithm."""
    a, b = LAW.a, LAW.b
    return (a[0] + a[1] * math.log(x) + a[2] / x) * (b[0] + b[1] * math.log(r) + b[2] / r) * LEVEL


def timed(work: Callable[[], tuple[int, float]], passes: int) -> dict[str, Any]:
    """Count, lowest loss, and the least processor seconds of a pass."""
    seconds = []
    for _ in range(passes):
        start = time.process_time()
        count, lowest = work()
        seconds.append(time.process_time() - start)
    return {"candidates": count, "lowest_loss": lowest, "seconds": min(seconds), "per_second": count / min(seconds)}


def run(*, smoke: bool = False) -> dict[str, Any]:
    """Both ways; the vectorised one also on the loop's own part of the space, to check that they agree."""
    wide = space(tuple(range(15, 18)) if smoke else tuple(range(8, 41)))
    part = space(LOOP_LAYERS).model_copy(update={"query_group_sizes": (4,)} if smoke else {})
    result = {
        "vectorised": timed(lambda: list_and_score(wide), passes=2 if smoke else 5),
        "vectorised, the loop's part": timed(lambda: list_and_score(part), passes=2),
        "plain loop over Architecture": timed(lambda: loop_and_score(part), passes=1),
    }
    ours, plain = result["vectorised, the loop's part"], result["plain loop over Architecture"]
    assert ours["candidates"] == plain["candidates"]
    assert math.isclose(ours["lowest_loss"], plain["lowest_loss"], rel_tol=1e-12)
    return result


def table(result: dict[str, Any]) -> Table:
    """The rates side by side."""
    shown = Table("way", "candidates", "CPU seconds", "candidates/s", "times the loop", title="List and score shapes")
    loop = result["plain loop over Architecture"]["per_second"]
    for way, row in result.items():
        shown.add_row(
            way,
            f"{row['candidates']:,}",
            f"{row['seconds']:.3f}",
            f"{row['per_second']:,.0f}",
            f"{row['per_second'] / loop:,.0f}",
        )
    reached = result["vectorised"]["per_second"] >= GOAL_PER_SECOND
    shown.caption = f"goal: {GOAL_PER_SECOND:,} candidates/s on one core: {'reached' if reached else 'NOT reached'}"
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--smoke", action="store_true", help="a small space, in a second")
    arguments = parser.parse_args()
    measured = run(smoke=arguments.smoke)
    if arguments.json:
        print(json.dumps(measured, indent=2))
    else:
        Console().print(table(measured))
