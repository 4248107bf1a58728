"""The agent's errors, and how every error, ours or foreign, becomes one `Failure` kind.

    AgentError
    ├── InvalidInputError        validation: the assignment cannot be done as given; trying again cannot help
    │   ├── BlobMissingError     a blob that the assignment names could not be fetched
    │   ├── BlobMismatchError    a blob's bytes do not have the hash that names it
    │   ├── CorpusError          a corpus that is empty, truncated, or does not fit the architecture
    │   ├── HarnessMissingError  no interpreter here has lm-evaluation-harness (`agent/scoring/harness.py`)
    │   └── ScoringError         the harness could not score
    ├── DivergedError            nan-loss: the loss is not finite, or far above that of guessing
    └── EngineMissingError       engine-start: this node lacks the engine (`agent/engines/interpreters.py`)

`classify` is the one place where foreign errors (MemoryError, torch's, the operating system's) are translated.
torch is never imported here: an error of torch's can only arrive where torch is loaded already.
"""

import errno
import sys
import traceback

from agent.log import ending
from scaling.observations import Failure, FailureKind, Provenance

MAX_DETAIL_BYTES = 4000
"""Of a traceback that is kept, its end."""


class AgentError(Exception):
    """Base of what the agent raises on purpose."""

    failure_kind: FailureKind = "unknown"


class InvalidInputError(AgentError, ValueError):
    """The assignment, or something that it names, cannot be used."""

    failure_kind = "validation"


class BlobMissingError(InvalidInputError):
    """A blob could not be fetched."""


class BlobMismatchError(InvalidInputError):
    """The bytes of a blob do not have the hash that names it."""


class CorpusError(InvalidInputError):
    """A corpus is empty, truncated, or does not fit the assignment."""


class DivergedError(AgentError):
    """Training diverged."""

    failure_kind = "nan-loss"


# What torch says of memory and devices where it raises a bare RuntimeError (torch 2.4 to 2.13).
_MEMORY_PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
_DEVICE_PHRASES = ("cuda error", "nccl error", "device-side assert", "cudnn error", "ecc error")
_OS_KINDS: dict[int, FailureKind] = {
    errno.ENOMEM: "out-of-memory",
    errno.ETIMEDOUT: "timeout",
    errno.EIO: "hardware",
    errno.ENOSPC: "hardware",
    errno.EDQUOT: "hardware",
    errno.EROFS: "hardware",
}


def classify(error: BaseException) -> FailureKind:
    """The kind of failure that an exception stands for."""
    if isinstance(error, AgentError):
        return error.failure_kind
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return "out-of-memory"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, OSError):
        return _OS_KINDS.get(error.errno or 0, "unknown")
    if isinstance(error, ImportError):
        return "engine-start"
    if isinstance(error, ValueError):  # pydantic's ValidationError is one
        return "validation"
    return _classify_message(str(error).lower()) if isinstance(error, RuntimeError) else "unknown"


def _is_torch_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _classify_message(message: str) -> FailureKind:
    if any(phrase in message for phrase in _MEMORY_PHRASES):
        return "out-of-memory"
    if any(phrase in message for phrase in _DEVICE_PHRASES):
        return "hardware"
    return "unknown"


def failure_from(error: BaseException, *, assignment_id: str, provenance: Provenance) -> Failure:
    """The `Failure` that an exception ends an assignment with; `detail` keeps the end of the traceback."""
    return Failure(
        assignment_id=assignment_id,
        failure_kind=classify(error),
        message=f"{type(error).__name__}: {error}" if not isinstance(error, AgentError) else str(error),
        detail=ending("".join(traceback.format_exception(error)), MAX_DETAIL_BYTES),
        provenance=provenance,
    )
