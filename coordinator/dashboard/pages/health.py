"""Health: what is looked at to say whether a run is well. Pure: facts in, a line for each thing that was looked at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from coordinator.dashboard.pages.page import Health
from coordinator.figures.formats import duration, plural
from coordinator.store_rows import AgentRow
from hwprofiles.value import Value

RunState = Literal["running", "finished", "interrupted", "killed", "unknown"]
"""Killed: the store says that it runs, but no living coordinator holds it."""

LOOP_SECONDS = 120.0
SILENT_SECONDS = 60.0
SKEW_SECONDS = 2.0
CANARY_DEVIATION = 0.05
HELDOUT_ERROR = 0.05
BUDGET_SHARE = 0.9
OVERRUN_SHARE = 0.1
FAILED_SHARE, MIN_ENDED = 0.3, 5
INVALID_SHARE = 0.2
BACKUP_SECONDS = 86_400.0
"""Limits as in the alerts of deploy/prometheus/rules.yml."""

_ORDER: tuple[Health, ...] = ("ok", "unknown", "warning", "problem")


class HealthLine(Value):
    """One thing that was looked at, how it is, and what to do about it where something is wrong."""

    name: str
    level: Health
    sentence: str
    what_to_do: str = ""
    """Empty where nothing needs to be done."""


@dataclass(frozen=True, kw_only=True)
class HealthFacts:
    """What health is judged by. Times in seconds."""

    state: RunState
    now_unix: float
    created_unix: float
    loop_unix: float | None
    agents: Sequence[AgentRow]
    quarantined: Mapping[str, str]
    missing_hardware: Mapping[str, int]
    """Queued benchmarks by the hardware that they ask for and no living agent has."""
    canary_deviations: Mapping[str, float]
    """The newest of each agent, by agent."""
    num_attempts: int
    """That have ended, interrupted ones left out."""
    num_failed: int
    commonest_failure: str
    num_benchmarks: int
    num_invalid: int
    num_refused: int
    spent_seconds: float
    granted_seconds: float | None
    wall_seconds: float | None
    granted_wall_seconds: float
    wall_seconds_left: float | None
    """To the end, as predicted; None where that is not known."""
    store_bytes: int
    free_bytes: int
    least_free_bytes: float
    num_store_errors: int
    backup_unix: float | None
    num_fits: int
    law: str
    """What the law lacks; empty where it has both optima or nothing was fitted yet."""
    heldout_error: float | None


def judge(facts: HealthFacts) -> tuple[HealthLine, ...]:
    """A line for everything that was looked at, in the order of a reader's interest."""
    lines = [_coordinator(facts), _agents(facts)]
    lines += _work(facts)
    return (*lines, _budget(facts), _canaries(facts), _law(facts), *_store(facts))


def worst(lines: Sequence[HealthLine]) -> Health:
    """The worst level of all; what is not known yet leaves a run well."""
    levels: list[Health] = [line.level for line in lines]
    worst_level: Health = max(levels, key=_ORDER.index, default="unknown")
    return "ok" if worst_level == "unknown" and "ok" in levels else worst_level


def _coordinator(facts: HealthFacts) -> HealthLine:
    name = "Coordinator"
    match facts.state:
        case "finished":
            return HealthLine(name=name, level="ok", sentence="The study has come to its end.")
        case "interrupted":
            sentence = "The run was stopped before its end; nothing is lost."
            return HealthLine(name=name, level="warning", sentence=sentence, what_to_do=_GO_ON)
        case "killed":
            sentence = "No living coordinator holds this run: it was killed, or its machine is gone. Nothing is lost."
            return HealthLine(name=name, level="problem", sentence=sentence, what_to_do=_GO_ON)
        case "unknown":
            return HealthLine(name=name, level="unknown", sentence="The store does not say how the run is.")
    age = None if facts.loop_unix is None else facts.now_unix - facts.loop_unix
    if age is None:
        return HealthLine(name=name, level="unknown", sentence="Its loop has not turned yet.")
    if age > LOOP_SECONDS:
        sentence = f"Its loop has not turned for {duration(age)}, though its process lives."
        what = "Look at its terminal, disk and processor; end it and run the same command again."
        return HealthLine(name=name, level="problem", sentence=sentence, what_to_do=what)
    return HealthLine(name=name, level="ok", sentence="It runs and commits.")


_GO_ON = "Run the same `archfleet run` command again: it goes on where it was."


