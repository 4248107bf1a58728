"""`archfleet train`: train one architecture on this machine, alone: no Ray, no store, no study.

Each seed is one run. Runs checkpoint as an agent's do, so the same command goes on after Ctrl-C or kill -9, and a
finished seed is not trained again.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from agent.benchmark.configs import read_config
from agent.blobs import BlobCache
from agent.failures import InvalidInputError, classify
from coordinator.errors import UserError
from coordinator.figures.formats import duration, plural, short
from coordinator.figures.shown import shown
from coordinator.stopping import signals_ask_to_stop
from coordinator.study import read_study
from coordinator.training_corpus import FoundCorpus, open_corpus
from coordinator.training_folder import (
    CHECKPOINTS_NAME,
    RESULT_NAME,
    Training,
    TrainingResult,
    begin,
    finished_run,
    held,
    keep_run,
    result_of,
    seed_directory,
    write_json,
)
from scaling.architecture import Architecture
from scaling.bits_per_byte import bits_per_byte
from scaling.observations import Failure, Progress, TrainingObservation
from scaling.quantity import Measured, NotMeasured
from scaling.recipes import FanIns, TrainingRecipe
from scaling.step_law import outside_fitted_range, step_law_recipe

MAX_EPOCHS = 4.0
"""Epochs up to which repeated text is about as good as new text (Muennighoff et al., arXiv 2305.16264)."""
MAX_EVAL_WINDOWS = 1024
STEP_LAW_SEQUENCE_LENGTH = 2048
"""Of the runs that the step law was fitted to."""
_LINE_EVERY_SECONDS = 30.0


class RunFailedError(Exception):
    """A run ended in a failure, such as a loss that diverged: a result, not a mistake of the user's."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `archfleet train` was asked for; null is the default of the recipe."""

    tokens: float
    corpus: Path | None = None
    rate: float | None = None
    batch_tokens: int | None = None
    sequence_length: int | None = None
    max_epochs: float = MAX_EPOCHS
    checkpoint_seconds: float = 10.0
    """At most this much is lost to a kill."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training, checked as far as that goes without training, and where its corpus is read."""

    training: Training
    blobs: BlobCache


