"""Influence: what the optima and the answer owe to single runs."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.analysis import analyse
from coordinator.influence import MAX_RUNS, Influence, cooks_distances, influences, watched_of
from coordinator.record import RunRecord, read_record
from scaling.fit import fit_conditional
from scaling.points import ShapePoints


@pytest.fixture(scope="module")
def record(finished_run: Path) -> RunRecord:
    found = read_record(finished_run)
    # One fit of everything there is, so that refits here and there are of the same runs.
    return replace(found, analysis=analyse(found.study, found.observations))


def found_in(record: RunRecord) -> list[Influence]:
    return influences(record, watched_of(record))


def points_without(record: RunRecord, left_out: str) -> ShapePoints:
    size = record.study.fit.num_parameters
    runs = [run for run in record.training.values() if abs(run.architecture.num_parameters / size - 1) < 0.2]
    return ShapePoints.from_observations(run for run in runs if run.assignment_id != left_out)


def test_a_shift_is_the_difference_of_two_fits_in_half_intervals(record: RunRecord) -> None:
    assert record.analysis is not None
    fit = record.analysis.law_fit
    names = [one.name for one in watched_of(record)]
    assert fit.x_opt is not None
    without = found_in(record)[0]
    other = fit_conditional(points_without(record, without.run.assignment_id))
    assert other.x_opt is not None
    half = (fit.x_opt.interval.high - fit.x_opt.interval.low) / 2
    expected = (other.x_opt.value - fit.x_opt.value) / half
    assert without.shifts[names.index("x*")] == pytest.approx(expected)


def test_a_run_that_went_wrong_moves_more_than_any_other(record: RunRecord) -> None:
    widest = max(found_in(record), key=lambda one: one.run.architecture.width_ratio).run
    wrong = tuple(
        one.model_copy(update={"loss": one.loss + 0.3}) if one.assignment_id == widest.assignment_id else one
        for one in record.observations
    )
    changed = replace(record, observations=wrong, analysis=analyse(record.study, wrong))
    first = found_in(changed)[0]
    assert first.run.assignment_id == widest.assignment_id
    assert first.largest > found_in(changed)[1].largest


def test_the_loss_of_every_proposal_against_the_baseline_is_watched(record: RunRecord) -> None:
    assert record.recommendation is not None
    baseline, (answer,) = record.recommendation.baseline, record.recommendation.answers
    proposed = {shape.label for shape in record.recommendation.recommended if shape != baseline}
    told = {one.name for one in watched_of(record)} - {"x*", "r*"}
    assert told == {f"loss of {label} over the baseline's" for label in proposed}
    same = record.recommendation.model_copy(
        update={"answers": (answer.model_copy(update={"recommended": baseline}),)},
    )
    assert {one.name for one in watched_of(replace(record, recommendation=same))} <= {"x*", "r*"}


def test_what_the_rest_no_longer_tells_comes_first() -> None:
    some = Influence(run=None, shifts=(0.5, -2.0))  # type: ignore[arg-type]
    lost = Influence(run=None, shifts=(None, 0.0))  # type: ignore[arg-type]
    assert some.largest == 2.0
    assert lost.largest == math.inf


def test_cooks_distance_is_how_far_all_fitted_values_move_without_a_run() -> None:
    x = np.array([*np.linspace(0.1, 0.5, 12), 0.25, 0.3])
    r = np.array([1.0] * 12 + [4.0, 1.0])
    tokens = np.array([1e6] * 13 + [5e6])
    loss = 3 + 0.01 * np.random.default_rng(0).normal(size=14)
    distance = cooks_distances(ShapePoints(x=x, r=r, num_parameters=np.full(14, 1e5), num_tokens=tokens, loss=loss))
    assert distance[12] == math.inf, "no other run has another r"
    assert distance[13] == 0, "no other run has its D: it tells a level and nothing of shapes"

    features = np.stack([np.ones(12), np.log(x[:12]), 1 / x[:12]], axis=1)
    whole = features @ np.linalg.lstsq(features, np.log(loss[:12]), rcond=None)[0]
    for run in range(12):
        others = np.arange(12) != run
        without = features @ np.linalg.lstsq(features[others], np.log(loss[:12][others]), rcond=None)[0]
        assert distance[run] == pytest.approx(((whole - without) ** 2).sum(), rel=1e-6)


def test_no_run_is_left_out_of_a_very_large_fit(record: RunRecord) -> None:
    assert record.analysis is not None
    large = replace(record.analysis, law_fit=replace(record.analysis.law_fit, num_points=MAX_RUNS + 1))
    assert found_in(replace(record, analysis=large)) == []
    assert found_in(replace(record, analysis=None)) == []
