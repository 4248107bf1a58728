"""Events: what happened in a run, one small value for each fact that the store keeps, in the order of its numbers.

A fact of the store may be long (a curve, a fit with its bootstrap); its event tells what somebody who watches wants to
see at once, and names what can be asked for. Not measured is null.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from coordinator.schema import COLUMNS
from hwprofiles.value import Value
from scaling.quantity import Measured

MAX_MESSAGE = 300
"""Characters of a failure's message that an event tells; the trial has the rest."""


class _Fact(Value):
    """What every event has."""

    seq: int
    """Number of the fact in the run: 1, 2, 3 ... without gaps."""
    unix: float
    """When it was written down, in seconds since the epoch."""
    subject: str
    """The stage, trial or agent that it is about; empty where it is about the whole run."""


class Planned(_Fact):
    """A stage was planned; `subject` is the stage."""

    kind: Literal["planned"] = "planned"
    num_trials: int
    notes: tuple[str, ...]


class Leased(_Fact):
    """A trial was handed to an agent; `subject` is the trial.

    One that was handed ahead waits there: once it has ended, `unix` is when it was begun.
    """

    kind: Literal["leased"] = "leased"
    agent: str
    hardware: str
    epoch: int


class Result(_Fact):
    """A trial ended well; `subject` is the trial."""

    kind: Literal["result"] = "result"
    phase: Literal["train", "bench"]
    agent: str
    hardware: str
    epoch: int
    loss: float | None = None
    """Of a training: mean over the held-out windows, in nats per token."""
    loss_standard_error: float | None = None
    """Over windows, in nats per token."""
    output_tokens_per_second: Measured | None = None
    """Of a benchmark."""
    flags: tuple[str, ...] = ()
    """Doubts about a benchmark."""


class Failed(_Fact):
    """An attempt failed; `subject` is the trial, which may be tried again."""

    kind: Literal["failure"] = "failure"
    failure_kind: str
    message: str
    agent: str
    hardware: str
    epoch: int


class Refused(_Fact):
    """A report was refused; `subject` is the trial that it named."""

    kind: Literal["refused"] = "refused"
    reason: str
    agent: str
    epoch: int


class Estimate(Value):
    """A number with its interval, of which `level` is the nominal coverage."""

    value: float
    low: float
    high: float
    level: float


class Fitted(_Fact):
    """The law was fitted."""

    kind: Literal["fit"] = "fit"
    outcome: str
    num_points: int
    seconds: float
    x_opt: Estimate | None
    """Optimal d_model / sqrt(N), dimensionless; null where the fit has none."""
    r_opt: Estimate | None
    """Optimal ratio of MLP to attention parameters, dimensionless; null where the fit has none."""
    residual_sd: float | None
    """In nats per token; null with too few points."""
    condition_number: float | None


class Recommended(_Fact):
    """The run gave its answers."""

    kind: Literal["recommendation"] = "recommendation"
    hardware: tuple[str, ...]
    """Of each answer."""
    heldout_error_ratio: float | None
    """Median of |predicted - measured| / measured loss over the shapes trained at the target."""


class Canary(_Fact):
    """An agent's machine did a fixed task; `subject` is the agent."""

    kind: Literal["canary"] = "canary"
    task: str
    hardware: str
    rate: float
    """In the task's own unit per second."""
    deviation: float | None
    """Rate over the baseline of its hardware, minus 1; null where there was no baseline yet."""


Event = Planned | Leased | Result | Failed | Refused | Fitted | Recommended | Canary


def event_of(table: str, row: Sequence[Any]) -> Event:
    """The event of a fact.

    Args:
        table: one of `schema.NUMBERED`.
        row: its columns in their order, without the checksum.

    Raises:
        ValueError: its record is not what the table holds.
    """
    fact = dict(zip(COLUMNS[table], row, strict=True))
    try:
        return _MAKERS[table](fact)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the record of fact {fact['seq']} in table {table} cannot be read: {error!r}") from None


def _planned(fact: dict[str, Any]) -> Event:
    record = json.loads(fact["record"])
    trial_ids, notes = record.get("trial_ids", ()), record.get("notes", ())
    return Planned(seq=fact["seq"], unix=fact["unix"], subject=fact["stage"], num_trials=len(trial_ids), notes=notes)


def _leased(fact: dict[str, Any]) -> Event:
    told = {name: fact[name] for name in ("seq", "agent", "hardware", "epoch")}
    return Leased(**told, unix=fact["leased_unix"], subject=fact["trial_id"])


def _ended(fact: dict[str, Any]) -> Event:
    record = json.loads(fact["record"])
    made_by = record["provenance"]
    told: dict[str, Any] = {
        "seq": fact["seq"],
        "unix": fact["unix"],
        "subject": fact["trial_id"],
        "epoch": fact["epoch"],
        "agent": made_by["agent"],
        "hardware": made_by["hardware"],
    }
    match record["kind"]:
        case "failure":
            return Failed(**told, failure_kind=record["failure_kind"], message=record["message"][:MAX_MESSAGE])
        case "training":
            loss, error = record["loss"], record["loss_standard_error"]
            return Result(**told, phase="train", loss=loss, loss_standard_error=error)
        case _:
            rate, flags = record["output_tokens_per_second"], record.get("flags", ())
            return Result(**told, phase="bench", output_tokens_per_second=rate, flags=flags)


def _refused(fact: dict[str, Any]) -> Event:
    told = {name: fact[name] for name in ("seq", "unix", "reason", "agent", "epoch")}
    return Refused(**told, subject=fact["trial_id"])


def _fitted(fact: dict[str, Any]) -> Event:
    law = json.loads(fact["record"]).get("law_fit", {})
    return Fitted(
        **{name: fact[name] for name in ("seq", "unix", "outcome", "num_points", "seconds")},
        subject="",
        x_opt=_estimate(law.get("x_opt")),
        r_opt=_estimate(law.get("r_opt")),
        residual_sd=law.get("residual_sd"),
        condition_number=law.get("condition_number"),
    )


def _estimate(optimum: dict[str, Any] | None) -> Estimate | None:
    if optimum is None:
        return None
    interval = optimum["interval"]
    return Estimate(value=optimum["value"], low=interval["low"], high=interval["high"], level=interval["level"])


def _recommended(fact: dict[str, Any]) -> Event:
    record = json.loads(fact["record"])
    answers = record.get("answers", [record])  # schema 1 of a recommendation had one answer
    return Recommended(
        seq=fact["seq"],
        unix=fact["unix"],
        subject="",
        hardware=tuple(answer["hardware"] for answer in answers if "hardware" in answer),
        heldout_error_ratio=record.get("heldout_error_ratio"),
    )


def _canary(fact: dict[str, Any]) -> Event:
    told = {name: fact[name] for name in ("seq", "unix", "hardware", "rate", "deviation")}
    return Canary(**told, subject=fact["agent"], task=fact["kind"])


_MAKERS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "decisions": _planned,
    "attempts": _leased,
    "observations": _ended,
    "rejections": _refused,
    "fits": _fitted,
    "recommendations": _recommended,
    "canaries": _canary,
}
