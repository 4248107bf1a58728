"""Study: what is asked, what the fit says and how good it is, predicted beside measured losses, and which figures."""

from coordinator.dashboard.pages.page import Amount, Fact, Page, Shape
from hwprofiles.value import Value


class FigureEntry(Value):
    """A figure that `/api/figures/{name}` gives."""

    name: str
    title: str
    page: str
    """The page that it belongs to: overview, study, hardware or recommendation."""
    is_wide: bool


class SizeOptima(Value):
    """The optima as fitted at one size alone."""

    num_parameters: float
    num_runs: int
    x_opt: Amount
    r_opt: Amount


class Law(Value):
    """The fit that decides, and how far it can be trusted."""

    sentence: str
    form: str
    """multiplicative or additive."""
    coefficients: tuple[float, ...]
    """a0 a1 a2 b0 b1 b2 of (a0 + a1 ln x + a2/x) · (b0 + b1 ln r + b2/r) · L_opt; empty where no law was fitted."""
    reference: str
    """Where L_opt of a cell comes from."""
    converged: bool
    num_runs: int
    num_left_out: int
    """Runs whose r is outside the law's range."""
    degrees_of_freedom: int
    x_opt: Amount
    r_opt: Amount
    residual_sd: Amount
    """Of one run around the law: noise and misfit together."""
    noise_sd: Amount
    """Of one run over its seeds, from replicates."""
    lack_of_fit_p: float | None
    """p of the F test of the law against the replicates; small means a misfit beyond the noise. Null: no test."""
    lack_of_fit: str
    """What the test says, or why there is none."""
    condition_number: float | None
    """Of the design: 1 is ideal; large means that the runs cannot tell the coefficients apart."""
    x_range: tuple[float, float]
    """Of the runs."""
    r_range: tuple[float, float]
    heldout_error: Amount
    """Median of |predicted - measured| / measured at the target, as a share."""
    by_size: tuple[SizeOptima, ...]
    agreement: str
    """Whether the optima agree between sizes."""
    messages: tuple[str, ...]
    """Everything that the fits say of themselves."""
    fitted_unix: float
    num_fits: dict[str, int]
    """All fits of the run, by outcome."""


class HeldOut(Value):
    """One shape trained at the target: what the law predicted before, and what came out."""

    role: str
    shape: Shape
    predicted: Amount
    measured: Amount
    error: float | None
    """predicted / measured - 1; null without a prediction."""


class StudyPage(Page):
    """The study and its law."""

    description: str
    settings: tuple[Fact, ...]
    """What is asked: target, sizes, space, recipe, serving, budget."""
    data: tuple[Fact, ...]
    """Text, tokens, versions and devices."""
    law: Law | None
    no_law_because: str
    """Empty where there is a law."""
    held_out: tuple[HeldOut, ...]
    caveats: tuple[str, ...]
    """What a reader must know before believing anything of this."""
    figures: tuple[FigureEntry, ...]
