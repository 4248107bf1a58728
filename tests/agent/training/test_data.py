from pathlib import Path

import numpy as np
import pytest
import torch

from agent.blobs import BlobCache
from agent.corpus.manifest import Corpus
from agent.corpus.shards import TokenShards, open_shard, open_tokens
from agent.failures import CorpusError
from agent.training.data import TokenStream, held_out_windows

TOKENS = np.arange(101, dtype=np.uint16)


def _stream(order_seed: int = 0, batch_tokens: int = 30) -> TokenStream:
    return TokenStream(TOKENS, sequence_length=10, batch_tokens=batch_tokens, order_seed=order_seed)


def test_targets_are_the_inputs_one_token_later() -> None:
    inputs, targets = _stream().batch(0)
    assert inputs.shape == targets.shape == (3, 10)
    assert torch.equal(targets, inputs + 1)


def test_an_epoch_shows_every_window_once_and_the_next_one_in_another_order() -> None:
    stream = _stream(batch_tokens=100)
    first, second = stream.batch(0)[0][:, 0], stream.batch(1)[0][:, 0]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(0, 100, 10))
    assert first.tolist() != second.tolist()


def test_a_step_gives_the_same_batch_whenever_it_is_asked_for() -> None:
    forwards = [_stream().batch(step)[0] for step in range(9)]
    stream = _stream()
    backwards = [stream.batch(step)[0] for step in reversed(range(9))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_batches_straddle_epochs_without_losing_a_window() -> None:
    starts = torch.cat([_stream().batch(step)[0][:, 0] for step in range(10)])  # 30 windows: three epochs of ten
    assert np.bincount(starts.numpy() // 10).tolist() == [3] * 10


def test_held_out_windows_are_disjoint_and_spread_over_the_shard() -> None:
    offsets = held_out_windows(TOKENS, sequence_length=10, num_windows=5)
    assert offsets.tolist() == [0, 20, 40, 60, 80]
    assert held_out_windows(TOKENS, sequence_length=10, num_windows=10).tolist() == list(range(0, 100, 10))


def test_too_many_held_out_windows_are_refused() -> None:
    with pytest.raises(CorpusError, match="has 10: lower num_eval_windows"):
        held_out_windows(TOKENS, sequence_length=10, num_windows=11)


def test_a_shard_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(CorpusError, match="less than one window of 101"):
        TokenStream(TOKENS, sequence_length=101, batch_tokens=101, order_seed=0)


def test_a_batch_that_is_no_whole_number_of_windows_is_refused() -> None:
    with pytest.raises(CorpusError, match="must be a multiple of sequence_length"):
        _stream(batch_tokens=35)


def test_a_shard_is_mapped_with_the_tokens_that_were_written(corpus: Corpus, blobs: BlobCache) -> None:
    shard = corpus.manifest.shard("train")
    tokens = open_shard(blobs.get(shard.sha256), shard, corpus.manifest)
    assert len(tokens) == shard.num_tokens
    assert tokens[0] == corpus.manifest.end_of_text_id


def test_a_header_is_skipped(corpus: Corpus, blobs: BlobCache, tmp_path: Path) -> None:
    shard = corpus.manifest.shard("train")
    content = blobs.get(shard.sha256).read_bytes()
    (tmp_path / "with-header").write_bytes(b"\xff" * 1024 + content)
    tokens = open_shard(tmp_path / "with-header", shard.model_copy(update={"header_bytes": 1024}), corpus.manifest)
    assert tokens.tobytes() == content


def test_a_truncated_shard_is_refused(corpus: Corpus, blobs: BlobCache, tmp_path: Path) -> None:
    shard = corpus.manifest.shard("train")
    (tmp_path / "short").write_bytes(blobs.get(shard.sha256).read_bytes()[:-2])
    with pytest.raises(CorpusError, match="truncated"):
        open_shard(tmp_path / "short", shard, corpus.manifest)


@pytest.mark.parametrize("largest_token", [None, 250], ids=["looked for", "in the manifest"])
def test_a_token_outside_the_vocabulary_is_refused(corpus: Corpus, blobs: BlobCache, largest_token: int | None) -> None:
    shard = corpus.manifest.shard("train").model_copy(update={"largest_token": largest_token})
    manifest = corpus.manifest.model_copy(update={"vocab_size": 200})
    with pytest.raises(CorpusError, match="outside its vocabulary of 200"):
        open_shard(blobs.get(shard.sha256), shard, manifest)


THREE = (np.arange(0, 35, dtype=np.uint16), np.arange(100, 110, dtype=np.uint16), np.arange(200, 251, dtype=np.uint16))
"""Three windows of ten and four tokens over; one token too few for a window; five windows."""


def test_an_epoch_over_several_shards_shows_every_window_of_each_once_and_none_across_two() -> None:
    inputs, targets = TokenStream(TokenShards(THREE), sequence_length=10, batch_tokens=80, order_seed=0).batch(0)
    assert torch.equal(targets, inputs + 1)
    assert sorted(inputs[:, 0].tolist()) == [0, 10, 20, 200, 210, 220, 230, 240]


def test_one_shard_among_shards_gives_the_batches_that_it_gives_alone() -> None:
    alone = _stream()
    wrapped = TokenStream(TokenShards([TOKENS]), sequence_length=10, batch_tokens=30, order_seed=0)
    for step in range(9):
        assert all(torch.equal(a, b) for a, b in zip(alone.batch(step), wrapped.batch(step), strict=True))


def test_held_out_windows_over_several_shards_do_not_straddle_them() -> None:
    shards = TokenShards(THREE)
    offsets = held_out_windows(shards, sequence_length=10, num_windows=4)
    assert shards.gather(offsets, 1)[:, 0].tolist() == [0, 20, 210, 230]


def test_batches_are_pinned_because_they_are_part_of_every_result() -> None:
    starts = [(_stream(order_seed=3).batch(step)[0][:, 0] // 10).tolist() for step in (0, 1, 3)]
    assert starts == PINNED_STARTS


PINNED_STARTS = [[0, 3, 5], [2, 4, 1], [9, 1, 2]]


def test_all_shards_of_a_role_are_opened(corpus: Corpus, blobs: BlobCache) -> None:
    assert len(open_tokens(corpus.manifest, "train", blobs)) == corpus.manifest.shard("train").num_tokens