def plan_training(config: str, options: TrainOptions, *, cache: Path, say: Callable[[str], None]) -> Plan:
    """What the user asks for, checked against the corpus before any time is spent on training.

    Args:
        config: a config.json, its directory, or a name.
        options: what is not given has the recipe's default.
        cache: where the default corpus is built once.
        say: is told what takes a while.

    Raises:
        UserError: a config that cannot be read, a corpus that cannot be had, or numbers that do not fit each other.
    """
    try:
        architecture = read_config(config)
        recipe, recipe_from = recipe_for(architecture, options)
        corpus = open_corpus(options.corpus, cache=cache, say=say)
        training = _training(architecture, recipe, recipe_from, corpus, options.checkpoint_seconds)
    except ValidationError as error:
        raise UserError("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"the corpus cannot be used: {error}") from None
    except ImportError as error:
        raise UserError(_missing(error)) from None
    _check_epochs(training, max_epochs=options.max_epochs)
    return Plan(training=training, blobs=corpus.blobs)


def recipe_for(architecture: Architecture, options: TrainOptions) -> tuple[TrainingRecipe, str]:
    """The recipe, and where what was not given comes from: the step law where it was fitted, else study laptop.

    Raises:
        ValueError: the numbers do not fit each other.
    """
    given = {
        "batch_tokens": options.batch_tokens,
        "sequence_length": options.sequence_length,
        "base_learning_rate": options.rate,
    }
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    n, d = architecture.num_parameters, options.tokens
    if not outside_fitted_range(n, d):
        length = asked.pop("sequence_length", STEP_LAW_SEQUENCE_LENGTH)
        recipe = step_law_recipe(n, d, length, base_fan_ins=_fan_ins(architecture), **asked)
        origin = "the step law (arXiv 2503.04715)"
    else:
        recipe = _laptops_recipe(architecture, d, asked)
        origin = "study laptop: the step law was not fitted at this N and D"
    if d < recipe.batch_tokens:
        raise ValueError(
            f"--tokens {d:g} is less than one batch of {recipe.batch_tokens} tokens; give more, or a smaller "
            f"--batch-tokens (a multiple of the sequence length {recipe.sequence_length})"
        )
    if recipe.batch_tokens % recipe.sequence_length:
        raise ValueError(
            f"--batch-tokens {recipe.batch_tokens} is no multiple of the sequence length {recipe.sequence_length}; "
            f"give {max(1, recipe.batch_tokens // recipe.sequence_length) * recipe.sequence_length}, for instance"
        )
    return recipe, origin


def _laptops_recipe(architecture: Architecture, num_tokens: float, asked: dict[str, Any]) -> TrainingRecipe:
    """Study laptop's numbers; what it derives from its own space falls to the recipe's defaults."""
    training = read_study("laptop").training.model_dump(mode="json")
    known = {name: value for name, value in training.items() if not isinstance(value, str) and value is not None}
    known.pop("warmup_tokens", None)
    merged = known | asked
    batch = merged.get("batch_tokens", TrainingRecipe(num_tokens=1).batch_tokens)
    return TrainingRecipe.model_validate({**merged, "num_tokens": max(1, round(num_tokens / batch)) * batch})


def _fan_ins(architecture: Architecture) -> FanIns:
    """Of Llama-3.2-1B's ratios at this N: the rate belongs to one shape of a size, so that shapes can be compared."""
    width = round(LLAMA_WIDTH_RATIO * architecture.num_parameters**0.5)
    return FanIns(hidden=width, attention=width, mlp=4 * width)


LLAMA_WIDTH_RATIO = 0.0657
"""d / sqrt(N) of Llama-3.2-1B, whose query width is d and whose intermediate size is 4 d."""


def _training(
    architecture: Architecture,
    recipe: TrainingRecipe,
    recipe_from: str,
    corpus: FoundCorpus,
    checkpoint_seconds: float,
) -> Training:
    from agent.corpus.manifest import load_corpus
    from agent.corpus.shards import open_tokens
    from agent.training.run import load_data

    manifest = load_corpus(corpus.blobs, corpus.id).manifest
    available = open_tokens(manifest, "validation", corpus.blobs).count_windows(recipe.sequence_length)
    held_out = manifest.shards_of("validation")
    sizes = [shard.num_bytes for shard in held_out]
    num_tokens = sum(shard.num_tokens for shard in held_out)
    training = Training(
        architecture=architecture,
        recipe=recipe,
        recipe_from=recipe_from,
        corpus_id=corpus.id,
        corpus=manifest.description,
        num_train_tokens=sum(shard.num_tokens for shard in manifest.shards_of("train")),
        num_eval_windows=max(1, min(MAX_EVAL_WINDOWS, available)),
        bytes_per_token=None if None in sizes else sum(size for size in sizes if size) / num_tokens,
        checkpoint_every_seconds=checkpoint_seconds,
    )
    load_data(training.assignment(0), corpus.blobs)
    return training


def _check_epochs(training: Training, *, max_epochs: float) -> None:
    epochs = training.num_epochs
    if epochs > max_epochs:
        raise UserError(
            f"--tokens {training.recipe.num_tokens:,} is {epochs:.1f} epochs of the corpus's "
            f"{training.num_train_tokens:,} training tokens; expected at most {max_epochs:g}: give fewer tokens, a "
            f"larger corpus (archfleet data prepare, then --corpus DIR), or --max-epochs {math.ceil(epochs)}"
        )


def chosen_seeds(seeds: Sequence[int], num_seeds: int | None) -> tuple[int, ...]:
    """The seeds that --seed and --seeds ask for, each once.

    Raises:
        UserError: both were given.
    """
    if seeds and num_seeds is not None:
        raise UserError(f"--seed and --seeds {num_seeds} were both given; expected one of them")
    return tuple(dict.fromkeys(seeds)) or tuple(range(num_seeds or 1))


def default_directory(training: Training) -> Path:
    """train-<shape>-<8 hex digits> in the current directory: the same command finds it again."""
    return Path(f"train-{training.architecture.label}-{training.content_hash()[:8]}")


def plan_words(plan: Plan, seeds: Sequence[int]) -> str:
    """What will be trained and by which recipe, in one line."""
    training, recipe = plan.training, plan.training.recipe
    shape = training.architecture
    size = f"{short(shape.num_parameters)} parameters ({short(shape.num_total_parameters)} with embeddings)"
    data = f"{short(recipe.num_tokens)} tokens ({training.num_epochs:.2g} epochs)"
    steps = f"{recipe.batch_tokens} tokens a step in sequences of {recipe.sequence_length}"
    return (
        f"{shape.label}: {size}, {data}, {plural(len(seeds), 'seed')}; rate {recipe.base_learning_rate:.3g}, "
        f"{steps}; what was not given is from {training.recipe_from}"
    )


def run_training(
    plan: Plan,
    seeds: Sequence[int],
    directory: Path,
    *,
    console: Console,
    device: str | None = None,
    num_devices: int = 1,
) -> TrainingResult | None:
    """Train what is left of the seeds, each on `num_devices`; null where it was asked to stop before the end.

    Raises:
        UserError: the folder cannot be used, or what the run needs is not there.
        RunFailedError: a run diverged or its device failed.
    """
    device = _checked_device(device)
    with held(directory), signals_ask_to_stop() as asked_to_stop, _reporter(console, plan, seeds) as report:
        begin(directory, plan.training)
        observations: list[TrainingObservation] = []
        for seed in seeds:
            observation = finished_run(directory, plan.training, seed)
            if observation is None:
                observation = _run_seed(plan, seed, directory, device, num_devices, report, asked_to_stop)
            if observation is None:
                return None
            observations.append(observation)
            report.seed_done(seed, observation)
            result = result_of(plan.training, observations)
            write_json(directory / RESULT_NAME, result)
        with suppress(OSError):  # that of a seed which nobody asked for now is still there
            (directory / CHECKPOINTS_NAME).rmdir()
    return result


def _run_seed(
    plan: Plan,
    seed: int,
    directory: Path,
    device: str,
    num_devices: int,
    report: "_Report",
    asked_to_stop: Callable[[], bool],
) -> TrainingObservation | None:
    """Train one seed and keep what came of it; null where it was asked to stop."""
    from agent.training.checkpoint import discard_checkpoint
    from agent.training.parallel.run import train_on_devices

    assignment, kept = plan.training.assignment(seed), list[Any]()
    checkpoints = directory / CHECKPOINTS_NAME
    run: Any = train_on_devices(
        assignment,
        num_devices=num_devices,
        blobs=plan.blobs,
        checkpoint_directory=checkpoints,
        agent="local",
        device=device,
        on_finished=lambda model, losses: kept.extend((model, losses)),
    )
    try:
        with closing(run) as events:
            for event in events:
                if isinstance(event, Failure):
                    raise RunFailedError(f"seed {seed}: {event.message}")
                if isinstance(event, TrainingObservation):
                    keep_run(seed_directory(directory, seed), event, *kept, blobs=plan.blobs)
                    discard_checkpoint(checkpoints / assignment.id)
                    return event
                report.progress(seed, event)
                if asked_to_stop():
                    return None
    except InvalidInputError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror or error}; free some disk and go on") from None
    except (MemoryError, RuntimeError) as error:
        kind = classify(error)
        if kind == "unknown":
            raise
        raise RunFailedError(f"seed {seed}: {kind}: {error}") from None
    raise AssertionError("a run ends in an observation or a failure")


