"""StudySpec: reads and checks the user's study file (TOML), and finds the shipped studies.

A study says what is searched, how proxies are trained, what is fitted, for which target the answer is wanted,
and how much it may cost. Everything else is derived.
"""

import difflib
import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from coordinator.errors import StudyError
from hwprofiles.catalog import load_profile
from hwprofiles.value import Value
from scaling.recipes import FanIns, ServingRecipe, Workload

MAX_STUDY_BYTES = 1_000_000


def _or_word(kind: str, word: str) -> Discriminator:
    """Reads a union of `kind` and one word. Its tags are what a mistake is told with."""
    return Discriminator(lambda given: f'{kind} or "{word}"' if isinstance(given, str) else kind)


Rate = Annotated[
    Annotated[PositiveFloat, Tag("a number")] | Annotated[Literal["step-law"], Tag('a number or "step-law"')],
    _or_word("a number", "step-law"),
]
BatchTokens = Annotated[
    Annotated[PositiveInt, Tag("a whole number")] | Annotated[Literal["step-law"], Tag('a whole number or "step-law"')],
    _or_word("a whole number", "step-law"),
]
BaseFanIns = Annotated[
    Annotated[FanIns, Tag("a table of fan-ins")] | Annotated[Literal["centre"], Tag('a table of fan-ins or "centre"')],
    _or_word("a table of fan-ins", "centre"),
]


class CorpusSpec(Value):
    """Which text is trained on.

    `python-stdlib` is this interpreter's own standard library; else a folder: text, or what `archfleet data` wrote.
    """

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
    """The recipe that all runs share; see scaling.recipes.TrainingRecipe for the meaning of each field.

    In place of a number, `base_learning_rate` and `batch_tokens` may be "step-law": they then follow each size's N and
    D (scaling/step_law.py). `base_fan_ins` may be "centre": those of the centre shape of each size, which are the
    default beside a rate by the step law.
    """

    sequence_length: PositiveInt = 128
    batch_tokens: BatchTokens = 512
    base_learning_rate: Rate = 0.008
    base_fan_ins: BaseFanIns = FanIns(hidden=64, attention=64, mlp=196)
    max_rate_multiplier: PositiveFloat | None = None
    """Cap on the fan-in rule; `archfleet guard` tells whether one is needed."""
    warmup_fraction: float = Field(0.02, ge=0, lt=1)
    """Of D; at a size whose runs share trunks, of the D that the fit's ratio gives there."""
    warmup_tokens: PositiveInt | None = None
    """The length of every warm-up instead, whatever N and D, scaled to the budget as D is; runs that differ in D alone
    then share trunks."""
    decay_fraction: float = Field(0.3, gt=0, le=1)
    weight_decay: float = Field(0.1, ge=0)
    order_seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _step_law_is_for_the_centre(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("base_learning_rate") == "step-law":
            return {"base_fan_ins": "centre", **given}
        return given


class ReferenceSpec(Value):
    """Cells beside the fit's own: the centre shape at this size and these data ratios, for L_opt(N, D).

    With several shapes, x* and r* are fitted at this size too, and compared with those of the fit's size.

    `ratios` are several D for little more than the price of the longest: it is trained first, and each other D branches
    off where its decay begins. Runs of the fit at this size, and of other entries with `ratios`, share these trunks.
    `tokens_per_parameter` is one D, trained from scratch.
    """

    num_parameters: PositiveFloat
    tokens_per_parameter: PositiveFloat | None = None
    ratios: tuple[PositiveFloat, ...] = ()
    num_shapes: PositiveInt = 1

    @property
    def all_ratios(self) -> tuple[float, ...]:
        """Every D of this entry, in tokens per parameter."""
        return self.ratios or (self.tokens_per_parameter or 0.0,)

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.tokens_per_parameter is None) == (not self.ratios):
            raise ValueError(
                "give either tokens_per_parameter = 10 (one D) or ratios = [5, 10, 20] (several D on one trunk)"
            )
        if len(set(self.ratios)) < len(self.ratios):
            raise ValueError(f"ratios {list(self.ratios)} name one twice; name each once")
        return self


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

    @property
    def trunk_sizes(self) -> frozenset[float]:
        """Sizes at which the runs of several D share trunks."""
        asked = {c.num_parameters for c in self.reference if c.ratios or self.training.warmup_tokens is not None}
        return frozenset(size for size in asked if len(self.ratios_at(size)) > 1)

    def ratios_at(self, num_parameters: float) -> tuple[float, ...]:
        """Data ratios of all proxies of one size, the fit's included, in rising order."""
        ratios = {ratio for c in self.reference if c.num_parameters == num_parameters for ratio in c.all_ratios}
        if self.fit.num_parameters == num_parameters:
            ratios.add(self.fit.tokens_per_parameter)
        return tuple(sorted(ratios))

    @model_validator(mode="after")
    def _warm_ups_end_before_the_decays(self) -> Self:
        training, target = self.training, self.target
        if self.trunk_sizes and training.decay_fraction == 1:
            raise ValueError(
                "reference.ratios need a stable part to branch off: training.decay_fraction must be below 1"
            )
        if training.warmup_tokens is not None:
            sizes = {self.fit.num_parameters, *(cell.num_parameters for cell in self.reference)}
            tokens = [size * min(self.ratios_at(size)) for size in sizes]
            tokens.append(target.num_parameters * target.tokens_per_parameter)
            stable = (1 - training.decay_fraction) * min(tokens)
            if training.warmup_tokens > stable:
                raise ValueError(
                    f"training.warmup_tokens ({training.warmup_tokens:,}) reach into the decay of the shortest run, "
                    f"which begins after {stable:,.0f} of its {min(tokens):,.0f} tokens: give less, or a "
                    "warmup_fraction"
                )
        return self

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
        if training.batch_tokens != "step-law" and training.batch_tokens % training.sequence_length:
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
    if not _is_file(path):
        close = difflib.get_close_matches(name_or_path[:200], shipped, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise StudyError(
            f"no study {name_or_path!r:.200}: it is neither a file nor a shipped study ({', '.join(shipped)}).{meant}\n"
            "Give one of those names, or the path of a TOML file."
        )
    if path.stat().st_size > MAX_STUDY_BYTES:
        raise StudyError(f"{path} has {path.stat().st_size:,} bytes; a study file has at most {MAX_STUDY_BYTES:,}.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StudyError(f"{path} is not TOML: {error}.\nSee {shipped['laptop']} for a working study.") from None
    return parse_study(table, source=str(path))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than names can be
        return False


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
    names = [str(part) for part in problem["loc"] if not _is_tag(part)]
    place = ".".join(names) or "the study"
    match problem["type"]:
        case "literal_error" if _is_tag(problem["loc"][-1]):
            return f"  {place}: expected {problem['loc'][-1]}; given {problem['input']!r:.80}"
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


def _is_tag(part: str | int) -> bool:
    """Whether a part of a place is not a key but the kind of value that was read there; see `_or_word`."""
    return str(part).startswith("a ")


def _did_you_mean(location: tuple[str | int, ...]) -> str:
    model: Any = StudySpec
    for part in location[:-1]:
        if isinstance(part, int):  # an element of a tuple[Model, ...]
            model = get_args(model)[0]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    close = difflib.get_close_matches(str(location[-1]), list(getattr(model, "model_fields", {})), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""
