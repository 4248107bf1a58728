"""Designing a batch of runs: what one more run of each menu row would tell, and what a design must hold besides.

The drop of the target's weighted variance for one more run with features φ has a closed form, and one pick changes it
by rank one:

    gain(φ) = φᵀ S W S φ / (φᵀ S φ + noise²)        S' = S - S φ φᵀ S / (φᵀ S φ + noise²)

S: covariance of the coefficients (p, p); W: second moment of the target's features (p, p). So a batch costs two
products of the menu's features (M, p) with (p, p), and two with (p,) for each pick.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.belief import Belief, RunMenu, ShapeModel
from scaling.law import Floats
from scaling.points import CELL_TOLERANCE, Integers
from scaling.space import Mask


@dataclass(frozen=True, kw_only=True)
class DesignRules:
    """What a study must hold besides the most informative runs; binding from `min_runs` runs on.

    At least `num_ratios` tokens-per-parameter ratios (one ratio cannot identify the Chinchilla exponents), at least
    `num_replicates` repeated seeds (else the noise is a guess), at least `min_other_sizes` of the runs at other sizes
    than the one most run (a greedy choice does not see that they tell how much shapes drift with size), and a design
    of the law's own columns whose condition number is at most `max_condition_number` (else x and r are confounded).
    """

    num_ratios: int = 3
    num_replicates: int = 3
    min_other_sizes: float = 0.25
    max_condition_number: float = 50.0
    min_runs: int = 8


class Knowledge:
    """What one more run of each menu row would tell, kept up to date by rank-one steps as rows are chosen.

    `variance` is φᵀ S φ and `explained` φᵀ S W S φ, both (M,).
    """

    def __init__(self, belief: Belief, moment: Floats) -> None:
        self.features = belief.model.menu_features
        self.noise_variance = belief.noise**2
        self.covariance, self.moment = belief.covariance, moment
        by_target = self.covariance @ moment @ self.covariance
        self.variance = belief.menu_variance()
        self.explained = ((self.features @ by_target) * self.features).sum(axis=1)

    def gains(self) -> Floats:
        """By how much observing each row once would reduce the weighted variance at the target, (M,)."""
        return np.asarray(self.explained / (self.variance + self.noise_variance), dtype=float)

    def volume_drops(self) -> Floats:
        """By how much observing each row once would reduce the log determinant of S, (M,)."""
        return np.asarray(np.log1p(self.variance / self.noise_variance), dtype=float)

    def observe(self, row: int) -> None:
        """Condition on one run of a row, whatever its loss will be."""
        direction = self.covariance @ self.features[row]
        spread = float(self.features[row] @ direction) + self.noise_variance
        toward = self.covariance @ (self.moment @ direction)
        along, across = np.ascontiguousarray((self.features @ np.stack([direction, toward], axis=1)).T)
        tied = float(direction @ self.moment @ direction)
        self.variance = np.maximum(self.variance - along**2 / spread, 0.0)
        explained = self.explained - 2 * along * across / spread + along**2 * (tied / spread**2)
        self.explained = np.maximum(explained, 0.0)
        self.covariance = self.covariance - np.outer(direction, direction) / spread

    def target_sd(self) -> float:
        """Root of the weighted mean variance of ln loss at the target: a relative loss."""
        return float(np.sqrt(max((self.moment * self.covariance).sum(), 0.0)))


class Guard:
    """Which rows may be taken next under the rules, given all that was taken; and why not all of them."""

    def __init__(self, model: ShapeModel, rules: DesignRules, taken: Sequence[int]) -> None:
        self.model, self.rules, self.taken = model, rules, list(taken)
        self.ratio = _levels(model.menu, model.menu.tokens_per_parameter)
        self.size = _levels(model.menu, model.menu.num_parameters)
        self.num_ratios_on_menu = int(self.ratio.max()) + 1

    def choose(self, value: Floats) -> tuple[int, str]:
        """The row of highest value that keeps the rules, and which rule bound it ("" for none)."""
        best = int(np.argmax(value))
        if len(self.taken) < self.rules.min_runs:
            return best, ""
        num_ratios = len(np.unique(self.ratio[self.taken]))
        if num_ratios < min(self.rules.num_ratios, self.num_ratios_on_menu):
            unused = ~np.isin(self.ratio, self.ratio[self.taken])
            return _best_within(value, unused), f"only {num_ratios} tokens-per-parameter ratios so far"
        num_replicates = len(self.taken) - len(set(self.taken))
        if num_replicates < self.rules.num_replicates:
            run_before = np.bincount(self.taken, minlength=len(value)) > 0
            return _best_within(value, run_before), f"only {num_replicates} repeated seeds tell the noise so far"
        counts = np.bincount(self.size[self.taken], minlength=int(self.size.max()) + 1)
        others = 1 - counts.max() / len(self.taken)
        if others < self.rules.min_other_sizes and len(counts) > 1:
            return _best_within(value, self.size != counts.argmax()), f"only {others:.0%} of the runs at other sizes"
        condition_number = self.condition_number()
        if condition_number > self.rules.max_condition_number:
            return int(
                np.argmax(self._novelty())
            ), f"x and r hardly vary apart (condition number {condition_number:.2g})"
        return best, ""

    def condition_number(self) -> float:
        """Of the column-scaled design of cell levels, X and R (as in scaling/bilinear.py) of the runs taken."""
        design = self._design(np.asarray(self.taken, dtype=np.intp))
        norms = np.linalg.norm(design, axis=0)
        return float(np.linalg.cond(design / norms)) if (norms > 0).all() else float("inf")

    def _design(self, rows: Integers) -> Floats:
        level = (self.model.menu.cell[rows][:, None] == np.unique(self.model.menu.cell[self.taken])).astype(float)
        return np.concatenate([level, self.model.law_columns[rows]], axis=1)

    def _novelty(self) -> Floats:
        """How far each row of a cell that was run lies from what the design covers, aᵀ (AᵀA)⁻¹ a per second."""
        menu, design = self.model.menu, self._design(np.asarray(self.taken, dtype=np.intp))
        information = design.T @ design + 1e-6 * np.eye(design.shape[1])
        every = self._design(np.arange(len(menu)))
        far = ((every @ np.linalg.inv(information)) * every).sum(axis=1) / menu.seconds
        return np.where(np.isin(menu.cell, menu.cell[self.taken]), far, -np.inf)


def _levels(menu: RunMenu, values: Floats) -> Integers:
    """(M,): which level of a quantity each row's cell has; cells that differ by less than 5 % share one."""
    of_cell = np.bincount(menu.cell, np.log(values)) / np.bincount(menu.cell)
    order = np.argsort(of_cell)
    steps = np.diff(of_cell[order], prepend=of_cell[order[0]]) > np.log1p(CELL_TOLERANCE)
    level = np.empty(len(of_cell), dtype=np.intp)
    level[order] = np.cumsum(steps)
    return level[menu.cell]


def _best_within(value: Floats, allowed: Mask) -> int:
    return int(np.argmax(np.where(allowed, value, -np.inf)))
