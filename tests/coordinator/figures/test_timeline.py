"""The run over time: a bar for each attempt, and for a stretch of them where there are very many."""

from dataclasses import replace

import pytest

from coordinator.figures import timeline as drawing
from coordinator.figures.figure import Figure
from coordinator.figures.timeline import timeline
from coordinator.record import RunRecord


def num_bars(figure: Figure) -> int:
    return sum(len(series.x) for series in figure.series)


def test_every_attempt_that_was_begun_is_a_bar_of_its_own(finished: RunRecord) -> None:
    drawn = timeline(finished)
    assert num_bars(drawn) == len(finished.attempts)
    failed = next(series for series in drawn.series if series.name == "failed attempt")
    assert len(failed.x) == len(finished.failures)
    assert all("agent-lost" in label for label in failed.labels)


def test_an_attempt_lies_between_its_lease_and_its_end(finished: RunRecord) -> None:
    drawn = timeline(finished)
    ends = [span[1] for series in drawn.series for span in series.x_interval if span is not None]
    last = max(attempt.ended_unix or 0 for attempt in finished.attempts) - finished.created_unix
    seconds = {"s": 1, "min": 60, "h": 3600}[drawn.x.unit]
    assert max(ends) * seconds == pytest.approx(last)


def test_an_attempt_that_has_not_ended_is_hollow(finished: RunRecord) -> None:
    last = finished.attempts[-1]
    held = last._replace(ended_unix=None, outcome=None, spent_seconds=0.0)
    drawn = timeline(replace(finished, attempts=(*finished.attempts[:-1], held)))
    (hollow,) = [series for series in drawn.series if series.dashed]
    assert hollow.trial_ids == (last.trial_id,)
    assert "Hollow bars" in drawn.caption


def test_what_waits_at_an_agent_is_not_drawn(finished: RunRecord) -> None:
    last = finished.attempts[-1]
    waits = last._replace(ended_unix=None, outcome=None)
    trials = tuple(
        trial._replace(leased_unix=None, state="running") if trial.trial_id == last.trial_id else trial
        for trial in finished.trials
    )
    drawn = timeline(replace(finished, trials=trials, attempts=(*finished.attempts[:-1], waits)))
    assert num_bars(drawn) == len(finished.attempts) - 1


def test_very_many_attempts_are_joined_where_they_follow_each_other(
    finished: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MAX_BARS_DRAWN", 20)
    drawn = timeline(finished)
    assert num_bars(drawn) <= 20 < len(finished.attempts)
    assert "drawn as one bar" in drawn.caption
    told = [label for series in drawn.series for label in series.labels if " attempts, the last " in label]
    assert sum(int(label.split()[0]) for label in told) + num_bars(drawn) - len(told) == len(finished.attempts)
