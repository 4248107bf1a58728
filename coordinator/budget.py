"""What a study's runs cost on these agents, and by how much D must shrink to keep the budget.

Seconds per training token grow linearly with N (measured on CPU: framework overhead plus work per parameter),
so two probes, at the fit's and the target's size, price every run:

    seconds(N, D) = D · (c0 + c1 · N)

All shapes are scaled alike: a shorter run changes L_opt(N, D), not which shape is better at equal D.
"""

from typing import NamedTuple

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator.errors import UserError
from coordinator.study import StudySpec
from hwprofiles.value import Value

FINISHING_SECONDS = 12
"""Last fit, report and shutting down."""
IDLE_SHARE = 0.10
"""Agents wait for one another at the end of a stage."""
ENGINE_START_SECONDS = 6
"""A fresh engine process on a CPU: imports, model, warm-up."""


class Speed(Value):
    """Seconds per training token: intercept (s/token) and slope (s/token/parameter)."""

    seconds_per_token: float
    seconds_per_token_parameter: float
    num_agents: int

    def train_seconds(self, num_parameters: float, num_tokens: float) -> float:
        """Expected seconds of one run on one agent."""
        return num_tokens * (self.seconds_per_token + self.seconds_per_token_parameter * num_parameters)

    def assignment_seconds(self, assignment: TrainAssignment | BenchAssignment) -> float:
        """Expected seconds of any assignment on one agent."""
        if isinstance(assignment, TrainAssignment):
            own_tokens = assignment.recipe.num_tokens - assignment.trunk_tokens
            return self.train_seconds(assignment.architecture.num_parameters, own_tokens)
        return assignment.num_repeats * (ENGINE_START_SECONDS + 2 * assignment.min_window_seconds)


def speed_from_probes(small: tuple[float, list[float]], large: tuple[float, list[float]]) -> Speed:
    """Speed from two probes, each (N, tokens/s on every agent, all at the same time).

    A slope below zero (noise) is taken as zero: a larger model is never faster.
    """
    (n_small, rates_small), (n_large, rates_large) = small, large
    t_small, t_large = (1 / (sum(rates) / len(rates)) for rates in (rates_small, rates_large))
    slope = max(0.0, (t_large - t_small) / (n_large - n_small)) if n_large != n_small else 0.0
    return Speed(
        seconds_per_token=max(t_small - slope * n_small, 0.1 * t_small),
        seconds_per_token_parameter=slope,
        num_agents=len(rates_small),
    )


class FirstRun(NamedTuple):
    """A run that a study asks for before anything is proposed; a branch trains only its decay."""

    num_parameters: float
    tokens_per_parameter: float
    is_branch: bool

    def seconds(self, study: StudySpec, speed: Speed) -> float:
        """Agent-seconds at the full number of tokens."""
        own_share = study.training.decay_fraction if self.is_branch else 1.0
        return speed.train_seconds(self.num_parameters, own_share * self.num_parameters * self.tokens_per_parameter)


def first_runs(study: StudySpec) -> list[FirstRun]:
    """The runs of the first round, and those that branch off them.

    Every entry of a study takes the first shapes of the same spread: at a size with trunks the k-th shape is trained
    once on the longest D that some entry asks for, and branches off to the others.
    """
    fit = study.fit
    cells = [(c.num_parameters, ratio, c.num_shapes) for c in study.reference for ratio in c.all_ratios]
    cells.append((fit.num_parameters, fit.tokens_per_parameter, fit.num_space_shapes))
    runs = [FirstRun(fit.num_parameters, fit.tokens_per_parameter, False)] * fit.num_centre_replicates
    for N in sorted({N for N, _, _ in cells}):
        here = [(ratio, num_shapes) for size, ratio, num_shapes in cells if size == N]
        if N not in study.trunk_sizes:
            runs += [FirstRun(N, ratio, False) for ratio, num_shapes in here for _ in range(num_shapes)]
            continue
        for shape in range(max(num_shapes for _, num_shapes in here)):
            longest, *shorter = sorted({ratio for ratio, num_shapes in here if num_shapes > shape}, reverse=True)
            runs += [FirstRun(N, longest, False), *(FirstRun(N, ratio, True) for ratio in shorter)]
    return runs


def planned_train_seconds(study: StudySpec, speed: Speed) -> float:
    """Agent-seconds of all training runs at the full number of tokens."""
    fit, target = study.fit, study.target
    proposed = fit.num_rounds * fit.num_runs_per_round
    later = [
        (proposed, fit.num_parameters, fit.tokens_per_parameter),
        (num_validation_runs(study), target.num_parameters, target.tokens_per_parameter),
    ]
    return sum(run.seconds(study, speed) for run in first_runs(study)) + sum(
        count * speed.train_seconds(N, N * ratio) for count, N, ratio in later
    )


def num_validation_runs(study: StudySpec) -> int:
    """Baseline and one recommended shape a hardware once per seed, and one predicted-worse shape."""
    return (1 + study.num_answers) * study.target.num_validation_seeds + 1


def num_benchmarks(study: StudySpec) -> int:
    """The baseline and every candidate, on each hardware."""
    return study.num_answers * (study.serving.num_candidates + 1)


def bench_seconds(study: StudySpec) -> float:
    """Agent-seconds of one serving benchmark: its repeats, each with a fresh engine."""
    return study.serving.num_repeats * (ENGINE_START_SECONDS + 2 * study.serving.min_window_seconds)


def planned_bench_seconds(study: StudySpec) -> float:
    """Agent-seconds of all serving benchmarks, the baseline's included."""
    return num_benchmarks(study) * bench_seconds(study)


def token_scale(study: StudySpec, speed: Speed, *, elapsed_seconds: float) -> float:
    """The share of the wanted tokens that the budget allows, at most 1, the same for every run.

    Raises:
        UserError: less than `budget.min_token_scale` is affordable.
    """
    wall = study.budget.wall_minutes * 60
    available = (wall - elapsed_seconds - FINISHING_SECONDS) * speed.num_agents * (1 - IDLE_SHARE)
    needed = planned_train_seconds(study, speed)
    scale = min(1.0, (available - planned_bench_seconds(study)) / needed)
    if scale < study.budget.min_token_scale:
        enough = needed * study.budget.min_token_scale + planned_bench_seconds(study)
        minutes = (enough / (speed.num_agents * (1 - IDLE_SHARE)) + elapsed_seconds + FINISHING_SECONDS) / 60
        raise UserError(
            f"the budget of study {study.name!r} ({study.budget.wall_minutes:g} min on {speed.num_agents} agents) "
            f"is too small: at the measured speed it allows {max(scale, 0):.0%} of the wanted tokens, and "
            f"{study.budget.min_token_scale:.0%} are needed for its first round to mean anything.\n"
            f"Set budget.wall_minutes to {minutes:.1f} or more, or ask for fewer runs under [fit]."
        )
    return scale
