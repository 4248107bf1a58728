"""`python -m agent`: one assignment on this machine without a fleet, or the default corpus."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from agent.assignment import AssignmentAdapter, BenchAssignment, TrainAssignment
from agent.blobs import Fetch
from agent.failures import InvalidInputError
from agent.worker import Worker
from scaling.observations import Failure, Observation, Progress, TrainingObservation

_EXAMPLES = """examples:
  python -m agent corpus --out blobs            build the corpus once; its id is printed last
  python -m agent run train.json --blobs blobs  train one proxy model and print the observation as JSON
  python -m agent run bench.json --json         measure one serving assignment; one line of JSON, no progress

an assignment, train.json (corpus_id: what `corpus` printed):
  {"kind": "train", "corpus_id": "...", "recipe": {"num_tokens": 1000000},
   "architecture": {"hidden_size": 64, "intermediate_size": 196, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1024}}

exit status: 0 an observation; 1 a failure, printed as JSON too; 2 the input cannot be used; 130 stopped by Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (InvalidInputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command with the same --work goes on from the checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agent",
        description="Do one assignment of archfleet on this machine, without a fleet.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run one assignment file", epilog=_EXAMPLES, formatter_class=_RAW)
    run.add_argument("assignment", type=Path, help="JSON file of a train or bench assignment")
    run.add_argument(
        "--blobs",
        type=Path,
        help="folder that holds the corpus (of `corpus`, or of archfleet data prepare); needed to train",
    )
    run.add_argument("--work", type=Path, help="folder for checkpoints; by default one that is removed at the end")
    run.add_argument("--devices", type=_count, help="devices of this machine that share a training (default: one)")
    run.add_argument("--json", action="store_true", help="one line of JSON and no progress, for programs")
    run.set_defaults(command=_run)
    corpus = commands.add_parser("corpus", help="build the default corpus", epilog=_EXAMPLES, formatter_class=_RAW)
    corpus.add_argument("--out", type=Path, required=True, help="folder for the blobs")
    corpus.add_argument("--source", type=Path, help="a folder of text files instead of Python's standard library")
    corpus.add_argument("--vocab-size", type=int, default=1024, help="tokens of the BPE (default %(default)s)")
    corpus.set_defaults(command=_corpus)
    return parser


_RAW = argparse.RawDescriptionHelpFormatter


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def read_assignment(path: Path) -> TrainAssignment | BenchAssignment:
    """Read an assignment file.

    Raises:
        InvalidInputError: the file is no assignment; one sentence a wrong field.
    """
    try:
        return AssignmentAdapter.validate_json(path.read_bytes())
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors())
        raise InvalidInputError(
            f"{path} is not an assignment: {wrong}. Expected a JSON object of kind train or bench; "
            "python -m agent --help shows one"
        ) from error


def _run(options: argparse.Namespace) -> int:
    assignment = read_assignment(options.assignment)
    if isinstance(assignment, TrainAssignment) and options.blobs is None:
        raise InvalidInputError(
            "a train assignment needs its corpus: add --blobs DIR, a folder that archfleet data prepare or "
            "python -m agent corpus --out DIR wrote"
        )
    if options.blobs is not None and not options.blobs.is_dir():
        raise InvalidInputError(f"--blobs {options.blobs} is not a folder; python -m agent corpus --out DIR writes one")
    with _work_directory(options.work) as work_directory:
        fetch = _fetch_from(options.blobs or work_directory)
        worker = Worker("local", work_directory, fetch, num_devices=options.devices)
        with _reporter(quiet=options.json) as report:
            observation = _last(worker.run(assignment), report)
        print(observation.model_dump_json(indent=None if options.json else 1), flush=True)
        if isinstance(observation, Failure):
            print(f"{observation.failure_kind}: {observation.message}", file=sys.stderr)
            return 1
        worker.discard(assignment)
    if isinstance(observation, TrainingObservation) and not options.json:
        print(_summary(observation), file=sys.stderr)
    return 0


def _fetch_from(directory: Path) -> Fetch:
    from agent.corpus.prepared import corpus_fetcher

    return corpus_fetcher(directory)


def _last(events: Iterator[Progress | Observation], report: Callable[[Progress], None]) -> Observation:
    observation: Observation | None = None
    for event in events:
        if isinstance(event, Progress):
            report(event)
        else:
            observation = event
    assert observation is not None, "a worker always ends in an observation"
    return observation


def _summary(observation: TrainingObservation) -> str:
    return (
        f"{observation.architecture.label}: loss {observation.loss:.4f} ± {observation.loss_standard_error:.4f} "
        f"nats per token, {observation.tokens_per_second:,.0f} tokens/s"
    )


@contextmanager
def _work_directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="archfleet-") as name:
        yield Path(name)


@contextmanager
def _reporter(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on a terminal, lines elsewhere, nothing when quiet; always on stderr."""
    if quiet:
        yield lambda _: None
    elif not sys.stderr.isatty():
        yield lambda event: print(f"{event.done_fraction:4.0%} {event.message}", file=sys.stderr, flush=True)
    else:
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda event: bar.update(task, completed=event.done_fraction, description=event.message)


def _corpus(options: argparse.Namespace) -> int:
    from agent.corpus.manifest import build_stdlib_corpus

    corpus = build_stdlib_corpus(
        options.out,
        vocab_size=options.vocab_size,
        source=options.source,
        progress=lambda sentence: print(sentence, file=sys.stderr, flush=True),
    )
    print(json.dumps(corpus.manifest.model_dump(), indent=1), file=sys.stderr)
    print(corpus.id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
