"""Proposals: the first round has both flanks, later rounds tell more than chance, batches are diverse, rules hold."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from scaling.belief import RunMenu, ShapeModel, Target, condition, make_model
from scaling.design import DesignRules, Guard, Knowledge
from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.law import ConditionalLaw, Floats
from scaling.propose import propose, propose_runs
from scaling.simulation import paper_truth
from scaling.space import Candidates, SearchSpace
from scaling.stopping import Decision, StopRule, decide, reason_to_stop

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
            num_parameters=found.num_parameters[indices].astype(float),
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


# Over several sizes and ratios


def menu_model(*, ratios: tuple[float, ...] = (20.0, 50.0, 100.0)) -> ShapeModel:
    x, r = (z.ravel() for z in np.meshgrid(np.geomspace(0.05, 0.25, 8), np.geomspace(0.5, 5.0, 8)))
    N, ratio = (z.ravel() for z in np.meshgrid((80e6, 145e6, 297e6), ratios))
    sizes, D = np.repeat(N, len(x)), np.repeat(N * ratio, len(x))
    tiled = {"x": np.tile(x, len(N)), "r": np.tile(r, len(N))}
    menu = RunMenu(**tiled, num_parameters=sizes, num_tokens=D, seconds=6 * sizes * D / 4e14)
    return make_model(menu, Target(x=x, r=r, num_parameters=1e9, num_tokens=1e11))


def observe(model: ShapeModel, rows: list[int], seed: int = 0) -> Floats:
    menu = model.menu
    columns = (menu.x[rows], menu.r[rows], menu.num_parameters[rows], menu.num_tokens[rows])
    return paper_truth().observe(*columns, generator=np.random.default_rng(seed))


def started(model: ShapeModel, num: int = 12) -> tuple[list[int], Floats]:
    rows = [p.index for p in propose_runs(model, existing=[], losses=np.zeros(0), num=num)]
    return rows, observe(model, rows)


def test_a_batch_over_a_menu_is_diverse_reproducible_and_explained() -> None:
    model = menu_model()
    rows, losses = started(model)
    batch = propose_runs(model, existing=rows, losses=losses, num=8, seed=3)
    assert batch == propose_runs(model, existing=rows, losses=losses, num=8, seed=3)
    assert len({proposal.index for proposal in batch}) >= 6
    shapes = {(model.menu.x[p.index], model.menu.r[p.index]) for p in batch}
    assert len(shapes) >= 5
    assert all("tokens per parameter" in proposal.reason for proposal in batch)


def test_pending_rows_of_a_menu_count_as_observed() -> None:
    model = menu_model()
    rows, losses = started(model)
    batch = propose_runs(model, existing=rows, losses=losses, num=5)
    rest = propose_runs(model, existing=rows, losses=losses, pending=[p.index for p in batch[:3]], num=2)
    assert [p.index for p in rest] == [p.index for p in batch[3:]]
    alone = propose_runs(model, existing=rows, losses=losses, num=1)
    assert rest[0].index != alone[0].index


def test_the_gain_is_the_drop_of_the_targets_variance() -> None:
    model = menu_model()
    rows, losses = started(model)
    belief = model.belief(rows, losses)
    moment = belief.target_moment(np.ones(len(model.target)), level=False)
    knowledge = Knowledge(belief, moment)
    for step in (17, 17, 300):  # the second time after an update
        gains, before = knowledge.gains(), knowledge.target_sd() ** 2
        for row in (0, step):
            after = (moment * belief.observed(row).covariance).sum()
            assert gains[row] == pytest.approx(before - after, rel=1e-6)
        knowledge.observe(step)
        belief = belief.observed(step)


def test_three_ratios_are_run_though_the_cheapest_tells_most_per_second() -> None:
    model = menu_model()
    cheapest = np.flatnonzero(model.menu.cell == model.menu.cell[np.argmin(model.menu.seconds)])
    rows = [int(row) for row in cheapest[::6]]
    losses = observe(model, rows)
    free = DesignRules(num_ratios=0, num_replicates=0, min_other_sizes=0)
    ruled = DesignRules(num_ratios=3, num_replicates=0, min_other_sizes=0)

    def ratios(rules: DesignRules) -> set[float]:
        batch = propose_runs(model, existing=rows, losses=losses, num=3, rules=rules)
        ran = [*rows, *(p.index for p in batch)]
        return {round(float(value)) for value in model.menu.tokens_per_parameter[ran]}

    assert len(ratios(free)) < 3
    assert ratios(ruled) == {20, 50, 100}


def test_a_menu_of_one_ratio_asks_for_no_others() -> None:
    model = menu_model(ratios=(100.0,))
    rows, losses = started(model)
    batch = propose_runs(
        model, existing=rows, losses=losses, num=4, rules=DesignRules(num_replicates=0, min_other_sizes=0)
    )
    assert not any("rule" in proposal.reason for proposal in batch)


def test_seeds_are_repeated_until_the_noise_is_known() -> None:
    model = menu_model()
    rows = list(range(0, 576, 47))
    rules = DesignRules(num_ratios=0, num_replicates=3)
    batch = propose_runs(model, existing=rows, losses=observe(model, rows), num=4, rules=rules)
    assert [proposal.num_replicate > 0 for proposal in batch[:3]] == [True] * 3
    assert all("repeated seeds" in proposal.reason for proposal in batch[:3])
    assert "rule" not in batch[3].reason


def test_confounded_x_and_r_are_pulled_apart() -> None:
    model = menu_model(ratios=(20.0,))
    menu = model.menu
    cell = np.flatnonzero(menu.num_parameters == 80e6)
    diagonal = [int(cell[i * 8 + i]) for i in range(8)]  # x and r rise together
    rules = DesignRules(num_ratios=0, num_replicates=0, min_other_sizes=0)
    before = Guard(model, rules, diagonal).condition_number()
    batch = propose_runs(model, existing=diagonal, losses=observe(model, diagonal), num=4, rules=rules)
    after = Guard(model, rules, [*diagonal, *(p.index for p in batch)]).condition_number()
    assert before > rules.max_condition_number
    assert "vary apart" in batch[0].reason
    assert after < rules.max_condition_number


def test_where_one_size_tells_most_some_runs_go_to_others_to_show_the_drift() -> None:
    model = menu_model()
    largest = np.flatnonzero(model.menu.num_parameters == 297e6)
    rows = [int(row) for row in largest[::16]]
    losses = observe(model, rows)

    def sizes(rules: DesignRules) -> Floats:
        batch = propose_runs(model, existing=rows, losses=losses, num=6, gamma=0.0, rules=rules)
        return model.menu.num_parameters[[*rows, *(p.index for p in batch)]]

    assert (sizes(DesignRules(num_ratios=0, num_replicates=0, min_other_sizes=0)) == 297e6).mean() > 0.8
    assert (sizes(DesignRules(num_ratios=0, num_replicates=0)) == 297e6).mean() < 0.8


def test_gamma_trades_cost_for_knowledge() -> None:
    model = menu_model()
    rows, losses = started(model)
    rules = DesignRules(num_ratios=0, num_replicates=0, min_other_sizes=0)
    seconds = []
    for gamma in (1.0, 0.0):
        batch = propose_runs(model, existing=rows, losses=losses, num=4, gamma=gamma, rules=rules)
        seconds.append(model.menu.seconds[[p.index for p in batch]].mean())
    assert seconds[1] > 1.3 * seconds[0]


def test_proposed_runs_decide_better_than_random_ones_of_equal_number() -> None:
    model = menu_model(ratios=(20.0,))
    truth = paper_truth()
    true = truth.ratio(model.target.x, model.target.r, 1e9)
    beliefs: dict[str, list[float]] = {"proposed": [], "random": []}
    regrets: dict[str, list[float]] = {"proposed": [], "random": []}
    for seed in range(8):
        generator = np.random.default_rng(seed)
        rows: list[int] = []
        for _ in range(3):
            losses = observe(model, rows, seed) if rows else np.zeros(0)
            rows += [p.index for p in propose_runs(model, existing=rows, losses=losses, num=6, gamma=0.0, seed=seed)]
        drawn = [int(row) for row in generator.integers(len(model.menu), size=18)]
        for name, chosen in (("proposed", rows), ("random", drawn)):
            belief = condition(model, chosen, observe(model, chosen, seed), noise=0.002)
            decision = decide(belief)
            beliefs[name].append(decision.expected_regret)
            regrets[name].append(true[decision.index] / true.min() - 1)
    assert np.mean(beliefs["proposed"]) < np.mean(beliefs["random"])
    assert np.mean(regrets["proposed"]) < 1.1 * np.mean(regrets["random"])


def test_a_study_stops_when_its_recommendation_is_stable_or_its_budget_is_spent() -> None:
    rule = StopRule(tolerance=0.001, probability=0.9, min_runs=8)
    sure = Decision(index=0, expected_regret=1e-5, probability=0.95, tolerance=0.001)
    unsure = Decision(index=0, expected_regret=1e-2, probability=0.5, tolerance=0.001)

    def reason(decision: Decision, *, runs: int, spent: float) -> str | None:
        return reason_to_stop(decision, rule, num_runs=runs, seconds_spent=spent, budget_seconds=100.0)

    assert reason(unsure, runs=50, spent=10) is None
    assert reason(sure, runs=4, spent=10) is None
    assert "stable after 12 runs" in (reason(sure, runs=12, spent=10) or "")
    assert "budget of 100 s is spent" in (reason(unsure, runs=12, spent=100) or "")


def test_the_probability_to_be_right_grows_with_the_runs() -> None:
    model = menu_model()
    rows = [int(row) for row in range(0, 576, 5)]
    few, many = (decide(model.belief(chosen, observe(model, chosen))) for chosen in (rows[:8], rows))
    assert few.probability < many.probability
    assert many.expected_regret < few.expected_regret


def test_the_benchmark_runs_and_its_plain_implementation_agrees() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "bench_propose.py"
    bench = runpy.run_path(str(path))
    result = bench["measure"](num_rows=2000, batch=3, num_sample=20, repeats=1)
    assert result["first_gain"] == pytest.approx(result["first_gain_plain"], rel=1e-5)
    assert result["none_of_the_sample_is_better"]
    assert "SCALED" in str(bench["as_table"](result).columns[2]._cells)
