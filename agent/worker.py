"""The worker: runs one assignment at a time and turns every ending into exactly one observation.

It knows neither Ray nor the coordinator; a fleet wraps it. Importing this module imports no torch.
"""

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

from agent.assignment import BenchAssignment, TrainAssignment
from agent.blobs import BlobCache, Fetch
from agent.device import make_provenance
from agent.failures import InvalidInputError, failure_from
from agent.redaction import Redaction
from scaling.architecture import Architecture
from scaling.observations import Failure, Observation, Progress

CHECKPOINTS_VARIABLE = "ARCHFLEET_CHECKPOINTS"
"""A directory or a URL of fsspec's (s3://, gs://) where checkpoints lie instead of in the work directory: on storage
that all agents see, a training goes on at another machine though its own has died without a word."""
DEVICES_VARIABLE = "ARCHFLEET_DEVICES"
"""How many devices of this machine share every training; one where it is not set."""


def devices_asked_for() -> int:
    """What `DEVICES_VARIABLE` asks for.

    Raises:
        InvalidInputError: it is no whole number above 0.
    """
    asked = os.environ.get(DEVICES_VARIABLE) or "1"
    if not asked.isdecimal() or int(asked) < 1:
        raise InvalidInputError(f"{DEVICES_VARIABLE} is {asked!r}; expected a whole number of devices, such as 4")
    return int(asked)


class Worker:
    """Runs assignments below `work_directory`, fetching blobs with `fetch`."""

    def __init__(
        self,
        agent_name: str,
        work_directory: Path,
        fetch: Fetch,
        *,
        num_devices: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self.agent_name = agent_name
        self._work_directory = work_directory
        self._blobs = BlobCache(work_directory / "blobs", fetch)
        self._num_devices = num_devices
        self._clock = clock
        self._unix_time = unix_time

    def run(self, assignment: TrainAssignment | BenchAssignment) -> Generator[Progress | Observation, None, None]:
        """Yield signs of life, and last the observation: every error becomes one `Failure`.

        Closing the generator stops the work (a training keeps its checkpoint); KeyboardInterrupt passes through.
        """
        started_at, started = self._unix_time(), self._clock()
        ended = False
        try:
            # Closing the outer generator must close the inner one now, not when it is collected.
            with contextlib.closing(self._dispatch(assignment)) as events:
                for event in events:
                    ended = ended or not isinstance(event, Progress)
                    yield _without_secrets(event) if isinstance(event, Failure) else event
            if not ended:
                raise RuntimeError(f"{assignment.id} ended without an observation")
        except Exception as error:
            if ended:
                raise  # an observation was given: a second one would contradict it
            provenance = make_provenance(
                agent=self.agent_name, started_at_unix=started_at, seconds=self._clock() - started
            )
            yield _without_secrets(failure_from(error, assignment_id=assignment.id, provenance=provenance))

    def prepare(self) -> None:
        """Import what a training needs, where it is installed: seconds that no lease has to wait for."""
        if importlib.util.find_spec("torch") is not None:
            importlib.import_module("agent.training.parallel.run")

    def discard(self, assignment: TrainAssignment | BenchAssignment) -> None:
        """Drop the checkpoint of an assignment whose observation is safe."""
        if isinstance(assignment, TrainAssignment):
            from agent.training.checkpoint import discard_checkpoint
            from agent.training.folder import below, open_folder

            discard_checkpoint(open_folder(below(self._checkpoints, assignment.id)))

    def probe(self, architecture: Architecture, seconds: float = 3.0) -> float:
        """Training speed of this machine at a shape, in tokens per second of wall time."""
        from agent.training.probe import measure_tokens_per_second

        return measure_tokens_per_second(architecture, seconds, clock=self._clock)

    @property
    def _checkpoints(self) -> Path | str:
        elsewhere = os.environ.get(CHECKPOINTS_VARIABLE)
        if elsewhere:
            return elsewhere if "://" in elsewhere else Path(elsewhere)
        return self._work_directory / "checkpoints"

    @property
    def _trunks(self) -> Path:
        """Beside the checkpoints where those lie in a directory, which other machines may share; else on this one."""
        checkpoints = self._checkpoints
        shares = isinstance(checkpoints, Path) and checkpoints != self._work_directory / "checkpoints"
        return (Path(checkpoints) if shares else self._work_directory) / "trunks"

    def _dispatch(self, assignment: TrainAssignment | BenchAssignment) -> Generator[Progress | Observation, None, None]:
        """The generator that does the work; its imports happen, and may fail, at its first step."""
        if isinstance(assignment, TrainAssignment):
            from agent.training.parallel.run import train_on_devices
            from agent.training.trunk import TrunkStore

            yield from train_on_devices(
                assignment,
                num_devices=self._num_devices or devices_asked_for(),
                blobs=self._blobs,
                checkpoint_directory=self._checkpoints,
                agent=self.agent_name,
                clock=self._clock,
                unix_time=self._unix_time,
                trunks=TrunkStore(self._trunks),
            )
        else:
            from agent.benchmark.run import run_benchmark

            yield from run_benchmark(
                assignment, agent=self.agent_name, work_directory=self._work_directory / "bench" / assignment.id
            )


def _without_secrets(failure: Failure) -> Failure:
    """Words of an engine or a library may hold what is secret here; from here on others read them."""
    redaction = Redaction()
    return failure.model_copy(
        update={"message": redaction(failure.message), "detail": redaction(failure.detail)},
    )
