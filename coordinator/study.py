"""StudySpec: reads and checks the user's study file (TOML), and finds the shipped studies.

A study says what is searched, how proxies are trained, what is fitted, for which target the answer is wanted,
and how much it may cost. Everything else is derived.
"""

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from coordinator.errors import StudyError
from hwprofiles.catalog import load_profile
from hwprofiles.value import Value
from scaling.recipes import FanIns, ServingRecipe, Workload

MAX_STUDY_BYTES = 1_000_000


class CorpusSpec(Value):
    """Which text is trained on. `python-stdlib` is this interpreter's own standard library, else a folder."""

    source: str = "python-stdlib"
    vocab_size: PositiveInt = 1024
    num_eval_windows: PositiveInt = 1024


class SpaceSpec(Value):
    """The legal shapes: one layer count and head size for the whole study, so that x means width, not depth."""

    num_hidden_layers: PositiveInt
    head_dim: PositiveInt
    query_group_size: PositiveInt
    hidden_multiple_of: PositiveInt
    intermediate_multiple_of: PositiveInt
    x_min: PositiveFloat = 0.1
    x_max: PositiveFloat = 0.46
    tolerance: float = Field(0.03, gt=0, lt=0.5)
    """Largest relative distance of a shape's N from the wanted N."""
    r_min: PositiveFloat = 0.5
    r_max: PositiveFloat = 5.0
    """The conditional law holds for r in [0.5, 5]; runs outside are left out of the fit."""


class TrainingSpec(Value):
    """The recipe that all runs share; see scaling.recipes.TrainingRecipe for the meaning of each field."""

    sequence_length: PositiveInt = 128
    batch_tokens: PositiveInt = 512
    base_learning_rate: PositiveFloat = 0.008
    base_fan_ins: FanIns = FanIns(hidden=64, attention=64, mlp=196)
    warmup_fraction: float = Field(0.02, ge=0, lt=1)
    decay_fraction: float = Field(0.3, gt=0, le=1)
    weight_decay: float = Field(0.1, ge=0)
    order_seed: NonNegativeInt = 0


class ReferenceSpec(Value):
    """One cell beside the fit's own: the centre shape at this size and data ratio, for L_opt(N, D).

    With several shapes, x* and r* are fitted at this size too, and compared with those of the fit's size.
    """

    num_parameters: PositiveFloat
    tokens_per_parameter: PositiveFloat
    num_shapes: PositiveInt = 1


class FitSpec(Value):
    """Where the shape terms are fitted, and how many runs go into them."""

    num_parameters: PositiveFloat
    tokens_per_parameter: PositiveFloat
    num_space_shapes: int = Field(8, ge=3)
    """Shapes of the first round, spread over the space."""
    num_centre_replicates: int = Field(2, ge=0)
    """Further seeds of the centre shape: they tell the noise."""
    num_rounds: int = Field(2, ge=0)
    """Rounds proposed from the fit."""
    num_runs_per_round: PositiveInt = 4


class TargetSpec(Value):
    """What the answer is for: the held-out size at which the recommendation is made and checked."""

    num_parameters: PositiveFloat
    tokens_per_parameter: PositiveFloat
    baseline: str = "llama-3.2-1b"
    """The named architecture whose shape ratios the baseline takes at this size."""
    num_validation_seeds: PositiveInt = 2
    probability: float = Field(0.8, gt=0.5, lt=1)
    """How sure Surefire must be to keep the baseline's loss."""


