"""ReferenceLaw: the loss of the best shape at an N and D that was not trained, or why it cannot be told.

    L_opt(N, D) = E + A (N/N0)^-alpha + B (D/D0)^-beta

A study has a handful of cells: too few for five coefficients. With fixed exponents the law is linear in E, A, B, so the
exponents are drawn from the range of published ones (0.28 to 0.71, arXiv 2203.15556, 2404.10102, 2502.06857, widened),
E, A, B >= 0 follow by least squares from one bootstrap replicate of the cells, and draws are kept in proportion to
their likelihood. What the cells do not say about the exponents is thereby in the interval.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from scaling.law import Floats
from scaling.law_fit import LawFit, quantiles
from scaling.points import CELL_TOLERANCE, find_cell
from scaling.quantity import Interval, NotMeasured, Predicted

EXPONENT_RANGE = (0.1, 0.8)
_TRIES_PER_DRAW = 4
Reach = Literal["surface", "line", "cell", "nothing"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceLaw:
    """Draws of the reference law, and where it may be asked.

    `reach`: "surface" where N and D varied apart from each other, "line" where they varied together or one of them did
    (it predicts on that line alone), "cell" for a single cell. `draws` (B, 5) holds E, A, B, alpha, beta in nats with N
    and D relative to `centre`; on a line B is 0 and the first coordinate that varied stands for N.
    `cell_draws` (B, K) are the replicates of the fitted cells, (`cell_num_parameters`, `cell_num_tokens`).
    """

    reach: Reach
    level: float
    centre: tuple[float, float]
    direction: tuple[float, float]
    draws: Floats
    cell_num_parameters: Floats
    cell_num_tokens: Floats
    cell_losses: Floats
    cell_draws: Floats
    messages: tuple[str, ...]

    def predict(self, num_parameters: float, num_tokens: float) -> Predicted | NotMeasured:
        """L_opt(N, D) in nats per token with its interval, or the reason why there is none."""
        samples = self.samples(num_parameters, num_tokens)
        if samples is None:
            return NotMeasured(reason=self._refusal(num_parameters, num_tokens))
        cell = find_cell(self.cell_num_parameters, self.cell_num_tokens, num_parameters, num_tokens)
        value = float(self.cell_losses[cell]) if cell is not None else float(np.median(samples))
        low, high = quantiles(samples, self.level)
        basis = "fitted cell" if cell is not None else "E + A/N^alpha + B/D^beta through the fitted cells"
        return Predicted(
            value=value,
            unit="nats/token",
            interval=Interval(
                low=min(float(low), value), high=max(float(high), value), level=self.level, method="bootstrap"
            ),
            basis=f"{basis}, {len(self.cell_num_parameters)} cells",
        )

    def samples(self, num_parameters: float, num_tokens: float) -> Floats | None:
        """Draws of L_opt(N, D), (B,); None outside the reach."""
        cell = find_cell(self.cell_num_parameters, self.cell_num_tokens, num_parameters, num_tokens)
        if cell is not None:
            return self.cell_draws[:, cell]
        offset = np.log([num_parameters / self.centre[0], num_tokens / self.centre[1]])
        E, A, B, alpha, beta = self.draws.T
        if self.reach == "surface":
            return np.asarray(E + A * np.exp(-alpha * offset[0]) + B * np.exp(-beta * offset[1]), dtype=float)
        direction = np.array(self.direction)
        along = float(offset @ direction)
        if self.reach != "line" or np.abs(offset - along * direction).max() > np.log1p(CELL_TOLERANCE):
            return None
        return np.asarray(E + A * np.exp(-alpha * along / np.abs(direction).max()), dtype=float)

    def _refusal(self, N: float, D: float) -> str:
        at = f"L_opt at N {N:.4g}, D {D:.4g} cannot be told"
        if self.reach == "line":
            return (
                f"{at}: the cells vary along one line in (N, D) and it lies off that line. "
                "Train the centre shape at another tokens-per-parameter ratio and another size."
            )
        if self.reach == "cell":
            cell = f"N {self.cell_num_parameters[0]:.4g}, D {self.cell_num_tokens[0]:.4g}"
            return f"{at}: one cell was fitted ({cell}). Train the centre shape at other N and D."
        return f"{at}: {' '.join(self.messages)}"


def fit_reference(fit: LawFit, *, seed: int = 0) -> ReferenceLaw:
    """The reference law through the cells of a conditional fit (reference "joint" or "best").

    With "joint", every cell's loss is that of the best shape, also where only the centre shape was run: this takes x*
    and r* to be the same in all cells, which the caller should test where several shapes were run at two sizes.
    """
    N = np.array([cell.num_parameters for cell in fit.cells], dtype=float)
    D = np.array([cell.num_tokens for cell in fit.cells], dtype=float)
    losses = np.array([cell.loss for cell in fit.cells], dtype=float)
    bare = ReferenceLaw(
        reach="cell" if fit.law is not None and len(N) == 1 else "nothing",
        level=fit.level,
        centre=(1.0, 1.0),
        direction=(1.0, 0.0),
        draws=np.zeros((len(fit.bootstrap), 5)),
        cell_num_parameters=N,
        cell_num_tokens=D,
        cell_losses=losses,
        cell_draws=fit.bootstrap_references,
        messages=(),
    )
    if fit.law is None:
        return replace(bare, messages=("No law was fitted.", *fit.messages))
    centre = (float(np.exp(np.log(N).mean())), float(np.exp(np.log(D).mean())))
    offsets = np.log(np.stack([N / centre[0], D / centre[1]], axis=1))
    spread, directions = np.linalg.svd(offsets)[1:]
    # A root mean square of half a factor of 1.2 is the least that tells a direction from the tolerance of cells.
    rank = int((spread / np.sqrt(len(N)) > np.log(1.2) / 2).sum())
    if rank == 0:
        return replace(bare, messages=("The cells do not vary in N or D.",))
    along = directions[0]
    columns = offsets if rank == 2 else (offsets @ along / np.abs(along).max())[:, None]
    draws, messages = _draw(columns, fit.bootstrap_references, np.random.default_rng(seed), _noise(fit))
    return replace(
        bare,
        reach="surface" if rank == 2 else "line",
        centre=centre,
        direction=(float(along[0]), float(along[1])),
        draws=draws,
        messages=tuple(messages),
    )


def _noise(fit: LawFit) -> Floats:
    """Standard error of each cell's loss: from its replicates, at least that of its own runs' noise."""
    counts = np.array([cell.num_points for cell in fit.cells])
    own = (fit.residual_sd or 0.0) / np.sqrt(counts)
    return np.asarray(np.maximum(np.maximum(fit.bootstrap_references.std(axis=0), own), 1e-6), dtype=float)


def _draw(
    columns: Floats, replicates: Floats, generator: np.random.Generator, noise: Floats
) -> tuple[Floats, list[str]]:
    """(B, 5) draws of E, A, B, alpha, beta; log coordinates `columns` (K, 1 or 2), cell losses (B, K)."""
    num_draws, rank = len(replicates), columns.shape[1]
    tried = np.zeros((num_draws * _TRIES_PER_DRAW, 5))
    misfit = np.empty(len(tried))
    for i in range(len(tried)):
        exponents = generator.uniform(*EXPONENT_RANGE, size=rank)
        design = np.concatenate([np.ones((len(columns), 1)), np.exp(-exponents * columns)], axis=1)
        terms, distance = nnls(design / noise[:, None], replicates[i % num_draws] / noise)
        tried[i, : 1 + rank], tried[i, 3 : 3 + rank] = terms, exponents
        misfit[i] = distance**2
    likelihood = np.exp(-0.5 * (misfit - misfit.min()))
    kept = generator.choice(len(tried), size=num_draws, p=likelihood / likelihood.sum())
    messages = [
        f"The reference law rests on {len(columns)} cells: its exponents are drawn from the published range "
        f"{EXPONENT_RANGE[0]} to {EXPONENT_RANGE[1]}, weighted by how well they match the cells."
    ]
    expected = max(1, len(columns) - 1 - rank)
    if float(np.median(misfit[kept])) > 4 * expected:
        messages.append("The cells scatter more about the reference law than their noise: trust its interval less.")
    return tried[kept], messages
