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
from scaling.space import Mask

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
    shape: float = 0.02
    """Shapes within the usual ranges differ by one to four per cent."""
    size_drift: float = 0.0015
    """Change of a shape term for each factor e of N; 0.001 to 0.002 between the published fits of arXiv 2510.18245."""
    ratio_drift: float = 0.0005
    """Change of a shape term for each factor e of tokens per parameter."""
    drift_scales: tuple[float, ...] = (0.1, 0.5, 2.0)
    """Factors on both drifts, weighed by how well each explains the losses: nobody knows the drift beforehand."""
    interaction: float = 0.003
    misfit_share: float = 0.5
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

    `is_drift` and `is_misfit` (p,) mark columns whose sd is to be scaled: by a hypothesis, and by the noise.
    """

    menu: RunMenu
    target: Target
    menu_features: Floats
    target_features: Floats
    prior_sd: Floats
    is_drift: Mask
    is_misfit: Mask
    drift_scales: tuple[float, ...]
    law_columns: Floats
    """X and R of the menu, (M, up to 4): what the condition number of a design is about."""

    def scaled_prior(self, noise: float) -> list[Floats]:
        """Prior sd of the coefficients, (p,), under each hypothesis about the drift; one if nothing drifts."""
        scales = self.drift_scales if self.is_drift.any() else (1.0,)
        sd = np.where(self.is_misfit, noise * self.prior_sd, self.prior_sd)
        return [np.where(self.is_drift, scale * sd, sd) for scale in scales]

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
    on_menu, on_target = parts
    return ShapeModel(
        menu=menu,
        target=target,
        menu_features=on_menu.features,
        target_features=on_target.features,
        prior_sd=on_menu.prior_sd,
        is_drift=on_menu.kind == _DRIFT,
        is_misfit=on_menu.kind == _MISFIT,
        drift_scales=chosen.drift_scales,
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
    """`kind` (p,) tells what scales the prior sd of each column besides its own number."""

    features: Floats
    prior_sd: Floats
    kind: Integers


_PLAIN, _DRIFT, _MISFIT = range(3)


def _columns(
    rows: _Rows, menu: RunMenu, target: Target, bases: tuple[ShapeBasis, ShapeBasis], misfit: "_Misfit", prior: Prior
) -> _Columns:
    shape = np.concatenate([bases[0].columns(rows.x), bases[1].columns(rows.r)], axis=1)
    num_cells = int(menu.cell.max()) + 1
    blocks = [(np.ones((len(rows.x), 1)), prior.level, _PLAIN)]
    if num_cells > 1:
        centre = np.log(menu.num_parameters).mean(), np.log(menu.num_tokens).mean()
        size, data = np.log(rows.N) - centre[0], np.log(rows.D) - centre[1]
        # A cell of its own is what the target has, and what it deviates by is nobody's to learn: zero.
        cells = np.zeros((len(rows.x), num_cells)) if rows.cell is None else np.eye(num_cells)[rows.cell]
        u = np.log(rows.N / target.num_parameters)[:, None]
        v = np.log(rows.D / rows.N * target.num_parameters / target.num_tokens)[:, None]
        blocks += [
            (np.stack([size, data], axis=1), prior.slope, _PLAIN),
            (np.stack([size**2, size * data, data**2], axis=1), prior.curvature, _PLAIN),
            (cells, prior.cell, _PLAIN),
            (u * shape, prior.size_drift, _DRIFT),
            (v * shape, prior.ratio_drift, _DRIFT),
        ]
    blocks.append((shape, prior.shape, _PLAIN))
    if min(bases[0].rank, bases[1].rank) > 0:
        blocks.append((shape[:, :1] * shape[:, bases[0].rank : bases[0].rank + 1], prior.interaction, _PLAIN))
    blocks.append((misfit.columns(rows.x, rows.r), prior.misfit_share, _MISFIT))
    return _Columns(
        features=np.concatenate([block for block, _, _ in blocks], axis=1),
        prior_sd=np.concatenate([np.full(block.shape[1], sd) for block, sd, _ in blocks]),
        kind=np.concatenate([np.full(block.shape[1], kind) for block, _, kind in blocks]),
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
    """Bayesian linear regression of ln loss on the features, with a known noise sd.

    Each hypothesis about the drift gives a Gaussian; they are mixed by their evidence p(losses | hypothesis) and the
    mixture is taken as the Gaussian of its own mean and covariance.
    """
    rows = np.asarray(existing, dtype=np.intp)
    log_loss = np.log(np.asarray(losses, dtype=float))
    offset = float(log_loss.mean()) if len(log_loss) else 0.0
    each = [_regress(model.menu_features[rows], log_loss - offset, sd, noise) for sd in model.scaled_prior(noise)]
    weight = np.exp(np.array([one.log_evidence for one in each]) - max(one.log_evidence for one in each))
    weight /= weight.sum()
    mean = np.asarray(sum(w * one.mean for w, one in zip(weight, each, strict=True)), dtype=float)
    covariance = np.zeros((len(mean), len(mean)))
    for w, one in zip(weight, each, strict=True):
        covariance += w * (one.covariance + np.outer(one.mean - mean, one.mean - mean))
    belief = Belief(model=model, mean=mean, covariance=covariance, noise=noise, offset=offset)
    for row in pending:
        belief = belief.observed(row)
    return belief


@dataclass(frozen=True, kw_only=True, eq=False)
class _Posterior:
    mean: Floats
    covariance: Floats
    log_evidence: float


def _regress(features: Floats, y: Floats, prior_sd: Floats, noise: float) -> _Posterior:
    """y = Φ w + noise, w ~ N(0, diag(s²)), through the Cholesky factor of I + diag(s) ΦᵀΦ diag(s) / noise².

    log evidence, up to what all hypotheses share: -½ ln det(that matrix) - ½ yᵀ (y - Φ mean) / noise².
    """
    scaled = features * prior_sd / noise
    factor = np.linalg.cholesky(np.eye(len(prior_sd)) + scaled.T @ scaled)
    half = np.linalg.solve(factor, np.diag(prior_sd))
    covariance = half.T @ half
    mean = covariance @ (features.T @ y) / noise**2
    evidence = -np.log(np.diag(factor)).sum() - 0.5 * float(y @ (y - features @ mean)) / noise**2
    return _Posterior(mean=mean, covariance=covariance, log_evidence=float(evidence))


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
