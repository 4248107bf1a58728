"""`archfleet compare`: how trained architectures differ in held-out loss, window by window, and whether that is noise.

Each is a folder of `archfleet train` (its seeds are replicates), one of its seeds, or the observation of one run. The
first is what the others are compared with. The noise over seeds is pooled over all that are given.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt
from rich.table import Table

from coordinator.errors import UserError
from coordinator.figures.formats import NATS, between, digits, plural
from coordinator.training_folder import OBSERVATION_NAME, TRAINING_NAME, read_observation, read_training
from hwprofiles.value import Value
from scaling.bits_per_byte import in_bits_per_byte
from scaling.observations import TrainingObservation
from scaling.pairing import RunNoise, noise_floor, paired_difference, window_difference
from scaling.quantity import Measured, NotMeasured
from scaling.replicates import mean_over_seeds, pooled_noise, sd_of, sd_over_seeds
from scaling.windows import standard_error

Verdict = Literal["better", "worse", "no difference shown", "one seed each: cannot be told from noise"]


class Trained(Value):
    """A trained architecture over its seeds."""

    name: str
    label: str
    num_seeds: PositiveInt
    num_tokens: PositiveInt
    loss: Measured
    bits_per_byte: Measured | NotMeasured
    loss_standard_error: float
    """Over windows, of one run, nats per token: the mean over seeds."""
    sd_over_seeds: Measured | NotMeasured


class Difference(Value):
    """A loss minus that of the first, on the same windows; negative is better."""

    name: str
    difference: Measured
    """With the interval that has both sources of error in it: windows and seeds."""
    over_windows: Measured
    """With the interval over windows alone: how it might be on other text, for these very runs."""
    standard_error_over_windows: float
    bits_per_byte: Measured | NotMeasured
    verdict: Verdict


class Comparison(Value):
    """Trained architectures beside each other."""

    schema_version: Literal[1] = 1
    corpus_id: str
    num_windows: PositiveInt
    trained: tuple[Trained, ...]
    noise: Measured | NotMeasured
    """Scatter of one run's loss over seeds, pooled over all."""
    noise_floor: float | None
    """Nats per token by which two runs of one architecture differ at most, nine times in ten; null where the noise is
    not known."""
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


class _Given:
    """What the user named: runs that differ in their seed alone."""

    def __init__(self, name: str, runs: Sequence[TrainingObservation], bytes_per_token: float | None) -> None:
        self.name, self.runs, self.bytes_per_token = name, tuple(runs), bytes_per_token

    @property
    def losses(self) -> list[float]:
        return [run.loss for run in self.runs]


def compare(paths: Sequence[Path], *, noise_sd: float | None = None, level: float = 0.9) -> Comparison:
    """Compare trained architectures with the first of them.

    Args:
        paths: folders of `archfleet train`, folders of single seeds, or observations as JSON; at least two.
        noise_sd: scatter of one run's loss over seeds in nats per token, where it is known from elsewhere; by default
            it is estimated from the replicates given here.
        level: of the intervals; those of several differences are widened until they hold together (Bonferroni).

    Raises:
        UserError: something cannot be read, or was not evaluated on the same windows of the same corpus.
    """
    given = [_read(path) for path in paths]
    if len(given) < 2:
        raise UserError(f"{plural(len(given), 'training')} given; expected two or more to compare")
    for other in given[1:]:
        _require_same_windows(given[0], other)
    noise = pooled_noise(*(each.losses for each in given))
    if noise_sd is not None:
        noise = RunNoise(sd=noise_sd, degrees_of_freedom=KNOWN)
    first = given[0]
    together = 1 - (1 - level) / (len(given) - 1)
    return Comparison(
        corpus_id=first.runs[0].corpus_id,
        num_windows=len(first.runs[0].window_losses),
        trained=tuple(_trained(each, level) for each in given),
        noise=_told(noise, noise_sd, sum(len(each.runs) for each in given), level),
        noise_floor=noise_floor(noise),
        differences=tuple(_difference(first, other, noise, together) for other in given[1:]),
        notes=tuple(note for other in given[1:] for note in _notes(first, other)),
    )


KNOWN = 10**6
"""Degrees of freedom of a noise that is taken as known: its t-interval is a normal one."""


def _read(path: Path) -> _Given:
    if path.is_file():
        return _Given(str(path), [read_observation(path)], None)
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; expected a folder of archfleet train, or an observation as JSON"
        )
    single = path / OBSERVATION_NAME
    places = [single] if single.is_file() else sorted(path.glob(f"seed-*/{OBSERVATION_NAME}"))
    if not places:
        raise UserError(f"{path} holds no finished run; expected a folder that archfleet train --out wrote, finished")
    runs = sorted((read_observation(place) for place in places), key=lambda run: run.recipe.seed)
    home = path.parent if single.is_file() else path
    known = read_training(home).bytes_per_token if (home / TRAINING_NAME).is_file() else None
    return _Given(str(path), runs, known)


def _require_same_windows(first: _Given, other: _Given) -> None:
    ours, theirs = first.runs[0], other.runs[0]
    reasons = []
    if ours.corpus_id != theirs.corpus_id:
        reasons.append(f"of corpus {ours.corpus_id[:12]} and {theirs.corpus_id[:12]}")
    if _windows(ours) != _windows(theirs):
        reasons.append(f"on {_windows(ours)} and {_windows(theirs)}")
    if reasons:
        raise UserError(
            f"{first.name} and {other.name} cannot be paired: they were evaluated {' and '.join(reasons)}; train both "
            "with the same --corpus and --sequence-length"
        )


