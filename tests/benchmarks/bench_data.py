"""How fast text is prepared, beside a plain loop in one process over the same lines with the same tokenizer.

    python tests/benchmarks/bench_data.py [--megabytes 40] [--processes K] [--json] [--smoke]

The text is made up: words of a Zipf law from the standard library's own sources, one document a JSON line. The plain
loop parses a line, encodes it and appends its tokens to one file: no hashes, no held-out part, no repeated documents
left out, nothing to resume from. Preparation does all of that and is given the same tokenizer. Both rates are tokens a
second, of wall time and of processor time (workers counted); on a machine that others use, only the latter compares.
It also prints what one batch of windows costs out of 10^8, where a sorted order would need 2.4 GB.
"""

import argparse
import json
import os
import random
import re
import resource
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.corpus.bpe import describe_vocabulary, load_tokenizer, tokenizer_json, train_bpe
from agent.corpus.order import permuted
from agent.corpus.prepare import Preparation, prepare

VOCAB_SIZE = 4096
NUM_WINDOWS = 10**8


class Silent:
    """Nothing is told while time is measured."""

    def stage(self, name: str, num_bytes: int) -> None:
        """Ignored."""

    def advance(self, num_bytes: int) -> None:
        """Ignored."""

    def note(self, sentence: str) -> None:
        """Ignored."""


def write_text(path: Path, num_bytes: int) -> list[str]:
    """JSON lines of made-up documents of 200 to 2,000 words; returns a few of them."""
    source = random.Random(0)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    words = Counter(re.findall(r"\s?\w+|\s?[^\w\s]+", " ".join(file.read_text("utf-8", "ignore") for file in sources)))
    population, weights = list(words), list(words.values())
    written, sample = 0, []
    with path.open("w") as file:
        while written < num_bytes:
            text = "".join(source.choices(population, weights, k=source.randint(200, 2000)))
            sample = [*sample, text][:200]
            written += file.write(json.dumps({"text": text}) + "\n")
    return sample


def plain_loop(source: Path, tokenizer_path: Path, out: Path) -> int:
    """What one writes in a minute: a line, its tokens, the next; returns the number of tokens."""
    tokenizer, vocabulary = load_tokenizer(tokenizer_path), describe_vocabulary(tokenizer_path)
    num_tokens = 0
    with source.open("rb") as lines, out.open("wb") as file:
        for line in lines:
            ids = [vocabulary.end_of_text_id, *tokenizer.encode(json.loads(line)["text"]).ids]
            file.write(np.array(ids, dtype=np.uint16).tobytes())
            num_tokens += len(ids)
    return num_tokens


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def run(*, megabytes: float, num_processes: int) -> dict[str, Any]:
    """Both ways over the same text, and the order of windows."""
    with tempfile.TemporaryDirectory(prefix="archfleet-bench-") as name:
        folder = Path(name)
        sample = write_text(folder / "text.jsonl", int(megabytes * 1e6))
        (folder / "tokenizer.json").write_bytes(tokenizer_json(train_bpe(sample, VOCAB_SIZE)))
        preparation = Preparation(
            sources=(str(folder / "text.jsonl"),), tokenizer=folder / "tokenizer.json", validation_share=0.1
        )

        def prepared() -> int:
            made = prepare(preparation, folder / "corpus", progress=Silent(), num_processes=num_processes)
            assert made.num_copies == 0
            return sum(shard.num_tokens for shard in made.folder.record.manifest.shards)

        result = {
            "plain loop": _timed(
                lambda: plain_loop(folder / "text.jsonl", folder / "tokenizer.json", folder / "plain")
            ),
            f"archfleet data prepare, {num_processes} processes": _timed(prepared),
        }
        plain, ours = (row["num_tokens"] for row in result.values())
        assert plain == ours, "both must give the same tokens"
        return {"ways": result, "order_of_windows": _order(), "text_megabytes": megabytes}


def _timed(work: Any) -> dict[str, Any]:
    wall, processor = time.perf_counter(), processor_seconds()
    num_tokens = work()
    wall_seconds, cpu_seconds = time.perf_counter() - wall, processor_seconds() - processor
    return {
        "num_tokens": num_tokens,
        "wall_seconds": wall_seconds,
        "processor_seconds": cpu_seconds,
        "tokens_per_wall_second": num_tokens / wall_seconds,
        "tokens_per_processor_second": num_tokens / cpu_seconds,
    }


def _order() -> dict[str, Any]:
    """A batch of 512 windows out of 10^8, each in an epoch of its own: nothing is remembered."""
    seconds = []
    for epoch in range(20):
        started = time.process_time()
        permuted(np.arange(512), NUM_WINDOWS, seed=0, epoch=epoch)
        seconds.append(time.process_time() - started)
    return {"num_windows": NUM_WINDOWS, "milliseconds_per_batch_of_512": 1e3 * float(np.median(seconds))}


def table(result: dict[str, Any]) -> Table:
    """The rates side by side."""
    shown = Table("way", "tokens", "wall s", "CPU s", "tokens/s", "tokens/CPU s", "CPU, times the loop")
    shown.title = f"Text to token shards, {result['text_megabytes']:g} MB of JSON lines"
    loop = result["ways"]["plain loop"]["tokens_per_processor_second"]
    for way, row in result["ways"].items():
        shown.add_row(
            way,
            f"{row['num_tokens']:,}",
            f"{row['wall_seconds']:.1f}",
            f"{row['processor_seconds']:.1f}",
            f"{row['tokens_per_wall_second']:,.0f}",
            f"{row['tokens_per_processor_second']:,.0f}",
            f"{row['tokens_per_processor_second'] / loop:.2f}",
        )
    order = result["order_of_windows"]
    shown.caption = (
        f"512 windows of {order['num_windows']:,} in seeded order: {order['milliseconds_per_batch_of_512']:.2f} ms CPU"
    )
    return shown


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40, help="of text (default %(default)s)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--smoke", action="store_true", help="half a megabyte, in seconds")
    arguments = parser.parse_args()
    measured = run(megabytes=0.5 if arguments.smoke else arguments.megabytes, num_processes=arguments.processes)
    if arguments.json:
        print(json.dumps(measured, indent=2))
    else:
        Console(width=140).print(table(measured))
