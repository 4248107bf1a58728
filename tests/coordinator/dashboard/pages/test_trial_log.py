"""A trial's page shows what its attempts said, or says why there is nothing."""

from pathlib import Path

from agent.log import MAX_BYTES
from coordinator.dashboard.pages.trial import TrialPage, read_trial
from coordinator.dashboard.reads import PageReader
from coordinator.logs import Logs
from coordinator.store import Store


def page_of(run: Path, position: int) -> TrialPage:
    with PageReader.open(run) as store:
        trial_id = store.trial_id_at(position)
        assert trial_id is not None
        found = read_trial(store, trial_id, now_unix=0.0)
    assert found is not None
    return found


def test_each_attempt_has_its_own(run_copy: Path) -> None:
    page = page_of(run_copy, 1)
    (attempt,) = page.attempts
    logs = Logs(run_copy)
    logs.add(page.trial.trial_id, attempt.epoch, "loading\nloss 5.4\n")
    logs.write()

    (log,) = page_of(run_copy, 1).log

    assert (log.epoch, log.agent, log.text, log.is_whole) == (attempt.epoch, attempt.agent, "loading\nloss 5.4\n", True)
    assert page_of(run_copy, 1).no_log_because == ""


def test_a_long_one_says_that_its_beginning_is_left_out(run_copy: Path) -> None:
    page = page_of(run_copy, 1)
    logs = Logs(run_copy)
    for _ in range(4):
        logs.add(page.trial.trial_id, page.attempts[0].epoch, "x" * (MAX_BYTES - 100) + "\n")
        logs.write()

    (log,) = page_of(run_copy, 1).log

    assert not log.is_whole
    assert len(log.text) <= MAX_BYTES


def test_where_there_is_none_the_page_says_why(run_copy: Path) -> None:
    page = page_of(run_copy, 1)
    assert page.log == ()
    assert "not kept any more" in page.no_log_because


def test_simulated_agents_are_said_to_say_nothing(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        store.set_meta("simulated", "1")
    assert page_of(run_copy, 1).no_log_because == "Simulated agents say nothing."
