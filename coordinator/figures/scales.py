"""What the figures of losses share: sizes and their colours, the cell that decides, and what a run is called."""

from collections.abc import Sequence
from typing import Literal, cast

from coordinator.analysis import same_size
from coordinator.figures.figure import Colour
from scaling.law_fit import CellReference, LawFit
from scaling.observations import TrainingObservation

NUM_SCALE_STEPS = 5
ShapeAxis = Literal["x", "r"]
MEANING: dict[ShapeAxis, str] = {"x": "x = d / √N", "r": "r = MLP / attention parameters"}


def scale_colour(step: int, num_steps: int) -> Colour:
    """The colour of one of several ordered steps, spread over the whole scale."""
    place = round((NUM_SCALE_STEPS - 1) * step / max(1, num_steps - 1))
    return cast("Colour", f"scale-{1 + place}")


def sizes_of(parameters: Sequence[float]) -> list[float]:
    """Parameter counts, ascending, with those of one size taken together."""
    sizes: list[float] = []
    for N in sorted(parameters):
        if not sizes or not same_size(N, sizes[-1]):
            sizes.append(N)
    return sizes


def deciding_cell(fit: LawFit) -> CellReference | None:
    """The (N, D) cell with most runs: the one that tells x* and r*."""
    return max(fit.cells, key=lambda cell: cell.num_points, default=None)


def coordinate(run: TrainingObservation, axis: ShapeAxis) -> float:
    """A run's x or r."""
    return run.architecture.width_ratio if axis == "x" else run.architecture.mlp_attention_ratio


def is_fitted(run: TrainingObservation, fit: LawFit | None) -> bool:
    """Whether r is within the range for which the law holds: other runs are shown, but were not fitted."""
    if fit is None or fit.law is None:
        return True
    return fit.r_range[0] * 0.999 <= run.architecture.mlp_attention_ratio <= fit.r_range[1] * 1.001


def run_label(run: TrainingObservation) -> str:
    """A run's shape, seed and place, for those who point at it."""
    shape = run.architecture
    return f"{shape.label}, seed {run.recipe.seed}, x {shape.width_ratio:.3f}, r {shape.mlp_attention_ratio:.2f}"
