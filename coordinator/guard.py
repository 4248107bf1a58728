"""`archfleet guard`: does the study's learning rate suit its extreme shapes, at its smallest size?

Trains the centre and the shapes with the extreme fan-ins at factors on the rate, one process a core, without Ray, and
holds their losses against each other (scaling/rate_guard.py). Every finished run is kept in a folder under the id of
its assignment, and each running one leaves checkpoints: the same command goes on where it was stopped.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.table import Table

from agent.assignment import TrainAssignment
from agent.blobs import directory_fetcher, write_atomically
from agent.device import describe_device
from agent.worker import Worker
from coordinator.choice import Reasoned
from coordinator.errors import UserError
from coordinator.figures.formats import NATS, between, digits
from coordinator.recipe import Cell, recipe_of
from coordinator.shapes import candidates_at, centre_index, check_feasible
from coordinator.study import StudySpec
from coordinator.study_corpus import open_corpus
from scaling.observations import Failure, Progress, TrainingObservation
from scaling.quantity import Measured, NotMeasured
from scaling.rate_guard import GAIN_LIMIT, Kind, ShapeVerdict, advise, at_factor, judge, level_for, run_noise
from scaling.recipes import TrainingRecipe
from scaling.replicates import sd_of

FACTORS = (1.0, 0.7, 1.4)
_CHECKPOINT_SECONDS = 10.0
_POLL_SECONDS = 0.3

Outcome = TrainingObservation | Failure
Done = Callable[[Outcome], None]
Run = Callable[[Sequence[TrainAssignment], Done, Callable[[], bool]], None]
"""Trains what it is given, hands over each result, and ends early when asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What is trained: one size, the centre first, every shape at every factor with every seed."""

    study: StudySpec
    cell: Cell
    token_scale: float
    shapes: tuple[Reasoned, ...]
    num_seeds: int
    kind: Kind = "all"

    @property
    def recipe(self) -> TrainingRecipe:
        """Of factor 1 and the first seed."""
        return recipe_of(self.study, self.cell, token_scale=self.token_scale)

    def assignments(self, shape: int, corpus_id: str) -> Mapping[float, list[TrainAssignment]]:
        """The runs of one shape by factor, each list by seed."""
        return {
            factor: [
                TrainAssignment(
                    architecture=self.shapes[shape][0],
                    recipe=at_factor(self.recipe, factor, self.kind).model_copy(update={"seed": seed}),
                    corpus_id=corpus_id,
                    num_eval_windows=self.study.corpus.num_eval_windows,
                    checkpoint_every_seconds=_CHECKPOINT_SECONDS,
                )
                for seed in range(self.num_seeds)
            ]
            for factor in FACTORS
        }


def plan_guard(study: StudySpec, *, num_seeds: int, token_scale: float = 1.0, kind: Kind = "all") -> Guard:
    """The centre and the extremes of the study's smallest size, at the fit's data ratio or else its longest there.

    Args:
        study: whose rate is tested.
        num_seeds: runs of every shape at every factor.
        token_scale: share of D.
        kind: whose rates the factors multiply.

    Raises:
        StudyError: the study cannot be run.
    """
    check_feasible(study)
    size = min(study.fit.num_parameters, *(cell.num_parameters for cell in study.reference), float("inf"))
    ratios = study.ratios_at(size)
    ratio = study.fit.tokens_per_parameter
    cell = Cell(size, ratio if ratio in ratios else ratios[-1])
    shapes = tuple(guarded_shapes(study, size))
    return Guard(study=study, cell=cell, token_scale=token_scale, shapes=shapes, num_seeds=num_seeds, kind=kind)


def guarded_shapes(study: StudySpec, num_parameters: float) -> list[Reasoned]:
    """The centre, and of each fan-in the smallest and the largest; of several, the shape nearest to the centre."""
    candidates = candidates_at(study, num_parameters)
    centre = centre_index(candidates)
    fan_ins = {
        "hidden_size": candidates.hidden_size,
        "query width": candidates.num_attention_heads * candidates.head_dim,
        "intermediate_size": candidates.intermediate_size,
    }
    away = sum(np.log(column / column[centre]) ** 2 for column in fan_ins.values())
    chosen = {centre: ["the centre"]}
    for name, column in fan_ins.items():
        for word, end in (("smallest", column.min()), ("largest", column.max())):
            index = int(np.argmin(np.where(column == end, away, np.inf)))
            chosen.setdefault(index, []).append(f"{word} {name}")
    return [(candidates.architecture(index), ", ".join(reasons)) for index, reasons in chosen.items()]


def run_guard(
    guard: Guard,
    directory: Path,
    *,
    run: Run,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
    stop_requested: Callable[[], bool],
) -> dict[str, Any] | None:
    """Train what is not trained yet and judge; null when stopped on the way.

    Args:
        guard: what to train.
        directory: keeps the corpus, finished runs and checkpoints.
        run: trains.
        say: is told what takes a while.
        progress: is told how many runs are finished, of how many.
        stop_requested: asked now and then.

    Raises:
        UserError: the corpus cannot be had, the folder cannot be written, or a run failed for a reason of its own.
    """
    corpus_id = _corpus(guard.study, directory, say)
    by_shape = [guard.assignments(index, corpus_id) for index in range(len(guard.shapes))]
    wanted = [one for seed in range(guard.num_seeds) for shape in by_shape for one in _with_seed(shape, seed)]
    kept = {one.id: found for one in wanted if (found := _read(directory, one.id)) is not None}

    def done(outcome: Outcome) -> None:
        if isinstance(outcome, Failure) and outcome.failure_kind != "nan-loss":
            raise UserError(f"a run of the guard failed ({outcome.failure_kind}): {outcome.message}")
        _keep(directory, outcome)
        kept[outcome.assignment_id] = outcome
        progress(len(kept), len(wanted))

    progress(len(kept), len(wanted))
    run([one for one in wanted if one.id not in kept], done, stop_requested)
    if len(kept) < len(wanted):
        return None
    results = [{factor: [kept[one.id] for one in runs] for factor, runs in shape.items()} for shape in by_shape]
    return _result(guard, corpus_id, results)


def _with_seed(shape: Mapping[float, list[TrainAssignment]], seed: int) -> list[TrainAssignment]:
    return [runs[seed] for runs in shape.values()]


def _result(guard: Guard, corpus_id: str, results: Sequence[Mapping[float, list[Outcome]]]) -> dict[str, Any]:
    noise, recipe = run_noise(results), guard.recipe
    level = level_for((len(FACTORS) - 1) * len(results))
    verdicts = [
        judge(shape, reason, runs, recipe, noise, level=level)
        for (shape, reason), runs in zip(guard.shapes, results, strict=True)
    ]
    return {
        "study": guard.study.name,
        "num_parameters": guard.cell.num_parameters,
        "recipe": recipe.model_dump(mode="json"),
        "corpus_id": corpus_id,
        "num_seeds": guard.num_seeds,
        "kind": guard.kind,
        "limit_nats": GAIN_LIMIT,
        "noise": sd_of(noise, num_samples=sum(len(runs) for one in results for runs in one.values())).model_dump(),
        "shapes": [one.model_dump(mode="json") for one in advise(verdicts, recipe, guard.kind)],
    }


_KINDS = {
    "all": "all rates",
    "hidden": "the rates of q, k, v, gate and up",
    "attention": "the rate of the output projections",
    "mlp": "the rate of the down projections",
}


def is_kept(result: Mapping[str, Any]) -> bool:
    """Whether no shape is off."""
    return all(shape["outcome"] not in ("off", "diverged") for shape in result["shapes"])


def guard_table(result: Mapping[str, Any]) -> Table:
    """The verdicts for people."""
    recipe = TrainingRecipe.model_validate(result["recipe"])
    table = Table(
        title=f"{result['study']}: {result['num_parameters']:,.0f} parameters on {recipe.num_tokens:,} tokens at rate "
        f"{recipe.base_learning_rate:.4g}, seeds {result['num_seeds']}, factors on {_KINDS[result['kind']]}",
        caption=f"Gain: {NATS} that a factor on the rate saves, with an interval over seeds and windows that errs in "
        f"one of twenty guards. Off: more than {GAIN_LIMIT} for certain.",
    )
    table.add_column("shape", no_wrap=True)
    table.add_column("why")
    table.add_column("rates", no_wrap=True)
    table.add_column("loss", justify="right")
    factors = [gain["factor"] for gain in result["shapes"][0]["gains"]]
    for factor in factors:
        table.add_column(f"gain at {factor:g}x", no_wrap=True)
    table.add_column("verdict")
    for plain in result["shapes"]:
        shape = ShapeVerdict.model_validate(plain)
        rates = " ".join(f"{multiplier:.2g}" for multiplier in shape.multipliers.values())
        loss = "" if shape.loss is None else f"{shape.loss:.4f}"
        gains = [_gain_words(one.gain) for one in shape.gains]
        table.add_row(shape.architecture.label, shape.reason, rates, loss, *gains, shape.outcome)
    return table


def guard_sentences(result: Mapping[str, Any]) -> list[str]:
    """What to change, one sentence a shape that needs it, and the noise."""
    noise = result["noise"]
    words = [f"{_label(shape)}: {shape['advice']}." for shape in result["shapes"] if shape["advice"]]
    scatter = f"{noise['value']:.4f} {NATS}" if noise["kind"] == "measured" else f"not known: {noise['reason']}"
    return [*words, f"One run's loss scatters over seeds by {scatter}."]


def _label(shape: Mapping[str, Any]) -> str:
    return ShapeVerdict.model_validate(shape).architecture.label


def _gain_words(gain: Measured | NotMeasured) -> str:
    if isinstance(gain, NotMeasured):
        return "diverged" if "diverged" in gain.reason else f"not measured: {gain.reason}"
    value = digits(gain.value, NATS, signed=True)
    if gain.interval is None:
        return f"{value} (no interval)"
    return f"{value} {between(gain.interval, NATS, signed=True).split(']')[0]}]"


# Files


def guard_directory(study: StudySpec) -> Path:
    """guard-<study>-<8 hex digits> in the current folder: the same command finds it again."""
    return Path(f"guard-{study.name}-{study.content_hash()[:8]}")


def _read(directory: Path, assignment_id: str) -> Outcome | None:
    path = directory / "observations" / f"{assignment_id}.json"
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        return Failure.model_validate_json(content)
    except ValidationError:
        pass
    try:
        return TrainingObservation.model_validate_json(content)
    except ValidationError:
        return None  # corrupt, or of another version: it is trained again


def _keep(directory: Path, outcome: Outcome) -> None:
    path = directory / "observations" / f"{outcome.assignment_id}.json"
    try:
        write_atomically(path, outcome.model_dump_json().encode())
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; give another --out") from None


def _corpus(study: StudySpec, directory: Path, say: Callable[[str], None]) -> str:
    """Id of the study's corpus, whose blobs are in the folder; built when it is not there yet."""
    note = directory / "corpus.json"
    spec = study.corpus.model_dump(mode="json")
    known = None
    if note.is_file():
        found = json.loads(note.read_bytes())
        known = found["corpus_id"] if found["corpus"] == spec else None
    try:
        corpus = open_corpus(study, directory / "blobs", corpus_id=known, stamps=directory / "verified", say=say)
        if corpus is None:
            assert known is not None, "only a corpus from before is not opened again"
            return str(known)
        write_atomically(note, json.dumps({"corpus": spec, "corpus_id": corpus.id}).encode())
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; give another --out") from None
    return corpus.id


