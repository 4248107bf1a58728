"""An answer in a few words, the same in the report and on the dashboard: what to build, and how it compares."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from coordinator.recommendation import HardwareAnswer
from coordinator.speedup import Speedup
from scaling.architecture import Architecture
from scaling.quantity import Measured
from scaling.recommend import Verdict

FAILED_CHECK = "failed its check: keep the baseline"
LOSS_WORDS: Mapping[Verdict | None, str] = MappingProxyType(
    {
        "better": "lower loss than the baseline",
        "tie": "a tie with the baseline in loss",
        "worse": "higher loss than the baseline",
        None: "loss not compared",
    }
)
SPEED_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "faster": "faster than the baseline",
        "slower": "slower than the baseline",
        "a tie": "a tie in speed",
        "not compared": "speed not compared",
    }
)


def headline(answer: HardwareAnswer, baseline: Architecture) -> str:
    """What to build: the baseline where the proposed shape was refuted."""
    if not answer.stands:
        return f"Keep the baseline, {baseline.label}"
    if answer.recommended == baseline:
        return f"The baseline itself, {baseline.label}"
    return f"{answer.role.capitalize()} {answer.recommended.label}"


def verdict_words(answer: HardwareAnswer, baseline: Architecture, found: Speedup) -> Iterator[str]:
    """How the proposed shape compares with the baseline: its check, its loss, its speed."""
    if answer.recommended == baseline:
        yield "the baseline itself"
        return
    if not answer.stands:
        yield FAILED_CHECK
    yield LOSS_WORDS[answer.measured_verdict]
    yield SPEED_WORDS[found.verdict]


def why_panda(answer: HardwareAnswer, baseline: Architecture, found: Speedup) -> str:
    """Why the most accurate shape is proposed and not the fastest safe one, and what that costs; empty elsewhere."""
    if answer.role != "panda" or not answer.stands or answer.recommended == baseline:
        return ""
    speeds = {
        "faster": "it is faster than the baseline too",
        "slower": "it is slower than the baseline",
        "a tie": "its speed and the baseline's are a tie",
        "not compared": "its speed was not compared with the baseline's",
    }
    speed = speeds[found.verdict]
    if isinstance(found.ratio, Measured):
        speed += f" ({found.ratio.value:.2f} times its output tokens/s)"
    advice = ""
    if answer.measured_verdict == "tie" and found.verdict in ("a tie", "slower"):
        advice = " Neither loss nor speed, as compared, speaks for leaving the baseline."
    elif found.verdict == "slower":
        advice = " Where speed matters more than loss, keep the baseline."
    return (
        "No Surefire beyond the baseline: nothing that was benchmarked is faster and sure enough to keep its loss. So "
        f"the shape with the lowest loss is proposed; {speed}.{advice}"
    )
