"""The published architectures on this machine's GPU: Llama-3.2, Panda and Surefire at 1B and 3B, in one command.

    .venv/bin/python tests/gpu/bench_published.py --engine vllm [--engine sglang] [--size 1b] [--out DIR]

Batch 128 to 4096, 1024 input and 1024 output tokens, restarts interleaved with the baseline's control. Every restart is
on disk before the next: the same command goes on with what was stopped. A finished campaign on a GPU is written with
its fingerprint to hwprofiles/data/measured/HARDWARE-ENGINE-SIZE.json; the fake engine's, a CPU's or an unfinished one
is refused there. At the end the ratios are printed beside the published ones.

The whole takes hours: 4 rows x 6 batch sizes x 3 restarts an engine and size, each at least a load, a warm-up pass and
a window of 60 s.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from agent.blobs import write_atomically
from coordinator.bench import BenchOptions, plan_campaign, report_bench, run_bench
from coordinator.bench_record import BenchRecord
from coordinator.errors import UserError

MEASURED = Path(__file__).parents[2] / "hwprofiles" / "data" / "measured"
PROGRAMME: Mapping[str, tuple[str, ...]] = {
    "1b": ("llama-3.2-1b", "panda-1b", "surefire-1b"),
    "3b": ("llama-3.2-3b", "panda-3b", "surefire-3b"),
}
"""Table: size → baseline first."""
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "1b": {"gains": (0.21, 0.47), "sglang_h200_tokens_per_second": {"llama-3.2-1b": 8608.57, "surefire-1b": 12645.55}},
    "3b": {"gains": (0.12, 0.17), "sglang_h200_tokens_per_second": {"llama-3.2-3b": 4183.09, "surefire-3b": 4877.16}},
}
"""Of arXiv 2510.18245, against Llama-3.2; the tokens/s by a public summary of its Table 6, at 4096 + 1024 tokens and a
batch size that is not stated there. The larger gain of each size is that of these tokens/s; which engine, board and
architecture the smaller one is of is not recorded here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, save, compare. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", action="append", required=True, help="vllm, sglang or transformers; repeatable")
    parser.add_argument("--size", action="append", choices=sorted(PROGRAMME), help="default: both")
    parser.add_argument("--batch", default="128..4096")
    parser.add_argument("--input-tokens", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window-seconds", type=float, default=60.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("bench-published"), help="where campaigns are, to go on with")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        for engine in options.engine:
            for size in options.size or sorted(PROGRAMME):
                measure(engine, size, options, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(engine: str, size: str, options: argparse.Namespace, console: Console) -> None:
    """One campaign, its tables, and its file if it is a measurement on a GPU.

    Raises:
        UserError: it cannot be measured here.
    """
    asked = BenchOptions(
        engine=engine,
        batches=options.batch,
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens,
        repeats=options.repeats,
        window_seconds=options.window_seconds,
        dtype=options.dtype,
    )
    directory = options.out / f"{engine}-{size}"
    directory.mkdir(parents=True, exist_ok=True)
    record = run_bench(plan_campaign(PROGRAMME[size], asked), directory, console=console)
    report_bench(record, directory, console=console)
    for line in beside_published(record, size):
        console.print(line, markup=False, soft_wrap=True)
    why = why_not_saved(record)
    words = f"written: {save(record, size)}" if why is None else f"not written to {MEASURED.name}/: {why}"
    console.print(words, markup=False, soft_wrap=True)


def why_not_saved(record: BenchRecord) -> str | None:
    """Why a campaign is no measured fact about a GPU; None if it is one."""
    if record.campaign.recipe.engine == "fake":
        return "the fake engine measures nothing"
    if not record.is_finished:
        return "the campaign is not finished; the same command goes on with it"
    if record.fingerprint.get("device_kind") != "gpu":
        return "it did not run on a GPU"
    return None


def save(record: BenchRecord, size: str, *, directory: Path = MEASURED) -> Path:
    """Write the measured rows with where, when and by what they were made.

    Raises:
        UserError: the record is no measurement on a GPU.
    """
    why = why_not_saved(record)
    if why is not None:
        raise UserError(f"this campaign is not kept as measured: {why}")
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{record.fingerprint['hardware']}-{record.campaign.recipe.engine}-{size}.json"
    content = {
        "fingerprint": record.fingerprint,
        "started_at_unix": min(made.started_at_unix for made in record.provenances()),
        "recipe": record.campaign.recipe.model_dump(mode="json"),
        "workloads": [workload.model_dump(mode="json") for workload in record.campaign.workloads],
        "num_repeats": record.campaign.num_repeats,
        "results": [
            {"name": row.name, "is_control": row.is_control, **row.result.model_dump(mode="json")}
            for row in record.rows
            if row.result is not None
        ],
        "comparisons": [comparison.model_dump(mode="json") for comparison in record.comparisons],
        "published": PUBLISHED[size],
    }
    write_atomically(directory / name, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return directory / name


def beside_published(record: BenchRecord, size: str) -> list[str]:
    """Each candidate's gain at each batch size, with what was published last."""
    fake = record.campaign.recipe.engine == "fake"
    label = "FAKE, not measured" if fake else "measured"
    lines = []
    for comparison in record.comparisons:
        if comparison.wall is None or comparison.is_control:
            continue
        interval = comparison.wall.interval
        bounds = f" [{interval.low - 1:+.1%}, {interval.high - 1:+.1%}]" if interval else ""
        gain = f"{comparison.wall.ratio - 1:+.1%}{bounds}"
        lines.append(f"{label}: {comparison.name} at batch {comparison.batch_size}: {gain}, {comparison.outcome}")
    published = " and ".join(f"{gain:+.0%}" for gain in PUBLISHED[size]["gains"])
    return [
        *lines,
        f"published for {size}: {published} over its Llama-3.2 (arXiv 2510.18245; other lengths and boards)",
    ]


if __name__ == "__main__":
    sys.exit(main())
