"""Simulated truths and simulated studies: worlds whose answer is known, to test every estimate and policy against.

Three truths, all with the published coefficients of arXiv 2510.18245 and a Chinchilla law as L_opt:

- `paper_truth`: the law exactly as published for 80 M to 297 M parameters, the same at every size.
- `drifting_truth`: brackets that go from those at 152 M to those published for 1 B: ln of each slope and of each
  inverse coefficient is linear in ln N (x* 0.080 to 0.074, r* 1.03 to 1.22, curvature in x three times as large).
- `interaction_truth`: the published law times 1 + c · ln(x/x*) · ln(r/r*): the optimum is the same, but the valley is
  tilted, and no product of two brackets describes it.

Brackets are normalised to 1 at their optimum, so that L_opt is the loss of the best shape. Losses in nats per token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from scaling.law import ChinchillaLaw, ConditionalLaw, Floats, shape_features
from scaling.points import ShapePoints

TOKENS_PER_PARAMETER = 100.0
"""D = 100 N, as in arXiv 2510.18245."""
NOISE_SD_NATS = 0.006
"""Spread of one run's loss over seeds: between the 0.0007 to 0.002 at 124 M and the 0.011 measured at 0.1 M."""
INTERACTION = 0.6
"""Strength of the interaction as a share of the one at which the optimum ceases to be a minimum."""

