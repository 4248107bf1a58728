"""A training on several devices of this machine: ranks in processes of their own, seen as one run.

It yields what `run.train` yields and takes what that takes. The processes:

    agent ── launcher (launch.py, torch's elastic launcher) ── one rank a device (rank.py)

run in a session of their own. Closing the generator, and Ctrl-C, ask the ranks to leave a checkpoint and go; whoever
has not gone within `DRAIN_SECONDS` is killed. When the agent dies they end at once: each watches a pipe from it. When a
rank dies the run ends as a failure with that rank's last words; a rank out of memory has the run begin once more, from
the checkpoint, with half the micro-batch. Ranks of which nothing is heard for long are killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

import agent as package
from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.corpus.manifest import load_corpus
from agent.device import make_provenance
from agent.engines.descendants import MARK_VARIABLE
from agent.engines.process import Lines, count_kernel_kills, exit_status, start, stop_group, wait_exit
from agent.failures import InvalidInputError
from agent.log_file import LogFollower, last_lines
from agent.training import run
from agent.training.checkpoint import NoCheckpoint, restore_checkpoint
from agent.training.compiling import Choice
from agent.training.folder import open_folder
from agent.training.micro_batch import halved
from agent.training.model import Decoder
from agent.training.optim import make_optimizer
from agent.training.parallel.launch import REPORT_NAME, LaunchReport
from agent.training.parallel.rank import LOSSES_NAME, STOP_NAME, Job, LastWords, words_file
from agent.training.parallel.strategy import Strategy, share_of
from agent.training.run import Finished, checkpoint_path, load_data
from agent.training.trunk import TrunkStore
from agent.training.where import training_device
from agent.training.writer import DRAIN_SECONDS
from scaling.observations import Failure, FailureKind, Progress, TrainingObservation

SILENCE_SECONDS = 1200.0
"""Without a word from the ranks after which they are given up: longer than they wait for each other."""
_TICK_SECONDS = 2.0
_EventAdapter: TypeAdapter[Progress | TrainingObservation | Failure] = TypeAdapter(
    Progress | TrainingObservation | Failure
)


def train_on_devices(
    assignment: TrainAssignment,
    *,
    num_devices: int,
    blobs: BlobCache,
    checkpoint_directory: Path | str,
    agent: str,
    clock: Callable[[], float] = time.monotonic,
    unix_time: Callable[[], float] = time.time,
    device: str | None = None,
    micro_batch: int | None = None,
    compiled: Choice | None = None,
    trunks: TrunkStore | None = None,
    on_finished: Finished | None = None,
    strategy: Strategy | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> Generator[Progress | TrainingObservation | Failure, None, None]:
    """Train and evaluate, or resume, on several devices; the last item is the observation or a failure.

    Args:
        assignment: what to train.
        num_devices: that share it; on a CPU, processes of one thread. 1 is `run.train`, in this process.
        blobs: where the corpus is fetched from.
        checkpoint_directory: as `run.train`'s: a run may go on with another number of devices.
        agent: name of the agent, for the provenance.
        clock: monotonic seconds.
        unix_time: seconds since the epoch, for the provenance.
        device: "cpu" or "cuda"; by default cuda where there is one.
        micro_batch: sequences whose gradients each device forms at once; by default what fits.
        compiled: as `run.train`'s.
        trunks: as `run.train`'s.
        on_finished: as `run.train`'s; the model is on the CPU.
        strategy: ddp or fsdp; by default what the estimate of memory says (`strategy.py`).
        silence_seconds: after which ranks that say nothing are given up.

    Raises:
        InvalidInputError: the corpus cannot be had or does not fit, or the devices cannot share the batch.
    """
    if num_devices == 1:
        yield from run.train(
            assignment,
            blobs=blobs,
            checkpoint_directory=checkpoint_directory,
            agent=agent,
            clock=clock,
            unix_time=unix_time,
            device=device,
            micro_batch=micro_batch,
            compiled=compiled,
            trunks=trunks,
            on_finished=on_finished,
        )
        return
    started_at, started = unix_time(), clock()
    device = training_device(device)
    share = share_of(assignment.recipe, num_devices)
    if device == "cuda" and torch.cuda.device_count() < num_devices:
        raise InvalidInputError(
            f"{num_devices} devices were asked for, torch sees {torch.cuda.device_count()}; expected at most so many"
        )
    yield Progress(assignment_id=assignment.id, done_fraction=0.0, message="loading")
    files = _fetched(assignment, blobs)
    for attempt in range(2):
        with tempfile.TemporaryDirectory(prefix="archfleet-ranks-") as folder:
            ranks = Ranks(
                Job(
                    assignment=assignment,
                    num_devices=num_devices,
                    device="cuda" if device == "cuda" else "cpu",
                    strategy=strategy,
                    micro_batch=micro_batch,
                    compiled=compiled,
                    blobs=files,
                    checkpoints=_absolute(checkpoint_directory),
                    trunks=None if trunks is None else _absolute(trunks.directory),
                    agent=agent,
                    folder=folder,
                    keeps_losses=on_finished is not None,
                ),
                clock=clock,
                silence_seconds=silence_seconds,
            )
            ending = yield from ranks.run()
            if isinstance(ending, Ended) and attempt == 0 and ending.was_short_of_memory:
                assert ending.micro_batch is not None
                micro_batch = halved(share, ending.micro_batch)
                message = (
                    f"out of memory with {ending.micro_batch} sequences on a device: beginning again with {micro_batch}"
                )
                yield Progress(assignment_id=assignment.id, done_fraction=ranks.done_fraction, message=message)
                continue
            provenance = make_provenance(
                agent=agent, started_at_unix=started_at, seconds=clock() - started, on_gpu=device == "cuda"
            )
            if isinstance(ending, Ended):
                yield Failure(
                    assignment_id=assignment.id,
                    failure_kind=ending.failure_kind,
                    message=ending.message,
                    detail=ending.detail,
                    provenance=provenance,
                )
                return
            if on_finished is not None and isinstance(ending, TrainingObservation):
                on_finished(_trained(assignment, checkpoint_directory), np.load(Path(folder) / LOSSES_NAME))
            known = ending.provenance.versions
            yield ending.model_copy(update={"provenance": provenance.model_copy(update={"versions": known})})
            return


@dataclass(frozen=True)
class Ended:
    """The ranks ended without an observation."""

    failure_kind: FailureKind
    message: str
    detail: str = ""
    micro_batch: int | None = None

    @property
    def was_short_of_memory(self) -> bool:
        """Whether a smaller micro-batch may help."""
        return self.failure_kind == "out-of-memory" and self.micro_batch is not None and self.micro_batch > 1


class Ranks:
    """The processes of one job; `command` starts them, and is given the job's file."""

    def __init__(
        self,
        job: Job,
        *,
        clock: Callable[[], float],
        silence_seconds: float,
        command: Sequence[str] = (sys.executable, "-m", "agent.training.parallel.launch"),
    ) -> None:
        self._job = job
        self._command = command
        self._clock = clock
        self._silence_seconds = silence_seconds
        self._folder = Path(job.folder)
        self._log = self._folder / "log"
        self._new = LogFollower(self._log)
        self.done_fraction = 0.0

    def run(self) -> Generator[Progress, None, TrainingObservation | Failure | Ended]:
        """Start them and yield what rank 0 reports, and a sign of life where it says nothing; returns how they ended.

        Whatever the ending, no process is left.
        """
        (self._folder / "job.json").write_text(self._job.model_dump_json())
        mark = uuid.uuid4().hex
        kills_before = count_kernel_kills()
        command = [*self._command, str(self._folder / "job.json")]
        process = start(command, self._log, {**_environment(), MARK_VARIABLE: mark})
        lines = Lines(process, self._log)
        try:
            ending = yield from self._listen(process, lines)
            if ending is None:
                wait_exit(process)
                if last := self._new.new_lines(is_over=True):
                    yield self._progress("the ranks have ended", last)
                return self._last_words(process, kernel_killed=count_kernel_kills() > kills_before)
            if not isinstance(ending, Ended):
                wait_exit(process)
            return ending
        except (GeneratorExit, KeyboardInterrupt):
            (self._folder / STOP_NAME).touch()
            _drain(process, lines, DRAIN_SECONDS)
            raise
        finally:
            stop_group(process, mark=mark)
            lines.close()

    def _listen(
        self, process: subprocess.Popen[bytes], lines: Lines
    ) -> Generator[Progress, None, TrainingObservation | Failure | Ended | None]:
        """Until there is an observation; None where the processes ended without one."""
        heard_at, has_exited = self._clock(), False
        while True:
            line = lines.read(0 if has_exited else _TICK_SECONDS)
            if line == b"" or (line is None and has_exited):
                return None
            if line is None:
                has_exited = exit_status(process) is not None
                silent_seconds = self._clock() - heard_at
                if silent_seconds > self._silence_seconds:
                    message = f"{self._job.num_devices} ranks said nothing for {silent_seconds:.0f} s; they were killed"
                    return Ended("timeout", message, last_lines(self._log))
                yield self._progress(f"{self._job.num_devices} ranks, silent for {silent_seconds:.0f} s")
                continue
            event = self._parsed(line)
            if event is None:
                continue
            heard_at = self._clock()
            if not isinstance(event, Progress):
                return event
            self.done_fraction = event.done_fraction
            yield event.model_copy(update={"lines": self._new.new_lines()})

    def _progress(self, message: str, lines: tuple[str, ...] | None = None) -> Progress:
        return Progress(
            assignment_id=self._job.assignment.id,
            done_fraction=self.done_fraction,
            message=message,
            lines=self._new.new_lines() if lines is None else lines,
        )

    def _parsed(self, line: bytes) -> Progress | TrainingObservation | Failure | None:
        """What rank 0 said; None for the noise of a library, which joins the log."""
        if line.startswith(b"{"):
            with contextlib.suppress(ValidationError):
                return _EventAdapter.validate_json(line)
        with self._log.open("ab") as log:
            log.write(line)
        return None

    def _last_words(self, process: subprocess.Popen[bytes], *, kernel_killed: bool) -> Ended:
        """Why the ranks ended, from what they and their launcher left: a killed rank, else the first error."""
        count, log = self._job.num_devices, last_lines(self._log)
        words = sorted(self._all_words(), key=lambda each: each.unix)
        report = self._folder / REPORT_NAME
        failed = LaunchReport.model_validate_json(report.read_bytes()).failed if report.exists() else ()
        spoke = {each.rank for each in words}
        for rank in failed:
            if rank.exit_code < 0 and rank.exit_code != -signal.SIGTERM and rank.rank not in spoke:
                kind: FailureKind = (
                    "out-of-memory" if kernel_killed and rank.exit_code == -signal.SIGKILL else "unknown"
                )
                message = f"rank {rank.rank} of {count} was killed by signal {-rank.exit_code}"
                return Ended(kind, message, log)
        if words:
            first = words[0]
            message = f"rank {first.rank} of {count}: {first.message}"
            return Ended(first.failure_kind, message, first.detail, first.micro_batch)
        if failed:
            message = f"rank {failed[0].rank} of {count} ended with status {failed[0].exit_code} and no word"
            return Ended("unknown", message, log)
        status = exit_status(process)
        ending = "closed its output" if status is None else f"ended with status {status}"
        return Ended("unknown", f"the launcher of {count} ranks {ending} without a result", log)

    def _all_words(self) -> Iterator[LastWords]:
        for rank in range(self._job.num_devices):
            file = words_file(self._folder, rank)
            with contextlib.suppress(OSError, ValidationError):  # killed while it was writing them
                yield LastWords.model_validate_json(file.read_bytes())


