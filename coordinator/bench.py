"""`archfleet bench`: measure architectures on this machine in one interleaved campaign, and compare with the first.

Every restart is on disk before the next one starts, so a campaign that was stopped goes on where it was.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from agent.benchmark.campaign import AGAIN, Campaign, Candidate, SlotResult, run_campaign, slots_left
from agent.benchmark.configs import read_config
from agent.benchmark.machine import Machine, this_machine
from agent.benchmark.preflight import check_campaign
from agent.benchmark.run import MIN_REPEATS, Restart
from agent.engines.base import Engine, engine_named
from agent.engines.interpreters import find_engine
from coordinator.bars import told
from coordinator.bench_record import FILE_NAME, BenchRecord, make_record, read_record, write_record
from coordinator.bench_verdicts import BenchComparison, BenchRow, correction
from coordinator.errors import UserError
from coordinator.figures.shown import shown
from scaling.observations import Failure, Progress
from scaling.quantity import Measured
from scaling.recipes import EngineName, ServingRecipe, Workload
from scaling.serving import parse_batch_sizes
from scaling.throughput_comparison import ThroughputComparison
from scaling.weight_formats import recipe_words

PAGE_NAME = "bench.html"
WORK_NAME = "work"
MIN_DEADLINE_SECONDS = 300.0
DEADLINE_WINDOWS = 20.0
"""An engine may take this many windows to warm up and measure, or `MIN_DEADLINE_SECONDS` if that is longer."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `archfleet bench` was asked for; null is the default of the device, `ON_A_GPU` or `ON_A_CPU`."""

    engine: str = "transformers"
    batches: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    repeats: int = 3
    window_seconds: float | None = None
    dtype: Any = None
    quantization: str | None = None
    kv_cache_dtype: Any = "auto"
    tensor_parallel_size: int = 1


ON_A_GPU = BenchOptions(
    batches="128..4096", input_tokens=1024, output_tokens=1024, window_seconds=60.0, dtype="bfloat16"
)
"""The workload that architectures are compared by."""
ON_A_CPU = BenchOptions(batches="16", input_tokens=32, output_tokens=32, window_seconds=2.0, dtype="float32")
"""What two slow cores measure in minutes; the other would take them days."""
_BY_DEVICE = ("batches", "input_tokens", "output_tokens", "window_seconds", "dtype")


def plan_campaign(configs: Sequence[str], options: BenchOptions, *, machine: Machine | None = None) -> Campaign:
    """The campaign that the user asks for, checked as far as that goes without starting an engine.

    Args:
        configs: config.json files, their directories, or names; the first is what the others are compared with.
        options: what is not given has the device's default.
        machine: where it will run, by default this machine as it is now.

    Raises:
        UserError: a config cannot be read, the engine is not available, a batch size is none, or a candidate cannot
            run in the engine or in this machine's memory.
    """
    if options.engine not in get_args(EngineName):
        known = ", ".join(get_args(EngineName))
        raise UserError(f"unknown engine {options.engine!r}; expected one of: {known}")
    try:
        engine_named(options.engine)
        machine = machine or this_machine()
        chosen = with_defaults(options, machine)
        lengths = {"input_tokens": chosen.input_tokens, "output_tokens": chosen.output_tokens}
        batch_sizes = dict.fromkeys(parse_batch_sizes(str(chosen.batches)))
        window_seconds = float(chosen.window_seconds or 0)
        campaign = Campaign(
            candidates=_candidates(configs),
            recipe=ServingRecipe.model_validate({name: getattr(chosen, name) for name in _RECIPE}),
            workloads=tuple(Workload.model_validate({"batch_size": size, **lengths}) for size in batch_sizes),
            num_repeats=chosen.repeats,
            min_window_seconds=window_seconds,
            load_deadline_seconds=MIN_DEADLINE_SECONDS,
            run_deadline_seconds=max(MIN_DEADLINE_SECONDS, DEADLINE_WINDOWS * window_seconds),
        )
        check_campaign(campaign, machine)
        find_engine(options.engine)
    except ValidationError as error:
        raise UserError("; ".join(map(_in_words, error.errors()))) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    return campaign


_RECIPE = ("engine", "dtype", "quantization", "kv_cache_dtype", "tensor_parallel_size")


def _in_words(problem: Any) -> str:
    """One problem that validation found: the option, what was given and what was expected."""
    where = ".".join(map(str, problem["loc"]))
    return f"{where} {problem['input']!r}: {problem['msg']}" if where else str(problem["msg"])


def with_defaults(options: BenchOptions, machine: Machine) -> BenchOptions:
    """The options with everything that follows the device; the fake engine pretends a CPU."""
    device = ON_A_GPU if machine.on_gpu and options.engine != "fake" else ON_A_CPU
    return replace(options, **{name: getattr(device, name) for name in _BY_DEVICE if getattr(options, name) is None})


