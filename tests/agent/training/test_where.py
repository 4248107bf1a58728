"""One place says which device a training runs on."""

import pytest
import torch

from agent.failures import InvalidInputError
from agent.training.where import training_device


@pytest.mark.parametrize(("has_cuda", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch, has_cuda: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert training_device() == expected
    assert training_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInputError, match="torch sees no CUDA device here"):
        training_device("cuda")


def test_an_unknown_device_is_told_with_those_there_are() -> None:
    with pytest.raises(InvalidInputError, match="unknown device 'tpu'; expected one of: cpu, cuda"):
        training_device("tpu")
