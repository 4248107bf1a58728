"""Throughput ranking: what an engine's own runs say about the throughput of shapes that were not measured.

Pure: the fit (`scaling/throughput_fit.py`) follows from a study's serving observations whenever it is asked for, so it
is refitted as they arrive and nothing is stored that could disagree with them. A predicted throughput decides what is
measured next; what is recommended rests on measured ones.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import NonNegativeInt
from scipy import stats

from hwprofiles.catalog import all_profiles, load_profile
from hwprofiles.profile import HardwareProfile
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.observations import INVALIDATING_FLAGS, Observation, ServingObservation
from scaling.quantity import Measured, NotMeasured, Predicted
from scaling.recipes import ServingRecipe, Workload
from scaling.serving import predict_serving, predict_throughput_array
from scaling.space import Candidates
from scaling.throughput_fit import NoThroughputFit, ThroughputFit, fit_throughput

GENERIC_HARDWARE = "cpu-generic"
"""Whose roofline orders shapes where that of their own hardware is not known."""
MIN_RANKED = 4
"""Fewer shapes than this have no rank correlation worth telling: three are in order by chance once in six times."""


class RankedShape(Value):
    """One shape with its predicted throughput, and the measured one where there is one. Output tokens/s."""

    architecture: Architecture
    predicted: Predicted | NotMeasured
    """Of a measured shape: by a fit to the other shapes, never to its own measurement."""
    measured: Measured | NotMeasured


class ThroughputRanking(Value):
    """Which candidates were predicted, which were measured, and how good the predictions were."""

    schema_version: int = 1
    hardware: str
    basis: str
    """What predictions of shapes that were not measured rest on, or why there are none."""
    num_candidates: NonNegativeInt
    """How many shapes were ranked by their prediction."""
    shapes: tuple[RankedShape, ...]
    """All measured ones, then the fastest predicted of those that keep the loss limit."""
    num_compared: NonNegativeInt
    """Shapes with both a prediction by the others' runs and a measurement."""
    spearman: float | None
    """Rank correlation of predicted and measured over these; null where they are too few."""
    median_error: float | None
    """Median of |predicted / measured - 1| over these."""
    note: str

    def sentence(self) -> str:
        """How good the predictions were, in one line."""
        if self.median_error is None:
            return f"Predicted throughput was not compared with benchmarks: {self.note}"
        rank = "" if self.spearman is None else f", Spearman {self.spearman:.2f}"
        return (
            f"Predicted against benchmarked throughput of {self.num_compared} shapes, each predicted from the others: "
            + (f"median error {self.median_error:.1%}{rank}.")
        )


def valid_runs(
    observations: Iterable[Observation], recipe: ServingRecipe, workload: Workload, hardware: str
) -> tuple[ServingObservation, ...]:
    """The valid serving runs of one recipe and workload on one hardware."""
    return tuple(
        one
        for one in observations
        if isinstance(one, ServingObservation)
        and not INVALIDATING_FLAGS & set(one.flags)
        and (one.recipe, one.workload, one.provenance.hardware) == (recipe, workload, hardware)
    )


def roofline_profile(hardware: str, recipe: ServingRecipe) -> HardwareProfile | str:
    """The data sheet whose roofline predicts a recipe on this hardware, or why there is none."""
    profile = next((one for one in all_profiles() if one.id == hardware), None)
    if profile is None:
        return f"there is no data sheet of hardware {hardware!r}"
    if profile.memory_bytes is None:
        return f"the sheet of {hardware} does not know what memory its driver reports"
    if recipe.dtype not in profile.peak_flops_per_second:
        return f"the sheet of {hardware} has no peak in {recipe.dtype}"
    return profile


def roofline_basis(hardware: str, recipe: ServingRecipe) -> str:
    """What a prediction without any fit rests on."""
    profile = roofline_profile(hardware, recipe)
    return f"the roofline of {GENERIC_HARDWARE}, as {profile}" if isinstance(profile, str) else "the roofline alone"


def fit_runs(
    runs: Sequence[ServingObservation], recipe: ServingRecipe, hardware: str
) -> ThroughputFit | NoThroughputFit:
    """Host term and scale of the engine that made these runs on this hardware."""
    profile = roofline_profile(hardware, recipe)
    return NoThroughputFit(reason=profile) if isinstance(profile, str) else fit_throughput(runs, profile)


