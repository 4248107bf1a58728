"""Proposals: the first round has both flanks, later rounds tell more than chance, and batches are diverse."""

import numpy as np
import pytest

from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.law import ConditionalLaw
from scaling.propose import propose
from scaling.space import Candidates, SearchSpace

LAW = ConditionalLaw(a=(1.01287, 0.053859, 0.015603), b=(0.980084, 0.017632, 0.020070))
SPACE = SearchSpace(num_parameters=100_000, num_hidden_layers=2, head_dim=16, vocab_size=1024, x_range=(0.09, 0.6))


def candidates() -> Candidates:
    return SPACE.enumerate()


def equal_cost() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.full(len(candidates()), 33.0)


def fit_of(indices: list[int], seed: int = 0) -> LawFit:
    found = candidates()
    x, r = found.x[indices], found.r[indices]
    noise = 0.011 * np.random.default_rng(seed).standard_normal(len(indices))
    return fit_conditional(
        ShapePoints(
            x=x,
            r=r,
            num_parameters=found.num_parameters[indices],
            num_tokens=np.full(len(indices), 1e6),
            loss=LAW.predict(x, r, 3.58) + noise,
            group=np.array(indices),
        )
    )


def first_round(num: int = 9) -> list[int]:
    proposals = propose(None, candidates(), existing=[], pending=[], num=num, seconds_per_run=equal_cost())
    return [proposal.index for proposal in proposals]


def test_the_first_round_has_the_centre_and_both_flanks_within_the_range_of_the_fit() -> None:
    chosen = first_round()
    x, r = candidates().x[chosen], candidates().r[chosen]
    assert len(set(chosen)) == 9
    assert ((r >= 0.5) & (r <= 5.0)).all()
    assert x.min() < 0.13
    assert x.max() > 0.4
    assert r.min() < 0.8
    assert r.max() > 3.0
    centre_x, centre_r = np.log(x[0]), np.log(r[0])
    assert np.log(x).min() < centre_x < np.log(x).max()
    assert np.log(r).min() < centre_r < np.log(r).max()


def test_the_first_round_and_a_few_seeds_find_the_optimum_region() -> None:
    chosen = first_round()
    fit = fit_of([*chosen, *chosen[:1] * 3])
    assert fit.x_opt is not None
    assert fit.r_opt is not None
    assert fit.x_opt.interval.low <= (LAW.x_opt or 0) <= fit.x_opt.interval.high
    assert fit.r_opt.interval.low <= (LAW.r_opt or 0) <= fit.r_opt.interval.high


def test_a_first_round_goes_on_from_what_is_run_or_pending() -> None:
    chosen = first_round(9)
    rest = propose(None, candidates(), existing=chosen[:4], pending=chosen[4:5], num=4, seconds_per_run=equal_cost())
    assert [proposal.index for proposal in rest] == chosen[5:]


def test_when_every_shape_was_run_seeds_are_repeated() -> None:
    few = candidates().take(np.array([5, 20, 27]))
    proposals = propose(None, few, existing=[0, 1, 2], pending=[], num=2, seconds_per_run=np.ones(3))
    assert [proposal.num_replicate for proposal in proposals] == [1, 1]


def test_later_rounds_are_diverse_and_give_reasons() -> None:
    chosen = first_round()
    fit = fit_of(chosen)
    proposals = propose(fit, candidates(), existing=chosen, pending=[], num=6, seconds_per_run=equal_cost())
    assert len({proposal.index for proposal in proposals}) >= 4
    gains = [proposal.gain or 0.0 for proposal in proposals]
    assert gains == sorted(gains, reverse=True)
    assert all(proposal.reason.endswith(".") for proposal in proposals)
    for position, proposal in enumerate(proposals):
        before = [*chosen, *(earlier.index for earlier in proposals[:position])]
        assert proposal.num_replicate == before.count(proposal.index)


def test_pending_runs_count_as_observed() -> None:
    chosen = first_round()
    fit = fit_of(chosen)
    batch = propose(fit, candidates(), existing=chosen, pending=[], num=3, seconds_per_run=equal_cost())
    pending = [batch[0].index, batch[1].index]
    third = propose(fit, candidates(), existing=chosen, pending=pending, num=1, seconds_per_run=equal_cost())
    assert third[0].index == batch[2].index


def test_a_dear_run_is_proposed_less_readily() -> None:
    chosen = first_round()
    fit = fit_of(chosen)
    [first] = propose(fit, candidates(), existing=chosen, pending=[], num=1, seconds_per_run=equal_cost())
    cost = equal_cost()
    cost[first.index] *= 100
    [other] = propose(fit, candidates(), existing=chosen, pending=[], num=1, seconds_per_run=cost)
    assert other.index != first.index


def test_proposed_runs_sharpen_the_prediction_more_than_the_same_number_of_random_ones() -> None:
    chosen = first_round()
    target = (0.27, 1.2, 1e5, 1e6)
    widths: dict[str, list[float]] = {"proposed": [], "random": []}
    for seed in range(12):
        fit = fit_of(chosen, seed)
        batch = propose(fit, candidates(), existing=chosen, pending=[], num=6, seconds_per_run=equal_cost())
        usable = np.flatnonzero((candidates().r >= 0.5) & (candidates().r <= 5.0))
        random = np.random.default_rng(seed).choice(usable, 6).tolist()
        for name, more in (("proposed", [proposal.index for proposal in batch]), ("random", random)):
            # The noise is the same for every design: only where the runs are differs.
            predicted = fit_of([*chosen, *more], seed).predict_loss(*target)
            widths[name].append(float(predicted.high[0] - predicted.low[0]))
    assert np.mean(widths["proposed"]) < np.mean(widths["random"])


def test_costs_must_match_the_candidates() -> None:
    with pytest.raises(ValueError, match="positive numbers"):
        propose(None, candidates(), existing=[], pending=[], num=1, seconds_per_run=np.ones(3))


def test_a_space_outside_the_range_of_the_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="widen r_range"):
        propose(
            None,
            candidates(),
            existing=[],
            pending=[],
            num=1,
            seconds_per_run=equal_cost(),
            r_range=(20.0, 30.0),
        )
