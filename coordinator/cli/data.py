"""`archfleet data`: corpora of your own text."""

import os
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import group, json_option
from coordinator.cli.console import console, errors, print_json


@group(
    epilog="  archfleet data prepare texts/ --out corpus\n  archfleet data inspect corpus\n"
    "  archfleet data check corpus"
)
def data() -> None:
    """Corpora of your own text: prepare, take in, inspect and check them.

    A study names the folder as its corpus: [corpus] source = "DIR".
    """


_out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the corpus."
)
_folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
_tokenizer_option = click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A tokenizer.json of Hugging Face's.",
)
_processes_option = click.option(
    "--processes",
    "num_processes",
    type=click.IntRange(min=1),
    default=len(os.sched_getaffinity(0)),
    show_default="all cores",
    help="Any number gives the same corpus.",
)


@data.command(
    epilog="  archfleet data prepare texts/ --out corpus\n"
    "  archfleet data prepare 'crawl/*.jsonl.gz' more.parquet --out corpus --vocab-size 32768 --text-key content\n"
    "  archfleet data prepare s3://bucket/fineweb/ --out corpus --tokenizer tokenizer.json --processes 32"
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@_out_option
@_tokenizer_option
@click.option("--vocab-size", type=click.IntRange(min=1), help="Of a BPE trained on the text.  [default: 1024]")
@click.option("--end-of-text", metavar="NAME", help="Token before each document.  [default: the tokenizer's]")
@click.option("--text-key", default="text", show_default=True, help="Key of JSON lines, column of Parquet.")
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Held-out share of the documents, by their hashes.  [default: 0.01]",
)
@click.option("--validation-tokens", type=click.IntRange(min=1), help="Hold out this many tokens instead.")
@click.option(
    "--max-document-bytes",
    type=click.IntRange(min=0),
    default=65_536,
    show_default=True,
    help="Longer text files are cut at blank lines; 0 leaves them whole.",
)
@click.option(
    "--shard-tokens",
    type=click.IntRange(min=1),
    default=100_000_000,
    show_default=True,
    help="Of a file; a process holds one in memory.",
)
@_processes_option
@json_option
def prepare(sources: tuple[str, ...], out: Path, num_processes: int, as_json: bool, **settings: Any) -> None:
    """Tokenise SOURCES into a corpus: text (.txt, .md), JSON lines (.jsonl, .json; .gz, .zst) and Parquet.

    Sources are files, folders, globs and URLs of fsspec's (s3://, gs://, ...). Equal documents are kept once, and
    a document is held out or not by its hash alone. The same command goes on after it was stopped or killed.
    """
    from coordinator.data import prepare_corpus, show_corpus

    result = prepare_corpus(sources, out, num_processes, settings, errors)
    if as_json:
        print_json(result)
    else:
        show_corpus(console, result)


@data.command(
    "import",
    epilog="  archfleet data import fineweb_train_*.bin --validation fineweb_val_000000.bin --out corpus\n"
    "  archfleet data import train.bin --validation val.bin --out corpus --tokenizer tokenizer.json\n"
    "  archfleet data import my_text_document --validation my_held_out_document --out corpus --vocab-size 50304 "
    "--end-of-text-id 50256",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--validation", multiple=True, metavar="FILE", help='Held-out.  [default: with "val" in their names]')
@_out_option
@_tokenizer_option
@click.option("--vocab-size", type=click.IntRange(min=1), help="[default: the tokenizer's, or as the files tell]")
@click.option("--end-of-text-id", type=click.IntRange(min=0), help="[default: the tokenizer's, or as they tell]")
@click.option("--end-of-text", metavar="NAME", help="Its name, where the tokenizer has none of the usual.")
@click.option("--dtype", type=click.Choice(["uint16", "uint32"]), help="Of files without a header.")
@_processes_option
@json_option
def import_(
    files: tuple[str, ...], validation: tuple[str, ...], out: Path, num_processes: int, as_json: bool, **known: Any
) -> None:
    """Write a manifest over token FILES of other tools, which stay where they are.

    Raw uint16 or uint32 (nanoGPT, datatrove), shards of llm.c and modded-nanogpt, Megatron's .bin and .idx, .npy.
    Every file is read once, for its hash and its largest token.
    """
    from coordinator.data import import_files, show_corpus

    result = import_files(files, validation, out, num_processes, known, errors)
    if as_json:
        print_json(result)
    else:
        show_corpus(console, result)


@data.command(epilog="  archfleet data inspect corpus\n  archfleet data inspect corpus --json")
@_folder_argument
@json_option
def inspect(folder: Path, as_json: bool) -> None:
    """Tell what a corpus holds; the length of every file is checked."""
    from coordinator.data import inspect_folder, show_corpus

    result = inspect_folder(folder)
    if as_json:
        print_json(result)
    else:
        show_corpus(console, result)


@data.command(epilog="  archfleet data check corpus\n  archfleet data check corpus --json")
@_folder_argument
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Read every file of a corpus: hashes, lengths, and no token beyond the vocabulary."""
    from coordinator.data import check_folder

    result = check_folder(folder, errors)
    if as_json:
        print_json(result)
    else:
        console.print(f"{folder}: {result['num_files']} files, {result['num_bytes']:,} bytes, all as they were named")
