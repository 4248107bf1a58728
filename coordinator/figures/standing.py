"""What a shape at the target is called: a proposal that failed its check there is refuted, not recommended."""

from typing import Literal

from coordinator.figures.figure import Colour
from coordinator.recommendation import HardwareAnswer, HeldOutLoss
from coordinator.record import RunRecord
from scaling.architecture import Architecture

Standing = Literal["recommended", "refuted", "baseline", "worse"]
COLOUR_OF: dict[Standing, Colour] = {
    "recommended": "recommended",
    "refuted": "bad",
    "baseline": "baseline",
    "worse": "worse",
}


def proposal(answer: HardwareAnswer) -> Standing:
    """What the shape of an answer is, now that it was checked."""
    return "recommended" if answer.stands else "refuted"


def proposed(record: RunRecord) -> dict[Architecture, Standing]:
    """Every shape that some answer proposes. Losses are the same on all hardware, so one word holds for all."""
    answers = () if record.recommendation is None else record.recommendation.answers
    return {answer.recommended: proposal(answer) for answer in answers}


def standing(record: RunRecord, row: HeldOutLoss) -> Standing:
    """What a shape trained at the target is."""
    return proposed(record).get(row.architecture, row.role) if row.role == "recommended" else row.role
