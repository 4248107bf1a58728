import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.corpus.bpe import describe_vocabulary, tokenizer_json, train_bpe
from agent.corpus.runs import (
    ALL_HASHES,
    Encoding,
    Runs,
    digest,
    encode_part,
    held_out_bound,
    high_word,
    plan_shards,
    read_record,
    write_shard,
)
from agent.corpus.sources import Part, Reading, find_files, plan_parts

DOCUMENTS = [f"document {number}: " + "some words " * (number % 9) for number in range(200)]


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Encoding:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(tokenizer_json(train_bpe(DOCUMENTS, 300)))
    return Encoding(Reading("text", 0), path, describe_vocabulary(path))


def _parts(folder: Path, documents: list[str], num_files: int) -> tuple[Part, ...]:
    folder.mkdir()
    for number in range(num_files):
        lines = [json.dumps({"text": text}) + "\n" for text in documents[number::num_files]]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return plan_parts(find_files([str(folder)]).files, part_bytes=2000)


def _runs(folder: Path, documents: list[str], encoding: Encoding, *, num_files: int = 3) -> Runs:
    parts = _parts(folder / "sources", documents, num_files)
    records = [encode_part(part, encoding, folder) for part in parts]
    return Runs(records, folder, dtype="uint16")


def _texts(runs: Runs, low: int, high: int, encoding: Encoding) -> list[str]:
    from agent.corpus.bpe import load_tokenizer

    tokens = runs.tokens(runs.documents(low, high))
    starts = np.flatnonzero(tokens == encoding.vocabulary.end_of_text_id)
    tokenizer = load_tokenizer(encoding.tokenizer)
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts)[1:]]


def test_documents_come_back_whole_once_and_in_the_order_of_their_hashes(tmp_path: Path, encoding: Encoding) -> None:
    runs = _runs(tmp_path, [*DOCUMENTS, *DOCUMENTS[:50], " ", ""], encoding)
    assert _texts(runs, 0, ALL_HASHES, encoding) == sorted(DOCUMENTS, key=digest)


@given(bound=st.integers(0, ALL_HASHES), shard_tokens=st.integers(60, 3000))
@settings(max_examples=12, deadline=None)
def test_shards_are_a_partition_whatever_their_size_and_the_held_out_share(
    shared_runs: Runs, encoding: Encoding, bound: int, shard_tokens: int
) -> None:
    shards = plan_shards(shared_runs, bound=bound, shard_tokens=shard_tokens)
    held_out = [text for s in shards if s.role == "validation" for text in _texts(shared_runs, s.low, s.high, encoding)]
    train = [text for s in shards if s.role == "train" for text in _texts(shared_runs, s.low, s.high, encoding)]
    assert held_out + train == sorted(DOCUMENTS, key=digest)
    assert all(high_word(digest(text)) < bound for text in held_out)
    assert all(high_word(digest(text)) >= bound for text in train)
    for shard in shards:
        rows = shared_runs.documents(shard.low, shard.high)
        assert len(rows) == 1 or rows["num_tokens"].sum() <= shard_tokens


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory: pytest.TempPathFactory, encoding: Encoding) -> Runs:
    return _runs(tmp_path_factory.mktemp("runs"), DOCUMENTS, encoding)


def test_ranges_of_hashes_are_read_some_documents_at_a_time(
    shared_runs: Runs, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan_shards(shared_runs, bound=2**62, shard_tokens=500)
    monkeypatch.setattr("agent.corpus.runs._DOCUMENTS_AT_A_TIME", 7)
    assert len(list(shared_runs.ranges(0, ALL_HASHES))) == 29
    assert plan_shards(shared_runs, bound=2**62, shard_tokens=500) == whole


@pytest.mark.parametrize("num_files", [1, 2, 7])
def test_shards_do_not_depend_on_how_documents_are_spread_over_files(
    tmp_path: Path, encoding: Encoding, shared_runs: Runs, num_files: int
) -> None:
    runs = _runs(tmp_path, DOCUMENTS[::-1], encoding, num_files=num_files)
    shards = plan_shards(runs, bound=2**62, shard_tokens=1000)
    assert shards == plan_shards(shared_runs, bound=2**62, shard_tokens=1000)
    for shard in shards:
        ours = write_shard(shard, runs, tmp_path / "ours", vocab_size=300)
        assert ours == write_shard(shard, shared_runs, tmp_path / "theirs", vocab_size=300)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_held_out_tokens_are_as_many_as_asked_for_and_one_document_more_at_most(shared_runs: Runs) -> None:
    bound = held_out_bound(shared_runs, 500)
    rows = shared_runs.documents(0, bound)
    assert rows["num_tokens"][:-1].sum() < 500 <= rows["num_tokens"].sum()


def test_more_than_half_is_never_held_out(shared_runs: Runs) -> None:
    with pytest.raises(ValueError, match=r"held-out tokens were asked for, half of the corpus has"):
        held_out_bound(shared_runs, 10**6)


def test_a_long_part_is_written_as_several_runs(
    tmp_path: Path, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.corpus.runs._RUN_TOKENS", 300)
    monkeypatch.setattr("agent.corpus.runs._BATCH_BYTES", 100)
    _parts(tmp_path / "sources", DOCUMENTS, 1)
    (part,) = plan_parts(find_files([str(tmp_path / "sources")]).files)
    record = encode_part(part, encoding, tmp_path)
    assert record.num_runs > 5
    assert _texts(Runs([record], tmp_path, dtype="uint16"), 0, ALL_HASHES, encoding) == sorted(DOCUMENTS, key=digest)


def test_a_part_that_was_touched_but_says_the_same_is_not_tokenised_again(
    tmp_path: Path, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    (part, *_) = _parts(tmp_path / "sources", DOCUMENTS, 1)
    before = encode_part(part, encoding, tmp_path)
    monkeypatch.setattr("agent.corpus.runs._encode", None)
    touched = part.model_copy(update={"pieces": tuple(_touched(piece) for piece in part.pieces)})
    assert touched.name == part.name
    assert encode_part(touched, encoding, tmp_path, before) == before.model_copy(update={"part": touched})
    assert read_record(part, tmp_path) == before.model_copy(update={"part": touched})


def _touched(piece: object) -> object:
    file = piece.file.model_copy(update={"version": "later"})  # type: ignore[attr-defined]
    return piece.model_copy(update={"file": file})  # type: ignore[attr-defined]


def test_bytes_of_text_are_counted_without_end_of_text_marks(tmp_path: Path, encoding: Encoding) -> None:
    from agent.corpus.bpe import token_num_bytes

    runs = _runs(tmp_path, ["é and ü", "plain"], encoding, num_files=1)
    (shard,) = plan_shards(runs, bound=0, shard_tokens=1000)
    written = write_shard(shard, runs, tmp_path / "shard", vocab_size=300)
    assert written.num_bytes == 9 + 5
    table = token_num_bytes(encoding.tokenizer)
    assert table is not None
    assert table[np.fromfile(tmp_path / "shard", dtype="<u2")].sum() == 9 + 5
