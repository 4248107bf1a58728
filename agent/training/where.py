"""Which device a training is to run on, checked before anything is loaded onto it."""

import torch

from agent.failures import InvalidInputError

DEVICES = ("cpu", "cuda")


def training_device(asked: str | None = None) -> str:
    """The device that was asked for, by default cuda where there is one.

    Raises:
        InvalidInputError: it is not one of `DEVICES`, or there is no such device here.
    """
    has_cuda = torch.cuda.is_available()
    if asked is None:
        return "cuda" if has_cuda else "cpu"
    if asked not in DEVICES:
        raise InvalidInputError(f"unknown device {asked!r}; expected one of: {', '.join(DEVICES)}")
    if asked == "cuda" and not has_cuda:
        build = "" if torch.version.cuda else f" (torch {torch.__version__} is a CPU build)"
        raise InvalidInputError(
            f"torch sees no CUDA device here{build}; expected --device cpu, or a machine with a GPU"
        )
    return asked