def workload_words(campaign: Campaign, options: BenchOptions) -> str:
    """What will be measured, for how long at least, and which of it nobody asked for."""
    load, windows = campaign.workloads[0], len(campaign.order())
    batches = ", ".join(str(workload.batch_size) for workload in campaign.workloads)
    words = (
        f"workload: {load.input_tokens} input / {load.output_tokens} output tokens, batch {batches}, "
        f"{recipe_words(campaign.recipe)}; {windows} engine starts of at least {campaign.min_window_seconds:g} s each"
    )
    if campaign.num_repeats < MIN_REPEATS:
        words = (
            f"NOTHING WILL BE COMPARED: {campaign.num_repeats} restarts tell too little of their spread; "
            f"for ratios give --repeats {MIN_REPEATS} or more.\n{words}"
        )
    if all(getattr(options, name) is not None for name in _BY_DEVICE):
        return words
    return f"{words}. What was not given follows the device: {_defaults('CPU', ON_A_CPU)}; {_defaults('GPU', ON_A_GPU)}"


def _defaults(place: str, options: BenchOptions) -> str:
    return (
        f"on a {place} --input-tokens {options.input_tokens} --output-tokens {options.output_tokens} --batch "
        f"{options.batches} --dtype {options.dtype} --window-seconds {options.window_seconds:g}"
    )


def _candidates(configs: Sequence[str]) -> tuple[Candidate, ...]:
    """Each config under its own words; one that is given twice is measured twice, under two names."""
    names: list[str] = []
    for config in configs:
        name, number = config, 2
        while name in names or (names and name == names[0] + AGAIN):
            name, number = f"{config} #{number}", number + 1
        names.append(name)
    return tuple(
        Candidate(name=name, architecture=read_config(config)) for name, config in zip(names, configs, strict=True)
    )


def default_directory(now: datetime) -> Path:
    """bench-YYYYMMDD-HHMMSS in the current directory, UTC."""
    return Path(f"bench-{now.astimezone(UTC):%Y%m%d-%H%M%S}")


def open_record(campaign: Campaign, directory: Path) -> BenchRecord:
    """The record to go on with: the one in the directory if it is of the same campaign, or a new one.

    Raises:
        UserError: the directory cannot be written, or holds another campaign.
    """
    if not (directory / FILE_NAME).exists():
        record = make_record(campaign, ())
        write_record(directory, record)
        return record
    record = read_record(directory)
    if record.campaign != campaign:
        differ = [name for name in Campaign.model_fields if getattr(record.campaign, name) != getattr(campaign, name)]
        raise UserError(
            f"{directory / FILE_NAME} is of another campaign: {', '.join(differ)} differ. "
            "Give the options it was begun with, or another --out"
        )
    return record


def run_bench(campaign: Campaign, directory: Path, *, console: Console, engine: Engine | None = None) -> BenchRecord:
    """Run what is left of a campaign; after each restart bench.json is written anew.

    Raises:
        UserError: the directory cannot be used, or what it holds was measured on another device or by other versions.
    """
    record = open_record(campaign, directory)
    with (
        told(console, "measuring") as progress,
        _work_directory(directory) as work_directory,
        closing(
            run_campaign(campaign, record.restarts, agent="local", work_directory=work_directory, engine=engine)
        ) as messages,
    ):
        for slot, message in messages:
            if isinstance(message, Progress):
                words = f"batch {campaign.workloads[slot.workload].batch_size}, {campaign.rows[slot.row].name}"
                done, left = len(record.restarts), len(slots_left(campaign, record.restarts))
                progress.reach(done, done + left)
                progress.now(words)
                continue
            if isinstance(message, Restart):
                _refuse_a_mixture(record.restarts, message, directory)
            record = make_record(campaign, (*record.restarts, SlotResult(slot=slot, outcome=message)))
            write_record(directory, record)
    return record


@contextmanager
def _work_directory(directory: Path) -> Iterator[Path]:
    """Where engines leave their files: inside the campaign's directory, so that what a kill leaves is removed next."""
    work = directory / WORK_NAME
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


FOLLOWS_THE_SHAPE = frozenset({"kv_blocks"})
"""Parts of an engine's fingerprint that differ between architectures on one and the same engine."""


def _versions(restart: Restart) -> dict[str, str]:
    return {name: value for name, value in restart.ready.versions.items() if name not in FOLLOWS_THE_SHAPE}


