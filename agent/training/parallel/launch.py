"""Starts the ranks of a job and ends them together: in a process of its own.

    python -m agent.training.parallel.launch JOB

torch's elastic launcher, what `torchrun` is made of: a rendezvous on the loopback at a free port, one process a
device, no restarts; when a rank fails the others are ended. Which failed first is left in the job's folder.
"""

import sys
import uuid
from pathlib import Path

from agent.training.parallel.rank import Job, die_with_the_agent
from hwprofiles.value import Value

REPORT_NAME = "failed-ranks.json"


class FailedRank(Value):
    """A rank that ended badly; a negative exit code is the signal that killed it."""

    rank: int
    exit_code: int


class LaunchReport(Value):
    """The ranks that had failed when the launcher noticed."""

    failed: tuple[FailedRank, ...]


def main() -> int:
    """Run a job's ranks to their ends; the exit status."""
    die_with_the_agent()
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.num_devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=job.folder),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "agent.training.parallel.rank", sys.argv[1])
    except ChildFailedError as error:
        failed = [FailedRank(rank=rank, exit_code=failure.exitcode) for rank, failure in error.failures.items()]
        (Path(job.folder) / REPORT_NAME).write_text(LaunchReport(failed=tuple(failed)).model_dump_json())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
