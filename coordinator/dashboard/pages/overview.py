"""Overview: is the run well, how far is it, what has it spent, who works on it, and what happened last."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

from coordinator.budget import Speed
from coordinator.dashboard.pages.health import HealthFacts, HealthLine, RunState, judge, worst
from coordinator.dashboard.pages.page import Amount, Health, Page, amount, missing, page_facts
from coordinator.dashboard.reads import PageReader
from coordinator.events import Canary, Event, Failed, Fitted, Leased, Planned, Recommended, Refused, Result
from coordinator.figures.formats import plural
from coordinator.forecast import NUM_TIMED, describe, expected_from, future_seconds, open_seconds, slowdown
from coordinator.journal import quarantined
from coordinator.recommendation import Recommendation
from coordinator.record import is_simulated
from coordinator.store import FILE_NAME
from coordinator.store_rows import AgentRow, AttemptCount, Count, TrialRow
from coordinator.study import StudySpec
from hwprofiles.catalog import all_profiles
from hwprofiles.value import Value
from scaling.quantity import Predicted

NUM_EVENTS = 30
MAX_LOST_SHOWN = 8
MAX_OPEN_READ = 1_000
"""Of more unfinished trials than this some are priced for all: an estimate is wanted, at once."""

AgentState = Literal["idle", "busy", "draining", "quarantined", "lost", "stopped"]
"""Stopped: the run does not go on, and its agents with it."""


class TrialCounts(Value):
    """Trials by state."""

    queued: int
    running: int
    succeeded: int
    failed: int
    """Given up; a failed attempt alone leaves its trial in the queue."""
    total: int


class PhaseCounts(TrialCounts):
    """Trials of one phase by state."""

    phase: Literal["train", "bench"]


class StageProgress(Value):
    """One planned stage, in planned order."""

    stage: str
    num_trials: int
    num_ended: int


class Budget(Value):
    """What the run may use and has used; seconds of accelerators (or CPU slots) under lease, failed attempts too."""

    spent_seconds: float
    """Open leases included."""
    failed_seconds: float
    """Of those, what failed attempts took."""
    interrupted_seconds: float
    """Of those, what attempts took that were stopped with the run; a training goes on from its checkpoint."""
    granted_seconds: float | None
    """Null where only the wall clock limits the study."""
    wall_seconds: float | None
    """Wall time of all starts together, so far."""
    granted_wall_seconds: float
    seconds_left: Amount
    """Wall time to the end, as predicted from the agents' measured speed."""
    token_scale: float | None
    """Share of the wanted tokens that this machine's speed allows within the budget; null before it was measured."""


class HardwareFleet(Value):
    """The agents of one kind of hardware, and what was done on it."""

    hardware: str
    """Profile id."""
    name: str
    num_agents: int
    """All but the lost ones."""
    agents: dict[AgentState, int]
    num_succeeded: int
    """Trials that ended well there."""
    num_failed_attempts: int
    spent_seconds: float


class AgentLine(Value):
    """One agent as last heard of."""

    agent: str
    hardware: str
    node: str
    state: AgentState
    pid: int
    joined_unix: float
    heartbeat_unix: float
    clock_offset_seconds: float | None
    """Its wall clock minus the coordinator's; null where it was not asked."""
    trial_id: str | None
    """What it works on."""
    done_fraction: float | None
    trial: str
    """The same in a few words; empty where it does nothing."""
    canary_deviation: float | None
    """Newest canary over the baseline of its hardware, minus 1; null before there was one."""
    quarantine: str
    """Why it gets no work; empty where it may have some."""
    versions: dict[str, str]


class FailureCount(Value):
    """How many attempts failed in one way on one hardware."""

    kind: str
    phase: str
    hardware: str
    num: int
    spent_seconds: float


class EventLine(Value):
    """Something that happened, newest first."""

    seq: int
    unix: float
    kind: str
    """planned, leased, result, failure, refused, fit, recommendation or canary."""
    subject: str
    """Stage, trial id or agent."""
    trial_id: str | None
    sentence: str


