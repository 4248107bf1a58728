"""Two processes on the CPU train what one trains, whichever dies, leaves or goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.failures import InvalidInputError
from agent.training.checkpoint import RunState
from agent.training.model import Decoder
from agent.training.parallel import run as parallel
from agent.training.parallel.launch import REPORT_NAME, FailedRank, LaunchReport
from agent.training.parallel.rank import Job, LastWords, words_file
from agent.training.parallel.run import Ended, Ranks, train_on_devices
from agent.training.run import checkpoint_path, train
from agent.training.trunk import TrunkStore
from scaling.observations import Failure, FailureKind, Progress, TrainingObservation

Event = Progress | TrainingObservation | Failure
STEPS = 20


@pytest.fixture
def short_assignment(assignment: TrainAssignment) -> TrainAssignment:
    """Leaves a trunk for a run of half its length; its windows are no multiple of the ranks."""
    num_tokens = STEPS * assignment.recipe.batch_tokens
    recipe = assignment.recipe.model_copy(update={"num_tokens": num_tokens, "warmup_tokens": 512})
    changes = {"recipe": recipe, "num_eval_windows": 23, "branch_tokens": (num_tokens // 2,)}
    return assignment.model_copy(update=changes)


@pytest.fixture
def long_assignment(assignment: TrainAssignment) -> TrainAssignment:
    """Long enough to be interrupted, saved with every report."""
    recipe = assignment.recipe.model_copy(update={"batch_tokens": 2048, "num_tokens": 240 * 2048})
    return assignment.model_copy(update={"recipe": recipe, "checkpoint_every_seconds": 0.01})


@pytest.fixture
def start(blobs: BlobCache, tmp_path: Path) -> Callable[..., Generator[Event, None, None]]:
    def start(assignment: TrainAssignment, *, num_devices: int = 2, **options: Any) -> Generator[Event, None, None]:
        common = {"blobs": blobs, "checkpoint_directory": tmp_path / "checkpoints", "agent": "a", "device": "cpu"}
        run = train if num_devices == 1 else train_on_devices
        several = {} if num_devices == 1 else {"num_devices": num_devices}
        return run(assignment, **(common | several | options))  # type: ignore[return-value, operator]

    return start


def _last(events: Iterator[Event]) -> Event:
    *_, last = events
    return last


def _observation(events: Iterator[Event]) -> TrainingObservation:
    last = _last(events)
    assert isinstance(last, TrainingObservation), last
    return last


def _until(events: Iterator[Event], wanted: Callable[[Progress], bool]) -> Progress:
    for event in events:
        assert isinstance(event, Progress), f"it ended early: {event}"
        if wanted(event):
            return event
    raise AssertionError("it ended without a word")


def _state(commit: Path) -> RunState:
    return RunState.model_validate(json.loads(commit.read_text())["state"])


def _trains(event: Progress) -> bool:
    return event.point is not None and 0 < event.done_fraction < 1


def _family(mark: str) -> dict[int, str]:
    """Rank by process of all processes whose command line or environment names a folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            named = mark.encode() in (entry / "cmdline").read_bytes()
            environment = dict(
                item.split(b"=", 1) for item in (entry / "environ").read_bytes().split(b"\0") if b"=" in item
            )
        except OSError:
            continue
        if named:
            found[int(entry.name)] = environment.get(b"RANK", b"launcher").decode()
    return found


