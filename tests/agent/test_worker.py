import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from agent.assignment import TrainAssignment
from agent.blobs import directory_fetcher
from agent.corpus.manifest import Corpus
from agent.worker import DEVICES_VARIABLE, Worker
from scaling.observations import Failure, Observation, Progress, TrainingObservation


@pytest.fixture
def worker(tmp_path: Path, blob_directory: Path) -> Worker:
    return Worker("node-0", tmp_path / "work", directory_fetcher(blob_directory))


def _only_observation(events: list[Progress | Observation]) -> Observation:
    observations = [event for event in events if not isinstance(event, Progress)]
    assert observations == events[-1:]
    return observations[0]


def test_importing_the_worker_imports_no_torch() -> None:
    code = "import agent.worker, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_prepared_worker_has_imported_what_a_training_needs() -> None:
    code = (
        "import sys; from pathlib import Path; from agent.worker import Worker; "
        "Worker('a', Path('nowhere'), fetch=None).prepare(); sys.exit('agent.training.run' not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_training_assignment_ends_in_one_observation(worker: Worker, assignment: TrainAssignment) -> None:
    observation = _only_observation(list(worker.run(assignment)))
    assert isinstance(observation, TrainingObservation)
    assert observation.assignment_id == assignment.id
    assert observation.provenance.agent == "node-0"


def test_a_finished_run_is_discarded_when_the_caller_says_so(
    worker: Worker, assignment: TrainAssignment, tmp_path: Path
) -> None:
    list(worker.run(assignment))
    checkpoints = tmp_path / "work" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == [assignment.id]
    worker.discard(assignment)
    assert list(checkpoints.iterdir()) == []


def test_a_closed_run_keeps_a_checkpoint_from_which_it_goes_on(worker: Worker, assignment: TrainAssignment) -> None:
    longer = assignment.model_copy(update={"recipe": assignment.recipe.model_copy(update={"num_tokens": 5_120_000})})
    events = worker.run(longer)
    stopped = list(itertools.islice(events, 3))[-1]  # loading, starting, the first second of training
    assert isinstance(stopped, Progress)
    events.close()
    again = worker.run(longer)
    resumed = list(itertools.islice(again, 2))[-1]
    again.close()
    assert isinstance(resumed, Progress)
    assert resumed.message.startswith("resumed at step")
    assert resumed.done_fraction >= stopped.done_fraction > 0


def test_an_interrupt_passes_through(
    worker: Worker, assignment: TrainAssignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agent.training.run.load_data", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(worker.run(assignment))


def test_wrong_blobs_are_a_validation_failure(assignment: TrainAssignment, tmp_path: Path) -> None:
    worker = Worker("node-0", tmp_path, lambda _: b"not what was asked for")
    failure = _only_observation(list(worker.run(assignment)))
    assert isinstance(failure, Failure)
    assert (failure.failure_kind, failure.assignment_id) == ("validation", assignment.id)
    assert "not those asked for" in failure.message


def test_a_missing_corpus_is_a_validation_failure(worker: Worker, assignment: TrainAssignment) -> None:
    failure = _only_observation(list(worker.run(assignment.model_copy(update={"corpus_id": "0" * 64}))))
    assert isinstance(failure, Failure)
    assert failure.failure_kind == "validation"


def test_a_model_that_does_not_fit_is_an_out_of_memory_failure(worker: Worker, assignment: TrainAssignment) -> None:
    huge = assignment.architecture.model_copy(update={"hidden_size": 2**30, "intermediate_size": 2**26})
    failure = _only_observation(list(worker.run(assignment.model_copy(update={"architecture": huge}))))
    assert isinstance(failure, Failure)
    assert failure.failure_kind == "out-of-memory"


def test_the_fetcher_s_own_error_is_classified(assignment: TrainAssignment, tmp_path: Path) -> None:
    def fetch(sha256: str) -> bytes:
        raise TimeoutError(f"no answer for {sha256}")

    failure = _only_observation(list(Worker("node-0", tmp_path, fetch).run(assignment)))
    assert isinstance(failure, Failure)
    assert failure.failure_kind == "timeout"


def test_a_failure_tells_no_secret(
    assignment: TrainAssignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_TOKEN", "open-sesame")

    def fetch(sha256: str) -> bytes:
        raise TimeoutError("no answer to open-sesame")

    failure = _only_observation(list(Worker("node-0", tmp_path, fetch).run(assignment)))
    assert isinstance(failure, Failure)
    assert failure.message == "TimeoutError: no answer to [redacted]"
    assert "Traceback" in failure.detail
    assert "open-sesame" not in failure.detail


def test_blobs_are_kept_for_the_next_assignment(
    assignment: TrainAssignment, corpus: Corpus, tmp_path: Path, blob_directory: Path
) -> None:
    asked: list[str] = []

    def fetch(sha256: str) -> bytes:
        asked.append(sha256)
        return (blob_directory / sha256).read_bytes()

    worker = Worker("node-0", tmp_path, fetch)
    list(worker.run(assignment))
    list(worker.run(assignment))
    assert sorted(asked) == sorted([corpus.id, *(shard.sha256 for shard in corpus.manifest.shards)])


def test_the_probe_gives_a_speed(worker: Worker, assignment: TrainAssignment) -> None:
    assert worker.probe(assignment.architecture, 0.1) > 0


def test_devices_that_cannot_share_a_batch_end_in_a_validation_failure(
    worker: Worker, assignment: TrainAssignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICES_VARIABLE, "3")
    failure = _only_observation(list(worker.run(assignment)))
    assert isinstance(failure, Failure)
    assert failure.failure_kind == "validation"
    assert "8 sequences cannot be shared evenly by 3 devices" in failure.message


@pytest.mark.parametrize("asked", ["many", "0", "-2"])
def test_a_number_of_devices_that_is_none_is_named(
    worker: Worker, assignment: TrainAssignment, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv(DEVICES_VARIABLE, asked)
    failure = _only_observation(list(worker.run(assignment)))
    assert isinstance(failure, Failure)
    assert failure.message == f"ARCHFLEET_DEVICES is '{asked}'; expected a whole number of devices, such as 4"