class Overview(Page):
    """The run at a glance."""

    description: str
    engine: str
    state: RunState
    state_sentence: str
    level: Health
    """The worst of `health`."""
    health: tuple[HealthLine, ...]
    created_unix: float
    trials: TrialCounts
    by_phase: tuple[PhaseCounts, ...]
    num_expected: int | None
    """Trials that the study will have had, those not planned yet included; null before anything was planned."""
    stages: tuple[StageProgress, ...]
    budget: Budget
    fleet: tuple[HardwareFleet, ...]
    agents: tuple[AgentLine, ...]
    num_lost_agents: int
    """Lost ones are counted; the newest of them are among `agents`."""
    failures: tuple[FailureCount, ...]
    num_refused_reports: int
    law: str | None
    """The law in one line; null before there is one."""
    recommendation: tuple[str, ...]
    """One line for each hardware; empty before the end."""
    newest: tuple[EventLine, ...]


def read_overview(store: PageReader, *, now_unix: float, is_held: bool) -> Overview:
    """The run as it is now; costs about the same however many trials it has.

    Args:
        store: within a snapshot.
        now_unix: by the clock that the run's own times come from.
        is_held: whether a living coordinator holds the run.
    """
    study, counts, attempts = store.study(), store.counts(), store.attempt_counts()
    state = run_state(store.meta("state"), is_held=is_held)
    agents = store.agents()
    running = {row.agent: row for row in store.trials_page(after_position=0, limit=MAX_OPEN_READ, state="running")}
    canaries = newest_deviations(store)
    lines = tuple(agent_lines(store, agents, state, running, canaries))
    live, lost = [line for line in lines if line.state != "lost"], [line for line in lines if line.state == "lost"]
    by_stage = _by_stage(counts)
    budget = _budget(store, study, counts, state, by_stage, now_unix)
    recommendation = store.recommendation()
    answer = None if recommendation is None else Recommendation.model_validate(recommendation)
    fit, num_fits = store.newest_fit(), sum(store.fit_counts().values())
    health = judge(
        _facts(store, study, state, agents, canaries, budget, counts, attempts, fit, num_fits, answer, now_unix)
    )
    return Overview(
        **page_facts(store, now_unix=now_unix),
        description=study.description,
        engine=study.serving.recipe.engine,
        state=state,
        state_sentence=health[0].sentence,
        level=worst(health),
        health=health,
        created_unix=float(store.meta("created_unix") or 0),
        trials=_trial_counts(counts),
        by_phase=tuple(
            PhaseCounts(phase=phase, **_trial_counts([one for one in counts if one.phase == phase]).model_dump())
            for phase in ("train", "bench")
        ),
        num_expected=_expected(study, by_stage, state),
        stages=_stages(store, counts),
        budget=budget,
        fleet=tuple(_fleet(study, lines, counts, attempts)),
        agents=(*live, *sorted(lost, key=lambda line: -line.heartbeat_unix)[:MAX_LOST_SHOWN]),
        num_lost_agents=len(lost),
        failures=tuple(failure_counts(attempts)),
        num_refused_reports=sum(store.rejection_counts().values()),
        law=None if fit is None else law_sentence(fit),
        recommendation=()
        if answer is None
        else tuple(one.sentence(simulated=is_simulated(store)) for one in answer.answers),
        newest=tuple(_newest(store)),
    )


def run_state(told: str | None, *, is_held: bool) -> RunState:
    """How a run is, by what its store says and whether somebody holds it."""
    if told == "running" and not is_held:
        return "killed"
    states: tuple[RunState, ...] = get_args(RunState)
    return next((state for state in states if state == told), "unknown")


# Trials


