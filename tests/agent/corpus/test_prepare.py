import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from agent.blobs import BlobCache
from agent.corpus.bpe import tokenizer_json, train_bpe
from agent.corpus.prepare import WORK, Preparation, Prepared, prepare
from agent.corpus.prepared import CorpusFolder, corpus_fetcher
from agent.corpus.runs import PartRecord, digest, high_word
from agent.corpus.shards import open_tokens
from agent.failures import CorpusError

TEXTS = [f"text {number}: " + " ".join(f"word{(number * k) % 53}" for k in range(60)) for number in range(400)]


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.num_bytes = 0

    def stage(self, name: str, num_bytes: int) -> None:
        self.stages.append(name)
        self.num_bytes = num_bytes

    def advance(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def _write(folder: Path, texts: list[str], *, num_files: int = 4) -> Path:
    folder.mkdir()
    for number in range(num_files):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number::num_files]]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("sources") / "texts", TEXTS)


def _preparation(*sources: Path | str, **settings: object) -> Preparation:
    table = {"vocab_size": 300, "validation_share": 0.2, "shard_tokens": 20_000, "part_bytes": 20_000, **settings}
    return Preparation.model_validate({"sources": tuple(map(str, sources)), **table})


def _prepare(out: Path, *sources: Path | str, told: Told | None = None, num: int = 0, **settings: object) -> Prepared:
    return prepare(_preparation(*sources, **settings), out, progress=told or Told(), num_processes=num)


@pytest.fixture(scope="module")
def prepared(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return _prepare(tmp_path_factory.mktemp("prepared") / "corpus", texts)


def _documents(folder: CorpusFolder, role: str) -> list[str]:
    tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    found = []
    for shard in folder.record.manifest.shards_of(role):  # type: ignore[arg-type]
        tokens = np.fromfile(folder.path_of(shard.sha256), dtype="<u2")
        starts = np.flatnonzero(tokens == folder.record.manifest.end_of_text_id)
        found += [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts)[1:]]
    return found


def test_every_document_is_in_one_shard_and_its_hash_says_which_role(prepared: Prepared) -> None:
    train, held_out = (_documents(prepared.folder, role) for role in ("train", "validation"))
    assert held_out + train == sorted(TEXTS, key=digest)
    assert all((high_word(digest(text)) < 0.2 * 2**64) == (text in set(held_out)) for text in TEXTS)
    assert len(prepared.folder.record.manifest.shards_of("train")) > 1
    prepared.folder.check()


def test_nothing_but_the_corpus_is_left(prepared: Prepared) -> None:
    names = {path.name for path in prepared.folder.path.iterdir()}
    assert names == {"manifest.json", *prepared.folder.record.files.values()}


def test_a_run_reads_all_shards_of_a_prepared_corpus(prepared: Prepared, tmp_path: Path) -> None:
    manifest = prepared.folder.record.manifest
    tokens = open_tokens(manifest, "train", BlobCache(tmp_path, corpus_fetcher(prepared.folder.path)))
    assert len(tokens) == sum(shard.num_tokens for shard in manifest.shards_of("train"))
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".verified"]  # nothing was copied


@pytest.mark.parametrize("num_processes", [1, 2])
def test_any_number_of_processes_and_another_spread_over_files_give_the_same_corpus(
    prepared: Prepared, tmp_path: Path, num_processes: int
) -> None:
    told = Told()
    source = _write(tmp_path / "texts", [*TEXTS[::-1], *TEXTS[:10], " "], num_files=3)
    again = _prepare(tmp_path / "corpus", source, told=told, num=num_processes, part_bytes=11_111)
    assert again.folder.corpus == prepared.folder.corpus
    assert (again.num_read, again.num_empty, again.num_copies) == (411, 1, 10)
    assert told.stages == ["sampling", "tokenising", "writing shards"]


def test_a_finished_folder_is_left_as_it_is(prepared: Prepared, texts: Path) -> None:
    before = (prepared.folder.path / "manifest.json").stat().st_mtime_ns
    again = _prepare(prepared.folder.path, texts)
    assert again.was_finished
    assert again.folder == prepared.folder
    assert (prepared.folder.path / "manifest.json").stat().st_mtime_ns == before


