"""Corpora: text is prepared into a corpus, token files of other tools are taken in, and both are checked."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from agent.failures import CorpusError
from coordinator.bars import Told, told
from coordinator.errors import UserError


def prepare_corpus(
    sources: tuple[str, ...], out: Path, num_processes: int, settings: dict[str, Any], errors: Console
) -> dict[str, Any]:
    """Prepare a corpus, telling how far it is.

    Raises:
        UserError: sources, tokenizer or folder cannot be used; the message says what to do.
    """
    from agent.corpus.prepare import Preparation, prepare

    if settings["tokenizer"] is not None and settings["vocab_size"] is not None:
        raise UserError(
            "--tokenizer and --vocab-size were both given; a tokenizer has its own vocabulary: leave one out"
        )
    if settings["validation_share"] is not None and settings["validation_tokens"] is not None:
        raise UserError("--validation-share and --validation-tokens were both given; leave one out")
    given = {name: value for name, value in settings.items() if value is not None}
    with told(errors, unit="bytes") as progress, _one_sentence():
        made = prepare(Preparation(sources=sources, **given), out, progress=progress, num_processes=num_processes)
    facts = made.folder.facts()
    if made.was_finished:
        return {**facts, "was_finished": True}
    num_bytes = sum(facts[role]["num_bytes"] for role in ("train", "validation"))
    return {
        **facts,
        "was_finished": False,
        "num_documents_read": made.num_read,
        "num_empty_documents": made.num_empty,
        "num_repeated_documents": made.num_copies,
        "num_parts": made.num_parts,
        "num_parts_done_before": made.num_parts_before,
        "seconds": made.seconds,
        "text_bytes_per_second": num_bytes / made.seconds if not made.num_parts_before and made.seconds > 0 else None,
    }


def import_files(
    files: tuple[str, ...],
    validation: tuple[str, ...],
    out: Path,
    num_threads: int,
    known: dict[str, Any],
    errors: Console,
) -> dict[str, Any]:
    """Write a manifest over token files.

    Raises:
        UserError: a file is truncated or of no known kind, or what it does not tell was not given either.
    """
    from agent.corpus.foreign import ImportOptions, import_tokens

    with told(errors, "reading", unit="bytes") as progress, _one_sentence():
        folder = import_tokens(
            files, validation, out, ImportOptions(**known), num_threads=num_threads, progress=_counted(progress)
        )
    return folder.facts()


def inspect_folder(path: Path) -> dict[str, Any]:
    """What a corpus holds.

    Raises:
        UserError: there is none, or a file is missing or truncated.
    """
    from agent.corpus.prepared import CorpusFolder

    with _one_sentence():
        folder = CorpusFolder.open(path)
        folder.check_sizes()
        return folder.facts()


def check_folder(path: Path, errors: Console) -> dict[str, Any]:
    """Hash every file of a corpus and look at every token.

    Raises:
        UserError: something is not as the manifest says.
    """
    from agent.corpus.prepared import CorpusFolder

    with told(errors, unit="bytes") as progress, _one_sentence():
        folder = CorpusFolder.open(path)
        folder.check_sizes()
        sizes = [folder.path_of(sha256).stat().st_size for sha256 in folder.record.files]
        progress.stage("reading", sum(sizes))
        folder.check(progress=_counted(progress))
    return {"path": str(path), "corpus_id": folder.corpus.id, "num_files": len(sizes), "num_bytes": sum(sizes)}


def _counted(progress: Told) -> Callable[[Path], None]:
    """For those who tell of each file that they have read."""
    return lambda file: progress.advance(file.stat().st_size)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What the user or the disk did wrong, without a traceback; Ctrl-C leaves what was done."""
    try:
        yield
    except CorpusError as error:
        raise UserError(str(error)) from None
    except ValidationError as error:
        raise UserError("; ".join(f"{wrong['loc'][0]}: {wrong['msg']}" for wrong in error.errors())) from None
    except OSError as error:
        raise UserError(f"{error}.\nFree some disk, or correct the path, and run the same command again.") from None
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on", err=True)
        sys.exit(130)


def show_corpus(console: Console, facts: dict[str, Any]) -> None:
    """A corpus as a table, and what became of its text."""
    shown = Table("", "train", "validation", title=f"Corpus {facts['path']}")
    for row, words in (
        ("num_shards", "files"),
        ("num_tokens", "tokens"),
        ("num_documents", "documents"),
        ("num_bytes", "bytes of text"),
    ):
        shown.add_row(words, *(_count(facts[role][row]) for role in ("train", "validation")))
    ratios = [facts[role]["bytes_per_token"] for role in ("train", "validation")]
    shown.add_row("bytes a token", *("not known" if ratio is None else f"{ratio:.3f}" for ratio in ratios))
    console.print(shown)
    sentences = [
        f"vocabulary {facts['vocab_size']:,} tokens ({facts['dtype']}), end of text {facts['end_of_text_id']}, "
        f"id {facts['corpus_id']}",
        *_fate_of_the_text(facts),
        f'a study takes it by [corpus] source = "{facts["path"]}" and vocab_size = {facts["vocab_size"]}',
    ]
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=True)


def _fate_of_the_text(facts: dict[str, Any]) -> list[str]:
    if facts.get("was_finished"):
        return ["it was prepared before, from the same sources in the same way: nothing to do"]
    if "num_documents_read" not in facts:
        return []
    return [
        f"{facts['num_documents_read']:,} documents read, {facts['num_repeated_documents']:,} repeated and "
        f"{facts['num_empty_documents']:,} empty ones left out, {facts['seconds']:.1f} s"
    ]


def _count(number: int | None) -> str:
    return "not known" if number is None else f"{number:,}"
