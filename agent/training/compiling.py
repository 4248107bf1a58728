"""Compiled layers: torch.compile of one decoder layer, whose code all layers share, for one fixed shape.

One layer, not the model: a proxy is short, and a layer compiles in a fraction of the time. Evaluation runs the layers
as they are, so a loss that is reported never depends on a second compilation. Where there is no compiler the run goes
on without, for a stated reason.

On a GPU layers are compiled by default. On a CPU that takes 34 s of processor time, 4 s from its cache, and gains 12 %
(measured at 0.1 and 10 M; 19 % on another machine), so only runs that would take over `PAYS_AFTER_SECONDS` on a quiet
core are; by the assignment's own figures, as compiled and plain kernels round differently and a result must not depend
on how busy a machine was. Runs that may share a trunk stay plain there, whatever their length: their losses are those
of a run from scratch, bit for bit.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from agent.failures import classify
from agent.training.loss import SummedLoss
from agent.training.micro_batch import CPU_FLOPS_PER_SECOND, train_flops_per_token
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe

Choice = Literal["auto", "on", "off"]
COMPILE_VARIABLE = "ARCHFLEET_COMPILE"
"""auto, on or off; what an agent that was told nothing else goes by."""
PAYS_AFTER_SECONDS = 180.0


def compile_choice() -> Choice:
    """What `COMPILE_VARIABLE` asks for.

    Raises:
        ValueError: it asks for something else.
    """
    asked = os.environ.get(COMPILE_VARIABLE) or "auto"
    choices: dict[str, Choice] = {"auto": "auto", "on": "on", "off": "off"}
    if asked not in choices:
        raise ValueError(f"{COMPILE_VARIABLE} is {asked!r}; expected auto, on or off")
    return choices[asked]


def should_compile(
    architecture: Architecture, recipe: TrainingRecipe, *, device: str, choice: Choice = "auto"
) -> str | None:
    """None if the layers are to be compiled, or why not."""
    if choice != "auto":
        return None if choice == "on" else "not asked for"
    if device != "cpu":
        return None
    if recipe.warmup_tokens is not None:
        return "runs that may share a trunk are not compiled on a CPU"
    flops = recipe.num_tokens * train_flops_per_token(architecture, recipe.sequence_length)
    seconds = flops / CPU_FLOPS_PER_SECOND
    if seconds <= PAYS_AFTER_SECONDS:
        return f"about {seconds:.0f} s on a quiet core; compiling pays above {PAYS_AFTER_SECONDS:.0f} s"
    return None


def compile_layers(
    loss: SummedLoss,
    inputs_BT: Tensor,
    *,
    missing: Callable[[str], str | None] | None = None,
) -> str | None:
    """Compile a loss's layers, and its chunks on a GPU, and run them once; None, or why they stay as they are.

    Args:
        loss: whose layers are replaced by their compiled forms.
        inputs_BT: token ids of the one shape that will be trained.
        missing: says what a device type lacks for compiling; None where nothing.

    Raises:
        RuntimeError: the device ran out of memory: that is no fault of the compiler's.
    """
    device = inputs_BT.device.type
    if lacks := (missing or missing_compiler)(device):
        return lacks
    plain = loss.layers, loss.chunk_gradients
    # Compiled in this process: a pool of helpers costs more than it saves for one layer, and outlives the run.
    options: dict[str, str | int | bool | Callable[..., Any]] | None = (
        {"compile_threads": 1} if device == "cpu" else None
    )
    try:
        loss.layers = tuple(torch.compile(layer, dynamic=False, options=options) for layer in loss.layers)
        if device != "cpu":
            loss.chunk_gradients = torch.compile(loss.chunk_gradients, dynamic=False)
        loss(inputs_BT, inputs_BT).backward()
    except Exception as error:  # whatever a compiler fails with: a run needs none
        loss.layers, loss.chunk_gradients = plain
        if classify(error) == "out-of-memory":
            raise
        return f"compiling failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    finally:
        loss.zero_grad(set_to_none=True)
    return None


def missing_compiler(device: str) -> str | None:
    """What torch.compile lacks on this machine; None where it can be tried."""
    compilers = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    if not any(shutil.which(name) for name in compilers):
        return f"no C++ compiler was found ({', '.join(compilers)}); on Debian: apt-get install g++"
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None
