"""Forecast: how much of a study is still to come, in trials and in seconds, and a trial in a few words.

The probe at the start cannot know who else will use the machine later: what finished trials really took corrects it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from agent.assignment import TrainAssignment
from coordinator.budget import FirstRun, Speed, bench_seconds, first_runs, num_benchmarks, num_validation_runs
from coordinator.choice import num_first_served
from coordinator.plan import PlannedTrial
from coordinator.store import TrialRow
from coordinator.study import StudySpec

NUM_TIMED = 1000
"""So many finished trials tell how slow the agents are."""


def describe(planned: PlannedTrial) -> str:
    """A trial in a few words."""
    assignment = planned.assignment
    if isinstance(assignment, TrainAssignment):
        recipe = assignment.recipe
        seed = f" seed {recipe.seed}" if recipe.seed else ""
        own = (recipe.num_tokens - assignment.trunk_tokens) / 1e6
        branch = f", {own:.2f} M of them after its trunk" if assignment.trunk_tokens else ""
        tokens = f"{recipe.num_tokens / 1e6:.2f} M tokens{branch}"
        return f"train {assignment.architecture.label} on {tokens} ({planned.role}{seed})"
    where = f" on {assignment.hardware}" if assignment.hardware else ""
    return f"bench {assignment.architecture.label} under {assignment.recipe.engine}{where}"


def expected_trials(study: StudySpec, trials: Sequence[TrialRow]) -> int:
    """How many trials the study will have had, those not planned yet included."""
    return expected_from(study, Counter(t.stage for t in trials))


def expected_from(study: StudySpec, by_stage: Mapping[str, int]) -> int:
    """The same, by how many trials each stage has."""
    future = sum(_future_counts(study, by_stage)) + len(_future_branches(study, by_stage))
    return sum(by_stage.values()) + future


def seconds_left(study: StudySpec, trials: Sequence[TrialRow], speed: Speed, scale: float) -> float:
    """Estimated wall seconds to the end, from the probed speed and how much slower trials have been than it said."""
    by_stage = Counter(t.stage for t in trials)
    agent_seconds = open_seconds(trials, speed) + future_seconds(study, by_stage, speed, scale)
    return slowdown(trials, speed) * agent_seconds / speed.num_agents


def open_seconds(trials: Iterable[TrialRow], speed: Speed) -> float:
    """Agent-seconds that queued and running trials still need, as probed."""
    unfinished = (t for t in trials if t.state in ("queued", "running"))
    return sum(speed.assignment_seconds(t.planned.assignment) * (1 - t.done_fraction) for t in unfinished)


def future_seconds(study: StudySpec, by_stage: Mapping[str, int], speed: Speed, scale: float) -> float:
    """Agent-seconds of what no plan holds yet, as probed, by how many trials each stage has."""
    num_fit, num_bench, num_validation = _future_counts(study, by_stage)
    future = num_fit * fit_run_seconds(study, speed, scale) + num_validation * target_run_seconds(study, speed, scale)
    future += scale * sum(run.seconds(study, speed) for run in _future_branches(study, by_stage))
    return future + num_bench * bench_seconds(study)


def fit_run_seconds(study: StudySpec, speed: Speed, scale: float) -> float:
    """Agent-seconds of one run at the fit's size, as probed."""
    fit = study.fit
    return speed.train_seconds(fit.num_parameters, scale * fit.num_parameters * fit.tokens_per_parameter)


def target_run_seconds(study: StudySpec, speed: Speed, scale: float) -> float:
    """Agent-seconds of one run at the target, as probed."""
    target = study.target
    return speed.train_seconds(target.num_parameters, scale * target.num_parameters * target.tokens_per_parameter)


def slowdown(trials: Sequence[TrialRow], speed: Speed) -> float:
    """What finished training trials took, over what the probe said; 1 while none has finished.

    Of many finished trials the last planned are looked at: to read all is dear after a restart.
    """
    done = list(islice((t for t in reversed(trials) if t.state == "succeeded" and t.phase == "train"), NUM_TIMED))
    expected = sum(speed.assignment_seconds(t.planned.assignment) for t in done)
    # Spent time is by the wall clock, which may have been set back: never so little that a run seems to cost nothing.
    return max(0.1, sum(t.spent_seconds for t in done) / expected) if expected else 1.0


def _future_counts(study: StudySpec, by_stage: Mapping[str, int]) -> tuple[int, int, int]:
    """Fit runs, benchmarks and validation runs that no plan holds yet."""
    fit = study.fit
    rounds = sum(fit.num_runs_per_round for k in range(1, fit.num_rounds + 1) if f"round-{k}" not in by_stage)
    benches = _future_benches(study, by_stage)
    verdict = study.num_answers * study.target.num_validation_seeds
    check = 0 if "check" in by_stage else num_validation_runs(study) - verdict
    return rounds, benches, 0 if "verdict" in by_stage else check + verdict


def _future_branches(study: StudySpec, by_stage: Mapping[str, int]) -> list[FirstRun]:
    """Branches of the first round's trunks, until they are planned or, without them, the stage after."""
    if not study.trunk_sizes or by_stage.keys() & {"branches", "round-1", "serving"}:
        return []
    return [run for run in first_runs(study) if run.is_branch]


def _future_benches(study: StudySpec, by_stage: Mapping[str, int]) -> int:
    """Benchmarks that are still to be planned, by how many trials each stage has."""
    wanted = num_benchmarks(study)
    if "serving" not in by_stage:
        return wanted
    # Without a law the first stage measures the baseline alone, and nothing follows.
    if by_stage["serving"] == study.num_answers or {"serving-best", "verdict"} & by_stage.keys():
        return 0
    more_follow = study.serving.num_candidates + 1 > num_first_served(study)
    return max(0, wanted - by_stage["serving"]) if more_follow else 0
