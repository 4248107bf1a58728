"""An agent's actor: works on a thread, tells through its outbox, saves itself when it has to leave."""

import os
import stat
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from agent.blobs import directory_fetcher
from agent.worker import Worker
from coordinator.fleet.actor import DRAIN_VARIABLE, AgentActor, take_up
from coordinator.fleet.outbox import Message
from scaling.observations import Failure, Observation, Progress, ServingObservation
from scaling.recipes import ServingRecipe, Workload

MAX_SECONDS = 240.0


@pytest.fixture
def bench(long_training: TrainAssignment) -> BenchAssignment:
    return BenchAssignment(
        architecture=long_training.architecture,
        recipe=ServingRecipe(engine="fake", dtype="float32"),
        workload=Workload(batch_size=2, input_tokens=8, output_tokens=8),
        num_repeats=1,
        min_window_seconds=0.01,
    )


@pytest.fixture
def make_actor(tmp_path: Path, blob_directory: Path) -> Callable[[str], AgentActor]:
    return lambda name: AgentActor(name, str(tmp_path / name), directory_fetcher(blob_directory))


def fetch_until(actor: AgentActor, wanted: Callable[[Message], bool]) -> list[Message]:
    """Messages up to the first wanted one."""
    messages: list[Message] = []
    give_up = time.monotonic() + MAX_SECONDS
    while time.monotonic() < give_up:
        messages += actor.fetch(1.0)[0]
        if any(wanted(message) for message in messages):
            return messages
    raise AssertionError(f"not told within {MAX_SECONDS:.0f} s: {messages}")


def has_trained(message: Message) -> bool:
    return not message.is_final and Progress.model_validate_json(message.item).done_fraction > 0


def is_final(message: Message) -> bool:
    return message.is_final


def test_a_trial_ends_in_one_final_message_under_its_epoch(
    make_actor: Callable[[str], AgentActor], bench: BenchAssignment
) -> None:
    actor = make_actor("a")
    actor.start([(bench.id, 7, bench.model_dump_json())])

    (final,) = [message for message in fetch_until(actor, is_final) if message.is_final]

    assert (final.trial_id, final.epoch) == (bench.id, 7)
    assert ServingObservation.model_validate_json(final.item).assignment_id == bench.id


def test_what_a_trial_says_comes_along_line_by_line(
    make_actor: Callable[[str], AgentActor], bench: BenchAssignment
) -> None:
    actor = make_actor("a")
    actor.start([(bench.id, 7, bench.model_dump_json())])

    log = "".join(message.log for message in fetch_until(actor, is_final))

    first, *_, last = log.splitlines()
    assert "a on " in first
    assert "epoch 7" in first
    assert "fake repeat 1/1: ready" in log
    assert "output tokens/s" in last
    assert "flags: fake" in last


def test_what_libraries_write_in_the_agents_own_process_is_in_the_log_of_the_trial_that_runs(
    bench: BenchAssignment, tmp_path: Path, blob_directory: Path
) -> None:
    if not stat.S_ISREG(os.fstat(2).st_mode):
        pytest.skip("needs pytest's own capture of standard error: leave -s out")

    class Talkative(Worker):
        def run(self, assignment: TrainAssignment | BenchAssignment) -> Generator[Progress | Observation, None, None]:
            os.write(2, b"a library warns\n")
            yield from super().run(assignment)

    os.write(2, b"before its time\n")
    actor = AgentActor("a", str(tmp_path / "a"), directory_fetcher(blob_directory), Talkative)
    actor.start([(bench.id, 1, bench.model_dump_json())])
    log = "".join(message.log for message in fetch_until(actor, is_final))

    assert "|  a library warns\n" in log
    assert "before its time" not in log


