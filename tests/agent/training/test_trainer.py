"""One optimiser step: micro-batches, lack of memory, divergence, and that nothing in it waits."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from agent.assignment import TrainAssignment
from agent.failures import DivergedError
from agent.training.checkpoint import RunState
from agent.training.compiling import compile_choice, compile_layers, missing_compiler, should_compile
from agent.training.data import TokenStream
from agent.training.loss import SummedLoss
from agent.training.model import Decoder, init_weights
from agent.training.trainer import Trainer
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe

BATCH = 8  # sequences, of 32 tokens


@pytest.fixture
def make(assignment: TrainAssignment, tmp_path: Path) -> Callable[..., Trainer]:
    tokens = (np.random.default_rng(0).zipf(1.3, 20_000) % 300).astype(np.uint16)

    def make(*, directory: str = "run", recipe: dict[str, Any] | None = None, **options: Any) -> Trainer:
        changed = assignment.recipe.model_copy(update=recipe or {})
        stream = TokenStream(tokens, sequence_length=32, batch_tokens=256, order_seed=0)
        task = assignment.model_copy(update={"recipe": changed})
        return Trainer(task, stream, device="cpu", directory=tmp_path / directory, **options)

    return make


def _weights(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.parameters])


def _steps(trainer: Trainer, count: int) -> Trainer:
    for _ in range(count):
        trainer.step()
    return trainer


class FailingNetwork(nn.Module):
    """Runs out of memory, or fails otherwise, at some of its calls."""

    def __init__(self, inner: nn.Module, failing_calls: set[int], error: Exception) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0
        self._failing_calls = failing_calls
        self._error = error

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self._failing_calls:
            raise self._error
        result: Tensor = self.inner(inputs, targets)
        return result


def _failing(*calls: int, error: Exception | None = None) -> Callable[[nn.Module], nn.Module]:
    lack = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return lambda inner: FailingNetwork(inner, set(calls), lack)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_gradients_summed_over_micro_batches_are_those_of_the_batch(
    make: Callable[..., Trainer], micro_batch: int
) -> None:
    whole, divided = make(micro_batch=BATCH), make(micro_batch=micro_batch)
    assert torch.allclose(_weights(_steps(whole, 3)), _weights(_steps(divided, 3)), atol=1e-5)
    ours, theirs = divided.point(), whole.point()
    assert ours is not None
    assert theirs is not None
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)


def test_the_whole_batch_is_taken_where_it_is_swift(make: Callable[..., Trainer]) -> None:
    assert make().micro_batch == BATCH


@pytest.mark.parametrize("failing_call", [1, 2, 4])
def test_a_lack_of_memory_halves_the_micro_batch_and_goes_on_with_the_same_data(
    make: Callable[..., Trainer], failing_call: int
) -> None:
    # Two micro-batches a step: the 4th call is amid the second step, with gradients of its first half formed.
    trainer = _steps(make(micro_batch=4, wrap=_failing(failing_call)), 3)
    assert trainer.micro_batch == 2
    assert trainer.notes == [f"out of memory at step {(failing_call - 1) // 2}: going on with 2 sequences at once"]
    reference = make(micro_batch=4)
    _steps(reference, (failing_call - 1) // 2)
    reference.micro_batch = 2
    _steps(reference, 3 - (failing_call - 1) // 2)
    assert torch.equal(_weights(trainer), _weights(reference))


@pytest.mark.parametrize(
    ("micro_batch", "calls", "error"),
    [(4, (1, 2), None), (1, (1,), None), (8, (1,), RuntimeError("shapes cannot be multiplied"))],
    ids=["a second time", "at a single sequence", "another error"],
)
def test_what_halving_does_not_help_is_raised(
    make: Callable[..., Trainer], micro_batch: int, calls: tuple[int, ...], error: Exception | None
) -> None:
    trainer = make(micro_batch=micro_batch, wrap=_failing(*calls, error=error))
    with pytest.raises(RuntimeError, match=r"out of memory|cannot be multiplied"):
        trainer.step()


def test_a_step_that_is_given_up_has_changed_nothing(make: Callable[..., Trainer]) -> None:
    trainer, reference = make(micro_batch=2), make(micro_batch=2)
    _steps(trainer, 1)
    given_up = trainer.micro_steps()
    assert [next(given_up), next(given_up)] == [2, 4]
    given_up.close()
    assert trainer.num_steps_done == 1
    assert torch.equal(_weights(_steps(trainer, 1)), _weights(_steps(reference, 2)))


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for its device: reading a number out of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.count += name.startswith(("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"))
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device_and_a_report_does_once(make: Callable[..., Trainer]) -> None:
    trainer = make(micro_batch=4, recipe={"num_tokens": 10 * 256})  # every step ends with a point of the curve
    _steps(trainer, 1)  # the optimiser makes its state
    with Waits() as waits:
        _steps(trainer, 5)
        assert waits.count == 0
    assert len(trainer.curve.points) == 0
    trainer.point()
    assert len(trainer.curve.points) == 6


def test_a_run_that_diverges_names_the_step_and_what_there_is_to_go_on_from(make: Callable[..., Trainer]) -> None:
    trainer = _steps(make(), 4)
    trainer.save()
    _steps(trainer, 3)
    with torch.no_grad():
        trainer.parameters[0][0, 0] = math.nan
    _steps(trainer, 2)
    with pytest.raises(
        DivergedError, match=r"diverged at step 8 of 50: loss nan.*last good checkpoint is that of step 4"
    ):
        trainer.save()
    again = make()
    assert again.resume() == "resumed at step 4 of 50"


def test_a_resumed_run_keeps_the_micro_batch_that_decides_its_rounding(make: Callable[..., Trainer]) -> None:
    first = _steps(make(micro_batch=4, wrap=_failing(1)), 3)
    first.save()
    straight = _weights(_steps(first, 2))
    resumed = make(micro_batch=8)
    resumed.resume()
    assert resumed.micro_batch == 2
    assert torch.equal(_weights(_steps(resumed, 2)), straight)


def test_a_state_from_before_there_were_micro_batches_reads_on(make: Callable[..., Trainer]) -> None:
    assert RunState.model_validate_json('{"step": 3}').micro_batch_sequences == 0


def test_a_z_loss_is_trained_on(make: Callable[..., Trainer]) -> None:
    plain, weighted = _steps(make(), 2), _steps(make(recipe={"z_loss_weight": 0.01}), 2)
    assert not torch.equal(_weights(plain), _weights(weighted))
    before, after = plain.point(), weighted.point()
    assert before is not None
    assert after is not None
    assert after.loss > before.loss


LAPTOP = TrainingRecipe(num_tokens=2_000_000)


def _proxy(hidden_size: int) -> Architecture:
    return Architecture(
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=1024,
    )


def test_layers_are_compiled_by_default_on_a_gpu_and_on_a_cpu_where_a_run_is_long() -> None:
    assert should_compile(_proxy(64), LAPTOP, device="cuda") is None
    assert "compiling pays above 180 s" in str(should_compile(_proxy(64), LAPTOP, device="cpu"))
    long = LAPTOP.model_copy(update={"num_tokens": 20_000_000})
    assert should_compile(_proxy(64), long, device="cpu") is None
    shared = long.model_copy(update={"warmup_tokens": 100_000})
    assert "share a trunk" in str(should_compile(_proxy(64), shared, device="cpu"))
    assert should_compile(_proxy(64), long, device="cpu", choice="off") == "not asked for"
    assert should_compile(_proxy(64), LAPTOP, device="cpu", choice="on") is None


def test_what_was_asked_for_by_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compile_choice() == "auto"
    monkeypatch.setenv("ARCHFLEET_COMPILE", "off")
    assert compile_choice() == "off"
    monkeypatch.setenv("ARCHFLEET_COMPILE", "yes")
    with pytest.raises(ValueError, match="'yes'; expected auto, on or off"):
        compile_choice()


def test_without_a_compiler_layers_run_plain_for_a_stated_reason(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no C++ compiler was found" in str(missing_compiler("cpu"))
    trainer = make()
    assert trainer.compile("on").startswith("plain: no C++ compiler was found")
    assert torch.equal(_weights(_steps(trainer, 2)), _weights(_steps(make(), 2)))


def test_a_compiler_that_fails_leaves_the_layers_as_they_were(
    small_architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CppCompileError: C++ compile error\nmany lines")

    monkeypatch.setattr(torch, "compile", broken)
    loss = SummedLoss(Decoder(small_architecture, max_sequence_length=8))
    layers = loss.layers
    reason = compile_layers(loss, torch.zeros(1, 8, dtype=torch.int64), missing=lambda _: None)
    assert reason == "compiling failed: RuntimeError: CppCompileError: C++ compile error"
    assert loss.layers == layers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler imports what torch itself calls deprecated
def test_compiled_layers_give_the_same_losses_to_rounding(
    small_architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks := missing_compiler("cpu"):
        pytest.skip(lacks)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.utils.counters.clear()
    decoder = Decoder(small_architecture.model_copy(update={"num_hidden_layers": 3}), max_sequence_length=16)
    init_weights(decoder, seed=0)
    tokens = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(1))
    plain, compiled = SummedLoss(decoder), SummedLoss(decoder)
    torch.set_num_threads(1)

    def compile_it() -> str | None:
        torch.set_num_threads(1)
        return compile_layers(compiled, tokens[:, :-1])

    with ThreadPoolExecutor(1) as pool:  # as a run does, which tells meanwhile that it lives
        assert pool.submit(compile_it).result() is None
    assert all(parameter.grad is None for parameter in decoder.parameters())
    gradients = []
    for loss in (plain, compiled):
        loss(tokens[:, :-1], tokens[:, 1:]).backward()
        gradients.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
        loss.zero_grad(set_to_none=True)
    assert len(gradients[0]) == len(list(decoder.parameters()))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert frames == 1, "three layers share the code of one, also on another thread"
