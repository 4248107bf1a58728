"""A feed that runs ahead gives the batches of the stream, in whatever order they are asked for."""

import threading

import pytest
import torch
from torch import Tensor

from agent.training.feed import Feed


class Counting:
    """A stream whose batches name their step, and that remembers which were gathered."""

    def __init__(self) -> None:
        self.gathered: list[int] = []
        self.threads: set[str] = set()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        self.gathered.append(step)
        self.threads.add(threading.current_thread().name)
        return torch.full((2, 3), step), torch.full((2, 3), step + 1)


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_those_of_the_stream(ahead: bool) -> None:
    feed = Feed(Counting(), torch.device("cpu"), ahead=ahead)
    for step in [0, 1, 2, 2, 7, 8, 3]:
        inputs, targets = feed.batch(step)
        assert torch.equal(inputs, torch.full((2, 3), step))
        assert torch.equal(targets, torch.full((2, 3), step + 1))
    feed.close()


def test_the_next_batch_is_gathered_while_this_one_is_trained_and_none_beyond_the_last() -> None:
    stream = Counting()
    feed = Feed(stream, torch.device("cpu"), ahead=True)
    for step in range(3):
        feed.batch(step, last_step=2)
    feed.close()
    assert stream.gathered == [0, 1, 2]
    assert all(name.startswith("archfleet-feed") for name in stream.threads)


def test_on_a_cpu_no_thread_takes_the_core() -> None:
    stream = Counting()
    Feed(stream, torch.device("cpu")).batch(4)
    assert stream.gathered == [4]
    assert stream.threads == {threading.current_thread().name}
