"""One of the processes that train together: `python -m agent.training.parallel.rank JOB`, started by `launch.py`.

Rank 0 writes what a run yields to its standard output, a line of JSON each. A rank that fails leaves its last words in
the job's folder. All leave, with a checkpoint, when the file `stop` appears there, and at once when their standard
input ends: then the agent that started them is gone.
"""

import os
import sys
import threading
import time
import traceback
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache
from agent.failures import MAX_DETAIL_BYTES, BlobMissingError, classify
from agent.log import ending
from agent.training.parallel.strategy import Strategy
from hwprofiles.value import Value
from scaling.observations import FailureKind

STOP_NAME = "stop"
LOSSES_NAME = "losses.npy"


class Job(Value):
    """What the ranks are to do; all files are named by absolute paths."""

    assignment: TrainAssignment
    num_devices: int
    device: Literal["cpu", "cuda"]
    strategy: Strategy | None
    micro_batch: int | None
    """Sequences whose gradients each rank forms at once; null for what fits."""
    compiled: Literal["auto", "on", "off"] | None
    blobs: dict[str, str]
    """File of every blob that the run reads, by its SHA-256: fetched and checked by who started the ranks."""
    checkpoints: str
    """A directory, or a URL of fsspec's."""
    trunks: str | None
    agent: str
    folder: str
    """For `stop`, last words and held-out losses."""
    keeps_losses: bool


class LastWords(Value):
    """Why a rank failed."""

    rank: int
    unix: float
    failure_kind: FailureKind
    message: str
    detail: str
    micro_batch: int | None = None
    """Sequences that it trained at once; null before that was chosen."""


def words_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves its last words."""
    return folder / f"last-words-{rank}.json"


def die_with_the_agent() -> None:
    """End this process, without a word, when its standard input ends."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="archfleet-agent-watch", daemon=True).start()


def main() -> int:
    """Train as one rank of a job; the exit status."""
    die_with_the_agent()
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    micro_batches: list[int] = []
    try:
        _train(job, micro_batches)
    except Exception as error:
        rank = int(os.environ["RANK"])
        words = LastWords(
            rank=rank,
            unix=time.time(),
            failure_kind=classify(error),
            message=f"{type(error).__name__}: {error}",
            detail=ending("".join(traceback.format_exception(error)), MAX_DETAIL_BYTES),
            micro_batch=micro_batches[0] if micro_batches else None,
        )
        words_file(Path(job.folder), rank).write_text(words.model_dump_json())
        return 1
    return 0


def _train(job: Job, micro_batches: list[int]) -> None:
    from agent.training.model import Decoder
    from agent.training.parallel.group import Group
    from agent.training.parallel.trainer import ParallelTrainer
    from agent.training.run import train
    from agent.training.trainer import Trainer
    from agent.training.trunk import TrunkStore

    group, folder = Group(job.device), Path(job.folder)

    def make_trainer(*arguments: object, **options: object) -> Trainer:
        made = partial(ParallelTrainer, group=group, strategy=job.strategy)(*arguments, **options)  # type: ignore[arg-type]
        micro_batches.append(made.micro_batch)
        return made

    def keep_losses(model: Decoder, losses: NDArray[np.float32]) -> None:
        if group.leads and job.keeps_losses:
            np.save(folder / LOSSES_NAME, losses)

    run = train(
        job.assignment,
        blobs=_HandedBlobs(job.blobs),
        checkpoint_directory=job.checkpoints if "://" in job.checkpoints else Path(job.checkpoints),
        agent=job.agent,
        clock=group.clock,
        device=job.device,
        micro_batch=job.micro_batch,
        compiled=job.compiled,
        trunks=TrunkStore(Path(job.trunks)) if job.trunks else None,
        on_finished=keep_losses,
        make_trainer=make_trainer,
    )
    with closing(run) as events:  # type: ignore[type-var]
        for event in events:
            if group.leads:
                print(event.model_dump_json(), flush=True)
            if group.tell((folder / STOP_NAME).exists()):
                break
    group.leave()


class _HandedBlobs(BlobCache):
    """Files that the agent has checked already."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def get(self, sha256: str) -> Path:
        if sha256 not in self._files:
            raise BlobMissingError(f"blob {sha256} was not handed to the ranks; expected one of {len(self._files)}")
        return Path(self._files[sha256])


if __name__ == "__main__":
    sys.exit(main())
