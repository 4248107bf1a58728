"""The corpus of a study: built from the standard library or a folder of text, or prepared before and linked.

Whatever is wrong with it is said before anything starts.
"""

from collections.abc import Callable
from pathlib import Path

from agent.corpus.manifest import Corpus, CorpusManifest, build_stdlib_corpus
from agent.corpus.prepare import WORK
from agent.corpus.prepared import CorpusFolder, is_corpus_folder
from agent.failures import CorpusError
from coordinator.errors import UserError
from coordinator.study import StudySpec

STDLIB = "python-stdlib"


def prepared_corpus(study: StudySpec) -> CorpusFolder | None:
    """The prepared corpus that a study names, fit for it; null where its corpus is built from text.

    Only lengths are looked at: files are hashed by `open_corpus`.

    Raises:
        UserError: it is not finished, truncated, has more tokens than the study's vocabulary, or holds out too little.
    """
    folder = Path(study.corpus.source)
    if study.corpus.source == STDLIB or not is_corpus_folder(folder):
        if study.corpus.source != STDLIB and (folder / WORK).is_dir():
            raise UserError(f"the corpus in {folder} is not finished; run its archfleet data prepare again: it goes on")
        return None
    try:
        found = CorpusFolder.open(folder)
        found.check_sizes()
    except CorpusError as error:
        raise UserError(f"the corpus cannot be used: {error}") from None
    _require_fit(found.record.manifest, study)
    return found


def open_corpus(
    study: StudySpec, blob_directory: Path, *, corpus_id: str | None, stamps: Path, say: Callable[[str], None]
) -> Corpus | None:
    """Have the study's corpus in the folder of blobs: built, or linked after every file was hashed.

    Args:
        study: names the corpus.
        blob_directory: of the run.
        corpus_id: of a run that goes on; null in a new one.
        stamps: a folder that remembers what was hashed; files that are as they were then are not hashed again.
        say: is told what takes a while.

    Returns:
        The corpus; null where a built one is there from before.

    Raises:
        UserError: it cannot be built, is damaged, or is another one than the run began with.
    """
    folder = prepared_corpus(study)
    try:
        if folder is not None:
            return _link(folder, blob_directory, corpus_id=corpus_id, stamps=stamps, say=say)
        if corpus_id is not None:
            return None
        source = study.corpus.source
        say(f"building the corpus from {source}")
        corpus = build_stdlib_corpus(
            blob_directory, vocab_size=study.corpus.vocab_size, source=None if source == STDLIB else Path(source)
        )
    except ValueError as error:
        raise UserError(f"the corpus cannot be used: {error}") from None
    _require_fit(corpus.manifest, study)
    return corpus


def _link(
    folder: CorpusFolder, blob_directory: Path, *, corpus_id: str | None, stamps: Path, say: Callable[[str], None]
) -> Corpus:
    if corpus_id not in (None, folder.corpus.id):
        raise CorpusError(
            f"{folder.path} holds corpus {folder.corpus.id}, this run began with {corpus_id}; put that one back, or "
            "start a new run with --new"
        )
    num_bytes = sum(folder.path_of(sha256).stat().st_size for sha256 in folder.record.files)
    say(f"checking the corpus in {folder.path}, {num_bytes / 1e6:,.1f} MB")
    folder.check(stamps=stamps)
    folder.publish(blob_directory)
    return folder.corpus


def _require_fit(manifest: CorpusManifest, study: StudySpec) -> None:
    spec, length = study.corpus, study.training.sequence_length
    if manifest.vocab_size > spec.vocab_size:
        raise UserError(
            f"the corpus {spec.source} has a vocabulary of {manifest.vocab_size:,} tokens, the study's "
            f"corpus.vocab_size is {spec.vocab_size:,}; write vocab_size = {manifest.vocab_size} (or more) in [corpus]"
        )
    windows = {
        role: sum((shard.num_tokens - 1) // length for shard in manifest.shards_of(role))
        for role in ("train", "validation")
    }
    if windows["validation"] < spec.num_eval_windows or not windows["train"]:
        raise UserError(
            f"the corpus {spec.source} has {windows['train']:,} training and {windows['validation']:,} held-out "
            f"windows of {length} tokens; the study wants {spec.num_eval_windows:,} held-out ones "
            "(corpus.num_eval_windows): "
            "lower that, or prepare the corpus with a larger --validation-share"
        )
