"""Which runs move the answer: a row a run, a mark for everything that is watched."""

from dataclasses import replace

from coordinator.figures.influence import drawn, influence
from coordinator.influence import MAX_RUNS, influences, watched_of
from coordinator.record import RunRecord


def test_rows_and_marks_are_the_runs_and_their_shifts(finished: RunRecord) -> None:
    watched = watched_of(finished)
    found = influences(finished, watched)
    figure = influence(finished)
    assert [series.name for series in figure.series] == [one.name for one in watched]
    assert figure.y.categories[-1].startswith(found[0].run.architecture.label), "the most influential is on top"
    for place, series in enumerate(figure.series):
        told = [(one.run.assignment_id, one.shifts[place]) for one in found if one.shifts[place] is not None]
        assert list(zip(series.trial_ids, series.x, strict=True)) == told
    assert "Cook's distance" in figure.caption


def test_a_run_without_which_nothing_is_told_is_named_and_has_no_mark(finished: RunRecord) -> None:
    watched = watched_of(finished)
    found = influences(finished, watched)
    lost = [replace(found[0], shifts=(None, *found[0].shifts[1:])), *found[1:]]
    figure = drawn(finished, watched, lost)
    name = found[0].run.architecture.label
    assert f"Without {name} the other runs tell no {watched[0].name}." in figure.caption
    assert found[0].run.assignment_id not in figure.series[0].trial_ids


def test_why_there_is_no_figure(finished: RunRecord, begun: RunRecord) -> None:
    assert influence(begun).reason == "nothing was fitted yet."
    assert finished.analysis is not None
    large = replace(finished.analysis, law_fit=replace(finished.analysis.law_fit, num_points=MAX_RUNS + 1))
    assert f"at most {MAX_RUNS:,}" in influence(replace(finished, analysis=large)).reason
