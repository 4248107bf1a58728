"""Which figures a run has, and what every one of them owes its reader."""

from dataclasses import replace

import pytest

from coordinator.figures.catalogue import entries, figure, figures_of
from coordinator.figures.figure import Figure
from coordinator.record import RunRecord


@pytest.fixture(scope="module")
def every(finished: RunRecord) -> dict[str, Figure]:
    return {one.name: one for one in figures_of(finished)}


def test_a_figure_is_what_its_entry_announced(finished: RunRecord, every: dict[str, Figure]) -> None:
    for entry in entries(finished):
        made = every[entry.name]
        assert (made.title, made.is_wide) == (entry.title, entry.is_wide)


def test_names_are_unique_and_a_figure_is_found_by_its_name(finished: RunRecord, every: dict[str, Figure]) -> None:
    assert len(every) == len(entries(finished))
    assert figure(finished, "loss-x") == every["loss-x"]
    with pytest.raises(KeyError):
        figure(finished, "loss-z")


def test_a_finished_run_has_something_to_draw_on_every_figure(every: dict[str, Figure]) -> None:
    assert [one.name for one in every.values() if not one.series] == []


def test_a_figure_without_anything_says_why(begun: RunRecord) -> None:
    for one in figures_of(begun):
        assert one.series == ()
        assert one.reason.endswith(".")


def test_every_figure_names_its_axes_and_units(every: dict[str, Figure]) -> None:
    for one in every.values():
        for axis in (one.x, one.y):
            assert axis.label or axis.categories, one.name
    assert every["loss-compute"].x.unit == "FLOPs"
    assert every["loss-x"].y.unit == "nats/token"
    assert every["pareto"].x.unit == "tokens/s"


def test_every_figure_says_what_its_uncertainty_is_or_why_it_has_none(every: dict[str, Figure]) -> None:
    words = ("interval", "standard deviation", " sd", "time from lease")
    for one in every.values():
        assert any(word in one.caption for word in words), one.name


def test_predicted_marks_are_hollow_or_broken_and_measured_ones_are_not(every: dict[str, Figure]) -> None:
    for one in every.values():
        for series in one.series:
            looks_predicted = series.dashed or series.mark in ("ring", "hollow-diamond", "band")
            if series.kind in ("measured", "simulated"):
                assert not looks_predicted, (one.name, series.name)
            if series.kind == "predicted":
                assert looks_predicted, (one.name, series.name)


def test_points_of_runs_lead_to_their_trials(finished: RunRecord, every: dict[str, Figure]) -> None:
    known = {trial.trial_id for trial in finished.trials}
    led = [trial for one in every.values() for series in one.series for trial in series.trial_ids]
    assert led
    assert set(led) <= known


def test_a_simulated_fleet_measures_nothing(finished: RunRecord) -> None:
    for one in figures_of(replace(finished, is_simulated=True)):
        assert "measured" not in {series.kind for series in one.series}, one.name
        words = (one.title, one.x.label, one.y.label, *(named.name for named in (*one.series, *one.guides)))
        assert not any("measured" in word for word in words), one.name


def test_a_figure_is_json_that_gives_it_back(every: dict[str, Figure]) -> None:
    for one in every.values():
        assert Figure.model_validate_json(one.model_dump_json()) == one
