"""What is said of a study's corpus before anything starts."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from agent.corpus.foreign import ImportOptions, import_tokens
from agent.corpus.prepared import CorpusFolder
from coordinator.errors import UserError
from coordinator.run import RunOptions, run_study
from coordinator.study import StudySpec, read_study
from coordinator.study_corpus import open_corpus, prepared_corpus


@pytest.fixture
def folder(tmp_path: Path) -> CorpusFolder:
    random = np.random.default_rng(0)
    for name in ("train", "val"):
        random.integers(0, 512, 20_000, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    options = ImportOptions(vocab_size=512, end_of_text_id=0)
    return import_tokens([str(tmp_path / "*.bin")], [], tmp_path / "corpus", options)


def _study(source: Path, **corpus: object) -> StudySpec:
    study = read_study("quick")
    spec = study.corpus.model_copy(update={"source": str(source), **corpus})
    return study.model_copy(update={"corpus": spec})


def _open(study: StudySpec, tmp_path: Path, *, corpus_id: str | None = None) -> str | None:
    corpus = open_corpus(study, tmp_path / "blobs", corpus_id=corpus_id, stamps=tmp_path / "stamps", say=lambda _: None)
    return corpus and corpus.id


def test_a_prepared_corpus_is_linked_and_known_by_its_id(folder: CorpusFolder, tmp_path: Path) -> None:
    study = _study(folder.path)
    assert _open(study, tmp_path) == folder.corpus.id
    assert _open(study, tmp_path, corpus_id=folder.corpus.id) == folder.corpus.id
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {folder.corpus.id, *folder.record.files}


def test_a_folder_of_text_is_built_once(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(60):
        words = " ".join(f"word{(number * k) % 97}" for k in range(300))
        (tmp_path / "texts" / f"{number}.txt").write_text(words)
    study = _study(tmp_path / "texts", vocab_size=300, num_eval_windows=8)
    built = _open(study, tmp_path)
    assert built is not None
    assert _open(study, tmp_path, corpus_id=built) is None


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ({"vocab_size": 300}, r"has a vocabulary of 512 tokens, .* is 300; write vocab_size = 512 \(or more\)"),
        ({"num_eval_windows": 157}, r"156 held-out windows of 128 tokens; the study wants 157 held-out ones"),
    ],
)
def test_a_corpus_that_does_not_fit_the_study_leaves_no_run_behind(
    folder: CorpusFolder, tmp_path: Path, corpus: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run_study(_study(folder.path, **corpus), RunOptions(runs=tmp_path / "runs"), console=Console(quiet=True))
    assert not (tmp_path / "runs").exists()


def test_a_truncated_corpus_leaves_no_run_behind(folder: CorpusFolder, tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"the corpus cannot be used: the train shard .* has 5 bytes"):
        run_study(_study(folder.path), RunOptions(runs=tmp_path / "runs"), console=Console(quiet=True))
    assert not (tmp_path / "runs").exists()


def test_an_altered_corpus_is_refused_before_any_agent_starts(folder: CorpusFolder, tmp_path: Path) -> None:
    content = (tmp_path / "train.bin").read_bytes()
    (tmp_path / "train.bin").write_bytes(content[::-1])
    with pytest.raises(UserError, match=r"train\.bin .*it was altered or truncated"):
        run_study(_study(folder.path), RunOptions(runs=tmp_path / "runs"), console=Console(quiet=True))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_does_not_go_on_with_another_corpus(folder: CorpusFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this run began with 0{64}; put that one back, or start a new run with --new"):
        _open(_study(folder.path), tmp_path, corpus_id="0" * 64)


def test_an_unfinished_preparation_is_not_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "corpus" / ".work").mkdir(parents=True)
    with pytest.raises(UserError, match="is not finished; run its archfleet data prepare again"):
        prepared_corpus(_study(tmp_path / "corpus"))


def test_an_edited_manifest_is_refused(folder: CorpusFolder) -> None:
    file = folder.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "corpus_id": "0" * 64}))
    with pytest.raises(UserError, match="was edited"):
        prepared_corpus(_study(folder.path))
