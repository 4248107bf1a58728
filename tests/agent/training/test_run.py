import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.failures import CorpusError
from agent.training.run import checkpoint_path, discard_checkpoint, train
from scaling.observations import Failure, Progress, TrainingObservation

Event = Progress | TrainingObservation | Failure


class Clock:
    """Time that passes by a fixed amount whenever it is read."""

    def __init__(self, tick_seconds: float) -> None:
        self._times = itertools.count(0.0, tick_seconds)

    def __call__(self) -> float:
        return next(self._times)


@pytest.fixture
def start(blobs: BlobCache, tmp_path: Path) -> Callable[..., Iterator[Event]]:
    def start(
        assignment: TrainAssignment, *, directory: str = "checkpoints", tick_seconds: float = 0.1
    ) -> Iterator[Event]:
        return train(
            assignment,
            blobs=blobs,
            checkpoint_directory=tmp_path / directory,
            agent="tester",
            clock=Clock(tick_seconds),
            unix_time=lambda: 1000.0,
            device="cpu",
        )

    return start


def _finish(events: Iterator[Event]) -> TrainingObservation:
    *progress, last = events
    assert all(isinstance(event, Progress) for event in progress)
    assert isinstance(last, TrainingObservation)
    return last


def _changed(assignment: TrainAssignment, **recipe: float) -> TrainAssignment:
    return assignment.model_copy(update={"recipe": assignment.recipe.model_copy(update=recipe)})


def test_a_run_learns_and_reports_itself(assignment: TrainAssignment, start: Callable[..., Iterator[Event]]) -> None:
    events = list(start(assignment))
    observation = events[-1]
    assert isinstance(observation, TrainingObservation)
    assert observation.loss < 0.8 * math.log(assignment.architecture.vocab_size)
    assert observation.num_tokens == 12_800
    assert len(observation.window_losses) == 24
    assert observation.loss == pytest.approx(np.mean(observation.window_losses))
    spread = np.std(observation.window_losses, ddof=1) / np.sqrt(24)
    assert observation.loss_standard_error == pytest.approx(spread)
    assert observation.tokens_per_second == pytest.approx(12_800 / observation.train_seconds)
    assert observation.curve[-1].loss < observation.curve[0].loss
    assert observation.curve[-1].num_tokens == 12_800
    assert observation.provenance.agent == "tester"
    assert observation.provenance.started_at_unix == 1000.0
    fractions = [event.done_fraction for event in events if isinstance(event, Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_run_of_the_same_assignment_gives_the_same_losses_whatever_the_clock(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]]
) -> None:
    slow = _finish(start(assignment, directory="a", tick_seconds=0.5))
    fast = _finish(start(assignment, directory="b", tick_seconds=0.001))
    assert slow.window_losses == fast.window_losses
    assert slow.curve == fast.curve


def test_a_seed_changes_the_weights_and_a_data_order_the_batches(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]]
) -> None:
    losses = {
        _finish(start(_changed(assignment, **change), directory=str(number))).loss
        for number, change in enumerate([{}, {"seed": 1}, {"order_seed": 1}])
    }
    assert len(losses) == 3


@pytest.mark.parametrize("stops", [[3], [3, 3, 4]], ids=["once", "three times"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]], stops: list[int]
) -> None:
    straight = _finish(start(assignment, directory="straight", tick_seconds=0.2))
    for num_events in stops:
        events = start(assignment, tick_seconds=0.2)
        reached = [event for event in itertools.islice(events, num_events) if isinstance(event, Progress)]
        assert reached[-1].done_fraction < 1
        events.close()  # type: ignore[attr-defined]
    resumed = _finish(start(assignment, tick_seconds=0.2))
    assert resumed.num_resumes == len(stops)
    assert resumed.window_losses == straight.window_losses
    assert resumed.curve == straight.curve
    assert resumed.train_seconds == pytest.approx(straight.train_seconds, rel=0.5)


def test_a_killed_run_goes_on_from_its_last_checkpoint_bit_for_bit(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]], tmp_path: Path
) -> None:
    straight = _finish(start(assignment, directory="straight"))
    assignment = assignment.model_copy(update={"checkpoint_every_seconds": 1.0})
    killed = start(assignment)
    list(itertools.islice(killed, 4))
    # A kill writes nothing more: what closing the generator saves is put back to what was there before.
    directory = checkpoint_path(tmp_path / "checkpoints", assignment)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    killed.close()  # type: ignore[attr-defined]
    discard_checkpoint(directory)
    directory.mkdir()
    for name, content in before.items():
        (directory / name).write_bytes(content)
    resumed = _finish(start(assignment))
    assert resumed.num_resumes == 1
    assert resumed.window_losses == straight.window_losses


def test_a_run_killed_in_its_evaluation_does_not_train_again(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]]
) -> None:
    first = _finish(start(assignment))
    events = list(start(assignment))
    again = events[-1]
    assert isinstance(again, TrainingObservation)
    assert isinstance(events[1], Progress)
    assert events[1].message == "resumed at step 50 of 50"
    assert again.window_losses == first.window_losses
    assert again.train_seconds == first.train_seconds


def test_a_diverging_run_ends_as_a_nan_loss_and_leaves_no_poisoned_checkpoint(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]], tmp_path: Path
) -> None:
    wild = _changed(assignment, base_learning_rate=1e4)
    last = list(start(wild, tick_seconds=1.0))[-1]
    assert isinstance(last, Failure)
    assert last.failure_kind == "nan-loss"
    assert "lower base_learning_rate" in last.message
    assert "diverged at step" in last.message
    assert "no checkpoint was written" in last.message
    assert not checkpoint_path(tmp_path / "checkpoints", wild).exists()


def test_the_time_that_the_caller_takes_is_not_training_time(
    assignment: TrainAssignment, blobs: BlobCache, tmp_path: Path
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.05
        return now[0]

    events = train(assignment, blobs=blobs, checkpoint_directory=tmp_path / "c", agent="a", clock=clock, device="cpu")
    observation = None
    for event in events:
        now[0] += 100.0
        observation = event
    assert isinstance(observation, TrainingObservation)
    assert observation.train_seconds < 50


def test_a_vocabulary_that_the_architecture_does_not_cover_is_refused(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]]
) -> None:
    small = assignment.architecture.model_copy(update={"vocab_size": 256})
    with pytest.raises(CorpusError, match=r"vocabulary of 300.*vocab_size is 256"):
        list(start(assignment.model_copy(update={"architecture": small})))


def test_more_evaluation_windows_than_there_are_is_refused_before_training(
    assignment: TrainAssignment, start: Callable[..., Iterator[Event]]
) -> None:
    with pytest.raises(CorpusError, match="lower num_eval_windows"):
        list(start(assignment.model_copy(update={"num_eval_windows": 10**6})))


def test_one_thread_a_run(assignment: TrainAssignment, start: Callable[..., Iterator[Event]]) -> None:
    list(start(assignment))
    assert torch.get_num_threads() == 1