_CHINCHILLA = ChinchillaLaw(E=1.8172, A=477.83, B=2143.42, alpha=0.3473, beta=0.3672)
"""The converged fit to the 240 points of arXiv 2404.10102."""
_SMALL = ConditionalLaw(a=(2.697, 0.0974, 0.0078), b=(0.387, 0.0063, 0.0065))
"""Fitted to 80 M, 145 M and 297 M parameters."""
_SMALL_SIZE = float(np.exp(np.mean(np.log([80e6, 145e6, 297e6]))))
_LARGE = ConditionalLaw(a=(2.319, 0.238, 0.0176), b=(0.5104, 0.0051, 0.0062))
"""Fitted to 1 B parameters alone."""
_LARGE_SIZE = 1e9


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A world: the expected loss of every shape at every N and D.

    `small` holds at `num_parameters_small`, `large` at `num_parameters_large`; between and beyond, ln of their slopes
    and inverse coefficients is linear in ln N. Equal laws do not drift. `interaction` is the c of the tilted valley.
    """

    name: str
    reference: ChinchillaLaw = _CHINCHILLA
    small: ConditionalLaw = _SMALL
    num_parameters_small: float = _SMALL_SIZE
    large: ConditionalLaw = _SMALL
    num_parameters_large: float = _LARGE_SIZE
    interaction: float = 0.0

    def reference_loss(self, num_parameters: ArrayLike, num_tokens: ArrayLike) -> Floats:
        """L_opt(N, D): the loss of the best shape in nats per token."""
        return self.reference.predict(num_parameters, num_tokens)

    def optimum(self, num_parameters: ArrayLike) -> tuple[Floats, Floats]:
        """(x*, r*) at every N."""
        slopes = [self._drifted(num_parameters, which) for which in ("a", "b")]
        return slopes[0][1] / slopes[0][0], slopes[1][1] / slopes[1][0]

    def ratio(self, x: ArrayLike, r: ArrayLike, num_parameters: ArrayLike) -> Floats:
        """Expected loss of shapes over that of the best shape of the same N; the arguments broadcast."""
        x_best, r_best = self.optimum(num_parameters)
        x_part = _relative_bracket(np.asarray(x, dtype=float), *self._drifted(num_parameters, "a"))
        r_part = _relative_bracket(np.asarray(r, dtype=float), *self._drifted(num_parameters, "b"))
        tilt = 1.0 + self.interaction * np.log(np.asarray(x) / x_best) * np.log(np.asarray(r) / r_best)
        return np.asarray(x_part * r_part * tilt, dtype=float)

    def loss(self, x: ArrayLike, r: ArrayLike, num_parameters: ArrayLike, num_tokens: ArrayLike) -> Floats:
        """Expected loss in nats per token; the arguments broadcast."""
        return self.ratio(x, r, num_parameters) * self.reference_loss(num_parameters, num_tokens)

    def observe(
        self,
        x: ArrayLike,
        r: ArrayLike,
        num_parameters: ArrayLike,
        num_tokens: ArrayLike,
        *,
        generator: np.random.Generator,
        noise_sd: float = NOISE_SD_NATS,
    ) -> Floats:
        """The loss that a run would report: expected loss plus Gaussian noise over seeds, in nats per token."""
        expected = self.loss(x, r, num_parameters, num_tokens)
        return expected + noise_sd * generator.standard_normal(expected.shape)

    def _drifted(self, num_parameters: ArrayLike, which: str) -> tuple[Floats, Floats]:
        """(slope, inverse coefficient) of the bracket that is 1 at its optimum, at every N."""
        small, large = (_slopes(getattr(law, which)) for law in (self.small, self.large))
        share = np.log(np.asarray(num_parameters, dtype=float) / self.num_parameters_small) / np.log(
            self.num_parameters_large / self.num_parameters_small
        )
        slope, inverse = (low * (high / low) ** share for low, high in zip(small, large, strict=True))
        return np.asarray(slope, dtype=float), np.asarray(inverse, dtype=float)


def _slopes(coefficients: tuple[float, float, float]) -> tuple[float, float]:
    """(slope, inverse) of a bracket divided by its value at its optimum."""
    _, slope, inverse = coefficients
    at_optimum = float(shape_features(inverse / slope) @ np.asarray(coefficients))
    return slope / at_optimum, inverse / at_optimum


def _relative_bracket(z: Floats, slope: Floats, inverse: Floats) -> Floats:
    """1 + slope · ln(z/z*) + inverse · (1/z - 1/z*), with z* = inverse / slope."""
    best = inverse / slope
    return np.asarray(1.0 + slope * np.log(z / best) + inverse * (1.0 / z - 1.0 / best), dtype=float)


def paper_truth() -> Truth:
    """The law as published, the same at every size."""
    return Truth(name="paper")


def drifting_truth() -> Truth:
    """The published laws of small models and of 1 B, and a steady drift between and beyond."""
    return Truth(name="drift", large=_LARGE)


def interaction_truth(share: float = INTERACTION) -> Truth:
    """The published law with a tilted valley.

    c = share · sqrt(curvature in ln x · curvature in ln r); at share 1 the optimum would be a saddle.
    """
    slope_x, slope_r = _slopes(_SMALL.a)[0], _slopes(_SMALL.b)[0]
    # The second derivative of slope · ln z + inverse/z in ln z is inverse/z* = slope at the optimum.
    return Truth(name="interaction", interaction=share * float(np.sqrt(slope_x * slope_r)))


TRUTHS: Mapping[str, Callable[[], Truth]] = MappingProxyType(
    {"paper": paper_truth, "drift": drifting_truth, "interaction": interaction_truth}
)


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyDesign:
    """Which runs a simulated study makes: columns (n,) of x, r, N in parameters and D in tokens."""

    x: Floats
    r: Floats
    num_parameters: Floats
    num_tokens: Floats

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.x)


def grid_design(
    num_parameters: ArrayLike = 145e6,
    *,
    num_x: int = 4,
    num_r: int = 4,
    x_range: tuple[float, float] = (0.04, 0.16),
    r_range: tuple[float, float] = (0.5, 5.0),
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
) -> StudyDesign:
    """A full grid of log-spaced x and r at every size: the paper's way, 16 runs a size by default."""
    sizes = np.atleast_1d(np.asarray(num_parameters, dtype=float))
    x, r = (z.ravel() for z in np.meshgrid(np.geomspace(*x_range, num_x), np.geomspace(*r_range, num_r)))
    N = np.repeat(sizes, len(x))
    return StudyDesign(
        x=np.tile(x, len(sizes)), r=np.tile(r, len(sizes)), num_parameters=N, num_tokens=tokens_per_parameter * N
    )


def simulate_study(
    truth: Truth, design: StudyDesign, *, generator: np.random.Generator, noise_sd: float = NOISE_SD_NATS
) -> ShapePoints:
    """The finished runs of one study in a world."""
    columns = (design.x, design.r, design.num_parameters, design.num_tokens)
    loss = truth.observe(*columns, generator=generator, noise_sd=noise_sd)
    return ShapePoints(x=design.x, r=design.r, num_parameters=columns[2], num_tokens=columns[3], loss=loss)