def _windows(run: TrainingObservation) -> str:
    return f"{len(run.window_losses)} windows of {run.recipe.sequence_length} tokens"


def _trained(given: _Given, level: float) -> Trained:
    loss, runs = mean_over_seeds(given.losses, level=level), given.runs
    return Trained(
        name=given.name,
        label=runs[0].architecture.label,
        num_seeds=len(runs),
        num_tokens=runs[0].num_tokens,
        loss=loss,
        bits_per_byte=in_bits_per_byte(loss, given.bytes_per_token),
        loss_standard_error=sum(standard_error(run.window_losses) for run in runs) / len(runs),
        sd_over_seeds=sd_over_seeds(given.losses, level=level),
    )


def _told(noise: RunNoise, known: float | None, num_runs: int, level: float) -> Measured | NotMeasured:
    if known is None:
        return sd_of(noise, num_samples=num_runs, level=level)
    return Measured(value=known, unit=NATS, num_samples=0, no_interval_because="given by --noise-sd")


def _difference(first: _Given, other: _Given, noise: RunNoise, level: float) -> Difference:
    difference = paired_difference(other.runs, first.runs, noise, level=level)
    windows = window_difference(other.runs, first.runs, level=level)
    return Difference(
        name=other.name,
        difference=difference,
        over_windows=windows.difference,
        standard_error_over_windows=windows.standard_error,
        bits_per_byte=in_bits_per_byte(difference, first.bytes_per_token),
        verdict=_verdict(difference),
    )


def _verdict(difference: Measured) -> Verdict:
    interval = difference.interval
    if interval is None:
        return "one seed each: cannot be told from noise"
    if interval.high < 0:
        return "better"
    return "worse" if interval.low > 0 else "no difference shown"


def _notes(first: _Given, other: _Given) -> list[str]:
    """What else differs, so that nobody takes it for the architecture's doing."""
    ours, theirs = (each.runs[0].recipe.model_dump(exclude={"seed"}) for each in (first, other))
    changed = [name for name in ours if ours[name] != theirs.get(name)]
    return [f"{other.name} differs from {first.name} in its recipe too: {', '.join(changed)}"] if changed else []


def comparison_table(comparison: Comparison) -> Table:
    """Losses, their errors and scatter, and the paired differences from the first."""
    windows = f"{comparison.num_windows} windows"
    table = Table(title=f"MEASURED held-out loss, nats/token, {windows}; ± is a standard error over windows")
    for head in ("architecture", "seeds", "loss", "bits/byte", "sd over seeds", "minus the first, paired", "verdict"):
        table.add_column(head, justify="left" if head in ("architecture", "verdict") else "right", overflow="fold")
    for trained, difference in zip(comparison.trained, (None, *comparison.differences), strict=True):
        table.add_row(
            trained.name,
            str(trained.num_seeds),
            f"{trained.loss.value:.4f} ± {trained.loss_standard_error:.4f}",
            _number(trained.bits_per_byte),
            _number(trained.sd_over_seeds),
            "first" if difference is None else _paired(difference),
            "" if difference is None else difference.verdict,
        )
    return table


def _number(quantity: Measured | NotMeasured) -> str:
    return f"{quantity.value:.4f}" if isinstance(quantity, Measured) else "not known"


def _paired(difference: Difference) -> str:
    return f"{difference.difference.value:+.4f} ± {difference.standard_error_over_windows:.4f}"


def closing_words(comparison: Comparison) -> tuple[str, ...]:
    """The noise, and each difference with its intervals and what they mean."""
    words = [_noise_words(comparison.noise, comparison.noise_floor)]
    for each in comparison.differences:
        value = f"{digits(each.difference.value, NATS, signed=True)} nats/token"
        interval = each.difference.interval
        told = (
            f"{between(interval, NATS, signed=True)}, windows and seeds: {each.verdict}"
            if interval is not None
            else f"{_interval(each.over_windows)}; {each.verdict}. Train several seeds, or give --noise-sd"
        )
        bits = each.bits_per_byte
        in_bits = f" ({bits.value:+.4f} bits/byte)" if isinstance(bits, Measured) else ""
        words.append(f"{each.name} minus {comparison.trained[0].name}: {value}{in_bits} {told}")
    if len(comparison.differences) > 1:
        words.append(f"intervals are corrected for {len(comparison.differences)} comparisons")
    return (*words, *comparison.notes)


def _noise_words(noise: Measured | NotMeasured, floor: float | None) -> str:
    if isinstance(noise, NotMeasured) or floor is None:
        return f"noise of one run over seeds: {noise.reason if isinstance(noise, NotMeasured) else 'not known'}"
    told = between(noise.interval, NATS) if noise.interval else f"({noise.no_interval_because})"
    chance = f"two runs of one architecture differ by chance by up to {floor:.4f} (90 %)"
    return f"noise of one run over seeds: sd {noise.value:.4f} nats/token {told}; {chance}"


def _interval(quantity: Measured) -> str:
    return "" if quantity.interval is None else between(quantity.interval, NATS, signed=True)
