"""Simulated searches: cost and regret are what they say, studies are reproducible, and proposals beat the baselines."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from scaling.policies import POLICIES, SearchState
from scaling.search_simulation import (
    STRATEGIES,
    SearchSetting,
    SearchTrace,
    World,
    make_world,
    regret_at,
    simulate_search,
    true_regret,
)
from scaling.simulation import TRUTHS


@cache
def world() -> World:
    return make_world(SearchSetting())


@cache
def play(strategy: str, truth: str, seed: int) -> SearchTrace:
    return play_anew(strategy, truth, seed)


def play_anew(strategy: str, truth: str, seed: int) -> SearchTrace:
    policy, recommend = STRATEGIES[strategy]
    return simulate_search(world(), TRUTHS[truth](), policy, recommend, seed=seed)


def test_costs_follow_six_n_d_and_the_grid_is_sixteen_shapes_at_every_size() -> None:
    menu = world().model.menu
    np.testing.assert_allclose(menu.seconds * 4e14, 6 * menu.num_parameters * menu.num_tokens)
    assert [len(rows) for rows in world().grid] == [16, 16, 16]
    nominal = sum(16 * 6 * N * 100 * N for N in (80e6, 145e6, 297e6)) / 4e14
    assert world().grid_seconds == pytest.approx(nominal, rel=0.03)
    for rows, N in zip(world().grid, (80e6, 145e6, 297e6), strict=True):
        chosen = list(rows)
        assert len(set(chosen)) == 16
        np.testing.assert_allclose(menu.num_parameters[chosen], N, rtol=0.03)
        np.testing.assert_allclose(menu.num_tokens[chosen], 100 * N)


def test_regret_is_zero_at_one_shape_and_never_negative() -> None:
    for name, make in TRUTHS.items():
        regrets = true_regret(world(), make())
        assert regrets.min() == 0, name
        best = int(np.argmin(regrets))
        x_best, r_best = make().optimum(1e9)
        assert abs(np.log(world().model.target.x[best] / x_best)) < 0.1
        assert abs(np.log(world().model.target.r[best] / r_best)) < 0.25


def test_a_guess_at_the_centre_of_the_space_misses_the_goal() -> None:
    target = world().model.target
    at = np.stack([np.log(target.x), np.log(target.r)], axis=1)
    centre = int(np.argmin(((at - (at.min(axis=0) + at.max(axis=0)) / 2) ** 2).sum(axis=1)))
    assert all(true_regret(world(), make())[centre] > 0.002 for make in TRUTHS.values())


def test_equal_seeds_give_equal_studies_and_others_differ() -> None:
    first, again, other = (play_anew("v-optimal", "paper", seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.seconds, again.seconds)
    np.testing.assert_array_equal(first.regret, again.regret)
    assert not np.array_equal(first.seconds, other.seconds)


def test_every_strategy_spends_within_the_grids_cost_and_the_grid_all_of_it() -> None:
    for name in STRATEGIES:
        trace = play(name, "paper", 0)
        assert (np.diff(trace.seconds) > 0).all(), name
        # A batch that begins within the budget may end a little beyond it.
        assert trace.seconds[-1] < 1.4 * world().grid_seconds, name
        assert trace.num_runs[-1] <= world().setting.max_runs
    assert play("grid", "paper", 0).seconds[-1] == pytest.approx(world().grid_seconds)


def test_regret_at_a_cost_is_that_of_the_last_recommendation_before_it() -> None:
    trace = SearchTrace(
        seconds=np.array([10.0, 20.0]), num_runs=np.array([8.0, 16.0]), regret=np.array([0.5, 0.1]), stopped_at=None
    )
    np.testing.assert_array_equal(
        regret_at(trace, np.array([5.0, 10.0, 19.0, 20.0, 99.0])), [np.nan, 0.5, 0.5, 0.1, 0.1]
    )


def test_policies_do_what_their_names_say() -> None:
    model, grid = world().model, [row for rows in world().grid for row in rows]
    state = SearchState(
        model=model, existing=grid[:4], losses=np.full(4, 3.0), pending=grid[4:6], grid=grid, gamma=1.0, seed=1
    )
    batches = {name: [proposal.index for proposal in policy(state, 6)] for name, policy in POLICIES.items()}
    assert batches["grid"] == grid[6:12]
    assert len({tuple(batch) for batch in batches.values()}) == 4
    # D-optimal seeks the corners of the space, whatever they matter for the decision.
    corner = np.abs(np.log(model.menu.x / np.sqrt(0.05 * 0.25)))
    assert corner[batches["d-optimal"]].mean() > corner[batches["random"]].mean()
    assert [p.num_replicate for p in POLICIES["grid"](replace(state, grid=[grid[0]] * 9), 2)] == [1, 2]


def test_the_grid_proposes_nothing_once_it_is_done() -> None:
    grid = world().grid[0]
    done = SearchState(
        model=world().model, existing=grid, losses=np.full(16, 3.0), pending=(), grid=grid, gamma=1.0, seed=0
    )
    assert POLICIES["grid"](done, 4) == []


def regrets(strategy: str, truth: str, fraction: float, num_seeds: int = 8) -> list[float]:
    cost = np.array([fraction * world().grid_seconds])
    found = [float(regret_at(play(strategy, truth, seed), cost)[0]) for seed in range(num_seeds)]
    return [np.inf if np.isnan(regret) else regret for regret in found]


@pytest.mark.parametrize("truth", ["paper", "drift", "interaction"])
def test_proposals_reach_a_thousandth_of_the_loss_at_an_eighth_of_the_grids_cost(truth: str) -> None:
    assert np.median(regrets("v-optimal", truth, 1 / 8)) <= 0.001


@pytest.mark.parametrize("truth", ["paper", "interaction"])
def test_proposals_beat_random_runs_of_equal_cost(truth: str) -> None:
    assert np.median(regrets("v-optimal", truth, 1 / 4)) < 0.5 * np.median(regrets("random", truth, 1 / 4))


def test_a_study_without_drift_stops_by_itself_with_the_right_shape() -> None:
    traces = [play("v-optimal", "paper", seed) for seed in range(6)]
    stopped = [(trace, trace.stopped_at) for trace in traces if trace.stopped_at is not None]
    assert len(stopped) >= 5
    assert np.mean([trace.regret[row] < 0.001 for trace, row in stopped]) >= 0.8
    assert np.median([trace.seconds[row] for trace, row in stopped]) < 0.5 * world().grid_seconds


def test_a_plain_fit_never_claims_to_be_sure() -> None:
    assert play("grid, law fit", "paper", 0).stopped_at is None
