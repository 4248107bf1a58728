"""What is believed about the loss of every shape in every (N, D) cell, as a linear model with Gaussian priors.

    ln L = level(ln N, ln D) + cell + X·α + R·β + (X, R)·(γ u + κ v) + ι X₁R₁ + δ(ln x, ln r) + noise

X, R: the law's own features (scaling/bilinear.py), of unit root mean square over the menu. u = ln(N / N_target) and
v = ln of tokens per parameter over the target's: what small or short runs show drifts until the target. X₁R₁ tilts the
valley, δ is a smooth misfit of the law with the size of the noise: because of it a new shape tells a little more than
one more seed of an old one. The priors keep every number finite and honest from the first run on: before there are data
the belief is the prior, and what no run can show (a drift beyond the largest size) stays uncertain.

A linear model's variance does not depend on the losses, so a run that is still pending counts as observed.
Legend: M rows of the menu, T targets, p features, n runs, B draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scaling.bilinear import ShapeBasis, make_basis
from scaling.law import Floats
from scaling.points import Integers, make_cells

DEFAULT_NOISE = 0.003
"""sd of ln loss over seeds, where nothing is known yet: 0.011 nats of 3.6 (measured at 0.1 M parameters)."""
_NOISE_PRIOR_RUNS = 4.0
"""How many replicates the default noise is worth."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Prior sd of ln loss from each kind of feature of unit root mean square."""

    level: float = 0.5
    slope: float = 0.3
    """Per unit of ln N or ln D: published exponents give at most 0.1."""
    curvature: float = 0.03
    """Second order in ln N and ln D."""
    cell: float = 0.003
    """What a smooth level misses in one cell."""
    shape: float = 0.05
    """Shapes within the usual ranges differ by a few per cent."""
    size_drift: float = 0.005
    """Change of a shape term for each factor e of N; that of the published fits of arXiv 2510.18245 in x is 0.005."""
    ratio_drift: float = 0.002
    """Change of a shape term for each factor e of tokens per parameter."""
    interaction: float = 0.005
    misfit_share: float = 1.0
    """sd of the smooth misfit relative to the noise of one run."""
    misfit_length: float = 0.5
    """Correlation length of the misfit in ln x and ln r: about a factor of 1.6."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunMenu:
    """What may be run: one row for each shape in each (N, D) cell, columns (M,).

    N in parameters, D in tokens, `seconds` what one run costs. `cell` (M,) numbers the cells (N and D within 5 %).
    """

    x: Floats
    r: Floats
    num_parameters: Floats
    num_tokens: Floats
    seconds: Floats
    cell: Integers = field(init=False)

    def __post_init__(self) -> None:
        """Refuse columns that do not match, and number the cells."""
        columns = {name: getattr(self, name) for name in ("x", "r", "num_parameters", "num_tokens", "seconds")}
        for name, column in columns.items():
            values = np.asarray(column, dtype=float)
            if values.shape != (len(self.x),) or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name} must be {len(self.x)} positive numbers, one a row of the menu")
            object.__setattr__(self, name, values)
        object.__setattr__(self, "cell", make_cells(columns["num_parameters"], columns["num_tokens"]).of_point)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.x)

    @property
    def tokens_per_parameter(self) -> Floats:
        """D / N, (M,)."""
        return self.num_tokens / self.num_parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """The shapes that may be chosen, columns (T,), at one size and one amount of data."""

    x: Floats
    r: Floats
    num_parameters: float
    num_tokens: float

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.x)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapeModel:
    """Features of the menu (M, p) and of the target (T, p), and the prior sd of their coefficients (p,).

    Smooth-misfit columns, `misfit` of them at the end, have a prior sd relative to the noise.
    """

    menu: RunMenu
    target: Target
    menu_features: Floats
    target_features: Floats
    prior_sd: Floats
    num_misfit: int
    law_columns: Floats
    """X and R of the menu, (M, up to 4): what the condition number of a design is about."""

    def prior_variance(self, noise: float) -> Floats:
        """Of the coefficients, (p,), given the sd of ln loss over seeds."""
        sd = self.prior_sd.copy()
        sd[len(sd) - self.num_misfit :] *= noise
        return np.asarray(sd**2, dtype=float)

    def belief(self, existing: Sequence[int], losses: Floats, *, pending: Sequence[int] = ()) -> "Belief":
        """The belief after runs of menu rows `existing` with their `losses` (n,) in nats per token.

        The noise comes from replicates among them. Pending rows narrow the belief without moving it.
        """
        return condition(self, existing, losses, pending=pending, noise=replicate_noise(existing, losses))


def make_model(menu: RunMenu, target: Target, prior: Prior | None = None) -> ShapeModel:
    """The features of a study: what its menu can vary, and nothing that it cannot."""
    chosen = prior if prior is not None else Prior()
    bases = make_basis(menu.x, 2), make_basis(menu.r, 2)
    misfit = _Misfit.over(menu, chosen.misfit_length)
    parts = [_columns(one, menu, target, bases, misfit, chosen) for one in (_Rows.of(menu), _Rows.of(target))]
    on_menu, on_target, sd = parts[0].features, parts[1].features, parts[0].prior_sd
    return ShapeModel(
        menu=menu,
        target=target,
        menu_features=on_menu,
        target_features=on_target,
        prior_sd=sd,
        num_misfit=len(misfit.centres),
        law_columns=np.concatenate([bases[0].columns(menu.x), bases[1].columns(menu.r)], axis=1),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    x: Floats
    r: Floats
    N: Floats
    D: Floats
    cell: Integers | None

    @classmethod
    def of(cls, rows: RunMenu | Target) -> "_Rows":
        size = np.ones(len(rows.x))
        cell = rows.cell if isinstance(rows, RunMenu) else None
        return cls(x=rows.x, r=rows.r, N=size * rows.num_parameters, D=size * rows.num_tokens, cell=cell)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Columns:
    features: Floats
    prior_sd: Floats


def _columns(
    rows: _Rows, menu: RunMenu, target: Target, bases: tuple[ShapeBasis, ShapeBasis], misfit: "_Misfit", prior: Prior
) -> _Columns:
    shape = np.concatenate([bases[0].columns(rows.x), bases[1].columns(rows.r)], axis=1)
    num_cells = int(menu.cell.max()) + 1
    blocks = [(np.ones((len(rows.x), 1)), prior.level)]
    if num_cells > 1:
        centre = np.log(menu.num_parameters).mean(), np.log(menu.num_tokens).mean()
        size, data = np.log(rows.N) - centre[0], np.log(rows.D) - centre[1]
        # A cell of its own is what the target has, and what it deviates by is nobody's to learn: zero.
        cells = np.zeros((len(rows.x), num_cells)) if rows.cell is None else np.eye(num_cells)[rows.cell]
        u = np.log(rows.N / target.num_parameters)[:, None]
        v = np.log(rows.D / rows.N * target.num_parameters / target.num_tokens)[:, None]
        blocks += [
            (np.stack([size, data], axis=1), prior.slope),
            (np.stack([size**2, size * data, data**2], axis=1), prior.curvature),
            (cells, prior.cell),
            (u * shape, prior.size_drift),
            (v * shape, prior.ratio_drift),
        ]
    blocks.append((shape, prior.shape))
    if min(bases[0].rank, bases[1].rank) > 0:
        blocks.append((shape[:, :1] * shape[:, bases[0].rank : bases[0].rank + 1], prior.interaction))
    blocks.append((misfit.columns(rows.x, rows.r), prior.misfit_share))
    return _Columns(
        features=np.concatenate([block for block, _ in blocks], axis=1),
        prior_sd=np.concatenate([np.full(block.shape[1], sd) for block, sd in blocks]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Misfit:
    """A squared-exponential process in (ln x, ln r) through inducing points one length apart (Nyström).

    k(z, z') ≈ φ(z)·φ(z') with φ(z) = K_zm K_mm^(-1/2); exact at the m inducing points.
    """

    centres: Floats
    length: float
    whitening: Floats

    @classmethod
    def over(cls, menu: RunMenu, length: float) -> "_Misfit":
        axes = []
        for z in (np.log(menu.x), np.log(menu.r)):
            num = int(np.ceil((z.max() - z.min()) / length)) + 1
            axes.append(np.linspace(z.min(), z.max(), num) if num > 1 else z[:1])
        centres = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=1)
        kernel = _squared_exponential(centres, centres, length)
        values, vectors = np.linalg.eigh(kernel + 1e-8 * np.eye(len(centres)))
        return cls(centres=centres, length=length, whitening=(vectors / np.sqrt(values)) @ vectors.T)

    def columns(self, x: Floats, r: Floats) -> Floats:
        at = np.stack([np.log(x), np.log(r)], axis=1)
        return np.asarray(_squared_exponential(at, self.centres, self.length) @ self.whitening, dtype=float)


def _squared_exponential(z: Floats, other: Floats, length: float) -> Floats:
    # Separable: one exponential for each coordinate of z and distinct coordinate of other.
    result = np.ones((len(z), len(other)))
    for axis in range(z.shape[1]):
        ticks, which = np.unique(other[:, axis], return_inverse=True)
        result *= np.exp(-0.5 * ((z[:, axis : axis + 1] - ticks) / length) ** 2)[:, which.reshape(-1)]
    return result


def replicate_noise(existing: Sequence[int], losses: Floats) -> float:
    """sd of ln loss over seeds: replicates of menu rows, pooled with a weak prior at the default."""
    sums, num = _NOISE_PRIOR_RUNS * DEFAULT_NOISE**2, _NOISE_PRIOR_RUNS
    rows, log_loss = np.asarray(existing, dtype=np.intp), np.log(np.asarray(losses, dtype=float))
    if len(rows):
        names, of_run, counts = np.unique(rows, return_inverse=True, return_counts=True)
        mean = np.bincount(of_run.reshape(-1), log_loss) / counts
        sums += float(((log_loss - mean[of_run.reshape(-1)]) ** 2).sum())
        num += len(rows) - len(names)
    return float(np.sqrt(sums / num))


def condition(
    model: ShapeModel, existing: Sequence[int], losses: Floats, *, noise: float, pending: Sequence[int] = ()
) -> "Belief":
    """Bayesian linear regression of ln loss on the features, with a known noise sd."""
    rows = np.asarray(existing, dtype=np.intp)
    features = model.menu_features[rows]
    y = np.log(np.asarray(losses, dtype=float))
    offset = float(y.mean()) if len(y) else 0.0
    scale = np.sqrt(model.prior_variance(noise))
    covariance = _posterior_covariance(model, np.concatenate([rows, np.asarray(pending, dtype=np.intp)]), noise, scale)
    seen = covariance if not len(pending) else _posterior_covariance(model, rows, noise, scale)
    mean = seen @ (features.T @ (y - offset)) / noise**2
    return Belief(model=model, mean=mean, covariance=covariance, noise=noise, offset=offset)


def _posterior_covariance(model: ShapeModel, rows: Integers, noise: float, scale: Floats) -> Floats:
    """(p, p): diag(s) (I + diag(s) Φᵀ Φ diag(s) / noise²)⁻¹ diag(s), by a Cholesky factor of the middle."""
    scaled = model.menu_features[rows] * scale / noise
    factor = np.linalg.cholesky(np.eye(len(scale)) + scaled.T @ scaled)
    half = np.linalg.solve(factor, np.diag(scale))
    return np.asarray(half.T @ half, dtype=float)


@dataclass(frozen=True, kw_only=True, eq=False)
class Belief:
    """A Gaussian over the coefficients: `mean` (p,), `covariance` (p, p). `noise` is the sd of ln loss of one run."""

    model: ShapeModel
    mean: Floats
    covariance: Floats
    noise: float
    offset: float

    def target_log_loss(self) -> Floats:
        """Expected ln loss of the target's shapes, (T,)."""
        return np.asarray(self.offset + self.model.target_features @ self.mean, dtype=float)

    def target_draws(self, num: int, generator: np.random.Generator) -> Floats:
        """Draws of ln loss of the target's shapes, (B, T), paired within a row."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        weights = self.mean + generator.standard_normal((num, len(values))) @ root.T
        return np.asarray(self.offset + weights @ self.model.target_features.T, dtype=float)

    def menu_variance(self) -> Floats:
        """Variance of the expected ln loss of every row of the menu, (M,)."""
        features = self.model.menu_features
        return np.asarray(((features @ self.covariance) * features).sum(axis=1), dtype=float)

    def target_moment(self, weights: Floats, *, level: bool) -> Floats:
        """W (p, p): tr(W S) is the weighted variance of ln loss at the target (`level`), or of its differences."""
        share = weights / weights.sum()
        features = self.model.target_features
        centred = features if level else features - share @ features
        return np.asarray((centred * share[:, None]).T @ centred, dtype=float)

    def observed(self, row: int) -> "Belief":
        """The belief after a run of one menu row whose loss is not in yet."""
        direction = self.covariance @ self.model.menu_features[row]
        denominator = float(self.model.menu_features[row] @ direction) + self.noise**2
        return replace(self, covariance=self.covariance - np.outer(direction, direction) / denominator)
