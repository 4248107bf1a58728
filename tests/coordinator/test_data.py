import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from coordinator.cli import main

TEXTS = [f"text {number}: " + " ".join(f"word{(number * k) % 53}" for k in range(60)) for number in range(300)]


def archfleet(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def answer(*arguments: object) -> dict[str, Any]:
    result = archfleet(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def mistake(*arguments: object) -> str:
    result = archfleet(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def corpus(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    settings = ("--text-key", "body", "--vocab-size", 300, "--validation-share", 0.2, "--processes", 1)
    made = answer("prepare", source, "--out", out, *settings)
    assert made["num_documents_read"] == 300
    assert made["train"]["num_documents"] + made["validation"]["num_documents"] == 300
    assert made["text_bytes_per_second"] > 0
    return out


def test_a_prepared_corpus_is_inspected_and_checked(corpus: Path) -> None:
    told = archfleet("inspect", corpus)
    assert "bytes a token" in told.stdout
    assert f'[corpus] source = "{corpus}" and vocab_size = 300' in told.stdout
    found = answer("inspect", corpus)
    assert found["vocab_size"] == 300
    assert answer("check", corpus)["corpus_id"] == found["corpus_id"]


def test_the_same_command_again_has_nothing_to_do(corpus: Path, source: Path) -> None:
    settings = ("--text-key", "body", "--vocab-size", 300, "--validation-share", 0.2)
    assert "nothing to do" in archfleet("prepare", source, "--out", corpus, *settings).stdout
    assert answer("prepare", source, "--out", corpus, *settings)["was_finished"]


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(source: Path, tmp_path: Path) -> None:
    settings = ("--text-key", "body", "--vocab-size", 300, "--processes", 1)
    told = archfleet("prepare", source, "--out", tmp_path, *settings).stderr.splitlines()
    assert f"sampling: {source.stat().st_size:,} bytes" in told
    assert any(line.startswith("training a 300-token BPE on ") for line in told)
    assert told.index("ordering the documents") > told.index(f"tokenising: {source.stat().st_size:,} bytes")


def test_token_files_are_imported(tmp_path: Path) -> None:
    for name in ("train", "val"):
        np.arange(50, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    settings = ("--out", tmp_path / "corpus", "--vocab-size", 50, "--end-of-text-id", 0)
    assert answer("import", tmp_path / "*.bin", *settings)["train"]["num_tokens"] == 50
    assert "not known" in archfleet("inspect", tmp_path / "corpus").stdout


def test_mistakes_are_one_sentence(source: Path, corpus: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    both = mistake("prepare", source, *out, "--tokenizer", "t.json", "--vocab-size", 300)
    assert "a tokenizer has its own vocabulary: leave one out" in both
    assert "leave one out" in mistake("prepare", source, *out, "--validation-share", 0.1, "--validation-tokens", 9)
    assert "no such source" in mistake("prepare", tmp_path / "nowhere", *out)
    assert "there is no key 'text', its keys are 'body'" in mistake("prepare", source, *out, "--processes", 1)
    assert "archfleet data prepare writes one" in mistake("inspect", tmp_path)
    (tmp_path / "file").touch()
    assert "correct the path" in mistake("prepare", source, "--out", tmp_path / "file" / "out", "--text-key", "body")


def test_a_damaged_corpus_ends_with_status_2(corpus: Path) -> None:
    shard = corpus / "train-00000.bin"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-2])
        assert "it was truncated or replaced" in mistake("inspect", corpus)
        shard.write_bytes(whole[:-2] + b"\x00\x00" if whole[-2:] != b"\x00\x00" else whole[:-2] + b"\x01\x00")
        assert "it was altered; restore it" in mistake("check", corpus)
    finally:
        shard.write_bytes(whole)