def _fetched(assignment: TrainAssignment, blobs: BlobCache) -> dict[str, str]:
    """Files of all blobs that the run reads, once it is known that they fit the assignment."""
    load_data(assignment, blobs)
    manifest = load_corpus(blobs, assignment.corpus_id).manifest
    names = [shard.sha256 for role in ("train", "validation") for shard in manifest.shards_of(role)]
    return {name: str(blobs.get(name).absolute()) for name in (assignment.corpus_id, *names)}


def _absolute(place: Path | str) -> str:
    return str(place) if "://" in str(place) else str(Path(place).absolute())


def _environment() -> dict[str, str]:
    """Of launcher and ranks: this very code, one thread each, and all talk over the loopback."""
    paths = [str(Path(str(package.__file__)).parents[1]), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    interfaces = {name: os.environ.get(name, "lo") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    return own | interfaces


def _drain(process: subprocess.Popen[bytes], lines: Lines, seconds: float) -> None:
    """Wait until the ranks have left; what they still say is dropped, so that none waits to be heard."""
    deadline = time.monotonic() + seconds
    while exit_status(process) is None and time.monotonic() < deadline:
        if lines.read(0.1) == b"":
            wait_exit(process, max(0.0, deadline - time.monotonic()))
            return


def _trained(assignment: TrainAssignment, checkpoint_directory: Path | str) -> Decoder:
    """The model of a run that is done, from its last checkpoint."""
    model = Decoder(assignment.architecture, max_sequence_length=assignment.recipe.sequence_length)
    folder = open_folder(checkpoint_path(checkpoint_directory, assignment))
    optimizer = make_optimizer(model, assignment.recipe)
    found = restore_checkpoint(folder, model, optimizer, assignment_hash=assignment.content_hash())
    if isinstance(found, NoCheckpoint) or found.step < assignment.recipe.num_steps:
        reason = found.reason if isinstance(found, NoCheckpoint) else f"it is that of step {found.step}"
        raise OSError(f"the last checkpoint in {folder} cannot be used: {reason}")
    return model
