"""The decisive run: its closed form against plain simulation, and against refits with the run in them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from scaling.decisive_run import PossibleRuns, chances_of_change, decisive_run
from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.law import ConditionalLaw, Floats
from scaling.recommend import Shortlist, Throughput, recommend
from scaling.space import SearchSpace

LAW = ConditionalLaw(a=(1.01287, 0.053859, 0.015603), b=(0.980084, 0.017632, 0.020070))
CANDIDATES = SearchSpace(
    num_parameters=100_000,
    num_hidden_layers=2,
    head_dim=8,
    query_group_sizes=(1,),
    hidden_multiple_of=8,
    vocab_size=1024,
    x_range=(0.1, 0.45),
    r_range=(0.5, 5.0),
).enumerate()
SHAPES = [(x, r) for x in (0.12, 0.2, 0.4) for r in (0.7, 1.7, 4.5)]
NOISE = 0.012


def points(extra: tuple[tuple[float, float, float], ...] = (), seed: int = 0) -> ShapePoints:
    """Nine shapes twice at one cell, and perhaps runs (x, r, loss) more."""
    x, r = np.array(SHAPES * 2).T
    loss = LAW.predict(x, r, 3.58) + NOISE * np.random.default_rng(seed).standard_normal(len(x))
    more = np.array(extra).reshape(-1, 3)
    size = np.full(len(x) + len(more), 1e5)
    return ShapePoints(
        x=np.append(x, more[:, 0]),
        r=np.append(r, more[:, 1]),
        num_parameters=size,
        num_tokens=10 * size,
        loss=np.append(loss, more[:, 2]),
    )


def answer(fit: LawFit, *, with_throughput: bool = True) -> Shortlist:
    rate = 1e6 / (500.0 + CANDIDATES.key_value_elements_per_token + 0.01 * CANDIDATES.hidden_size)
    return recommend(
        fit,
        CANDIDATES,
        num_parameters=1e5,
        num_tokens=1e6,
        baseline=CANDIDATES.nearest(x=0.2, r=1.7),
        throughput=Throughput(mean=rate, low=rate, high=rate) if with_throughput else None,
    )


def possible(seconds: Floats | None = None) -> PossibleRuns:
    x, r = (part.reshape(-1) for part in np.meshgrid(np.geomspace(0.1, 0.45, 6), np.geomspace(0.5, 5, 6)))
    size = np.full(len(x), 1e5)
    cost = np.full(len(x), 30.0) if seconds is None else seconds
    return PossibleRuns(x=x, r=r, num_parameters=size, num_tokens=10 * size, seconds=cost)


FIT = fit_conditional(points(), num_bootstrap=400)
FOUND = answer(FIT)


def simulated_chance(found: Shortlist, fit: LawFit, run: int, num_draws: int = 20_000) -> float:
    """The definition itself: draw z, update every margin, look which shape is the fastest safe one."""
    runs = possible()
    outcome = fit.sample_loss(runs.x[[run]], runs.r[[run]], 1e5, 1e6)[:, 0]
    noise = fit.pure_error_sd or fit.residual_sd or 0.0
    spread = np.sqrt(outcome.var() + noise**2)
    margins = found.loss_draws - found.limit_draws
    sd = margins.std(axis=0)
    slope = ((margins - margins.mean(axis=0)) * (outcome - outcome.mean())[:, None]).mean(axis=0) / spread
    share = found.probability_within_limit
    end = 0.5 / len(margins)
    mean = -sd * special.ndtri(np.clip(share, end, 1 - end))
    mean = np.where(share >= 1, np.minimum(mean, margins.mean(axis=0)), mean)
    mean = np.where(share <= 0, np.maximum(mean, margins.mean(axis=0)), mean)
    left = np.sqrt(np.maximum(sd**2 - slope**2, 0))
    assert found.throughput is not None
    assert found.surefire is not None
    rate, today = found.throughput.mean, found.throughput.mean[found.surefire]
    z = np.random.default_rng(1).standard_normal(num_draws)
    safe = mean + slope * z[:, None] + special.ndtri(found.probability) * left <= 1e-12
    best = np.where(safe, rate, -np.inf).max(axis=1)
    return float(((best > today * 1.01) | (best < today * 0.99)).mean())


def test_the_closed_form_is_the_simulated_chance() -> None:
    chance = chances_of_change(FIT, FOUND, possible())
    assert chance.shape == (36,)
    assert ((chance >= 0) & (chance <= 1)).all()
    for run in (0, 7, 14, 21, 35):
        assert chance[run] == pytest.approx(simulated_chance(FOUND, FIT, run), abs=0.015)
    assert np.ptp(chance) > 0.02


def test_a_run_of_great_noise_changes_nothing() -> None:
    assert FIT.residual_sd is not None
    deaf = LawFit(**{**FIT.__dict__, "residual_sd": 1e4, "pure_error_sd": None})
    assert chances_of_change(deaf, FOUND, possible()).max() < 1e-3


def test_runs_that_are_called_decisive_change_the_answer_more_often_when_they_are_made() -> None:
    """Truths are drawn from the replicates, the run is made and all is fitted anew."""
    runs, generator = possible(), np.random.default_rng(3)
    chance = chances_of_change(FIT, FOUND, runs)
    assert FOUND.throughput is not None
    assert FOUND.surefire is not None
    today = FOUND.throughput.mean[FOUND.surefire]

    def share_changed(run: int) -> float:
        changed = 0
        for replicate in range(0, 400, 10):
            expected = FIT.sample_loss(runs.x[[run]], runs.r[[run]], 1e5, 1e6)[replicate, 0]
            loss = float(expected + NOISE * generator.standard_normal())
            again = answer(fit_conditional(points(((float(runs.x[run]), float(runs.r[run]), loss),))))
            assert again.throughput is not None
            best = -np.inf if again.surefire is None else again.throughput.mean[again.surefire]
            changed += abs(best / today - 1) > 0.01
        return changed / 40

    most, least = share_changed(int(np.argmax(chance))), share_changed(int(np.argmin(chance)))
    assert most > least
    assert most == pytest.approx(chance.max(), abs=0.25)


def test_of_runs_about_as_likely_the_cheapest_is_told() -> None:
    chance = chances_of_change(FIT, FOUND, possible())
    best = int(np.argmax(chance))
    dear = np.where(chance >= 0.9 * chance.max(), 30.0, 1.0)
    dear[best] = 1000.0
    chosen = decisive_run(FIT, FOUND, possible(dear))
    assert chosen is not None
    if (chance >= 0.9 * chance.max()).sum() > 1:
        assert chosen.seconds == 30.0
    assert chosen.probability_of_change >= 0.9 * chance.max()
    assert f"{chosen.probability_of_change:.0%}" in chosen.sentence()
    assert "device-seconds" in chosen.sentence()
    assert "No single extra run is likely" in replace(chosen, probability_of_change=0.001).sentence()


def test_without_throughput_it_is_about_panda() -> None:
    found = answer(FIT, with_throughput=False)
    chance = chances_of_change(FIT, found, possible(), tolerance=1e-4)
    strict = chances_of_change(FIT, found, possible(), tolerance=5e-2)
    assert chance.max() > 0.02
    assert strict.max() < chance.max()
    assert strict.max() < 1e-6


def test_no_safe_shape_yet_asks_for_the_run_that_could_make_one_safe() -> None:
    rate = 1e6 / (500.0 + CANDIDATES.key_value_elements_per_token)
    found = recommend(
        FIT,
        CANDIDATES,
        num_parameters=1e5,
        num_tokens=1e6,
        baseline=0,
        throughput=Throughput(mean=rate, low=rate, high=rate),
        loss_limit=float(FIT.predict_loss(CANDIDATES.x, CANDIDATES.r, 1e5, 1e6).mean.min()),
    )
    assert found.surefire is None
    assert chances_of_change(FIT, found, possible()).max() > 0.05


def test_without_noise_or_runs_there_is_none() -> None:
    nothing = possible()
    empty = PossibleRuns(**{name: column[:0] for name, column in nothing.__dict__.items()})
    assert decisive_run(FIT, FOUND, empty) is None
    assert decisive_run(LawFit(**{**FIT.__dict__, "residual_sd": None}), FOUND, nothing) is None