def _agents(facts: HealthFacts) -> HealthLine:
    name = "Agents"
    if facts.state != "running":
        return HealthLine(name=name, level="ok", sentence="None is needed while the run does not go on.")
    live = [one for one in facts.agents if one.state != "lost"]
    lost = len(facts.agents) - len(live)
    if not live:
        sentence = f"No agent lives; {plural(lost, 'agent')} lost." if lost else "No agent has joined yet."
        what = "See that nodes are up and reach the Ray head; `archfleet doctor` on one of them tells more."
        return HealthLine(name=name, level="problem" if lost else "unknown", sentence=sentence, what_to_do=what)
    silent = [one.agent for one in live if facts.now_unix - one.heartbeat_unix > SILENT_SECONDS]
    if silent:
        sentence = f"{_named(silent)} silent for more than {SILENT_SECONDS:.0f} s; their work is leased again."
        return HealthLine(name=name, level="warning", sentence=sentence, what_to_do="Look at their nodes and network.")
    if facts.quarantined:
        reasons = "; ".join(dict.fromkeys(facts.quarantined.values()))
        sentence = f"{_named(list(facts.quarantined))} without work for now: {reasons}."
        what = "They come back after a good canary; if they do not, look at clocks, power and heat of the device."
        return HealthLine(name=name, level="warning", sentence=sentence, what_to_do=what)
    skewed = [one.agent for one in live if abs(one.clock_offset_seconds or 0.0) > SKEW_SECONDS]
    if skewed:
        sentence = f"Clock of {_named(skewed)} more than {SKEW_SECONDS:.0f} s off."
        return HealthLine(name=name, level="warning", sentence=sentence, what_to_do="Start NTP or chrony there.")
    also = f"; {lost} lost before" if lost else ""
    return HealthLine(name=name, level="ok", sentence=f"{plural(len(live), 'agent')} alive{also}.")


def _named(agents: Sequence[str]) -> str:
    shown = ", ".join(agents[:3])
    return shown if len(agents) <= 3 else f"{shown} and {len(agents) - 3} more"


def _work(facts: HealthFacts) -> Iterator[HealthLine]:
    if facts.missing_hardware and facts.state == "running":
        wanted = ", ".join(f"{plural(num, 'benchmark')} for {kind}" for kind, num in facts.missing_hardware.items())
        sentence = f"No living agent has the hardware that is asked for: {wanted}."
        yield HealthLine(name="Hardware", level="problem", sentence=sentence, what_to_do="Bring such a node.")
    if facts.num_attempts:
        share = facts.num_failed / facts.num_attempts
        common = f", most of them {facts.commonest_failure}" if facts.num_failed else ""
        sentence = f"{facts.num_failed} of {plural(facts.num_attempts, 'attempt')} failed ({share:.0%}{common})."
        is_bad = share > FAILED_SHARE and facts.num_attempts >= MIN_ENDED
        what = "Open a failed trial: its page has the last lines of its log." if is_bad else ""
        yield HealthLine(name="Trials", level="warning" if is_bad else "ok", sentence=sentence, what_to_do=what)
    else:
        yield HealthLine(name="Trials", level="unknown", sentence="No attempt has ended yet.")
    if facts.num_benchmarks:
        share = facts.num_invalid / facts.num_benchmarks
        sentence = f"{facts.num_invalid} of {plural(facts.num_benchmarks, 'benchmark')} not valid ({share:.0%})."
        what = "See their flags on the hardware page: throttling, other load, or errors." if facts.num_invalid else ""
        level: Health = "warning" if share > INVALID_SHARE else "ok"
        yield HealthLine(name="Benchmarks", level=level, sentence=sentence, what_to_do=what)
    if facts.num_refused:
        sentence = f"{plural(facts.num_refused, 'late or repeated report')} refused; none of them counts."
        yield HealthLine(name="Reports", level="ok", sentence=sentence)


