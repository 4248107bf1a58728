"""The folder of `archfleet train`: what is trained, and for each seed the observation, its token losses and the model.

training.json                   the training, but for its seeds
result.json                     losses of all seeds so far, their mean and scatter
seed-0/observation.json         written last: a seed without it is unfinished
seed-0/token_losses.npy         float32, shape (windows, sequence length): nats of every held-out token
seed-0/model/                   for transformers, vLLM and `archfleet score`
checkpoints/                    while a seed is unfinished
"""

import fcntl
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from agent.assignment import TrainAssignment
from agent.blobs import BlobCache, write_atomically
from coordinator.errors import UserError
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.bits_per_byte import in_bits_per_byte
from scaling.observations import TrainingObservation
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import TrainingRecipe
from scaling.replicates import mean_over_seeds, mean_over_windows, sd_over_seeds

TRAINING_NAME = "training.json"
RESULT_NAME = "result.json"
OBSERVATION_NAME = "observation.json"
TOKEN_LOSSES_NAME = "token_losses.npy"
MODEL_NAME = "model"
CHECKPOINTS_NAME = "checkpoints"
_LOCK_NAME = ".lock"


class Training(Value):
    """Everything but the seeds that a loss follows from."""

    schema_version: Literal[1] = 1
    architecture: Architecture
    recipe: TrainingRecipe
    """With seed 0; every run has its own."""
    recipe_from: str
    """Where the recipe's defaults come from."""
    corpus_id: str
    corpus: str
    num_train_tokens: PositiveInt
    """Of the corpus: one epoch."""
    num_eval_windows: PositiveInt
    bytes_per_token: PositiveFloat | None
    """Of the held-out text; null where the corpus does not say."""
    checkpoint_every_seconds: PositiveFloat = 10.0

    @property
    def num_epochs(self) -> float:
        """How often the corpus's training tokens are seen."""
        return self.recipe.num_tokens / self.num_train_tokens

    def assignment(self, seed: int) -> TrainAssignment:
        """The run of one seed."""
        return TrainAssignment(
            architecture=self.architecture,
            recipe=self.recipe.model_copy(update={"seed": seed}),
            corpus_id=self.corpus_id,
            num_eval_windows=self.num_eval_windows,
            checkpoint_every_seconds=self.checkpoint_every_seconds,
        )


class SeedResult(Value):
    """One finished run. Standard errors are over held-out windows."""

    seed: NonNegativeInt
    nats_per_token: float
    nats_per_token_standard_error: float
    bits_per_byte: Measured | NotMeasured
    tokens_per_second: float
    train_seconds: float
    num_resumes: NonNegativeInt
    model: str
    """The checkpoint's folder, below the training's."""


class TrainingResult(Value):
    """What came of a training, over its seeds."""

    schema_version: Literal[1] = 1
    training: Training
    seeds: tuple[SeedResult, ...]
    mean_loss: Measured
    mean_bits_per_byte: Measured | NotMeasured
    sd_over_seeds: Measured | NotMeasured


def seed_directory(directory: Path, seed: int) -> Path:
    """Where the run of a seed is kept."""
    return directory / f"seed-{seed}"


def result_of(training: Training, observations: Sequence[TrainingObservation]) -> TrainingResult:
    """Sum up finished runs of one training, at least one."""
    losses = [observation.loss for observation in observations]
    mean = mean_over_seeds(losses)
    return TrainingResult(
        training=training,
        seeds=tuple(_seed_result(training, observation) for observation in observations),
        mean_loss=mean,
        mean_bits_per_byte=in_bits_per_byte(mean, training.bytes_per_token),
        sd_over_seeds=sd_over_seeds(losses),
    )


def _seed_result(training: Training, observation: TrainingObservation) -> SeedResult:
    seed = observation.recipe.seed
    loss = mean_over_windows(observation.window_losses)
    return SeedResult(
        seed=seed,
        nats_per_token=observation.loss,
        nats_per_token_standard_error=observation.loss_standard_error,
        bits_per_byte=in_bits_per_byte(loss, training.bytes_per_token),
        tokens_per_second=observation.tokens_per_second,
        train_seconds=observation.train_seconds,
        num_resumes=observation.num_resumes,
        model=f"seed-{seed}/{MODEL_NAME}",
    )


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a training's folder: two processes must not train into one.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / _LOCK_NAME).open("w")
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; give another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another archfleet train works in {directory}; wait for it, or give another --out"
            ) from None
        yield


def begin(directory: Path, training: Training) -> None:
    """Write training.json, or make sure that the one there is of the same training.

    Raises:
        UserError: the folder holds another training.
    """
    path = directory / TRAINING_NAME
    if not path.exists():
        write_json(path, training)
        return
    there = read_training(directory)
    if there != training:
        differ = ", ".join(_differences(there, training))
        raise UserError(
            f"{directory} holds another training: {differ} differ. Give the options it was begun with, or another --out"
        )


def _differences(there: Training, asked: Training) -> list[str]:
    old, new = _flat(there), _flat(asked)
    return [name for name in old | new if old.get(name) != new.get(name)]


def _flat(training: Training) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in training.model_dump(mode="json").items():
        parts = {f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}
        flat |= parts
    return flat


def finished_run(directory: Path, training: Training, seed: int) -> TrainingObservation | None:
    """The observation of a seed, if it is finished.

    Raises:
        UserError: there is one, and it is damaged or of another training.
    """
    path = seed_directory(directory, seed) / OBSERVATION_NAME
    if not path.exists():
        return None
    observation = read_observation(path)
    if observation.assignment_id != training.assignment(seed).id:
        raise UserError(
            f"{path} is of another training than {directory / TRAINING_NAME}; delete its folder to repeat it"
        )
    return observation


def keep_run(
    place: Path, observation: TrainingObservation, model: Any, token_losses: NDArray[np.float32], *, blobs: BlobCache
) -> None:
    """Keep a finished run: token losses, the model for transformers, and last the observation.

    Args:
        place: the seed's folder.
        observation: of the run.
        model: the trained `agent.training.model.Decoder`.
        token_losses: nats of every held-out token, shape (windows, sequence length).
        blobs: where the corpus's tokenizer is.
    """
    from agent.training.export import export_checkpoint

    content = io.BytesIO()
    np.save(content, token_losses, allow_pickle=False)
    write_atomically(place / TOKEN_LOSSES_NAME, content.getvalue())
    export_checkpoint(model, observation, place / MODEL_NAME, blobs=blobs)
    write_json(place / OBSERVATION_NAME, observation)


def read_training(directory: Path) -> Training:
    """Read training.json.

    Raises:
        UserError: it cannot be read.
    """
    return _read(directory / TRAINING_NAME, Training)


def read_observation(path: Path) -> TrainingObservation:
    """Read the observation of one training run, as `archfleet train` or `python -m agent run` wrote it.

    Raises:
        UserError: it cannot be read.
    """
    return _read(path, TrainingObservation)


def write_json(path: Path, value: Value) -> None:
    """Replace a file as a whole: a crash leaves the old one or the new one.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(path, (json.dumps(value.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; give another --out") from None


ValueT = TypeVar("ValueT", bound=Value)


def _read(path: Path, kind: type[ValueT]) -> ValueT:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(
            f"{path} is not a {kind.__name__} ({where}: {first['msg']}); expected what `archfleet train` writes"
        ) from None