@pytest.fixture
def folder_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the ranks' folders lie: their command lines name it."""
    place = tmp_path / "ranks"
    place.mkdir()
    monkeypatch.setattr(parallel.tempfile, "tempdir", str(place))
    return str(place)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(
    short_assignment: TrainAssignment, start: Callable[..., Iterator[Event]], tmp_path: Path, strategy: str
) -> None:
    kept: list[Any] = []
    one = _observation(start(short_assignment, num_devices=1, checkpoint_directory=tmp_path / "one"))
    two = _observation(
        start(
            short_assignment,
            strategy=strategy,
            micro_batch=2,  # gradients are accumulated too
            trunks=TrunkStore(tmp_path / "trunks"),
            on_finished=lambda model, losses: kept.extend((model, losses)),
        )
    )
    assert (one.num_devices, one.strategy) == (1, None)
    assert (two.num_devices, two.strategy) == (2, strategy)
    assert len(two.curve) == STEPS
    assert [point.loss for point in two.curve] == pytest.approx([point.loss for point in one.curve], rel=1e-5)
    norms = [point.gradient_norm for point in one.curve]
    assert [point.gradient_norm for point in two.curve] == pytest.approx(norms, rel=1e-4)
    assert two.window_losses == pytest.approx(one.window_losses, rel=1e-5)
    model, losses = kept
    assert isinstance(model, Decoder)
    assert losses.shape == (23, short_assignment.recipe.sequence_length)
    assert losses.mean(axis=1) == pytest.approx(two.window_losses, rel=1e-5)

    recipe = short_assignment.recipe.model_copy(update={"num_tokens": short_assignment.branch_tokens[0]})
    short = short_assignment.model_copy(update={"recipe": recipe, "branch_tokens": ()})
    branch = _observation(start(short, num_devices=1, trunks=TrunkStore(tmp_path / "trunks")))
    afresh = _observation(start(short, num_devices=1, checkpoint_directory=tmp_path / "afresh"))
    assert branch.inherited_tokens == recipe.trunk_tokens
    assert branch.window_losses == pytest.approx(afresh.window_losses, rel=1e-5)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_which_goes_on_with_shards_and_then_with_one_process(
    long_assignment: TrainAssignment,
    start: Callable[..., Generator[Event, None, None]],
    tmp_path: Path,
    folder_of_ranks: str,
) -> None:
    events = start(long_assignment, strategy="ddp")
    commit = checkpoint_path(tmp_path / "checkpoints", long_assignment) / "checkpoint.json"  # type: ignore[operator]
    _until(events, lambda event: _trains(event) and commit.exists())
    (victim,) = [pid for pid, rank in _family(folder_of_ranks).items() if rank == "1"]
    os.kill(victim, signal.SIGKILL)
    failure = _last(events)
    assert isinstance(failure, Failure)
    assert failure.message == "rank 1 of 2 was killed by signal 9"
    assert _family(folder_of_ranks) == {}

    events = start(long_assignment, strategy="fsdp")
    resumed = _until(events, lambda event: event.message.startswith("resumed at step"))
    _until(events, _trains)
    events.close()  # drained: the state of its last step is kept
    assert _family(folder_of_ranks) == {}
    state = _state(commit)
    assert state.step > int(resumed.message.split()[3])

    events = start(long_assignment, num_devices=1)
    assert _until(events, lambda event: event.message.startswith("resumed")).message.startswith(
        f"resumed at step {state.step} of"
    )
    events.close()
    straight = start(long_assignment, num_devices=1, checkpoint_directory=tmp_path / "straight")
    _until(straight, lambda event: event.done_fraction * long_assignment.recipe.num_steps >= state.step)
    straight.close()
    expected = _state(tmp_path / "straight" / long_assignment.id / "checkpoint.json").curve
    assert state.curve, "there is something to compare"
    assert [point.num_tokens for point in state.curve] == [point.num_tokens for point in expected[: len(state.curve)]]
    losses = [point.loss for point in expected[: len(state.curve)]]
    assert [point.loss for point in state.curve] == pytest.approx(losses, rel=2e-3)


_AGENT = """
import sys
from pathlib import Path
from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, directory_fetcher
from agent.training.parallel.run import train_on_devices
assignment, blobs, work = TrainAssignment.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
cache = BlobCache(work / "cache", directory_fetcher(blobs))
for event in train_on_devices(assignment, num_devices=2, blobs=cache, checkpoint_directory=work / "checkpoints",
                              agent="killed", device="cpu", strategy="fsdp"):
    print(event.model_dump_json(), flush=True)
"""