class ServingSpec(Value):
    """How candidates are measured here, on which hardware, and for which other hardware throughput is predicted."""

    hardware: tuple[str, ...] = ()
    """Profile ids: every candidate is measured on each of them, and each gets an answer of its own. Empty means the one
    kind that is there (`budget.bench_hardware`)."""
    recipe: ServingRecipe
    workload: Workload
    num_candidates: PositiveInt = 4
    num_repeats: int = Field(3, ge=3)
    min_window_seconds: PositiveFloat = 2.0
    predict_hardware: tuple[str, ...] = ()
    predict_batches: tuple[PositiveInt, ...] = (128, 256, 512, 1024, 2048, 4096)
    predict_input_tokens: PositiveInt = 1024
    predict_output_tokens: PositiveInt = 1024

    @field_validator("hardware")
    @classmethod
    def _known_and_different(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for hardware in given:
            load_profile(hardware)
        if len(set(given)) < len(given):
            raise ValueError("names a hardware twice; name each once")
        return given


class BudgetSpec(Value):
    """What the study may cost. D is scaled alike for all shapes where the machine is too slow for the budget."""

    wall_minutes: PositiveFloat
    max_agents: PositiveInt = 64
    checkpoint_every_seconds: PositiveFloat = 10.0
    """At most this much training is lost when an agent or the coordinator is killed."""
    min_token_scale: float = Field(0.2, gt=0, le=1)
    """Below this share of the wanted tokens the study refuses to start: its losses would mean nothing."""
    accelerator_hours: PositiveFloat | None = None
    """Hours of accelerators (or CPU slots) under lease, failed attempts included; nothing starts that could exceed
    them. Raised in the study file, they let a stopped run go on. Without them only the wall clock limits a study."""
    training_hardware: tuple[str, ...] = ()
    """Profile ids on which proxies may train; none means any."""
    bench_hardware: str | None = None
    """Profile id on which serving is measured where `serving.hardware` names none; without it, the kind of which most
    agents are there when the first benchmark is planned."""
    missing_hardware: Literal["wait", "fail"] = "wait"
    """What to do while no agent has the hardware that waiting trials ask for."""
    canary_every_minutes: NonNegativeFloat = 60.0
    """How often an accelerator is checked against its own kind, between two trials; 0 means never."""
    min_free_disk_gigabytes: NonNegativeFloat = 2.0
    """With less free disk (10^9 bytes) where the run is, nothing new is started until there is more."""

    @field_validator("training_hardware")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for hardware in given:
            load_profile(hardware)
        return given


class StudySpec(Value):
    """One study, from its corpus to its budget."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    description: str = ""
    corpus: CorpusSpec = CorpusSpec()
    space: SpaceSpec
    training: TrainingSpec = TrainingSpec()
    reference: tuple[ReferenceSpec, ...] = ()
    fit: FitSpec
    target: TargetSpec
    serving: ServingSpec
    budget: BudgetSpec

    @property
    def num_answers(self) -> int:
        """How many kinds of hardware get an answer of their own."""
        return max(1, len(self.serving.hardware))

    @model_validator(mode="after")
    def _hardware_is_named_once(self) -> Self:
        if self.serving.hardware and self.budget.bench_hardware:
            raise ValueError(
                f"serving.hardware ({', '.join(self.serving.hardware)}) and budget.bench_hardware "
                f"({self.budget.bench_hardware}) both say where serving is measured: leave the latter out"
            )
        return self

    @model_validator(mode="after")
    def _batches_hold_whole_sequences(self) -> Self:
        training = self.training
        if training.batch_tokens % training.sequence_length:
            raise ValueError(
                f"training.batch_tokens ({training.batch_tokens}) must be a multiple of "
                f"training.sequence_length ({training.sequence_length})"
            )
        return self


MAY_CHANGE = ("description", "budget.accelerator_hours")
"""Keys that may differ when a stopped run goes on."""


def changed_keys(before: StudySpec, now: StudySpec) -> list[str]:
    """Dotted names of the keys in which two studies differ, without those that may change on the way."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [key for key in differ if key not in MAY_CHANGE]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def shipped_studies() -> dict[str, Path]:
    """Names and files of the studies that come with archfleet."""
    folder = Path(str(files("coordinator") / "studies"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_study(name_or_path: str) -> StudySpec:
    """Read a shipped study by name, or a study file by path.

    Raises:
        StudyError: no such study, not TOML, or a field is wrong; the message names every wrong field.
    """
    shipped = shipped_studies()
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise StudyError(
            f"no study {name_or_path!r}: it is neither a file nor a shipped study ({', '.join(shipped)}).\n"
            "Give one of those names, or the path of a TOML file."
        )
    if path.stat().st_size > MAX_STUDY_BYTES:
        raise StudyError(f"{path} has {path.stat().st_size:,} bytes; a study file has at most {MAX_STUDY_BYTES:,}.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StudyError(f"{path} is not TOML: {error}.\nSee {shipped['laptop']} for a working study.") from None
    return parse_study(table, source=str(path))


def parse_study(table: dict[str, Any], *, source: str) -> StudySpec:
    """Check a parsed study; `source` names it in messages."""
    try:
        return StudySpec.model_validate(table)
    except ValidationError as error:
        lines = [f"{source} is not a valid study:"]
        lines += [_sentence(problem) for problem in error.errors()]
        raise StudyError("\n".join([*lines, _HINT])) from None


_HINT = "Correct the file and run the same command again; a working example is the shipped study `laptop`."


def _sentence(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"]) or "the study"
    match problem["type"]:
        case "extra_forbidden":
            return f"  {place}: unknown key (misspelt?); given {problem['input']!r:.80}{_did_you_mean(problem['loc'])}"
        case "missing":
            return f"  {place}: missing"
        case "tuple_type" if isinstance(problem["input"], str | int | float):
            key, given = str(problem["loc"][-1]), json.dumps(problem["input"])
            return f"  {place}: expected a list, {key} = [{given}]; given {key} = {given}"
        case "tuple_type":
            return f"  {place}: expected a list in square brackets; given {problem['input']!r:.80}"
        case _:
            return f"  {place}: {problem['msg']}; given {problem['input']!r:.80}"


def _did_you_mean(location: tuple[str | int, ...]) -> str:
    import difflib

    model: Any = StudySpec
    for part in location[:-1]:
        if isinstance(part, int):  # an element of a tuple[Model, ...]
            model = get_args(model)[0]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    close = difflib.get_close_matches(str(location[-1]), list(getattr(model, "model_fields", {})), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""
