"""What the figures of losses share: sizes and their colours, the cell that decides, and what a run is called."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, cast

from coordinator.analysis import same_size
from coordinator.figures.figure import Colour
from coordinator.sharing import NUM_SHARED
from scaling.architecture import Architecture
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


class Place(NamedTuple):
    """Where a shape stands, counted once however many runs are of it."""

    num_parameters: int
    x: float
    r: float
    label: str


@lru_cache(maxsize=NUM_SHARED)
def place_of(architecture: Architecture) -> Place:
    """Size, coordinates and name of a shape."""
    x, r = architecture.width_ratio, architecture.mlp_attention_ratio
    return Place(num_parameters=architecture.num_parameters, x=x, r=r, label=architecture.label)


def coordinate(run: TrainingObservation, axis: ShapeAxis) -> float:
    """A run's x or r."""
    place = place_of(run.architecture)
    return place.x if axis == "x" else place.r


def is_fitted(run: TrainingObservation, fit: LawFit | None) -> bool:
    """Whether r is within the range for which the law holds: other runs are shown, but were not fitted."""
    if fit is None or fit.law is None:
        return True
    return fit.r_range[0] * 0.999 <= place_of(run.architecture).r <= fit.r_range[1] * 1.001


def run_label(run: TrainingObservation) -> str:
    """A run's shape, seed and place, for those who point at it."""
    place = place_of(run.architecture)
    return f"{place.label}, seed {run.recipe.seed}, x {place.x:.3f}, r {place.r:.2f}"