@pytest.mark.slow
def test_all_ranks_die_with_their_agent_and_one_process_goes_on_from_their_checkpoint(
    long_assignment: TrainAssignment,
    start: Callable[..., Generator[Event, None, None]],
    blob_directory: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
    arguments = [long_assignment.model_dump_json(), str(blob_directory), str(tmp_path)]
    agent = subprocess.Popen(
        [sys.executable, "-c", _AGENT, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert agent.stdout is not None
    commit = checkpoint_path(tmp_path / "checkpoints", long_assignment) / "checkpoint.json"  # type: ignore[operator]
    for line in agent.stdout:
        if commit.exists() and json.loads(line).get("point"):
            break
    assert sorted(_family(str(folder)).values()) == ["0", "1", "launcher"]
    agent.send_signal(signal.SIGKILL)
    assert agent.wait() == -signal.SIGKILL, "it was killed, not finished"
    agent.stdout.close()
    deadline = time.monotonic() + 20
    while _family(str(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _family(str(folder)) == {}

    events = start(long_assignment, num_devices=1)
    assert _until(events, lambda event: not event.message.startswith("loading")).message.startswith("resumed at step")
    assert _until(events, _trains).done_fraction > 0
    events.close()


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_started(
    short_assignment: TrainAssignment, start: Callable[..., Iterator[Event]]
) -> None:
    with pytest.raises(InvalidInputError, match="cannot be shared evenly by 3 devices"):
        next(start(short_assignment, num_devices=3))


@pytest.fixture
def ranks(short_assignment: TrainAssignment, tmp_path: Path) -> Callable[..., Ranks]:
    """Ranks of two devices whose launcher is a few lines of Python."""

    def ranks(script: str, *, silence_seconds: float = 30.0) -> Ranks:
        job = Job(
            assignment=short_assignment,
            num_devices=2,
            device="cpu",
            strategy=None,
            micro_batch=None,
            compiled=None,
            blobs={},
            checkpoints=str(tmp_path),
            trunks=None,
            agent="a",
            folder=str(tmp_path),
            keeps_losses=False,
        )
        command = [sys.executable, "-S", "-c", script]
        return Ranks(job, clock=time.monotonic, silence_seconds=silence_seconds, command=command)

    return ranks


def _ending(ranks: Ranks) -> tuple[list[Progress], TrainingObservation | Failure | Ended]:
    told, run = [], ranks.run()
    while True:
        try:
            told.append(next(run))
        except StopIteration as ended:
            return told, ended.value


def test_ranks_that_say_nothing_are_given_up(ranks: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_TICK_SECONDS", 0.1)
    told, ending = _ending(ranks("import time; time.sleep(60)", silence_seconds=0.4))
    assert isinstance(ending, Ended)
    assert ending.failure_kind == "timeout"
    assert "2 ranks said nothing for" in ending.message
    assert told, "a sign of life while it waits"


def test_a_launcher_that_crashes_is_told_with_its_log(ranks: Callable[..., Ranks]) -> None:
    _, ending = _ending(ranks("raise SystemExit('no such interface: lo')"))
    assert isinstance(ending, Ended)
    assert ending.message == "the launcher of 2 ranks ended with status 1 without a result"
    assert ending.detail == "no such interface: lo"


def _words(rank: int, unix: float, kind: FailureKind = "unknown", message: str = "gone") -> LastWords:
    return LastWords(rank=rank, unix=unix, failure_kind=kind, message=message, detail="", micro_batch=4)


@pytest.mark.parametrize(
    ("words", "failed", "expected"),
    [
        # Who was killed says nothing; the other lost it and says so.
        ([_words(0, 5.0, message="connection closed")], {1: -9, 0: 1}, "rank 1 of 2 was killed by signal 9"),
        # Who failed first is the cause; the launcher ended the other.
        ([_words(0, 6.0), _words(1, 5.0, "nan-loss", "boom")], {0: 1}, "rank 1 of 2: boom"),
        ([_words(1, 5.0, message="boom")], {0: -15, 1: 1}, "rank 1 of 2: boom"),
        ([], {1: 3}, "rank 1 of 2 ended with status 3 and no word"),
    ],
    ids=["killed", "first error", "ended by the launcher", "mute"],
)
def test_the_cause_is_told_not_its_consequences(
    ranks: Callable[..., Ranks], tmp_path: Path, words: list[LastWords], failed: dict[int, int], expected: str
) -> None:
    for each in words:
        words_file(tmp_path, each.rank).write_text(each.model_dump_json())
    report = LaunchReport(failed=tuple(FailedRank(rank=rank, exit_code=code) for rank, code in failed.items()))
    (tmp_path / REPORT_NAME).write_text(report.model_dump_json())
    _, ending = _ending(ranks("raise SystemExit(1)"))
    assert isinstance(ending, Ended)
    assert ending.message == expected


def test_out_of_memory_begins_once_more_with_half_the_micro_batch(
    short_assignment: TrainAssignment, start: Callable[..., Iterator[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def run(self: Ranks) -> Generator[Progress, None, Ended]:
        asked.append(self._job.micro_batch)
        yield Progress(assignment_id="x", done_fraction=0.5)
        return Ended("out-of-memory", "rank 0 of 2: CUDA out of memory", micro_batch=self._job.micro_batch or 4)

    monkeypatch.setattr(Ranks, "run", run)
    failure = _last(start(short_assignment))
    assert asked == [None, 2]
    assert isinstance(failure, Failure)
    assert failure.failure_kind == "out-of-memory"
