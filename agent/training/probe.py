"""A short real training run on synthetic tokens, to learn how fast this machine trains a shape now."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agent.assignment import TrainAssignment
from agent.training.data import TokenStream
from agent.training.trainer import Trainer
from agent.training.where import training_device
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe

_WARMUP_STEPS = 5
_NUM_SYNTHETIC_TOKENS = 65_536
_MORE_STEPS_THAN_FIT = 10**7  # keeps the probe inside the recipe's warm-up, where it cannot diverge


def measure_tokens_per_second(
    architecture: Architecture, seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> float:
    """Tokens per second of wall time over at least `seconds` of the real trainer's steps, after untimed ones."""
    recipe = TrainingRecipe(num_tokens=_MORE_STEPS_THAN_FIT * TrainingRecipe(num_tokens=1).batch_tokens)
    tokens = np.arange(_NUM_SYNTHETIC_TOKENS, dtype=np.uint32) % architecture.vocab_size
    stream = TokenStream(tokens, sequence_length=recipe.sequence_length, batch_tokens=recipe.batch_tokens, order_seed=0)
    assignment = TrainAssignment(architecture=architecture, recipe=recipe, corpus_id="synthetic")
    # The probe never saves: the directory is only named, never made.
    directory = Path(tempfile.gettempdir()) / "archfleet-probe-never-written"
    device = training_device()
    trainer = Trainer(assignment, stream, device=device, directory=directory)
    trainer.compile("auto" if device == "cuda" else "off")  # on a CPU it would take longer than the probe
    for _ in range(_WARMUP_STEPS):
        trainer.step()
    trainer.point()  # waits for the device
    num_steps, started = 0, clock()
    while clock() - started < seconds:
        trainer.step()
        num_steps += 1
    trainer.point()
    trainer.close()
    return num_steps * recipe.batch_tokens / (clock() - started)
