from pathlib import Path

import numpy as np
import pytest
import torch

from agent.blobs import BlobCache
from agent.failures import CorpusError
from agent.training.corpus import Corpus
from agent.training.data import TokenStream, held_out_windows, open_shard, permutation

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


def test_the_order_is_pinned_because_it_is_part_of_every_result() -> None:
    assert permutation(8, seed=0, epoch=0).tolist() == PINNED_0_0
    assert permutation(8, seed=1, epoch=0).tolist() == PINNED_1_0
    assert permutation(8, seed=0, epoch=1).tolist() == PINNED_0_1


PINNED_0_0 = [2, 6, 5, 3, 0, 4, 7, 1]
PINNED_1_0 = [7, 1, 0, 3, 5, 6, 4, 2]
PINNED_0_1 = [4, 2, 0, 7, 3, 1, 5, 6]


def test_permutations_are_even() -> None:
    places = np.array([np.flatnonzero(permutation(5, seed=seed, epoch=0) == 0)[0] for seed in range(2000)])
    assert np.all(np.abs(np.bincount(places) - 400) < 80)  # four and a half standard deviations


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
    tokens = open_shard(blobs.get(shard.sha256), corpus.manifest, "train")
    assert len(tokens) == shard.num_tokens
    assert tokens[0] == corpus.manifest.end_of_text_id


def test_a_truncated_shard_is_refused(corpus: Corpus, blobs: BlobCache, tmp_path: Path) -> None:
    content = blobs.get(corpus.manifest.shard("train").sha256).read_bytes()
    (tmp_path / "short").write_bytes(content[:-2])
    with pytest.raises(CorpusError, match="truncated"):
        open_shard(tmp_path / "short", corpus.manifest, "train")


def test_a_token_outside_the_vocabulary_is_refused(corpus: Corpus, blobs: BlobCache) -> None:
    path = blobs.get(corpus.manifest.shard("train").sha256)
    manifest = corpus.manifest.model_copy(update={"vocab_size": 200})
    with pytest.raises(CorpusError, match="outside its vocabulary of 200"):
        open_shard(path, manifest, "train")