def _checked_device(asked: str | None) -> str:
    try:
        from agent.training.where import training_device

        return training_device(asked)
    except ImportError as error:
        raise UserError(_missing(error)) from None
    except InvalidInputError as error:
        raise UserError(str(error)) from None


def _missing(error: ImportError) -> str:
    return f"training needs {error.name}, which is not installed: pip install 'archfleet[train]'"


class _Report:
    """A bar on a terminal, a line now and then elsewhere; both with loss, tokens per second and the time left."""

    def __init__(self, console: Console, bars: ProgressBar, plan: Plan, seeds: Sequence[int]) -> None:
        self._console, self._bars, self._training = console, bars, plan.training
        self._tokens = plan.training.recipe.num_tokens
        self._order = {seed: place for place, seed in enumerate(seeds)}
        self._task = bars.add_task("loading", total=len(seeds) * self._tokens, loss="", rate="")
        self._begun_at, self._begun_with = 0.0, 0.0
        self._told_at = time.monotonic()

    def progress(self, seed: int, event: Progress) -> None:
        """A sign of life of a seed's run."""
        now, done = time.monotonic(), event.done_fraction * self._tokens
        if event.point is None:  # loading or evaluating: tokens are counted from here on
            self._begun_at, self._begun_with = now, done
            if event.message.startswith("resumed"):
                self._print(f"seed {seed}: {event.message}")
        seconds = now - self._begun_at
        rate = "" if not seconds or event.point is None else f"{(done - self._begun_with) / seconds:,.0f} tokens/s"
        before = self._order[seed] * self._tokens
        self._bars.update(
            self._task, completed=before + done, description=self._name(seed), loss=event.message, rate=rate
        )
        if not self._console.is_terminal and now - self._told_at >= _LINE_EVERY_SECONDS:
            self._told_at = now
            left = self._bars.tasks[0].time_remaining
            remaining = "" if left is None else f", {duration(left)} left"
            self._print(
                f"{self._name(seed)}: {event.done_fraction:.0%}, {event.message}, {rate or 'no rate'}{remaining}"
            )

    def seed_done(self, seed: int, observation: TrainingObservation) -> None:
        """A seed is finished, now or by an earlier command."""
        self._bars.update(self._task, completed=(self._order[seed] + 1) * self._tokens, loss="", rate="")
        self._print(f"{self._name(seed)}: {loss_words(self._training, observation)}")

    def _name(self, seed: int) -> str:
        return (
            f"seed {seed}" if len(self._order) == 1 else f"seed {seed} ({self._order[seed] + 1} of {len(self._order)})"
        )

    def _print(self, words: str) -> None:
        self._console.print(words, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _reporter(console: Console, plan: Plan, seeds: Sequence[int]) -> Iterator[_Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console, transient=True) as bars:
        yield _Report(console, bars, plan, seeds)


def loss_words(training: Training, observation: TrainingObservation) -> str:
    """The held-out loss of one run with its standard error, in both units, and its speed."""
    loss, error = observation.loss, observation.loss_standard_error
    words = f"{loss:.4f} ± {error:.4f} nats/token"
    if training.bytes_per_token is not None:
        in_bits = [bits_per_byte(value, bytes_per_token=training.bytes_per_token) for value in (loss, error)]
        words += f", {in_bits[0]:.4f} ± {in_bits[1]:.4f} bits/byte"
    return f"{words}, {observation.tokens_per_second:,.0f} tokens/s"


def result_table(result: TrainingResult) -> Table:
    """Losses by seed with their standard errors over windows, the mean and the scatter over seeds."""
    table = Table(
        title=f"MEASURED {result.training.architecture.label}: held-out loss; ± is a standard error over windows"
    )
    for head in ("seed", "nats/token", "bits/byte", "tokens/s", "model"):
        table.add_column(head, justify="left" if head == "model" else "right", overflow="fold")
    for run in result.seeds:
        nats = f"{run.nats_per_token:.4f} ± {run.nats_per_token_standard_error:.4f}"
        rate = f"{run.tokens_per_second:,.0f}"
        table.add_row(str(run.seed), nats, _value(run.bits_per_byte), rate, run.model)
    return table


def closing_words(result: TrainingResult, directory: Path) -> tuple[str, ...]:
    """The mean and the scatter over seeds, what is not known, and what can be done next."""
    scatter, bits = result.sd_over_seeds, result.mean_bits_per_byte
    words = [f"mean: {_in_full(result.mean_loss)}; {_in_full(bits)}", f"sd over seeds: {_in_full(scatter)}"]
    if len(result.seeds) == 1:
        words = ["one seed: --seeds 4 tells how much the loss scatters over seeds"]
        words += [f"bits per byte: {bits.reason}"] if isinstance(bits, NotMeasured) else []
    model = directory / result.seeds[0].model
    words.append(
        f"in {directory}; archfleet score {model} measures accuracy, archfleet compare {directory} OTHER pairs losses"
    )
    return tuple(words)


def _value(quantity: Measured | NotMeasured) -> str:
    return f"{quantity.value:.4f}" if isinstance(quantity, Measured) else "not known"


def _in_full(quantity: Measured | NotMeasured) -> str:
    told = shown(quantity)
    if isinstance(quantity, NotMeasured):
        return f"not measured: {quantity.reason}"
    return f"{quantity.value:.4f} {told.unit} {told.interval or f'(no interval: {quantity.no_interval_because})'}"
