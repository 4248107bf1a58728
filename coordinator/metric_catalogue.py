"""The catalogue of metrics: every family with its type, its labels and all values that these can have.

A label is one of a fixed list or names an agent or the study: never a trial, a seed, a path, a host or free text. What
a fixed list does not hold counts under "unknown". A family is `archfleet_` and the name here; counters end in `_total`.

Loops other than the scheduler's are not here: there are none.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from coordinator import traffic
from coordinator.store import DURATION_BOUNDS_SECONDS
from coordinator.vitals import BOUNDS_SECONDS, REPORT_KINDS
from hwprofiles.catalog import all_profiles
from scaling.observations import INVALIDATING_FLAGS, FailureKind
from scaling.recipes import EngineName

UNKNOWN = "unknown"
ANY = "any"
MAX_AGENTS = 256
"""More than so many agents are not shown one by one; those heard of last are."""

PHASES = ("train", "bench")
ENGINES: tuple[str, ...] = get_args(EngineName)
AGENT_STATES = ("idle", "busy", "draining", "quarantined", "lost")
FAILURE_REASONS: dict[FailureKind, str] = {
    "out-of-memory": "oom",
    "engine-start": "engine_start",
    "nan-loss": "nan_loss",
    "timeout": "timeout",
    "preempted": "preempted",
    "hardware": "hardware",
    "validation": "validation",
    "agent-lost": "lost",
    "unknown": UNKNOWN,
}
"""Label values of an attempt's failure."""
OUTCOMES = ("succeeded", "failed", "timeout", "lost", "invalid")
FINAL_OUTCOMES: dict[str, str] = {"timeout": "timeout", "agent-lost": "lost", "validation": "invalid"}
"""Outcome of a trial by the failure that was its last; any other failure is "failed"."""
REJECTION_REASONS = ("fenced", "unknown_trial", UNKNOWN)
STORE_ERROR_REASONS = ("full", "busy", "io", "corrupt", "constraint", UNKNOWN)
FIT_OUTCOMES = ("ok", "not_converged", UNKNOWN)
STRATEGIES = ("explore", "refine", "benchmark", "check", "verdict", UNKNOWN)
STRATEGY_OF_STAGE = {
    "first-round": "explore",
    "branches": "explore",
    "round": "refine",
    "serving": "benchmark",
    "serving-best": "benchmark",
    "check": "check",
    "verdict": "verdict",
}
"""By the stage's name, a number at its end left out."""
INVALID_REASONS = (*sorted(flag.replace("-", "_") for flag in INVALIDATING_FLAGS), UNKNOWN)
CANARY_KINDS = ("gemm", UNKNOWN)
VERSION_LABELS = ("archfleet", "python", "torch", "driver", "cuda", "transformers", "vllm", "sglang")
FIT_BOUNDS_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10)

Kind = Literal["counter", "gauge", "histogram", "info"]
HARDWARE = (*(profile.id for profile in all_profiles()), UNKNOWN)


class Family(NamedTuple):
    """One family. `labels` maps each label to its values; to none for one study, `MAX_AGENTS` agents, and versions."""

    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]] = {}
    bounds: tuple[float, ...] = ()


_phase = {"phase": PHASES}
_hardware = {"hardware": HARDWARE}
_study: dict[str, tuple[str, ...]] = {"study": ()}
_agent: dict[str, tuple[str, ...]] = {"agent": ()}
_route = {"route": traffic.ROUTES}
_durations = tuple(float(bound) for bound in DURATION_BOUNDS_SECONDS)

