"""Prices from two probes, and a token scale that keeps the budget or says what would."""

import pytest

from coordinator.budget import (
    FINISHING_SECONDS,
    IDLE_SHARE,
    Speed,
    planned_bench_seconds,
    planned_train_seconds,
    speed_from_probes,
    token_scale,
)
from coordinator.errors import UserError
from coordinator.study import StudySpec


def with_minutes(study: StudySpec, minutes: float) -> StudySpec:
    return study.model_copy(update={"budget": study.budget.model_copy(update={"wall_minutes": minutes})})


def speed(tokens_per_second: float = 30_000, num_agents: int = 2) -> Speed:
    return Speed(seconds_per_token=1 / tokens_per_second, seconds_per_token_parameter=0, num_agents=num_agents)


def test_two_probes_price_their_own_sizes() -> None:
    found = speed_from_probes((1e5, [40_000, 40_000]), (2e5, [30_000, 30_000]))
    assert found.train_seconds(1e5, 40_000) == pytest.approx(1)
    assert found.train_seconds(2e5, 30_000) == pytest.approx(1)
    assert found.num_agents == 2


def test_a_larger_model_is_never_priced_below_a_smaller_one() -> None:
    found = speed_from_probes((1e5, [30_000]), (2e5, [40_000]))
    assert found.train_seconds(2e5, 1000) >= found.train_seconds(1e5, 1000)


def test_a_price_is_never_negative() -> None:
    found = speed_from_probes((1e5, [40_000]), (2e5, [1_000]))
    assert found.train_seconds(1, 1000) > 0


def test_one_size_probed_twice_has_no_slope() -> None:
    assert speed_from_probes((1e5, [30_000]), (1e5, [20_000])).seconds_per_token_parameter == 0


def test_ample_budget_leaves_the_tokens_alone(study: StudySpec) -> None:
    assert token_scale(with_minutes(study, 1e4), speed(), elapsed_seconds=0) == 1


def test_scaled_study_just_fits_its_budget(study: StudySpec) -> None:
    slow, elapsed = speed(1_500), 10.0
    tight = with_minutes(study, 5)
    scale = token_scale(tight, slow, elapsed_seconds=elapsed)
    assert 0 < scale < 1
    work = scale * planned_train_seconds(tight, slow) + planned_bench_seconds(tight)
    wall = work / (slow.num_agents * (1 - IDLE_SHARE)) + elapsed + FINISHING_SECONDS
    assert wall == pytest.approx(5 * 60)


def test_more_agents_allow_more_tokens(study: StudySpec) -> None:
    tight = with_minutes(study, 5)
    few, many = (token_scale(tight, speed(1_500, num_agents=n), elapsed_seconds=0) for n in (2, 3))
    assert few < many


def test_too_small_a_budget_is_refused_with_one_that_suffices(study: StudySpec) -> None:
    slow = speed(200)
    with pytest.raises(UserError) as caught:
        token_scale(study, slow, elapsed_seconds=5)
    message = str(caught.value)
    assert "study 'quick'" in message
    minutes = float(message.split("budget.wall_minutes to ")[1].split()[0])
    assert token_scale(with_minutes(study, minutes + 0.1), slow, elapsed_seconds=5) >= study.budget.min_token_scale


@pytest.mark.parametrize("name", ["laptop", "quick"])
def test_shipped_budget_suffices_at_the_measured_speed(name: str) -> None:
    from coordinator.study import read_study

    shipped = read_study(name)  # tokens/s of one thread on a quiet core: 45 k at 100 k parameters, 29 k at 200 k
    quiet = speed_from_probes((1e5, [45_000.0] * 2), (2e5, [29_000.0] * 2))
    assert token_scale(shipped, quiet, elapsed_seconds=30) >= 2 * shipped.budget.min_token_scale
