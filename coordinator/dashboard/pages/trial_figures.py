"""Figures of one trial: its attempts over time, its training curve and held-out windows, or its benchmark's repeats."""

from collections.abc import Sequence

import numpy as np

from coordinator.figures.figure import Axis, Colour, Figure, Guide, Series
from coordinator.figures.formats import plural
from coordinator.store_rows import AttemptRow
from scaling.observations import ServingObservation, TrainingObservation

_NUM_BINS = 24
_OUTCOMES: tuple[tuple[str | None, str, Colour], ...] = (
    ("succeeded", "succeeded", "recommended"),
    ("retried", "failed, tried again", "bad"),
    ("failed", "failed, given up", "bad"),
    ("interrupted", "interrupted", "soft"),
    (None, "held", "law"),
)


def attempts_figure(attempts: Sequence[AttemptRow], *, now_unix: float) -> Figure:
    """Each attempt as a bar from lease to end, in seconds since the first; one that is held ends now."""
    began = attempts[0].leased_unix
    ends = [max(one.leased_unix, now_unix if one.ended_unix is None else one.ended_unix) for one in attempts]
    scale, unit = _time_unit(max(ends) - began)
    agents = tuple(dict.fromkeys(one.agent for one in attempts))
    spans = [
        ((one.leased_unix - began) / scale, (end - began) / scale) for one, end in zip(attempts, ends, strict=True)
    ]

    def series(outcome: str | None, name: str, colour: Colour) -> Series:
        places = [place for place, one in enumerate(attempts) if one.outcome == outcome]
        return Series(
            name=name,
            kind="measured",
            mark="span",
            colour=colour,
            dashed=outcome is None,
            x=tuple(spans[place][0] for place in places),
            y=tuple(float(agents.index(attempts[place].agent)) for place in places),
            x_interval=tuple(spans[place] for place in places),
            labels=tuple(
                f"attempt {attempts[place].epoch}: {attempts[place].failure_kind or name}" for place in places
            ),
        )

    drawn = (series(*outcome) for outcome in _OUTCOMES)
    return Figure(
        name="attempts",
        title="Attempts over time",
        caption=f"{plural(len(attempts), 'attempt')} on {plural(len(agents), 'agent')}, from lease to end.",
        x=Axis(label="time since the first lease", unit=unit, low=0.0),
        y=Axis(label="agent", categories=agents),
        series=tuple(one for one in drawn if one.x),
        is_wide=True,
    )


def curve_figure(run: TrainingObservation) -> Figure:
    """Running training loss over tokens, and the held-out loss at the end."""
    axis = Axis(label="training tokens", unit="tokens")
    nats = Axis(label="loss", unit="nats/token")
    name, title = "curve", "Training curve"
    if not run.curve:
        return Figure(name=name, title=title, x=axis, y=nats, reason="its agent kept no curve.")
    error = run.loss_standard_error
    return Figure(
        name=name,
        title=title,
        caption=f"Running training loss, {plural(len(run.curve), 'point')}; held-out loss at the end with one standard "
        "error over windows.",
        x=axis,
        y=nats,
        series=(
            Series(
                name="training loss",
                kind="measured",
                mark="line",
                colour="ink",
                x=tuple(float(point.num_tokens) for point in run.curve),
                y=tuple(point.loss for point in run.curve),
            ),
            Series(
                name="held-out loss",
                kind="measured",
                mark="dot",
                colour="recommended",
                x=(float(run.num_tokens),),
                y=(run.loss,),
                y_interval=((run.loss - error, run.loss + error),),
                labels=(f"held-out loss {run.loss:.4f} ± {error:.4f} nats/token",),
            ),
        ),
    )


def windows_figure(run: TrainingObservation) -> Figure:
    """How many held-out windows have which loss."""
    losses = np.array(run.window_losses)
    axis, number = Axis(label="mean loss of a window", unit="nats/token"), Axis(label="windows", low=0.0)
    name, title = "windows", "Held-out windows"
    if not len(losses):
        return Figure(name=name, title=title, x=axis, y=number, reason="its windows were not kept.")
    counts, edges = np.histogram(losses, bins=min(_NUM_BINS, max(1, len(losses) // 4)))
    return Figure(
        name=name,
        title=title,
        caption=f"Losses of {plural(len(losses), 'window')}, which all runs share in the same order: differences "
        "between runs are taken window by window.",
        x=axis,
        y=number,
        series=(
            Series(
                name="windows",
                kind="measured",
                mark="step",
                colour="ink",
                x=tuple(float(edge) for edge in edges),
                y=(*(float(count) for count in counts), float(counts[-1])),
            ),
        ),
        guides=(Guide(axis="x", low=run.loss, high=run.loss, colour="recommended", name="held-out loss"),),
    )


def repeats_figure(run: ServingObservation) -> Figure:
    """Output tokens/s of every repeat, with their mean and its interval."""
    rate = run.output_tokens_per_second
    repeats = tuple(f"repeat {number}" for number in range(1, len(run.repeats) + 1))
    guides = [Guide(axis="y", low=rate.value, high=rate.value, colour="recommended", name="mean")]
    if rate.interval is not None:
        name = f"{rate.interval.level:.0%} interval of the mean"
        guides.insert(0, Guide(axis="y", low=rate.interval.low, high=rate.interval.high, colour="band", name=name))
    return Figure(
        name="repeats",
        title="Repeats",
        caption=f"Output tokens/s of {plural(len(run.repeats), 'repeat')}, each a fresh process; coefficient of "
        f"variation {run.coefficient_of_variation:.1%}.",
        x=Axis(label="repeat", categories=repeats),
        y=Axis(label="output tokens/s", unit="tokens/s"),
        series=(
            Series(
                name="repeat",
                kind="measured",
                mark="dot",
                colour="ink",
                x=tuple(float(place) for place in range(len(run.repeats))),
                y=tuple(repeat.output_tokens_per_second for repeat in run.repeats),
                labels=repeats,
            ),
        ),
        guides=tuple(guides),
    )


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds > 4 * 3600:
        return 3600.0, "h"
    return (60.0, "min") if seconds > 180 else (1.0, "s")