CATALOGUE: dict[str, Family] = {
    "build": Family("info", "Build of the coordinator", {"version": (), "git_commit": ()}),
    "agent": Family("info", "What an agent is", _agent | _hardware | dict.fromkeys(VERSION_LABELS, ())),
    "trials_queued": Family(
        "gauge", "Trials waiting, by the hardware that may take them", _study | _phase | {"hardware": (*HARDWARE, ANY)}
    ),
    "trials_running": Family("gauge", "Trials under a live lease", _study | _phase | _hardware),
    "trials_finished": Family("counter", "Trials by final state", _phase | _hardware | {"outcome": OUTCOMES}),
    "trial_failures": Family(
        "counter", "Failed attempts by cause", _phase | _hardware | {"reason": tuple(FAILURE_REASONS.values())}
    ),
    "trial_duration_seconds": Family(
        "histogram", "Lease to end of trials that succeeded", _phase | _hardware, _durations
    ),
    "trial_queue_wait_seconds": Family("histogram", "Enqueue to first lease", _phase, _durations),
    "leases_expired": Family("counter", "Leases ended by time-out", _phase | _hardware),
    "reports_accepted": Family("counter", "Reports taken", {"kind": REPORT_KINDS}),
    "reports_rejected": Family("counter", "Reports refused", {"reason": REJECTION_REASONS}),
    "agents": Family("gauge", "Agents by state", _hardware | {"state": AGENT_STATES}),
    "accelerators": Family("gauge", "Accelerators, or CPU slots, of live agents", _hardware),
    "accelerator_busy_seconds": Family(
        "counter", "Accelerator time under lease, failed and running attempts included", _phase | _hardware
    ),
    "agent_last_heartbeat_timestamp_seconds": Family("gauge", "Last sign of life, coordinator's clock", _agent),
    "agent_clock_offset_seconds": Family("gauge", "Agent's clock minus the coordinator's, when it joined", _agent),
    "study_budget_accelerator_seconds": Family("gauge", "Accelerator time granted", _study),
    "study_spent_accelerator_seconds": Family("counter", "Accelerator time spent, failed attempts included", _study),
    "scheduler_decisions": Family("counter", "Plans by what they were for", _study | {"strategy": STRATEGIES}),
    "scheduler_decision_duration_seconds": Family(
        "histogram", "One proposal round", {}, BOUNDS_SECONDS["decision_seconds"]
    ),
    "fits": Family("counter", "Fits by outcome", _study | {"outcome": FIT_OUTCOMES}),
    "fit_duration_seconds": Family("histogram", "One refit", {}, FIT_BOUNDS_SECONDS),
    "fit_last_success_timestamp_seconds": Family("gauge", "When the newest fit was made", _study),
    "fit_points": Family("gauge", "Observations in the newest fit", _study),
    "fit_pending_points": Family("gauge", "Losses newer than the newest fit", _study),
    "fit_error_ratio": Family("gauge", "Residual standard deviation over mean loss", _study),
    "fit_heldout_error_ratio": Family("gauge", "Median |predicted - observed| / observed at the held-out size", _study),
    "fit_interval_width_ratio": Family(
        "gauge", "Width of the prediction's interval over the prediction: recommended shape, held-out size", _study
    ),
    "bench_invalid": Family(
        "counter",
        "Benchmarks that nothing is recommended from",
        _hardware | {"engine": ENGINES, "reason": INVALID_REASONS},
    ),
    "bench_repeat_variation_ratio": Family(
        "gauge", "Coefficient of variation of repeats, mean over benchmarks", _hardware | {"engine": ENGINES}
    ),
    "canary_deviation_ratio": Family(
        "gauge", "Newest canary over its hardware's baseline, minus 1", _agent | {"kind": CANARY_KINDS}
    ),
    "recommendation_tokens_per_second": Family(
        "gauge", "Measured output tokens/s of the recommended architecture", _study | _hardware | {"engine": ENGINES}
    ),
    "recommendation_last_change_timestamp_seconds": Family("gauge", "When it was made", _study | _hardware),
    "store_readable": Family("gauge", "1 when the store can be read"),
    "store_writable": Family("gauge", "1 when the coordinator's last commit worked"),
    "store_commit_duration_seconds": Family(
        "histogram", "Writing down one turn of the loop", {}, BOUNDS_SECONDS["commit_seconds"]
    ),
    "store_bytes": Family("gauge", "Size of the store's files", {"file": ("db", "wal")}),
    "store_free_bytes": Family("gauge", "Room on the store's disk"),
    "store_last_backup_timestamp_seconds": Family("gauge", "Last backup that was opened and checked"),
    "store_errors": Family("counter", "Commits that failed", {"reason": STORE_ERROR_REASONS}),
    "loop_last_iteration_timestamp_seconds": Family("gauge", "Last turn of the loop", {"loop": ("scheduler",)}),
    "loop_duration_seconds": Family(
        "histogram",
        "One turn of the loop, its waiting left out",
        {"loop": ("scheduler",)},
        BOUNDS_SECONDS["loop_seconds"],
    ),
    "study_finished": Family("gauge", "1 once the study has come to its end", _study),
    "http_requests": Family(
        "counter",
        "Answers of the dashboard and of this listener, by the route's template",
        _route | {"method": traffic.METHODS, "code": traffic.CODES},
    ),
    "http_request_duration_seconds": Family(
        "histogram", "Request to the end of its answer; streams of events have none", _route, traffic.BOUNDS_SECONDS
    ),
    "http_auth_failures": Family("counter", "Credentials refused", {"reason": traffic.AUTH_FAILURES}),
    "event_stream_clients": Family("gauge", "Open streams of events"),
}


def known(value: str, values: tuple[str, ...]) -> str:
    """The value, or "unknown" where the list does not hold it."""
    return value if value in values else UNKNOWN


def strategy_of(stage: str) -> str:
    """What a stage's plan is for."""
    name, _, number = stage.rpartition("-")
    return STRATEGY_OF_STAGE.get(name if number.isdigit() else stage, UNKNOWN)