def _trial_counts(counts: Iterable[Count]) -> TrialCounts:
    by_state = Counter[str]()
    for count in counts:
        by_state[count.state] += count.num
    states = ("queued", "running", "succeeded", "failed")
    return TrialCounts(**{state: by_state[state] for state in states}, total=by_state.total())


def _by_stage(counts: Iterable[Count]) -> Counter[str]:
    by_stage = Counter[str]()
    for count in counts:
        by_stage[count.stage] += count.num
    return by_stage


def _expected(study: StudySpec, by_stage: Mapping[str, int], state: RunState) -> int | None:
    if not by_stage:
        return None
    return sum(by_stage.values()) if state == "finished" else expected_from(study, by_stage)


def _stages(store: PageReader, counts: Sequence[Count]) -> tuple[StageProgress, ...]:
    by_stage = _by_stage(counts)
    ended = _by_stage(count for count in counts if count.state in ("succeeded", "failed"))
    return tuple(
        StageProgress(stage=stage, num_trials=by_stage[stage], num_ended=ended[stage]) for stage in store.stages()
    )


def failure_counts(attempts: Iterable[AttemptCount]) -> Iterator[FailureCount]:
    """Failed attempts, the commonest first; interrupted ones are nobody's failure."""
    failed = [one for one in attempts if one.outcome not in ("succeeded", "interrupted")]
    for one in sorted(failed, key=lambda one: -one.num):
        yield FailureCount(
            kind=one.outcome, phase=one.phase, hardware=one.hardware, num=one.num, spent_seconds=one.spent_seconds
        )


# Budget


def _budget(
    store: PageReader,
    study: StudySpec,
    counts: Sequence[Count],
    state: RunState,
    by_stage: Mapping[str, int],
    now_unix: float,
) -> Budget:
    ended = store.attempt_counts()
    open_leases = store.running_seconds(now_unix=now_unix)
    wall, scale, granted = store.meta("wall_seconds"), store.meta("token_scale"), store.meta("granted_seconds")
    return Budget(
        spent_seconds=sum(one.spent_seconds for one in ended) + sum(seconds for _, _, seconds in open_leases),
        failed_seconds=sum(one.spent_seconds for one in failure_counts(ended)),
        interrupted_seconds=sum(one.spent_seconds for one in ended if one.outcome == "interrupted"),
        granted_seconds=float(granted) if granted else None,
        wall_seconds=None if wall is None else float(wall),
        granted_wall_seconds=60 * study.budget.wall_minutes,
        seconds_left=_seconds_left(store, study, state, by_stage, num_open=_num_open(counts)),
        token_scale=None if scale is None else float(scale),
    )


def _num_open(counts: Iterable[Count]) -> int:
    return sum(count.num for count in counts if count.state in ("queued", "running"))


