"""Query group sizes: offsets where runs of one cell differ in g, "not measured" elsewhere."""

import json
from typing import Any

import numpy as np
import pytest

from scaling.fit import LawFit, ShapePoints, fit_conditional
from scaling.law import Floats
from scaling.quantity import NotMeasured, Predicted
from scaling.simulation import grid_design, paper_truth, simulate_study

OFFSETS = {4.0: 0.0, 8.0: 0.004, 16.0: 0.012}
"""True costs, shares of the loss."""


def runs(g: Floats | None, seed: int = 0, noise: float = 0.002, sizes: Any = 145e6) -> ShapePoints:
    points = simulate_study(paper_truth(), grid_design(sizes), generator=np.random.default_rng(seed), noise_sd=noise)
    if g is None:
        return points
    cost = np.array([OFFSETS[size] for size in g])
    columns = {name: getattr(points, name) for name in ("x", "r", "num_parameters", "num_tokens")}
    return ShapePoints(**columns, loss=points.loss * (1 + cost), query_group_size=g)


MIXED = np.tile([4.0, 4.0, 8.0, 16.0, 4.0, 8.0, 4.0, 4.0], 2)


@pytest.mark.parametrize("form", ["multiplicative", "additive"])
def test_offsets_are_estimated_where_they_were_measured(form: Any) -> None:
    fit = fit_conditional(runs(MIXED), form=form)
    scale = 1.0 if form == "multiplicative" else 3.0
    for g in (8.0, 16.0):
        found = fit.group_offset(g)
        assert isinstance(found, Predicted)
        assert found.interval is not None
        assert found.interval.low <= OFFSETS[g] * scale <= found.interval.high
        assert found.value == pytest.approx(OFFSETS[g] * scale, abs=0.002 * scale)
    base = fit.group_offset(4.0)
    assert isinstance(base, Predicted)
    assert base.value == 0.0


def test_the_law_is_that_of_the_most_frequent_g() -> None:
    mixed, plain = fit_conditional(runs(MIXED, noise=0.0)), fit_conditional(runs(None, noise=0.0))
    assert mixed.x_opt is not None
    assert plain.x_opt is not None
    assert mixed.x_opt.value == pytest.approx(plain.x_opt.value, rel=1e-3)
    x, r, N, D = 0.08, 3.6, 145e6, 145e8
    at_base = mixed.predict_loss(x, r, N, D).mean
    at_eight = mixed.predict_loss(x, r, N, D, query_group_size=8.0).mean
    assert at_base == pytest.approx(plain.predict_loss(x, r, N, D).mean, rel=1e-4)
    assert at_eight / at_base == pytest.approx(1.004, abs=3e-4)


def test_a_g_that_was_never_run_is_not_measured_and_predicts_nothing() -> None:
    fit = fit_conditional(runs(MIXED))
    found = fit.group_offset(32.0)
    assert isinstance(found, NotMeasured)
    assert "no run has g = 32; measured are g = 4, 8, 16" in found.reason
    with pytest.raises(ValueError, match="no loss at query group size 32"):
        fit.predict_loss(0.08, 1.0, 145e6, 145e8, query_group_size=32.0)


def test_a_g_that_changes_only_with_the_cell_is_not_measured() -> None:
    g = np.repeat([4.0, 8.0], 16)
    fit = fit_conditional(runs(g, sizes=[80e6, 145e6]))
    found = fit.group_offset(8.0)
    assert isinstance(found, NotMeasured)
    assert "same cell" in found.reason
    assert any("No offset for g = 8" in message for message in fit.messages)


def test_runs_that_do_not_say_their_g_measure_none() -> None:
    found = fit_conditional(runs(None)).group_offset(4.0)
    assert isinstance(found, NotMeasured)
    assert "do not say" in found.reason


def test_too_few_runs_for_offsets_still_give_a_law() -> None:
    points = runs(MIXED).take(np.arange(2, 9))
    fit = fit_conditional(points)
    assert fit.law is not None
    assert any("taken to cost nothing" in message for message in fit.messages)
    assert isinstance(fit.group_offset(16.0), NotMeasured)


def test_offsets_survive_json_and_older_fits_are_read() -> None:
    fit = fit_conditional(runs(MIXED))
    plain = json.loads(json.dumps(fit.to_json(), allow_nan=False))
    assert LawFit.from_json(plain).group_offset(8.0) == fit.group_offset(8.0)
    new = ("offsets", "offset_reasons", "bootstrap_offsets", "base_query_group_size", "pooling", "at_num_parameters")
    older = {name: value for name, value in plain.items() if name not in (*new, "drift_per_efold")}
    assert LawFit.from_json(older).law == fit.law
