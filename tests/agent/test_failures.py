import errno
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from agent import failures
from agent.device import make_provenance
from agent.failures import AgentError, classify, failure_from
from scaling.observations import FailureKind
from scaling.recipes import Workload


def _validation_error() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Workload(batch_size=0)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out-of-memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out-of-memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out-of-memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "hardware"),
        (RuntimeError("something else"), "unknown"),
        (TimeoutError("no answer"), "timeout"),
        (OSError(errno.ENOSPC, "No space left on device"), "hardware"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out-of-memory"),
        (PermissionError(errno.EACCES, "Permission denied"), "unknown"),
        (ModuleNotFoundError("No module named 'torch'"), "engine-start"),
        (ValueError("bad shape"), "validation"),
        (_validation_error(), "validation"),
        (KeyError("x"), "unknown"),
        (failures.BlobMismatchError("x"), "validation"),
        (failures.BlobMissingError("x"), "validation"),
        (failures.CorpusError("x"), "validation"),
        (failures.DivergedError("x"), "nan-loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_error_has_its_kind(error: Exception, kind: FailureKind) -> None:
    assert classify(error) == kind


def test_what_torch_raises_for_an_impossible_allocation_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float32)
    assert classify(caught.value) == "out-of-memory"


def _tree(error: type[AgentError]) -> Iterator[type[AgentError]]:
    yield error
    for child in error.__subclasses__():
        yield from _tree(child)


def test_the_tree_at_the_head_of_the_module_names_every_error() -> None:
    assert failures.__doc__ is not None
    for error in _tree(AgentError):
        assert error.__name__ in failures.__doc__
        assert error.failure_kind in get_args(FailureKind)


def test_a_failure_keeps_the_message_and_the_end_of_the_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    provenance = make_provenance(agent="a", started_at_unix=0.0, seconds=1.0)
    failure = failure_from(caught.value, assignment_id="train-1", provenance=provenance)
    assert failure.message == "ZeroDivisionError: division by zero"
    assert "test_failures.py" in failure.detail
