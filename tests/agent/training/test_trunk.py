"""One trunk, several D: a run that branches off costs less and gives bit for bit what it gives from scratch."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, directory_fetcher
from agent.training.checkpoint import NoCheckpoint, RunState
from agent.training.model import Decoder, init_weights
from agent.training.optim import make_optimizer
from agent.training.run import train
from agent.training.trunk import TrunkStore, trunk_key
from agent.worker import CHECKPOINTS_VARIABLE, Worker
from scaling.architecture import Architecture
from scaling.observations import Failure, Progress, TrainingObservation
from scaling.recipes import TrainingRecipe

Event = Progress | TrainingObservation | Failure
SHORT, MIDDLE, LONG = (256 * steps for steps in (10, 20, 40))  # decays begin after 7, 14 and 28 steps


@pytest.fixture
def long(assignment: TrainAssignment) -> TrainAssignment:
    """The trunk: 40 steps, off which runs of 10 and 20 steps branch."""
    recipe = assignment.recipe.model_copy(update={"num_tokens": LONG, "warmup_tokens": 4 * 256})
    return assignment.model_copy(update={"recipe": recipe, "branch_tokens": (SHORT, MIDDLE)})


def branch(long: TrainAssignment, num_tokens: int) -> TrainAssignment:
    recipe = long.recipe.model_copy(update={"num_tokens": num_tokens})
    return long.model_copy(
        update={"recipe": recipe, "branch_tokens": (), "trunk_tokens": recipe.trunk_tokens},
    )


@pytest.fixture
def start(blobs: BlobCache, tmp_path: Path) -> Callable[..., Iterator[Event]]:
    def start(assignment: TrainAssignment, trunks: TrunkStore | None, *, work: str = "work") -> Iterator[Event]:
        ticks = itertools.count(0.0, 0.1)
        return train(
            assignment,
            blobs=blobs,
            checkpoint_directory=tmp_path / work,
            agent="tester",
            clock=lambda: next(ticks),
            unix_time=lambda: 1000.0,
            device="cpu",
            trunks=trunks,
        )

    return start


@pytest.fixture
def trunks(tmp_path: Path) -> TrunkStore:
    return TrunkStore(tmp_path / "trunks")


def finish(events: Iterator[Event]) -> TrainingObservation:
    *_, last = events
    assert isinstance(last, TrainingObservation)
    return last


def states(directory: Path) -> list[str]:
    return sorted(path.parent.name for path in directory.glob("*/*/checkpoint.json"))


@pytest.mark.parametrize("num_tokens", [SHORT, MIDDLE])
def test_a_branch_gives_bit_for_bit_the_losses_of_a_run_from_scratch(
    long: TrainAssignment, start: Callable[..., Iterator[Event]], trunks: TrunkStore, num_tokens: int
) -> None:
    scratch = finish(start(branch(long, num_tokens), None, work="scratch"))
    finish(start(long, trunks))
    branched = finish(start(branch(long, num_tokens), trunks))
    assert branched.inherited_tokens == 0.7 * num_tokens
    assert scratch.inherited_tokens == 0
    assert branched.window_losses == scratch.window_losses
    assert branched.num_tokens == scratch.num_tokens == num_tokens
    assert branched.curve[-1].loss == pytest.approx(scratch.curve[-1].loss)


def test_leaving_states_behind_changes_nothing_of_the_trunks_own_run(
    long: TrainAssignment, start: Callable[..., Iterator[Event]], trunks: TrunkStore, tmp_path: Path
) -> None:
    without = finish(start(long, None, work="scratch"))
    assert finish(start(long, trunks)).window_losses == without.window_losses
    assert states(tmp_path / "trunks") == ["000000007", "000000014"]


def test_a_branch_counts_only_what_it_trained_itself(
    long: TrainAssignment, start: Callable[..., Iterator[Event]], trunks: TrunkStore
) -> None:
    finish(start(long, trunks))
    short = finish(start(branch(long, SHORT), trunks))
    assert short.tokens_per_second * short.train_seconds == pytest.approx(3 * 256)
    assert short.train_seconds < finish(start(branch(long, SHORT), None, work="scratch")).train_seconds
    assert short.num_resumes == 0


def test_a_stopped_branch_goes_on_from_its_own_checkpoint_and_still_knows_what_it_inherited(
    long: TrainAssignment, start: Callable[..., Iterator[Event]], trunks: TrunkStore
) -> None:
    finish(start(long, trunks))
    scratch = finish(start(branch(long, MIDDLE), None, work="scratch"))
    assignment = branch(long, MIDDLE)
    events = start(assignment, trunks)
    messages = [next(events).message for _ in range(2)]  # type: ignore[union-attr]
    assert messages[-1] == "branched off a trunk at step 14 of 20"
    next(events)
    events.close()  # type: ignore[attr-defined]
    resumed = finish(start(assignment, trunks))
    assert (resumed.num_resumes, resumed.inherited_tokens) == (1, 14 * 256)
    assert resumed.window_losses == scratch.window_losses


def test_a_run_takes_up_the_furthest_state_before_its_own_decay(
    long: TrainAssignment, start: Callable[..., Iterator[Event]], trunks: TrunkStore
) -> None:
    finish(start(long, trunks))
    between = finish(start(branch(long, 256 * 30), trunks))  # decays after 21 steps: goes on from step 14
    assert between.inherited_tokens == 14 * 256
    assert between.window_losses == finish(start(branch(long, 256 * 30), None, work="scratch")).window_losses


def test_a_corrupt_state_is_passed_over_for_a_stated_reason(
    long: TrainAssignment, start: Callable[..., Iterator[Event]], trunks: TrunkStore, tmp_path: Path
) -> None:
    finish(start(long, trunks))
    for file in (tmp_path / "trunks").glob("*/*/state-*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
    events = list(start(branch(long, MIDDLE), trunks))
    said = events[1].message  # type: ignore[union-attr]
    assert said.startswith("starting afresh: no checkpoint was written yet; step 14: state-14.safetensors is corrupt")
    assert "step 7: state-7.safetensors is corrupt" in said
    assert isinstance(events[-1], TrainingObservation)
    assert events[-1].inherited_tokens == 0
    assert events[-1].window_losses == finish(start(branch(long, MIDDLE), None, work="scratch")).window_losses


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"order_seed": 1}, {"base_learning_rate": 0.004}, {"warmup_tokens": 512}, {"weight_decay": 0.0}],
    ids=lambda change: next(iter(change)),
)
def test_runs_whose_steps_differ_share_no_trunk(long: TrainAssignment, change: dict[str, Any]) -> None:
    other = long.model_copy(update={"recipe": long.recipe.model_copy(update=change)})
    assert trunk_key(other, device="cpu") != trunk_key(long, device="cpu")


def test_a_trunk_belongs_to_one_shape_corpus_and_kind_of_device(long: TrainAssignment) -> None:
    wider = long.architecture.model_copy(update={"intermediate_size": 44})
    others = [
        trunk_key(long.model_copy(update={"architecture": wider}), device="cpu"),
        trunk_key(long.model_copy(update={"corpus_id": "0" * 64}), device="cpu"),
        trunk_key(long, device="cuda"),
    ]
    assert len({trunk_key(long, device="cpu"), *others}) == 4
    assert trunk_key(branch(long, SHORT), device="cpu") == trunk_key(long, device="cpu")


@pytest.fixture
def parts(small_architecture: Architecture) -> tuple[Decoder, torch.optim.Optimizer]:
    model = Decoder(small_architecture, max_sequence_length=8)
    init_weights(model, seed=0)
    return model, make_optimizer(model, TrainingRecipe(num_tokens=512))


def test_the_oldest_states_are_dropped_beyond_the_budget(
    parts: tuple[Decoder, torch.optim.Optimizer], tmp_path: Path
) -> None:
    TrunkStore(tmp_path / "one").leave("a" * 64, RunState(step=1), *parts)
    one = sum(file.stat().st_size for file in (tmp_path / "one").glob("*/*/*"))
    store = TrunkStore(tmp_path / "trunks", max_bytes=int(2.5 * one))
    for step in (3, 1, 2):
        assert store.leave("a" * 64, RunState(step=step), *parts) == f"the trunk is kept at step {step}"
        commit = tmp_path / "trunks" / ("a" * 64) / f"{step:09d}" / "checkpoint.json"
        os.utime(commit, ns=(0, len(states(tmp_path / "trunks"))))
    assert states(tmp_path / "trunks") == ["000000001", "000000002"]
    assert isinstance(store.take_up("a" * 64, *parts, max_step=9), RunState)


def test_a_state_larger_than_the_whole_budget_is_not_kept_and_that_is_said(
    parts: tuple[Decoder, torch.optim.Optimizer], tmp_path: Path
) -> None:
    store = TrunkStore(tmp_path, max_bytes=1000)
    assert store.leave("a" * 64, RunState(step=5), *parts).endswith("step 5: 1,000 bytes are too few for it")
    assert isinstance(store.take_up("a" * 64, *parts, max_step=9), NoCheckpoint)


def test_a_trunk_that_cannot_be_written_stops_no_training(
    long: TrainAssignment, start: Callable[..., Iterator[Event]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    events = list(start(long, TrunkStore(tmp_path / "file")))
    assert any("could not be kept at step 7" in event.message for event in events if isinstance(event, Progress))
    assert isinstance(events[-1], TrainingObservation)


def test_branches_that_share_no_trunk_are_refused(long: TrainAssignment) -> None:
    plain = long.model_dump()
    with pytest.raises(ValidationError, match="branch off after the trunk's own decay has begun"):
        TrainAssignment.model_validate(plain | {"branch_tokens": [2 * LONG]})
    with pytest.raises(ValidationError, match=r"need recipe\.warmup_tokens"):
        TrainAssignment.model_validate(plain | {"recipe": plain["recipe"] | {"warmup_tokens": None}})


def test_an_assignment_without_branches_is_named_as_before(assignment: TrainAssignment) -> None:
    assert not {"branch_tokens", "trunk_tokens"} & assignment.model_dump().keys()


@pytest.mark.parametrize("shared", [False, True], ids=["one machine", "a shared directory"])
def test_workers_of_one_machine_or_of_a_shared_directory_share_their_trunks(
    long: TrainAssignment, blob_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    if shared:
        monkeypatch.setenv(CHECKPOINTS_VARIABLE, str(tmp_path / "everywhere"))
    other = tmp_path / ("other-machine" if shared else "machine")
    first = Worker("node-0", tmp_path / "machine", directory_fetcher(blob_directory))
    second = Worker("node-1", other, directory_fetcher(blob_directory))
    *_, trunk = first.run(long)
    *_, short = second.run(branch(long, SHORT))
    assert isinstance(trunk, TrainingObservation)
    assert isinstance(short, TrainingObservation)
    assert short.inherited_tokens == 0.7 * SHORT
