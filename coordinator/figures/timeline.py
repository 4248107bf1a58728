"""The run over time: a lane for each agent, each attempt a bar coloured by why it was made."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from coordinator.figures.figure import Axis, Colour, Figure, Series
from coordinator.figures.formats import duration, plural
from coordinator.plan import Role
from coordinator.record import RunRecord

MAX_AGENTS_DRAWN = 40
MAX_ATTEMPTS_DRAWN = 5_000


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """The time that one attempt took, in seconds since the run began."""

    trial_id: str
    agent: str
    role: Role
    what: str
    start: float
    seconds: float
    failed: bool = False
    unfinished: bool = False


def timeline(record: RunRecord) -> Figure:
    """Agents against time; the busiest and the newest where there are too many to be told apart."""
    name, title = "timeline", "The run over time"
    bars = _bars(record)
    if not bars:
        axis = Axis(label="time since the run began", unit="s")
        reason = "no trial was leased yet."
        return Figure(name=name, title=title, x=axis, y=Axis(label="agent"), reason=reason, is_wide=True)
    busy: dict[str, float] = defaultdict(float)
    for bar in bars:
        busy[bar.agent] += bar.seconds
    agents = sorted(sorted(busy, key=lambda agent: -busy[agent])[:MAX_AGENTS_DRAWN], reverse=True)
    drawn = [bar for bar in bars if bar.agent in set(agents)][-MAX_ATTEMPTS_DRAWN:]
    length = max(bar.start + bar.seconds for bar in drawn)
    unit, scale = time_unit(length)
    return Figure(
        name=name,
        title=title,
        caption=_caption(bars, busy, num_agents=len(agents), num_drawn=len(drawn)),
        x=Axis(label="time since the run began", unit=unit, low=0, high=max(length, 1e-3) / scale * 1.01),
        y=Axis(label="", low=-0.6, high=len(agents) - 0.4, categories=tuple(agents)),
        series=_series(drawn, {agent: lane for lane, agent in enumerate(agents)}, scale),
        is_wide=True,
    )


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a stretch of time reads best, and its seconds."""
    if seconds > 4 * 3600:
        return "h", 3600.0
    return ("min", 60.0) if seconds > 180 else ("s", 1.0)


def _bars(record: RunRecord) -> list[_Bar]:
    """The last attempt of every trial from its lease, earlier failed ones from what the agent said of them."""
    began, latest = record.created_unix, latest_unix(record)
    trials = {trial.trial_id: trial for trial in record.trials}
    bars = []
    for trial in record.trials:
        if trial.agent is None or trial.leased_unix is None:
            continue
        end = latest if trial.ended_unix is None else trial.ended_unix
        bars.append(
            _Bar(
                trial_id=trial.trial_id,
                agent=trial.agent,
                role=trial.planned.role,
                what=trial.planned.assignment.architecture.label,
                start=trial.leased_unix - began,
                seconds=max(0.0, end - trial.leased_unix),
                failed=trial.state == "failed",
                unfinished=trial.ended_unix is None,
            )
        )
    last_failure = {failure.assignment_id: failure for failure in record.failures}
    for failure in record.failures:
        failed = trials.get(failure.assignment_id)
        if failed is None or (failed.state == "failed" and failure is last_failure[failure.assignment_id]):
            continue  # unknown, or drawn already: the lease of that attempt
        made = failure.provenance
        bars.append(
            _Bar(
                trial_id=failed.trial_id,
                agent=made.agent,
                role=failed.planned.role,
                what=f"{failed.planned.assignment.architecture.label}, {failure.failure_kind}",
                start=made.started_at_unix - began,
                seconds=made.seconds,
                failed=True,
            )
        )
    return sorted(bars, key=lambda bar: bar.start)


def latest_unix(record: RunRecord) -> float:
    """The last moment that the store knows of: nothing here reads a clock."""
    moments = [record.created_unix, *(agent.heartbeat_unix for agent in record.agents)]
    moments += [moment for trial in record.trials for moment in (trial.leased_unix, trial.ended_unix) if moment]
    return max(moments)


def _series(bars: Sequence[_Bar], lanes: dict[str, int], scale: float) -> tuple[Series, ...]:
    """A series for each role and for failures; those that had not ended apart, hollow."""
    looks: dict[tuple[str, Colour, bool], list[_Bar]] = defaultdict(list)
    for bar in bars:
        name, colour = "failed attempt" if bar.failed else bar.role, _colour(bar)
        looks[f"{name}, not ended" if bar.unfinished else name, colour, bar.unfinished].append(bar)
    order = [*get_args(Role), "bad"]
    return tuple(
        Series(
            name=name,
            kind="",
            mark="span",
            colour=colour,
            dashed=unfinished,
            x=tuple(bar.start / scale for bar in inside),
            y=tuple(float(lanes[bar.agent]) for bar in inside),
            x_interval=tuple((bar.start / scale, (bar.start + bar.seconds) / scale) for bar in inside),
            labels=tuple(f"{bar.what}: {duration(bar.seconds)}" for bar in inside),
            trial_ids=tuple(bar.trial_id for bar in inside),
        )
        for (name, colour, unfinished), inside in sorted(looks.items(), key=lambda look: order.index(look[0][1]))
    )


def _colour(bar: _Bar) -> Colour:
    return "bad" if bar.failed else bar.role


def _caption(bars: Sequence[_Bar], busy: dict[str, float], *, num_agents: int, num_drawn: int) -> str:
    words = [
        f"{plural(len(bars), 'attempt')} on {plural(len(busy), 'agent')}, {duration(sum(busy.values()))} of agents' "
        "time from lease to result."
    ]
    if num_agents < len(busy):
        words.append(f"Drawn are the {num_agents} busiest agents.")
    if num_drawn == MAX_ATTEMPTS_DRAWN:
        words.append(f"Drawn are the newest {MAX_ATTEMPTS_DRAWN:,} attempts.")
    if any(bar.unfinished for bar in bars):
        words.append("Hollow bars had not ended when this was written.")
    return " ".join(words)
