"""Why a figure that rests on the recommendation cannot be drawn yet."""

from coordinator.figures.formats import plural
from coordinator.record import RunRecord


def no_recommendation(record: RunRecord) -> str:
    """Why a run has no recommendation, in words that go on after a colon."""
    ended = sum(trial.state in ("succeeded", "failed") for trial in record.trials)
    if record.state != "finished":
        return (
            f"the run is {record.state}, {ended} of {plural(len(record.trials), 'planned trial')} ended; "
            "the recommendation comes last."
        )
    if record.analysis is None:
        return "no loss at the fit's size was measured, so nothing was fitted."
    if record.analysis.law_fit.law is None:
        return f"no law was fitted. {' '.join(record.analysis.law_fit.messages)}"
    return "the run finished without one."
