"""The group of processes that train together: one a device, all on one machine, in lockstep.

Whatever depends on time, on the file system or on a request is decided by rank 0 and told to the others, so that every
rank takes the same way: a rank that took another would wait for the rest for ever.
"""

import datetime
import os
import time

import torch
from torch import distributed

COLLECTIVE_SECONDS = 900.0
"""What a rank waits for the others at most."""


class Group:
    """This process's place among those that train together. Values are told over the CPU: no device waits.

    Args:
        device: "cpu" or "cuda"; with the latter, rank r of a machine uses its r-th visible GPU.
    """

    def __init__(self, device: str) -> None:
        # Sums of tensors on GPUs go through NCCL, what is told through gloo.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS))
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which decides, writes and speaks."""
        return self.rank == 0

    def tell(self, number: float = 0.0) -> float:
        """Rank 0's number, on every rank."""
        told = torch.tensor([number], dtype=torch.float64)
        distributed.broadcast(told, 0)
        return float(told.item())

    def tell_text(self, text: str = "") -> str:
        """Rank 0's text, on every rank."""
        told = [text]
        distributed.broadcast_object_list(told, 0, device=torch.device("cpu"))
        return told[0]

    def clock(self) -> float:
        """Rank 0's monotonic seconds: what depends on time is the same on every rank."""
        return self.tell(time.monotonic())

    def smallest(self, number: float) -> float:
        """The smallest of all ranks' numbers."""
        told = torch.tensor([number], dtype=torch.float64)
        distributed.all_reduce(told, distributed.ReduceOp.MIN)
        return float(told.item())

    def leave(self) -> None:
        """End what connects the ranks."""
        distributed.destroy_process_group()