def _budget(facts: HealthFacts) -> HealthLine:
    name = "Budget"
    if facts.granted_seconds is not None:
        share = facts.spent_seconds / facts.granted_seconds if facts.granted_seconds else 1.0
        sentence = f"{share:.0%} of {facts.granted_seconds / 3600:.3g} accelerator-hours are spent."
        if share <= BUDGET_SHARE or facts.state == "finished":
            return HealthLine(name=name, level="ok", sentence=sentence)
        what = "It ends on its own; raise budget.accelerator_hours in the study file to let it go on."
        return HealthLine(name=name, level="warning", sentence=sentence, what_to_do=what)
    if facts.wall_seconds is None:
        return HealthLine(name=name, level="unknown", sentence="Nothing has been spent yet.")
    sentence = f"{duration(facts.wall_seconds)} of {duration(facts.granted_wall_seconds)} wall time are gone"
    over = facts.wall_seconds + (facts.wall_seconds_left or 0.0) - facts.granted_wall_seconds
    if facts.state != "running" or over <= OVERRUN_SHARE * facts.granted_wall_seconds:
        return HealthLine(name=name, level="ok", sentence=f"{sentence}.")
    left = "" if facts.wall_seconds_left is None else f", about {duration(facts.wall_seconds_left)} are left"
    what = (
        "Later rounds and checks are made smaller; what is planned is finished. Keep other work off these machines, or "
        "give the next study more budget.wall_minutes."
    )
    return HealthLine(name=name, level="warning", sentence=f"{sentence}{left}.", what_to_do=what)


def _canaries(facts: HealthFacts) -> HealthLine:
    name = "Canaries"
    if not facts.canary_deviations:
        sentence = "No agent was checked against its own kind yet."
        return HealthLine(name=name, level="unknown", sentence=sentence)
    drifting = [agent for agent, by in facts.canary_deviations.items() if abs(by) > CANARY_DEVIATION]
    farthest = max(facts.canary_deviations.values(), key=abs)
    if drifting:
        sentence = f"{_named(drifting)} more than {CANARY_DEVIATION:.0%} off, the farthest by {farthest:+.1%}."
        what = "See the hardware page; numbers measured there meanwhile are doubtful."
        return HealthLine(name=name, level="warning", sentence=sentence, what_to_do=what)
    sentence = (
        f"{plural(len(facts.canary_deviations), 'agent')} within {CANARY_DEVIATION:.0%}: at most {farthest:+.1%}."
    )
    return HealthLine(name=name, level="ok", sentence=sentence)


def _law(facts: HealthFacts) -> HealthLine:
    name = "Law"
    if not facts.num_fits:
        return HealthLine(name=name, level="unknown", sentence="Nothing was fitted yet: too few losses.")
    if facts.heldout_error is not None and facts.heldout_error > HELDOUT_ERROR:
        sentence = f"It missed the held-out losses at the target by {facts.heldout_error:.1%} (median)."
        return HealthLine(
            name=name, level="warning", sentence=sentence, what_to_do="Do not trust what it extrapolates."
        )
    if facts.law and facts.state == "running":
        sentence = f"{facts.law[:-1]} yet; the runs that would tell most are planned next."
        return HealthLine(name=name, level="unknown", sentence=sentence)
    if facts.law:
        return HealthLine(name=name, level="warning", sentence=facts.law, what_to_do="See the study page.")
    error = "" if facts.heldout_error is None else f"; it met the held-out losses to {facts.heldout_error:.2%}"
    return HealthLine(name=name, level="ok", sentence=f"Fitted {plural(facts.num_fits, 'time')}{error}.")


def _store(facts: HealthFacts) -> Iterator[HealthLine]:
    size = f"The store has {facts.store_bytes / 1e6:,.1f} MB, its disk {facts.free_bytes / 1e9:,.1f} GB free"
    if facts.free_bytes < facts.least_free_bytes:
        sentence = f"{size}: less than the {facts.least_free_bytes / 1e9:g} GB below which nothing new is started."
        yield HealthLine(
            name="Store", level="problem", sentence=sentence, what_to_do="Free some disk: it goes on alone."
        )
    elif facts.num_store_errors:
        sentence = f"{size}; {plural(facts.num_store_errors, 'commit')} failed so far, nothing acknowledged is lost."
        yield HealthLine(name="Store", level="warning", sentence=sentence, what_to_do="Look at the disk and its quota.")
    else:
        yield HealthLine(name="Store", level="ok", sentence=f"{size}.")
    age = facts.now_unix - (facts.created_unix if facts.backup_unix is None else facts.backup_unix)
    if facts.state == "running" and age > BACKUP_SECONDS:
        last = "There is none yet" if facts.backup_unix is None else f"The last good one is {duration(age)} old"
        what = "Run `archfleet backup` daily; it may run beside the coordinator."
        yield HealthLine(name="Backup", level="warning", sentence=f"{last}.", what_to_do=what)
    elif facts.backup_unix is not None:
        yield HealthLine(name="Backup", level="ok", sentence=f"The last good one is {duration(age)} old.")