def _seconds_left(
    store: PageReader, study: StudySpec, state: RunState, by_stage: Mapping[str, int], *, num_open: int
) -> Amount:
    """As `forecast.seconds_left`, from some of the trials."""
    told, scale = store.meta("speed"), float(store.meta("token_scale") or 1)
    if state == "finished":
        return missing("the study has come to its end")
    if told is None:
        return missing("the agents' speed was not measured yet")
    speed = Speed.model_validate_json(told)
    positions = store.unfinished_positions()
    read = store.trials_at(positions[:: 1 + len(positions) // MAX_OPEN_READ])
    known = open_seconds(read, speed) * (num_open / len(read) if read else 0.0)
    slower = slowdown(store.newest_trained(NUM_TIMED // 10), speed)
    left = slower * (known + future_seconds(study, by_stage, speed, scale)) / speed.num_agents
    return amount(
        Predicted(
            value=left,
            unit="s",
            no_interval_because="how much the load of the machines changes is not known",
            basis=f"speed measured at the start, and trials that take {slower:.2f} times as long",
        )
    )


# Fleet


def newest_deviations(store: PageReader) -> dict[str, float]:
    """The newest canary's deviation of every agent that has one."""
    return {one.agent: one.deviation for one in store.newest_canaries(512) if one.deviation is not None}


def agent_lines(
    store: PageReader,
    agents: Iterable[AgentRow],
    state: RunState,
    running: Mapping[str | None, TrialRow],
    canaries: Mapping[str, float],
) -> Iterator[AgentLine]:
    """Agents with what they do. Where a run does not go on they were stopped with it: nothing was lost."""
    reasons = quarantined(store)
    for agent in agents:
        trial = running.get(agent.agent) if state == "running" else None
        told: AgentState = next((one for one in get_args(AgentState) if one == agent.state), "lost")
        yield AgentLine(
            agent=agent.agent,
            hardware=agent.hardware,
            node=agent.node,
            state=told if state == "running" else "stopped",
            pid=agent.pid,
            joined_unix=agent.joined_unix,
            heartbeat_unix=agent.heartbeat_unix,
            clock_offset_seconds=agent.clock_offset_seconds,
            trial_id=None if trial is None else trial.trial_id,
            done_fraction=None if trial is None else trial.done_fraction,
            trial="" if trial is None else describe(trial.planned),
            canary_deviation=canaries.get(agent.agent),
            quarantine=reasons.get(agent.agent, ""),
            versions=agent.versions,
        )


def _fleet(
    study: StudySpec, agents: Sequence[AgentLine], counts: Sequence[Count], attempts: Sequence[AttemptCount]
) -> Iterator[HardwareFleet]:
    for hardware in hardware_of(study, agents, counts):
        there = [one for one in agents if one.hardware == hardware]
        tried = [one for one in attempts if one.hardware == hardware]
        yield HardwareFleet(
            hardware=hardware,
            name=hardware_name(hardware),
            num_agents=sum(one.state != "lost" for one in there),
            agents=dict(Counter(one.state for one in there)),
            num_succeeded=sum(one.num for one in tried if one.outcome == "succeeded"),
            num_failed_attempts=sum(one.num for one in failure_counts(tried)),
            spent_seconds=sum(one.spent_seconds for one in tried),
        )


def hardware_of(study: StudySpec, agents: Iterable[AgentLine], counts: Iterable[Count]) -> list[str]:
    """Profile ids that the study names, that agents have, or on which something was done."""
    named = {*study.serving.hardware, *study.budget.training_hardware, *filter(None, [study.budget.bench_hardware])}
    seen = {one.hardware for one in agents} | {one.hardware for one in counts if one.hardware}
    return sorted(named | seen)


def hardware_name(hardware: str) -> str:
    """The name on its data sheet; its id where there is none."""
    return next((profile.name for profile in all_profiles() if profile.id == hardware), hardware)


# Health


def _facts(
    store: PageReader,
    study: StudySpec,
    state: RunState,
    agents: Sequence[AgentRow],
    canaries: Mapping[str, float],
    budget: Budget,
    counts: Sequence[Count],
    attempts: Sequence[AttemptCount],
    fit: Fitted | None,
    num_fits: int,
    answer: Recommendation | None,
    now_unix: float,
) -> HealthFacts:
    failures = list(failure_counts(attempts))
    live = {one.hardware for one in agents if one.state != "lost"}
    queued = store.queued_benchmarks() if any(one.phase == "bench" and one.state == "queued" for one in counts) else {}
    loop, backup = store.meta("loop_unix"), store.meta("last_backup_unix")
    path = store.run_directory / FILE_NAME
    files = (path, path.with_name(f"{FILE_NAME}-wal"))
    return HealthFacts(
        state=state,
        now_unix=now_unix,
        created_unix=float(store.meta("created_unix") or 0),
        loop_unix=None if loop is None else float(loop),
        agents=agents,
        quarantined=quarantined(store),
        missing_hardware={kind: num for kind, num in queued.items() if kind is not None and kind not in live},
        canary_deviations={one.agent: canaries[one.agent] for one in agents if one.agent in canaries},
        num_attempts=sum(one.num for one in attempts if one.outcome != "interrupted"),
        num_failed=sum(one.num for one in failures),
        commonest_failure=failures[0].kind if failures else "",
        num_benchmarks=sum(one.num for one in counts if (one.phase, one.state) == ("bench", "succeeded")),
        num_invalid=sum(one.num for one in store.tallied("bench_invalid")),
        num_refused=sum(store.rejection_counts().values()),
        spent_seconds=budget.spent_seconds,
        granted_seconds=budget.granted_seconds,
        wall_seconds=budget.wall_seconds,
        granted_wall_seconds=budget.granted_wall_seconds,
        wall_seconds_left=budget.seconds_left.value,
        store_bytes=sum(file.stat().st_size for file in files if file.is_file()),
        free_bytes=store.free_bytes(),
        least_free_bytes=1e9 * study.budget.min_free_disk_gigabytes,
        num_store_errors=sum(one.num for one in store.tallied("store_errors")),
        backup_unix=None if backup is None else float(backup),
        num_fits=num_fits,
        law=_lacking(fit),
        heldout_error=None if answer is None else answer.heldout_error_ratio,
    )


def _lacking(fit: Fitted | None) -> str:
    """What the newest fit does not tell."""
    if fit is None:
        return ""
    lacking = [name for name, found in (("x*", fit.x_opt), ("r*", fit.r_opt)) if found is None]
    return f"The newest fit has no optimum {' and no optimum '.join(lacking)}." if lacking else ""


def law_sentence(fit: Fitted) -> str:
    """The law in a line."""
    optima = [
        f"{name} {found.value:.3g} [{found.low:.3g}, {found.high:.3g}]" if found else f"{name} not found"
        for name, found in (("x*", fit.x_opt), ("r*", fit.r_opt))
    ]
    noise = "" if fit.residual_sd is None else f", residual sd {fit.residual_sd:.4f} nats/token"
    level = next((f" ({one.level:.0%} intervals)" for one in (fit.x_opt, fit.r_opt) if one is not None), "")
    return f"law from {plural(fit.num_points, 'run')}: {', '.join(optima)}{level}{noise}"


# What happened


def _newest(store: PageReader) -> Iterator[EventLine]:
    origin = "simulated" if is_simulated(store) or store.study().serving.recipe.engine == "fake" else "measured"
    for event in reversed(store.events(max(0, store.last_seq() - NUM_EVENTS))):
        about_a_trial = isinstance(event, Leased | Result | Failed | Refused)
        yield EventLine(
            seq=event.seq,
            unix=event.unix,
            kind=event.kind,
            subject=event.subject,
            trial_id=event.subject if about_a_trial else None,
            sentence=sentence_of(event, origin=origin),
        )


def sentence_of(event: Event, *, origin: str) -> str:
    """An event in a line; `origin` says whether its numbers are measured or simulated."""
    match event:
        case Planned():
            return f"{plural(event.num_trials, 'trial')} planned: {event.subject}"
        case Leased():
            return f"handed to {event.agent} ({event.hardware})"
        case Result(loss=float(loss)):
            return f"loss {loss:.4f} nats/token ({origin}, {event.hardware})"
        case Result():
            rate = event.output_tokens_per_second
            doubts = f"; {', '.join(event.flags)}" if event.flags else ""
            rated = "no rate" if rate is None else f"{rate.value:,.0f} output tokens/s ({origin}, {event.hardware})"
            return f"{rated}{doubts}"
        case Failed():
            return f"{event.failure_kind} on {event.agent}: {event.message}"
        case Refused():
            return f"report of {event.agent} refused: {event.reason}"
        case Fitted():
            return law_sentence(event)
        case Recommended():
            return f"recommendation for {', '.join(event.hardware)}"
        case Canary():
            off = "baseline is being made" if event.deviation is None else f"{event.deviation:+.1%} of its baseline"
            return f"canary {event.task}: {off} ({event.hardware})"
