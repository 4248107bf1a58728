"""What a study's runs cost on these agents, and by how much D must shrink to keep the budget.

Seconds per training token grow linearly with N (measured on CPU: framework overhead plus work per parameter),
so two probes, at the fit's and the target's size, price every run:

    seconds(N, D) = D · (c0 + c1 · N)

All shapes are scaled alike: a shorter run changes L_opt(N, D), not which shape is better at equal D.
"""

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
            return self.train_seconds(assignment.architecture.num_parameters, assignment.recipe.num_tokens)
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


def planned_train_seconds(study: StudySpec, speed: Speed) -> float:
    """Agent-seconds of all training runs at the full number of tokens."""
    fit, target = study.fit, study.target
    runs = [(cell.num_parameters, cell.tokens_per_parameter, cell.num_shapes) for cell in study.reference]
    num_fit_runs = fit.num_space_shapes + fit.num_centre_replicates + fit.num_rounds * fit.num_runs_per_round
    runs.append((fit.num_parameters, fit.tokens_per_parameter, num_fit_runs))
    runs.append((target.num_parameters, target.tokens_per_parameter, num_validation_runs(study)))
    return sum(count * speed.train_seconds(size, size * ratio) for size, ratio, count in runs)


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