def _refuse_a_mixture(restarts: Sequence[SlotResult], new: Restart, directory: Path) -> None:
    """A campaign that goes on must do so on the same device with the same versions."""
    old = next((r.outcome for r in restarts if isinstance(r.outcome, Restart)), None)
    if old is None:
        return
    before, now = ({"device": one.ready.device.name, **_versions(one)} for one in (old, new))
    if before == now and old.ready.device == new.ready.device:
        return
    changed = [name for name in before | now if before.get(name) != now.get(name)] or ["memory of the device"]
    words = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in changed)
    raise UserError(
        f"{directory / FILE_NAME} was measured with something else ({words}); the two cannot be compared. "
        "Measure anew with another --out"
    )


def write_page(record: BenchRecord, directory: Path) -> Path:
    """Write bench.html.

    Raises:
        UserError: matplotlib or jinja2 is not installed.
    """
    from coordinator.report.bench_page import render_bench

    path = directory / PAGE_NAME
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(render_bench(record), encoding="utf-8")
    temporary.replace(path)
    return path


def bench_table(record: BenchRecord) -> Table:
    """A table for people: measured rates with their intervals, ratios to the first, flags."""
    with_processor = any(comparison.processor is not None for comparison in record.comparisons)
    table = Table(title=title(record))
    for head in ("batch", "running"):
        table.add_column(head, justify="right")
    table.add_column("architecture", overflow="fold")
    table.add_column("output tokens/s", justify="right")
    table.add_column("ratio to the first")
    if with_processor:
        table.add_column("in processor time")
    table.add_column("flags", overflow="fold")
    by_row = {(c.batch_size, c.name): c for c in record.comparisons}
    last_batch = None
    for row in record.rows:
        if last_batch not in (None, row.batch_size):
            table.add_section()
        last_batch = row.batch_size
        comparison = by_row.get((row.batch_size, row.name))
        processor = [_processor_cell(comparison)] if with_processor else []
        table.add_row(*_row_cells(row), _ratio_cell(row, comparison), *processor, _flags_cell(row))
    return table


def title(record: BenchRecord) -> str:
    """What was measured, where and how, in one line."""
    campaign, made = record.campaign, record.fingerprint
    load, recipe = campaign.workloads[0], campaign.recipe
    label = "FAKE ENGINE, not a measurement: " if recipe.engine == "fake" else "MEASURED "
    device = made.get("device_name", "nothing yet")
    return (
        f"{label}on {device}: {recipe.engine} {made.get(recipe.engine, '')}, {recipe_words(recipe)}, "
        f"{load.input_tokens} input / {load.output_tokens} output tokens, "
        f"{campaign.num_repeats} restarts each, 95 % t-interval"
    )


def _row_cells(row: BenchRow) -> tuple[str, str, str, str]:
    batch = str(row.batch_size)
    seen = row.observation
    if seen is None:
        words = f"failed: {row.result.failure_kind}" if isinstance(row.result, Failure) else "unfinished"
        return batch, "", row.name, words
    running, rate = seen.mean_running_sequences, shown(seen.output_tokens_per_second)
    told = f"{running.value:.4g}" if isinstance(running, Measured) else "not told"
    return batch, told, row.name, f"{rate.value} {rate.interval.partition(']')[0]}]" if rate.interval else rate.value


def _ratio_cell(row: BenchRow, comparison: BenchComparison | None) -> str:
    if comparison is None:
        return "1 (first)"
    if comparison.wall is None:
        return "not compared"
    words = "noise floor" if row.is_control else comparison.outcome.replace("-", " ")
    return f"{_ratio(comparison.wall)} {words}"


def _processor_cell(comparison: BenchComparison | None) -> str:
    return "" if comparison is None or comparison.processor is None else _ratio(comparison.processor)


def _ratio(comparison: ThroughputComparison) -> str:
    interval = comparison.interval
    return f"{comparison.ratio:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")


def _flags_cell(row: BenchRow) -> str:
    if isinstance(row.result, Failure):
        return row.result.message
    return ", ".join(row.result.flags) if row.result else ""


def closing_words(record: BenchRecord) -> str:
    """The verdicts as sentences, and what they rest on."""
    words = [comparison.sentence for comparison in record.comparisons]
    if words:
        words.append(correction(record.campaign.num_comparisons))
    return "\n".join(words)


def report_bench(record: BenchRecord, directory: Path, *, console: Console) -> None:
    """Print table, verdicts and where everything is; write the page, or say what it needs."""
    console.print(bench_table(record))
    console.print(closing_words(record), markup=False, soft_wrap=True)
    written = [directory / FILE_NAME]
    try:
        written.append(write_page(record, directory))
    except UserError as error:
        console.print(f"no page was drawn: {error}", markup=False, soft_wrap=True)
    console.print(f"written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)