def test_a_finished_folder_is_not_overwritten_with_another_corpus(
    prepared: Prepared, texts: Path, tmp_path: Path
) -> None:
    other = _write(tmp_path / "other", TEXTS[:100])
    with pytest.raises(CorpusError, match=r"holds a finished corpus, and 8 of its sources are new, gone or changed"):
        _prepare(prepared.folder.path, other)
    with pytest.raises(CorpusError, match=r"it was prepared with other options. Prepare into another --out"):
        _prepare(prepared.folder.path, texts, vocab_size=301)


def test_a_preparation_that_was_killed_goes_on_with_what_is_missing(
    prepared: Prepared, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    _kill_once_parts_are_done(out, texts, tmp_path, num_parts=2)
    assert not (out / "manifest.json").exists()

    told = Told()
    again = _prepare(out, texts, told=told)
    assert again.folder.corpus == prepared.folder.corpus
    assert 2 <= again.num_parts_before < again.num_parts
    assert f"{again.num_parts_before} of {again.num_parts} parts were done before" in told.notes
    assert "sampling" not in told.stages
    assert not (out / WORK).exists()


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_a_source_that_changed_meanwhile_is_read_again_and_said(tmp_path: Path, has_tokenizer: bool) -> None:
    source, out = _write(tmp_path / "texts", TEXTS), tmp_path / "corpus"
    (tmp_path / "own.json").write_text(train_bpe(TEXTS, 300).to_str())
    settings = {"tokenizer": tmp_path / "own.json"} if has_tokenizer else {}
    _kill_once_parts_are_done(out, source, tmp_path, num_parts=3, **settings)
    done = [PartRecord.model_validate_json(path.read_bytes()) for path in (out / WORK).glob("*.json")]
    changed, *others = sorted({piece.file.url for record in done for piece in record.part.pieces})
    Path(changed).write_text(Path(changed).read_text().replace("word1 ", "wird1 "))
    for touched in others:
        Path(touched).touch()

    told = Told()
    again = _prepare(out, source, told=told, **settings)
    assert f"{changed} changed since it was read and is read again" in told.notes
    assert again.folder.corpus == _prepare(tmp_path / "afresh", source, **settings).folder.corpus
    # Another text gives another tokenizer, and with it other tokens everywhere.
    assert (
        "parts that were done with another tokenizer or other options are read again" in told.notes
    ) != has_tokenizer


def _kill_once_parts_are_done(out: Path, source: Path, scratch: Path, *, num_parts: int, **settings: object) -> None:
    """Prepare in a process of its own, and kill -9 it between its parts."""
    (scratch / "slow.py").write_text(SLOW)
    command = [sys.executable, str(scratch / "slow.py"), _preparation(source, **settings).model_dump_json(), str(out)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."}) as process:
        deadline = time.monotonic() + 120
        while len(list((out / WORK).glob("*.json"))) < num_parts:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)


SLOW = """
import sys, time
from pathlib import Path
import agent.corpus.prepare as module

class Silent:
    def stage(self, name, num_bytes): pass
    def advance(self, num_bytes): time.sleep(0.3)
    def note(self, sentence): pass

module.prepare(
    module.Preparation.model_validate_json(sys.argv[1]), Path(sys.argv[2]), progress=Silent(), num_processes=0
)
"""


def test_two_preparations_do_not_share_a_folder(texts: Path, tmp_path: Path) -> None:
    told = Told()

    def intrude(_: str) -> None:
        told.note = lambda sentence: None  # type: ignore[method-assign]
        with pytest.raises(CorpusError, match="another process prepares a corpus in"):
            _prepare(tmp_path, texts)

    told.note = intrude  # type: ignore[method-assign]
    _prepare(tmp_path, texts, told=told)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = _write(tmp_path / "texts", TEXTS)
    told = Told()

    def write(_: int) -> None:
        with (source / "0.jsonl").open("a") as file:
            file.write('{"text": "more"}\n')

    told.advance = write  # type: ignore[method-assign]
    with pytest.raises(CorpusError, match=r"0\.jsonl changed while it was read; run the same command again"):
        _prepare(tmp_path / "corpus", source, told=told)


def test_so_many_tokens_can_be_held_out_and_none_of_them_trains_the_tokenizer(texts: Path, tmp_path: Path) -> None:
    made = _prepare(tmp_path, texts, validation_tokens=3000)
    (held_out,) = made.folder.record.manifest.shards_of("validation")
    assert 3000 <= held_out.num_tokens < 3000 + max(len(text) for text in TEXTS)
    sample = [text for text in TEXTS if high_word(digest(text)) >= 2**63]
    expected = tokenizer_json(train_bpe(sorted(sample, key=digest), 300))
    assert (tmp_path / "tokenizer.json").read_bytes() == expected


def test_a_users_tokenizer_is_kept_as_it_is(texts: Path, tmp_path: Path) -> None:
    own = train_bpe(TEXTS, 280)
    own.add_special_tokens(["<eos>"])
    own.enable_truncation(4)
    (tmp_path / "own.json").write_text(own.to_str())
    with pytest.raises(CorpusError, match=r"has no token \[END\]; name the token .* --end-of-text"):
        _prepare(tmp_path / "corpus", texts, tokenizer=tmp_path / "own.json", end_of_text="[END]")
    made = _prepare(tmp_path / "corpus", texts, tokenizer=tmp_path / "own.json", end_of_text="<eos>")
    manifest = made.folder.record.manifest
    assert (manifest.vocab_size, manifest.end_of_text_id) == (281, 280)
    assert (tmp_path / "corpus" / "tokenizer.json").read_bytes() == (tmp_path / "own.json").read_bytes()
    assert sorted(_documents(made.folder, "train") + _documents(made.folder, "validation")) == sorted(TEXTS)


def test_few_held_out_documents_are_remarked_on(texts: Path, tmp_path: Path) -> None:
    told = Told()
    _prepare(tmp_path, texts, told=told, validation_share=0.02)
    assert any("documents are held out: a loss on them says little" in note for note in told.notes)


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([""], {}, "there is no text to train a tokenizer on"),
        (["a"] * 9, {}, "too little text for a vocabulary of 300"),
        (TEXTS, {"vocab_size": 100}, "vocab_size 100 is too small; expected at least 257"),
        (TEXTS, {"validation_share": 1e-9}, "became held-out text with a held-out share of 1e-09"),
        (TEXTS, {"validation_tokens": 10**6}, "held-out tokens were asked for, half of the corpus has"),
        (TEXTS, {"tokenizer": "nowhere.json"}, r"the tokenizer nowhere\.json cannot be read"),
        (TEXTS, {"text_key": "body"}, r"\.jsonl, line 1: there is no key 'body', its keys are 'text'"),
    ],
)
def test_what_cannot_be_prepared_is_one_clear_error(
    tmp_path: Path, rows: list[str], settings: dict[str, object], words: str
) -> None:
    source = _write(tmp_path / "texts", rows)
    with pytest.raises(CorpusError, match=words):
        _prepare(tmp_path / "corpus", source, **settings)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


def test_an_error_in_a_worker_process_is_the_same_error(tmp_path: Path) -> None:
    source = _write(tmp_path / "texts", TEXTS)
    (source / "1.jsonl").write_text("not JSON\n")
    with pytest.raises(CorpusError, match=r"1\.jsonl, line 1: not JSON"):
        _prepare(tmp_path / "corpus", source, num=2)


def test_documents_in_memory_are_prepared(tmp_path: Path) -> None:
    memory = pytest.importorskip("fsspec", reason="fsspec is not installed (extra: data)").filesystem("memory")
    memory.pipe("/prepare/a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    try:
        made = _prepare(tmp_path, "memory://prepare", num=2)
    finally:
        memory.rm("/prepare", recursive=True)
    assert made.num_read == len(TEXTS)