def predicted_rates(
    candidates: Candidates, recipe: ServingRecipe, workload: Workload, hardware: str, fit: ThroughputFit | None
) -> Floats:
    """Predicted output tokens/s of every candidate; by the roofline alone without a fit.

    Where the hardware has no usable sheet, by the generic CPU's: good for an order of what to measure, no more.
    """
    profile = roofline_profile(hardware, recipe)
    return predict_throughput_array(
        candidates,
        vocab_size=candidates.vocab_size,
        tie_word_embeddings=candidates.tie_word_embeddings,
        profile=load_profile(GENERIC_HARDWARE) if isinstance(profile, str) else profile,
        recipe=recipe,
        workload=workload,
        fit=fit,
    )


def rank(
    runs: Sequence[ServingObservation],
    next_best: Sequence[Architecture],
    *,
    recipe: ServingRecipe,
    workload: Workload,
    hardware: str,
    num_candidates: int,
) -> ThroughputRanking:
    """Set predictions beside measurements.

    Args:
        runs: valid runs of this recipe and workload on this hardware.
        next_best: shapes that were not measured, the fastest predicted first.
        recipe: how they are served.
        workload: under what load.
        hardware: profile id of what serves them.
        num_candidates: how many shapes were ranked.
    """
    fit = fit_runs(runs, recipe, hardware)
    newest = {run.architecture: run for run in runs}
    rows = [
        RankedShape(
            architecture=shape,
            predicted=_left_out(shape, runs, recipe, workload, hardware),
            measured=run.output_tokens_per_second,
        )
        for shape, run in newest.items()
    ]
    pairs = [(row.predicted.value, row.measured.value) for row in rows if _has_both(row)]  # type: ignore[union-attr]
    unmeasured = NotMeasured(reason="predicted, and not among the best that the budget could measure")
    rows += [
        RankedShape(architecture=shape, predicted=_predict(shape, recipe, workload, hardware, fit), measured=unmeasured)
        for shape in next_best
        if shape not in newest
    ]
    return ThroughputRanking(
        hardware=hardware,
        basis=fit.basis if isinstance(fit, ThroughputFit) else f"no data: {fit.reason}",
        num_candidates=num_candidates if isinstance(fit, ThroughputFit) else 0,
        shapes=tuple(rows),
        num_compared=len(pairs),
        **_quality(pairs),
    )


def _has_both(row: RankedShape) -> bool:
    return isinstance(row.predicted, Predicted) and isinstance(row.measured, Measured)


def _left_out(
    shape: Architecture,
    runs: Sequence[ServingObservation],
    recipe: ServingRecipe,
    workload: Workload,
    hardware: str,
) -> Predicted | NotMeasured:
    others = fit_runs([run for run in runs if run.architecture != shape], recipe, hardware)
    return _predict(shape, recipe, workload, hardware, others)


def _predict(
    shape: Architecture,
    recipe: ServingRecipe,
    workload: Workload,
    hardware: str,
    fit: ThroughputFit | NoThroughputFit,
) -> Predicted | NotMeasured:
    if isinstance(fit, NoThroughputFit):
        return NotMeasured(reason=f"no data: {fit.reason}")
    return predict_serving(shape, load_profile(hardware), recipe, workload, fit=fit).output_tokens_per_second


def _quality(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Fields of a ranking that tell its quality."""
    if not pairs:
        return {"spearman": None, "median_error": None, "note": "no data: too few other shapes to predict one from."}
    predicted, measured = np.array(pairs).T
    error = float(np.median(np.abs(predicted / measured - 1)))
    if len(pairs) < MIN_RANKED:
        note = f"No rank correlation: {len(pairs)} shapes compared, {MIN_RANKED} needed."
        return {"spearman": None, "median_error": error, "note": note}
    if min(np.ptp(predicted), np.ptp(measured)) == 0:
        return {"spearman": None, "median_error": error, "note": "No rank correlation: all shapes are equally fast."}
    spearman = float(stats.spearmanr(predicted, measured).statistic)
    return {"spearman": spearman, "median_error": error, "note": f"Each of {len(pairs)} left out in turn."}
