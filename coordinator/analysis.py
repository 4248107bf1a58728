"""Analysis: what the losses of a run say so far. Pure: the same observations give the same analysis.

Three fits of the conditional law: at the fit's size (the one that decides), over all sizes together (its cells carry
the reference law L_opt(N, D) to the target), and at every other size with enough shapes (do x* and r* agree?).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from coordinator.figures.formats import short
from coordinator.study import StudySpec
from scaling.fit import fit_conditional
from scaling.law_fit import LawFit, Optimum
from scaling.observations import Observation, TrainingObservation
from scaling.points import ShapePoints
from scaling.reference import ReferenceLaw, fit_reference

MIN_SHAPES_FOR_A_SIZE = 6
"""Five identifiable coefficients and one to spare."""
SAME_SIZE = 0.2
"""Sizes of a study are at least a factor of 1.4 apart; shapes are within a few per cent of theirs."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The fits of a run. `by_size` holds (N, fit) of every size at which several shapes were run."""

    law_fit: LawFit
    pooled: LawFit
    by_size: tuple[tuple[float, LawFit], ...]

    @property
    def num_points(self) -> int:
        """Runs in the deciding fit."""
        return self.law_fit.num_points

    @cached_property
    def reference(self) -> ReferenceLaw:
        """L_opt(N, D) through all fitted cells."""
        return fit_reference(self.pooled)

    def sentence(self) -> str:
        """The law in one line."""
        fit = self.law_fit
        if fit.law is None:
            return f"no law yet from {fit.num_points} runs: {' '.join(fit.messages)}"
        noise = "" if fit.residual_sd is None else f", residual sd {fit.residual_sd:.4f} nats/token"
        return (
            f"law from {fit.num_points} runs: x* {_shown(fit.x_opt, fit.x_opt_reason)}, "
            f"r* {_shown(fit.r_opt, fit.r_opt_reason)}{noise}"
        )

    def agreement(self) -> str:
        """Whether x* and r* agree between the sizes at which several shapes were run."""
        if len(self.by_size) < 2:
            return "Fewer than two sizes have enough shapes: whether x* and r* agree between sizes was not tested."
        return " ".join(_agreement(name, self.by_size) for name in ("x", "r"))

    def messages(self) -> list[str]:
        """Everything that the fits say of themselves, each sentence once."""
        own = self.law_fit.messages
        others = [("All sizes together", text) for text in self.pooled.messages]
        others += [(f"N = {short(size)}", text) for size, fit in self.by_size for text in fit.messages]
        return [*own, *(f"{of}: {text}" for of, text in others if text not in own)]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives the analysis back."""
        residual, fit = self.law_fit.residual_sd, self.law_fit
        mean_loss = float(np.mean([cell.loss for cell in fit.cells])) if fit.cells else None
        return {
            "law_fit": fit.to_json(),
            "pooled": self.pooled.to_json(),
            "by_size": [[size, one.to_json()] for size, one in self.by_size],
            "residual_relative_error": residual / mean_loss if residual is not None and mean_loss else None,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Analysis":
        """Read what `to_json` made."""
        return cls(
            law_fit=LawFit.from_json(plain["law_fit"]),
            pooled=LawFit.from_json(plain["pooled"]),
            by_size=tuple((size, LawFit.from_json(one)) for size, one in plain["by_size"]),
        )


def analyse(study: StudySpec, observations: Iterable[Observation]) -> Analysis | None:
    """Fit what there is; None before the first loss at the fit's size. The target's own runs stay held out."""
    runs = [o for o in observations if isinstance(o, TrainingObservation)]
    training = [run for run in runs if not same_size(_size(run), study.target.num_parameters)]
    deciding = [run for run in training if same_size(_size(run), study.fit.num_parameters)]
    if not deciding:
        return None
    law_fit = _fit(deciding)
    by_size = [
        (
            size,
            law_fit if size == study.fit.num_parameters else _fit([r for r in training if same_size(_size(r), size)]),
        )
        for size in sorted({study.fit.num_parameters, *(cell.num_parameters for cell in study.reference)})
        if _num_shapes([run for run in training if same_size(_size(run), size)]) >= MIN_SHAPES_FOR_A_SIZE
    ]
    return Analysis(law_fit=law_fit, pooled=_fit(training), by_size=tuple(by_size))


def same_size(N: float, other: float) -> bool:
    """Whether two parameter counts belong to one size of a study."""
    return abs(N / other - 1) <= SAME_SIZE


def _size(run: TrainingObservation) -> float:
    return float(run.architecture.num_parameters)


def _num_shapes(runs: Sequence[TrainingObservation]) -> int:
    return len({run.architecture for run in runs})


def _fit(runs: Sequence[TrainingObservation]) -> LawFit:
    return fit_conditional(ShapePoints.from_observations(runs))


def _shown(optimum: Optimum | None, reason: str | None) -> str:
    if optimum is None:
        return f"not found ({reason})"
    return f"{optimum.value:.3g} [{optimum.interval.low:.3g}, {optimum.interval.high:.3g}]"


def _agreement(name: str, by_size: Sequence[tuple[float, LawFit]]) -> str:
    optima = [(size, fit.x_opt if name == "x" else fit.r_opt) for size, fit in by_size]
    found = [(size, optimum) for size, optimum in optima if optimum is not None]
    if len(found) < 2:
        return f"{name}* was not found at two sizes: its agreement was not tested."
    listing = ", ".join(f"{_shown(optimum, None)} at N = {size:,.0f}" for size, optimum in found)
    low = max(optimum.interval.low for _, optimum in found)
    high = min(optimum.interval.high for _, optimum in found)
    level = f"{found[0][1].interval.level:.0%}"
    if low <= high:
        return f"{name}* agrees between sizes within its {level} intervals: {listing}."
    return f"{name}* differs between sizes beyond its {level} intervals: {listing}. Do not extrapolate it."
