"""Predicted throughput over the requested batch on hardware that was not at hand."""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

from coordinator.figures.absence import no_recommendation
from coordinator.figures.figure import Axis, Colour, Figure, Series
from coordinator.figures.standing import COLOUR_OF, Standing, proposed
from coordinator.record import RunRecord
from scaling.quantity import Predicted
from scaling.serving import ServingPrediction

_MARGIN = 1.15


def predictions_by(record: RunRecord) -> dict[str, dict[str, list[ServingPrediction]]]:
    """Roofline predictions by hardware, then by role (recommended or refuted, baseline), in order of batch.

    Where different shapes are proposed, each role names the hardware that it was measured on.
    """
    if record.recommendation is None:
        return {}
    answers = record.recommendation
    words = proposed(record)
    different = [shape for shape in answers.recommended if shape != answers.baseline]
    shapes = {
        words[shape] + (f" for {', '.join(answers.hardware_of(shape))}" if len(different) > 1 else ""): shape
        for shape in different
    }
    shapes["baseline"] = answers.baseline
    found: dict[str, dict[str, list[ServingPrediction]]] = defaultdict(dict)
    for prediction in answers.gpu_predictions:
        for role, shape in shapes.items():
            if prediction.architecture == shape:
                # One shape may have been predicted twice, as recommended and as baseline.
                row = found[prediction.hardware].setdefault(role, [])
                if all(one.workload != prediction.workload for one in row):
                    row.append(prediction)
    return dict(found)


def colour_of(role: str) -> Colour:
    """The colour of a role, whatever hardware it names."""
    return COLOUR_OF[cast("Standing", role.partition(" ")[0])]


def roofline(record: RunRecord, hardware: str, *, name: str) -> Figure:
    """Output tokens/s of recommended and baseline; every device has the same vertical limits."""
    title = f"Serving on {hardware}: predicted, uncalibrated" if hardware else "Serving on other hardware"
    x_axis = Axis(label="requested batch", unit="sequences", scale="log")
    y_axis = Axis(label="output rate", unit="tokens/s", scale="log")
    if record.recommendation is None:
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=no_recommendation(record))
    by_hardware = predictions_by(record)
    rows = {role: _rates(row) for role, row in by_hardware.get(hardware, {}).items()}
    if not any(rows.values()):
        reason = _why_none(by_hardware.get(hardware, {})) if hardware else "no other hardware was predicted for."
        return Figure(name=name, title=title, x=x_axis, y=y_axis, reason=reason)
    everywhere = [rate for roles in by_hardware.values() for row in roles.values() for _, rate in _rates(row)]
    return Figure(
        name=name,
        title=title,
        caption=_caption(record),
        x=x_axis.model_copy(update={"ticks": tuple(sorted({at for row in rows.values() for at, _ in row}))}),
        y=y_axis.model_copy(update={"low": min(everywhere) / _MARGIN, "high": max(everywhere) * _MARGIN}),
        series=tuple(one for role, row in rows.items() if row for one in _role_series(role, row, alone=len(rows) == 1)),
    )


def _rates(rows: Sequence[ServingPrediction]) -> list[tuple[float, float]]:
    """(requested batch, output tokens/s)."""
    return [
        (float(row.workload.batch_size), row.output_tokens_per_second.value)
        for row in rows
        if isinstance(row.output_tokens_per_second, Predicted)
    ]


def _role_series(role: str, row: list[tuple[float, float]], *, alone: bool) -> tuple[Series, Series]:
    x, y = tuple(at for at, _ in row), tuple(rate for _, rate in row)
    name = role + (" (the recommended shape itself)" if alone and role == "baseline" else "")
    line = Series(name="", kind="predicted", mark="line", colour=colour_of(role), dashed=True, x=x, y=y)
    return line, line.model_copy(update={"name": name, "mark": "ring", "labels": (role,) * len(row)})


def _why_none(rows: dict[str, list[ServingPrediction]]) -> str:
    reasons = dict.fromkeys(getattr(one.output_tokens_per_second, "reason", "") for row in rows.values() for one in row)
    return "nothing could be predicted: " + (" ".join(reasons) or "serving was measured there.")


def _caption(record: RunRecord) -> str:
    assert record.recommendation is not None
    workload = record.recommendation.gpu_predictions[0].workload
    return (
        "Every number here is a roofline bound: predicted, uncalibrated, never measured; it leaves out the host's "
        "time, which dominates at small sizes. Read the ratio, not the level. "
        f"{workload.input_tokens} input and {workload.output_tokens} output tokens, bfloat16. No interval: the "
        "roofline's error on this device was not measured."
    )
