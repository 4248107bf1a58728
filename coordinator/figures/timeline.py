"""The run over time: a lane for each agent, each attempt a bar coloured by why it was made.

Of very many attempts those of one colour that follow each other at once are one bar: the whole run stays to be seen.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

from coordinator.figures.figure import Axis, Colour, Figure, Series
from coordinator.figures.formats import duration, plural
from coordinator.plan import Role
from coordinator.record import RunRecord
from coordinator.store_rows import Work

MAX_AGENTS_DRAWN = 40
MAX_BARS_DRAWN = 1_500
_FIRST_GAP = 1 / 2000
"""Of the run: attempts that are nearer to each other are joined where there are too many bars; a pixel or less."""


class _Bar(NamedTuple):
    """The time that an attempt took, or some that followed each other, in seconds since the run began."""

    trial_id: str
    """Of the last one."""
    agent: str
    role: Role
    work: Work
    start: float
    end: float
    seconds: float
    """Under lease: of several the gaps are left out."""
    failed: bool
    unfinished: bool
    failure_kind: str | None
    num_attempts: int = 1


def timeline(record: RunRecord) -> Figure:
    """Agents against time; the busiest where there are too many to be told apart."""
    name, title = "timeline", "The run over time"
    bars = list(_bars(record))
    if not bars:
        axis = Axis(label="time since the run began", unit="s")
        reason = "no trial was leased yet."
        return Figure(name=name, title=title, x=axis, y=Axis(label="agent"), reason=reason, is_wide=True)
    busy: dict[str, float] = defaultdict(float)
    for bar in bars:
        busy[bar.agent] += bar.seconds
    agents = sorted(sorted(busy, key=lambda agent: -busy[agent])[:MAX_AGENTS_DRAWN], reverse=True)
    lanes = {agent: lane for lane, agent in enumerate(agents)}
    length = max(bar.end for bar in bars)
    drawn, gap = _joined([bar for bar in bars if bar.agent in lanes], length)
    unit, scale = time_unit(length)
    return Figure(
        name=name,
        title=title,
        caption=_caption(bars, busy, num_agents=len(agents), gap=gap),
        x=Axis(label="time since the run began", unit=unit, low=0, high=max(length, 1e-3) / scale * 1.01),
        y=Axis(label="", low=-0.6, high=len(agents) - 0.4, categories=tuple(agents)),
        series=_series(drawn, lanes, scale),
        is_wide=True,
    )


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a stretch of time reads best, and its seconds."""
    if seconds > 4 * 3600:
        return "h", 3600.0
    return ("min", 60.0) if seconds > 180 else ("s", 1.0)


def _bars(record: RunRecord) -> Iterator[_Bar]:
    """Every attempt that was begun, in the order of leasing."""
    began, latest = record.created_unix, latest_unix(record)
    trials = {trial.trial_id: trial for trial in record.trials}
    for attempt in record.attempts:
        trial = trials.get(attempt.trial_id)
        if trial is None or (attempt.ended_unix is None and trial.leased_unix is None):
            continue  # handed ahead: its agent has not begun it
        start = attempt.leased_unix if attempt.ended_unix is not None else trial.leased_unix or began
        end = latest if attempt.ended_unix is None else attempt.ended_unix
        yield _Bar(
            trial_id=trial.trial_id,
            agent=attempt.agent,
            role=trial.work.role,
            work=trial.work,
            start=start - began,
            end=max(start, end) - began,
            seconds=max(0.0, end - start),
            failed=attempt.outcome in ("failed", "retried"),
            unfinished=attempt.ended_unix is None,
            failure_kind=attempt.failure_kind,
        )


def _joined(bars: Sequence[_Bar], length: float) -> tuple[list[_Bar], float]:
    """At most `MAX_BARS_DRAWN` bars, and the gap in seconds up to which attempts were joined; 0 where none were.

    The gap is doubled until they are few enough: every agent is then down to a bar of each kind at the latest.
    """
    if len(bars) <= MAX_BARS_DRAWN:
        return list(bars), 0.0
    gap = _FIRST_GAP * length
    while len(joined := _joined_within(bars, gap)) > MAX_BARS_DRAWN and gap < length:
        gap, bars = 2 * gap, joined
    return joined, gap


def _joined_within(bars: Sequence[_Bar], gap: float) -> list[_Bar]:
    """Bars of one agent and one look whose distance is at most `gap` seconds, made one."""
    chains: list[list[_Bar]] = []
    last: dict[tuple[str, str, bool], tuple[list[_Bar], float]] = {}
    for bar in sorted(bars, key=lambda bar: bar.start):
        key = (bar.agent, _colour(bar), bar.unfinished)
        chain, end = last.get(key, ([], 0.0))
        if not chain or bar.start - end > gap:
            chain = []
            chains.append(chain)
        chain.append(bar)
        last[key] = (chain, max(end, bar.end))
    return [chain[0] if len(chain) == 1 else _one(chain) for chain in chains]


def _one(chain: Sequence[_Bar]) -> _Bar:
    return chain[-1]._replace(
        start=chain[0].start,
        end=max(bar.end for bar in chain),
        seconds=sum(bar.seconds for bar in chain),
        num_attempts=sum(bar.num_attempts for bar in chain),
    )


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
            x_interval=tuple((bar.start / scale, bar.end / scale) for bar in inside),
            labels=tuple(map(_label, inside)),
            trial_ids=tuple(bar.trial_id for bar in inside),
        )
        for (name, colour, unfinished), inside in sorted(looks.items(), key=lambda look: order.index(look[0][1]))
    )


def _label(bar: _Bar) -> str:
    shape = bar.work.brief.architecture.label
    what = shape if bar.failure_kind is None else f"{shape}, {bar.failure_kind}"
    if bar.num_attempts == 1:
        return f"{what}: {duration(bar.seconds)}"
    return f"{bar.num_attempts} attempts, the last {what}: {duration(bar.seconds)} in all"


def _colour(bar: _Bar) -> Colour:
    return "bad" if bar.failed else bar.role


def _caption(bars: Sequence[_Bar], busy: dict[str, float], *, num_agents: int, gap: float) -> str:
    words = [
        f"{plural(len(bars), 'attempt')} on {plural(len(busy), 'agent')}, {duration(sum(busy.values()))} of agents' "
        "time from lease to result."
    ]
    if num_agents < len(busy):
        words.append(f"Drawn are the {num_agents} busiest agents.")
    if gap:
        words.append(f"Attempts of one colour that lie at most {duration(gap)} apart are drawn as one bar.")
    if any(bar.unfinished for bar in bars):
        words.append("Hollow bars had not ended when this was written.")
    return " ".join(words)