# Processes


@dataclass(frozen=True)
class Processes:
    """Trains so many assignments at a time, each in a process of its own."""

    directory: Path
    num_jobs: int

    def __call__(self, assignments: Sequence[TrainAssignment], done: Done, stop_requested: Callable[[], bool]) -> None:
        if not assignments:
            return
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        stop = context.Event()
        with (
            _one_thread_a_process(),
            ProcessPoolExecutor(
                min(self.num_jobs, len(assignments)), mp_context=context, initializer=_begin, initargs=(stop,)
            ) as pool,
        ):
            pending = {pool.submit(_train, one.model_dump_json(), str(self.directory)) for one in assignments}
            try:
                while pending and not stop_requested():
                    finished, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done(_outcome_from(future.result()))
            except BrokenProcessPool:
                raise UserError(
                    "a process of the guard was killed, for want of memory perhaps; the same command goes on with "
                    "what is finished, and --jobs 1 needs least"
                ) from None
            finally:
                stop.set()  # what still runs saves a checkpoint and ends
                for future in pending:
                    future.cancel()


def default_jobs() -> int:
    """One process a core; one in all where there is an accelerator, which a run has to itself."""
    return len(os.sched_getaffinity(0)) if describe_device().hardware.startswith("cpu") else 1


@contextmanager
def _one_thread_a_process() -> Iterator[None]:
    """Two threads a run are slower than two runs of one thread each; read when a process imports its libraries."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


_stop: Event | None = None


def _begin(stop: Event) -> None:
    """In a process of the pool: Ctrl-C is the parent's business, who then sets `stop`."""
    global _stop
    _stop = stop  # an initializer has no other way to leave something behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _train(assignment: str, directory: str) -> str:
    """In a process of the pool: train, from a checkpoint if there is one; "" when stopped on the way."""
    task, folder = TrainAssignment.model_validate_json(assignment), Path(directory)
    worker = Worker("guard", folder / "agents", directory_fetcher(folder / "blobs"))
    with closing(worker.run(task)) as events:
        for event in events:
            if not isinstance(event, Progress):
                worker.discard(task)
                return event.model_dump_json()
            if _stop is not None and _stop.is_set():
                break
    return ""


def _outcome_from(plain: str) -> Outcome:
    kind = json.loads(plain)["kind"]
    return Failure.model_validate_json(plain) if kind == "failure" else TrainingObservation.model_validate_json(plain)
