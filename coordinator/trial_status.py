"""`archfleet status --trial`: one trial with its attempts and what they said; the value of its page, in sentences."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from coordinator.dashboard.pages.page import Amount
from coordinator.dashboard.pages.trial import AttemptLine, TrialPage, read_trial
from coordinator.dashboard.reads import PageReader
from coordinator.errors import UserError


def read_trial_status(run_directory: Path, trial_id: str, *, now_unix: float) -> TrialPage:
    """Everything about one trial of a run.

    Raises:
        UserError: the run has no such trial.
        StoreError: the store cannot be read.
    """
    with PageReader.open(run_directory) as store, store.snapshot():
        found = read_trial(store, trial_id, now_unix=now_unix)
        if found is None:
            known = [trial.trial_id for trial in store.trials()]
            close = [name for name in known if name.startswith(trial_id)] or difflib.get_close_matches(trial_id, known)
            meant = f" Did you mean {close[0]!r}?" if close else " Give an id of its runs.csv or its dashboard."
            raise UserError(f"{run_directory} has no trial {trial_id!r:.200} among its {len(known)}.{meant}")
    return found


def describe_trial(page: TrialPage) -> Iterator[str]:
    """Lines for people: the trial, its attempts, its numbers, and what its last attempt said."""
    yield f"{page.trial.trial_id}: {page.description}, {page.trial.state} ({page.trial.reason})"
    reports = {failure.epoch: failure.message for failure in page.failures}
    for number, attempt in enumerate(page.attempts, start=1):
        yield f"  attempt {number}: {_ended(attempt)}, {attempt.agent} ({attempt.hardware})"
        if attempt.epoch in reports:
            yield f"    {attempt.failure_kind}: {reports[attempt.epoch]}"
    if page.training is not None:
        yield f"  held-out loss: {_shown(page.training.loss)}"
        yield f"  speed: {_shown(page.training.tokens_per_second)}"
    elif page.serving is not None:
        yield f"  throughput: {_shown(page.serving.output_tokens_per_second)}"
    else:
        yield f"  {page.no_numbers_because}"
    if not page.log:
        yield f"  log: {page.no_log_because}"
        return
    last = page.log[-1]
    yield f"  log of {last.agent}, {'whole' if last.is_whole else 'its end'}; times in UTC:"
    for line in last.text.splitlines():
        yield f"    {line}"


def _ended(attempt: AttemptLine) -> str:
    if attempt.outcome is None or attempt.spent_seconds is None:
        return "goes on"
    return f"{attempt.outcome} after {attempt.spent_seconds:.1f} s"


def _shown(amount: Amount) -> str:
    words = f"{amount.text} {amount.unit} {amount.interval}".rstrip() if amount.value is not None else "none"
    return f"{words} ({amount.kind}{f'; {amount.note}' if amount.note else ''})"
