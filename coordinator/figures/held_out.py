"""Predicted against measured loss of the shapes trained at the held-out target, with intervals on both."""

from collections import defaultdict

from coordinator.figures.absence import no_recommendation
from coordinator.figures.figure import Axis, Figure, Guide, Kind, Series
from coordinator.figures.formats import NATS, plural
from coordinator.figures.origin import kind_of_losses
from coordinator.figures.standing import COLOUR_OF, Standing, standing
from coordinator.recommendation import HeldOutLoss
from coordinator.record import RunRecord
from scaling.quantity import Measured, Predicted

Pair = tuple[HeldOutLoss, Predicted]

_Y = Axis(label="predicted loss", unit=NATS)


def held_out(record: RunRecord) -> Figure:
    """One diamond a shape; on the diagonal the prediction equals the measurement."""
    name, title = "held-out", "Held-out: prediction against outcome"
    kind = kind_of_losses(record)
    x_axis = Axis(label=f"{kind} loss", unit=NATS)
    if record.recommendation is None:
        return Figure(name=name, title=title, x=x_axis, y=_Y, reason=no_recommendation(record))
    rows = record.recommendation.held_out
    pairs = [(row, row.predicted) for row in rows if isinstance(row.predicted, Predicted)]
    if not pairs:
        reason = f"no shape has both a predicted and a {kind} loss at the target; see the held-out check."
        return Figure(name=name, title=title, x=x_axis, y=_Y, reason=reason)
    # Both axes have the same limits, so that the diagonal is one.
    ends = [end for row, predicted in pairs for end in (*_ends(row.measured), *_ends(predicted))]
    margin = 0.08 * (max(ends) - min(ends)) or 0.01
    limits = {"low": min(ends) - margin, "high": max(ends) + margin}
    by_role: dict[Standing, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_role[standing(record, pair[0])].append(pair)
    return Figure(
        name=name,
        title=title,
        caption=_caption(record, num_pairs=len(pairs), num_refused=len(rows) - len(pairs)),
        x=x_axis.model_copy(update=limits),
        y=_Y.model_copy(update=limits),
        series=tuple(one for role, some in by_role.items() for one in _role_series(role, some, kind)),
        guides=(Guide(axis="diagonal", name="the prediction came true"),),
    )


def _ends(number: Measured | Predicted) -> tuple[float, float]:
    return (number.value, number.value) if number.interval is None else (number.interval.low, number.interval.high)


def _role_series(role: Standing, pairs: list[Pair], kind: Kind) -> tuple[Series, Series]:
    """Diamonds with the measured interval across, and the predicted interval, broken, along the other axis."""
    x, y = tuple(row.measured.value for row, _ in pairs), tuple(predicted.value for _, predicted in pairs)
    labels = tuple(f"{role}: {row.architecture.label}" for row, _ in pairs)
    colour = COLOUR_OF[role]
    return (
        Series(
            name="",
            kind="predicted",
            mark="bar",
            colour=colour,
            dashed=True,
            x=x,
            y=y,
            y_interval=tuple(_ends(predicted) if predicted.interval else None for _, predicted in pairs),
            labels=labels,
        ),
        Series(
            name=role,
            kind=kind,
            mark="diamond",
            colour=colour,
            x=x,
            y=y,
            x_interval=tuple(_ends(row.measured) if row.measured.interval else None for row, _ in pairs),
            labels=labels,
        ),
    )


def _caption(record: RunRecord, *, num_pairs: int, num_refused: int) -> str:
    assert record.recommendation is not None
    error, kind = record.recommendation.heldout_error_ratio, kind_of_losses(record)
    words = [
        "Diagonal: the prediction came true. Horizontal bars: interval of the mean over seeds; vertical dashed "
        "bars: interval of the predicted expectation."
    ]
    if error is not None:
        words.append(
            f"Held-out error: median |predicted − {kind}| / {kind} = {error:.2%} over {plural(num_pairs, 'shape')}"
            " (no interval: too few shapes)."
        )
    if num_refused:
        words.append(f"{plural(num_refused, 'shape')} without a prediction: see the held-out check.")
    return " ".join(words)