def test_trials_given_together_are_done_in_order(
    make_actor: Callable[[str], AgentActor], bench: BenchAssignment
) -> None:
    actor, text = make_actor("a"), bench.model_dump_json()
    actor.start([("t1", 1, text), ("t2", 1, text), ("t3", 4, text)])
    told = fetch_until(actor, lambda message: message.trial_id == "t3" and message.is_final)

    assert [(message.trial_id, message.epoch) for message in told if message.is_final] == [
        ("t1", 1),
        ("t2", 1),
        ("t3", 4),
    ]


def test_a_trial_that_cannot_be_read_holds_up_nobody_behind_it(
    make_actor: Callable[[str], AgentActor], bench: BenchAssignment
) -> None:
    actor = make_actor("a")
    actor.start([("unreadable", 1, "{}"), ("t", 1, bench.model_dump_json())])

    assert fetch_until(actor, is_final)[-1].trial_id == "t"


def test_what_waits_at_an_agent_that_must_leave_is_given_back(
    make_actor: Callable[[str], AgentActor], bench: BenchAssignment
) -> None:
    actor = make_actor("a")
    actor.preempt("the machine is wanted elsewhere")
    actor.start([("t1", 1, bench.model_dump_json()), ("t2", 1, bench.model_dump_json())])
    told = fetch_until(actor, lambda message: message.trial_id == "t2")

    assert [Failure.model_validate_json(message.item).failure_kind for message in told] == ["preempted", "preempted"]


def test_an_agent_that_must_leave_sends_its_checkpoint_and_another_goes_on_from_it(
    make_actor: Callable[[str], AgentActor], long_training: TrainAssignment
) -> None:
    leaving, taking_over = make_actor("leaving"), make_actor("taking-over")
    leaving.start([(long_training.id, 1, long_training.model_dump_json())])
    fetch_until(leaving, has_trained)
    leaving.preempt("the machine is wanted elsewhere")
    final = fetch_until(leaving, is_final)[-1]
    failure = Failure.model_validate_json(final.item)
    assert failure.failure_kind == "preempted"
    assert "wanted elsewhere" in failure.message
    assert final.checkpoint is not None

    taking_over.start([(long_training.id, 2, long_training.model_dump_json())], final.checkpoint)
    told = [Progress.model_validate_json(message.item).message for message in fetch_until(taking_over, has_trained)]
    taking_over.preempt("the test is over")
    fetch_until(taking_over, is_final)

    assert any(message.startswith("resumed at step") for message in told)


def test_what_an_agent_has_kept_is_removed_at_the_end_of_the_study(
    make_actor: Callable[[str], AgentActor], bench: BenchAssignment, tmp_path: Path
) -> None:
    actor = make_actor("a")
    actor.start([(bench.id, 1, bench.model_dump_json())])
    fetch_until(actor, is_final)
    assert list((tmp_path / "a").iterdir())

    actor.clear()

    assert not (tmp_path / "a").exists()


def test_an_unusable_checkpoint_is_said_so(tmp_path: Path) -> None:
    sentence = take_up(b"no archive", tmp_path / "checkpoint")

    assert sentence.startswith("starting afresh: the checkpoint that was sent along is unusable")


def test_training_starts_afresh_after_an_unusable_checkpoint(
    make_actor: Callable[[str], AgentActor], long_training: TrainAssignment
) -> None:
    actor = make_actor("a")
    actor.start([(long_training.id, 1, long_training.model_dump_json())], b"no archive")

    assert fetch_until(actor, has_trained)

    actor.preempt("the test is over")
    fetch_until(actor, is_final)


def test_a_file_on_its_machine_drains_an_agent(
    make_actor: Callable[[str], AgentActor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, file = make_actor("a"), tmp_path / "leave"
    monkeypatch.setenv(DRAIN_VARIABLE, str(file))
    assert actor.fetch(0) == ([], "")

    file.touch()

    assert actor.fetch(0) == ([], f"{DRAIN_VARIABLE} {file} exists")


def test_an_agent_tells_the_hardware_that_it_pretends_to_have(
    make_actor: Callable[[str], AgentActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHFLEET_PRETENDED_HARDWARE", "h200")
    assert make_actor("one").describe()["hardware"] == "h200"
