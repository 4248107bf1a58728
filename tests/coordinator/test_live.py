"""The run on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from coordinator.live import PlainView, TerminalView, clock, headline, open_view, render
from coordinator.snapshot import RunningTrial, Snapshot
from scaling.observations import Progress


def snapshot(**changes: object) -> Snapshot:
    values: dict[str, object] = {
        "num_done": 3,
        "num_failed": 0,
        "num_expected": 12,
        "elapsed_seconds": 65.4,
        "budget_seconds": 600.0,
        "seconds_left": 130,
        "spent_agent_seconds": 99.6,
        "law": "law from 3 runs",
        "running": (RunningTrial(agent="agent-1", description="train [b] d64", done_fraction=0.5, message="loss 4.1"),),
    }
    return Snapshot(**(values | changes))  # type: ignore[arg-type]


def shown(item: object) -> str:
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(item)
    return console.export_text()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (65, "1:05"), (3725, "62:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_headline_tells_done_expected_and_time() -> None:
    line = headline(snapshot())
    assert "3/12 trials" in line
    assert "1:05 of 10:00" in line
    assert "2:10 left" in line
    assert "100 agent-seconds" in line
    assert "failed" not in line


def test_headline_tells_failures_where_there_are_any() -> None:
    assert "2 failed" in headline(snapshot(num_failed=2))


def test_block_shows_law_agents_and_literal_brackets() -> None:
    text = shown(render(snapshot()))
    assert "law from 3 runs" in text
    assert "agent-1" in text
    assert "train [b] d64 loss 4.1" in text


def test_block_of_a_run_that_has_nothing_yet() -> None:
    text = shown(render(snapshot(num_done=0, num_expected=0, law="", running=())))
    assert "no law yet" in text


def test_progress_moves_a_running_trial_on() -> None:
    moved = snapshot().running[0].at(Progress(assignment_id="t", done_fraction=0.75, message="loss 3.9"))
    assert (moved.agent, moved.done_fraction, moved.message) == ("agent-1", 0.75, "loss 3.9")


def test_a_pipe_gets_plain_lines_without_markup() -> None:
    file = io.StringIO()
    with open_view(Console(file=file)) as view:
        assert isinstance(view, PlainView)
        view.note("train [red]d64[/red]: loss 3.6")
    assert file.getvalue() == "  train [red]d64[/red]: loss 3.6\n"


def test_a_pipe_gets_a_summary_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    file, now = io.StringIO(), [100.0]
    monkeypatch.setattr("coordinator.live.time.monotonic", lambda: now[0])
    view = PlainView(Console(file=file, width=200))
    for now[0] in (100.0, 105.0, 116.0):
        view.update(snapshot())
    assert file.getvalue().count("3/12 trials") == 2


def test_a_terminal_gets_a_live_block_and_its_notes() -> None:
    file = io.StringIO()
    with open_view(Console(file=file, force_terminal=True, width=160)) as view:
        assert isinstance(view, TerminalView)
        view.update(snapshot())
        view.note("planned 4 trials: round-1")
    assert "planned 4 trials" in file.getvalue()
    assert "law from 3 runs" in file.getvalue()
