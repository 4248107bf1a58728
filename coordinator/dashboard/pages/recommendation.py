"""Recommendation: what to build for each hardware, why, on what evidence, how sure, and what would change it most."""

from typing import Any

from coordinator.dashboard.pages.page import Amount, Page, Shape
from coordinator.dashboard.pages.study import FigureEntry
from hwprofiles.value import Value


class Comparison(Value):
    """Recommended against baseline in one measure."""

    title: str
    recommended: Amount
    baseline: Amount
    comparison_name: str
    """difference or ratio."""
    comparison: Amount
    verdict: str
    """In words, e.g. "lower than the baseline's", "a tie", "not compared"."""


class ShapeLine(Value):
    """One shape that an answer knows of: Panda, Surefire, the baseline, the front, and what was measured."""

    roles: tuple[str, ...]
    shape: Shape
    predicted_loss: Amount
    measured_loss: Amount
    throughput: Amount
    """Output tokens per second."""
    probability_within_limit: float
    """Predicted chance that its loss is at most the baseline's."""
    config_name: str | None
    """For `/api/configs/{name}`; null where it has none."""


class EvidenceRun(Value):
    """One run that an answer rests on."""

    trial_id: str
    what: str
    """held-out loss, throughput ..."""
    shape: str
    result: Amount


class ExtraRun(Value):
    """The one run that would most likely change an answer, and its price. All predicted."""

    shape: Shape | None
    """A legal shape there."""
    config: dict[str, Any] | None
    """Its config.json."""
    x: float
    r: float
    num_parameters: float
    num_tokens: float
    probability_of_change: float
    """That the answer is another one after it."""
    price: Amount
    """Accelerator-seconds."""
    sentence: str


class Answer(Value):
    """What to build for one hardware, engine and dtype."""

    hardware: str
    engine: str
    dtype: str
    role: str
    """surefire or panda."""
    is_baseline: bool
    """Whether the baseline itself is recommended."""
    recommended: Shape
    baseline: Shape
    sentence: str
    verdicts: tuple[str, ...]
    """The answer in a few words: loss against the baseline's, then speed."""
    why: tuple[str, ...]
    """Reasons, one sentence each."""
    loss: Comparison
    throughput: Comparison
    shapes: tuple[ShapeLine, ...]
    evidence: tuple[EvidenceRun, ...]
    uncertainty: tuple[str, ...]
    """What is not known, or not sure, one sentence each."""
    extra_run: ExtraRun | None
    no_extra_run_because: str
    """Empty where there is one."""
    config_name: str
    """For `/api/configs/{name}`."""
    config: dict[str, Any]
    """config.json of the recommended architecture."""


class ConfigEntry(Value):
    """A named architecture that `/api/configs/{name}` gives."""

    name: str
    label: str


class Prediction(Value):
    """A roofline's throughput on hardware that was not at hand: uncalibrated, a bound rather than a level."""

    hardware: str
    shape: str
    roles: str
    batch_size: int
    output_tokens_per_second: Amount
    effective_batch: Amount


class RecommendationPage(Page):
    """The answers."""

    answers: tuple[Answer, ...]
    no_answer_because: str
    """Empty where there is an answer."""
    made_unix: float | None
    agreement: str
    """Whether the optima agree between sizes."""
    heldout_error: Amount
    """Median of |predicted - measured| / measured at the target, as a share."""
    predictions: tuple[Prediction, ...]
    caveats: tuple[str, ...]
    configs: tuple[ConfigEntry, ...]
    figures: tuple[FigureEntry, ...]
