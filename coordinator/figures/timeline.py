"""The run over time: a lane for each agent, each attempt a bar coloured by why it was made.

Of very many attempts those of one colour that follow each other at once are one bar: the whole run stays to be seen.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple, get_args

from coordinator.course import Stint
from coordinator.figures.figure import Axis, Colour, Figure, Series
from coordinator.figures.formats import duration, plural
from coordinator.plan import Role
from coordinator.record import RunRecord

MAX_AGENTS_DRAWN = 40
MAX_BARS_DRAWN = 1_500
_FIRST_GAP = 1 / 2000
"""Of the run: attempts that are nearer to each other are joined where there are too many bars; a pixel or less."""
_START = attrgetter("start")


class _Look(NamedTuple):
    """What bars that are joined have in common."""

    agent: str
    colour: Colour
    unfinished: bool


class _Bar(NamedTuple):
    """The time that an attempt took, or some that followed each other, in seconds since the run began."""

    stint: Stint
    """The last one."""
    look: _Look
    start: float
    end: float
    seconds: float
    """Under lease: of several the gaps are left out."""
    num_attempts: int


_NONE_BEFORE: tuple[list[_Bar], float] = ([], -math.inf)


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
        busy[bar.look.agent] += bar.seconds
    agents = sorted(sorted(busy, key=lambda agent: -busy[agent])[:MAX_AGENTS_DRAWN], reverse=True)
    lanes = {agent: lane for lane, agent in enumerate(agents)}
    length = max(bar.end for bar in bars)
    drawn, gap = _joined([bar for bar in bars if bar.look.agent in lanes], length)
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
    for stint in record.course.stints:
        start, end = stint.start_unix, latest if stint.end_unix is None else stint.end_unix
        colour: Colour = "bad" if stint.outcome in ("failed", "retried") else stint.role
        look = _Look(stint.agent, colour, stint.end_unix is None)
        yield _Bar(stint, look, start - began, max(start, end) - began, max(0.0, end - start), 1)


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
    """Bars of one look whose distance is at most `gap` seconds, made one."""
    chains: list[list[_Bar]] = []
    last: dict[_Look, tuple[list[_Bar], float]] = {}
    for bar in sorted(bars, key=_START):
        chain, end = last.get(bar.look, _NONE_BEFORE)
        if bar.start - end > gap:
            chain, end = [], bar.end
            chains.append(chain)
        chain.append(bar)
        last[bar.look] = (chain, max(end, bar.end))
    return [chain[0] if len(chain) == 1 else _one(chain) for chain in chains]


def _one(chain: Sequence[_Bar]) -> _Bar:
    _, _, _, ends, seconds, nums = zip(*chain, strict=True)
    last = chain[-1]
    return _Bar(last.stint, last.look, chain[0].start, max(ends), sum(seconds), sum(nums))


def latest_unix(record: RunRecord) -> float:
    """The last moment that the store knows of: nothing here reads a clock."""
    return max(record.created_unix, record.course.latest_unix, *(agent.heartbeat_unix for agent in record.agents))


def _series(bars: Sequence[_Bar], lanes: dict[str, int], scale: float) -> tuple[Series, ...]:
    """A series for each role and for failures; those that had not ended apart, hollow."""
    looks: dict[tuple[str, Colour, bool], list[_Bar]] = defaultdict(list)
    for bar in bars:
        _, colour, unfinished = bar.look
        name = "failed attempt" if colour == "bad" else colour
        looks[f"{name}, not ended" if unfinished else name, colour, unfinished].append(bar)
    order = [*get_args(Role), "bad"]
    return tuple(
        Series(
            name=name,
            kind="",
            mark="span",
            colour=colour,
            dashed=unfinished,
            x=tuple(bar.start / scale for bar in inside),
            y=tuple(float(lanes[bar.look.agent]) for bar in inside),
            x_interval=tuple((bar.start / scale, bar.end / scale) for bar in inside),
            labels=tuple(map(_label, inside)),
            trial_ids=tuple(bar.stint.trial_id for bar in inside),
        )
        for (name, colour, unfinished), inside in sorted(looks.items(), key=lambda look: order.index(look[0][1]))
    )


def _label(bar: _Bar) -> str:
    shape, failure = bar.stint.work.brief.architecture.label, bar.stint.failure_kind
    what = shape if failure is None else f"{shape}, {failure}"
    if bar.num_attempts == 1:
        return f"{what}: {duration(bar.seconds)}"
    return f"{bar.num_attempts} attempts, the last {what}: {duration(bar.seconds)} in all"


def _caption(bars: Sequence[_Bar], busy: dict[str, float], *, num_agents: int, gap: float) -> str:
    words = [
        f"{plural(len(bars), 'attempt')} on {plural(len(busy), 'agent')}, {duration(sum(busy.values()))} of agents' "
        "time from lease to result."
    ]
    if num_agents < len(busy):
        words.append(f"Drawn are the {num_agents} busiest agents.")
    if gap:
        words.append(f"Attempts of one colour that lie at most {duration(gap)} apart are drawn as one bar.")
    if any(bar.look.unfinished for bar in bars):
        words.append("Hollow bars had not ended when this was written.")
    return " ".join(words)
