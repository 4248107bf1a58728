"""`archfleet bench`: measure architectures here, one after the other, and compare them with the first."""

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table

from agent.assignment import BenchAssignment
from agent.benchmark.configs import read_config
from agent.benchmark.run import run_benchmark
from coordinator.errors import UserError
from scaling.architecture import Architecture
from scaling.observations import Failure, Observation, Progress, ServingObservation
from scaling.quantity import Measured
from scaling.recipes import ServingRecipe, Workload
from scaling.throughput_comparison import compare_throughput


def run_benches(
    configs: tuple[str, ...],
    *,
    engine: Any,
    batch_size: int,
    input_tokens: int,
    output_tokens: int,
    repeats: int,
    dtype: Any,
    console: Console,
) -> dict[str, Any]:
    """Measure each config and compare with the first; JSON with every observation.

    Raises:
        UserError: a config cannot be read, or the engine is not available.
    """
    try:
        recipe = ServingRecipe(engine=engine, dtype=dtype)
        workload = Workload(batch_size=batch_size, input_tokens=input_tokens, output_tokens=output_tokens)
        architectures = [read_config(config) for config in configs]
    except ValueError as error:
        raise UserError(str(error)) from None
    results: list[Observation] = []
    with ProgressBar(console=console, transient=True) as bars, tempfile.TemporaryDirectory() as directory:
        task = bars.add_task("measuring", total=len(configs))
        for number, architecture in enumerate(architectures):
            assignment = BenchAssignment(
                architecture=architecture, recipe=recipe, workload=workload, num_repeats=repeats
            )
            bars.update(task, description=architecture.label)
            results.append(_measure(assignment, Path(directory) / str(number), bars, task, number))
    measured = [result for result in results if isinstance(result, ServingObservation)]
    distinct = len({o.architecture for o in measured}) > 1 or len(measured) > 1
    return {
        "schema_version": 1,
        "configs": list(configs),
        "results": [result.model_dump(mode="json") for result in results],
        "comparisons": [c.model_dump(mode="json") for c in compare_throughput(measured)] if distinct else [],
    }


def _measure(assignment: BenchAssignment, directory: Path, bars: ProgressBar, task: Any, number: int) -> Observation:
    last: Observation | None = None
    try:
        for item in run_benchmark(assignment, agent="local", work_directory=directory):
            if isinstance(item, Progress):
                bars.update(task, completed=number + item.done_fraction)
            else:
                last = item
    except ValueError as error:
        raise UserError(str(error)) from None
    assert last is not None, "a benchmark ends in an observation"
    return last


def bench_table(result: dict[str, Any]) -> Table:
    """A table for people: measured rates with their intervals, flags, and the ratio to the first."""
    first = next((row for row in result["results"] if row["kind"] == "serving"), None)
    title = "MEASURED" if first is None else _title(first)
    table = Table("architecture", "output tokens/s", "ratio to the first", "flags", title=title)
    comparisons = iter(result["comparisons"])
    for config, row in zip(result["configs"], result["results"], strict=True):
        if row["kind"] == Failure.model_fields["kind"].default:
            table.add_row(config, f"failed: {row['failure_kind']}", row["message"], "")
            continue
        ratio = "1 (first)" if row is first else next(comparisons)["verdict"]
        rate = Measured.model_validate(row["output_tokens_per_second"])
        interval = rate.interval
        shown = f"{rate.value:,.0f}" + (f" [{interval.low:,.0f}, {interval.high:,.0f}]" if interval else "")
        table.add_row(Architecture.model_validate(row["architecture"]).label, shown, ratio, ", ".join(row["flags"]))
    return table


def _title(row: dict[str, Any]) -> str:
    load, recipe = row["workload"], row["recipe"]
    label = "FAKE ENGINE, not a measurement: " if recipe["engine"] == "fake" else "MEASURED "
    return (
        f"{label}on {row['provenance']['device']}: {recipe['engine']} {row['engine_version']}, {recipe['dtype']}, "
        f"batch {load['batch_size']}, {load['input_tokens']} input / {load['output_tokens']} output tokens, "
        f"{len(row['repeats'])} repeats, 95 % t-interval"
    )
