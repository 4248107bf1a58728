"""Markdown and JSON hold the facts and figures of the page."""

from pathlib import Path

import pytest

from coordinator.errors import UserError
from coordinator.figures.catalogue import entries
from coordinator.outputs import write_report
from coordinator.record import RunRecord
from coordinator.report import render_as
from coordinator.report.document import Report


def test_json_gives_the_report_back_with_every_figure_and_run(finished: RunRecord) -> None:
    report = Report.model_validate_json(render_as(finished, "json"))
    assert report.schema_version == 1
    assert [placed.figure.name for placed in report.figures] == [entry.name for entry in entries(finished)]
    assert [run.trial_id for run in report.runs] == [trial.trial_id for trial in finished.trials]
    assert report.recommendation == finished.recommendation


def test_markdown_tells_every_figure_every_loss_and_every_caveat(finished: RunRecord) -> None:
    text = render_as(finished, "md")
    for entry in entries(finished):
        assert f"### {entry.title}" in text
    for run in finished.training.values():
        assert f"{run.loss:.4f} ± {run.loss_standard_error:.4f}" in text
    assert "2 failed attempts" in text
    assert "<b>" not in text


def test_a_report_alone_is_written_beside_the_run_or_where_it_is_wanted(finished: RunRecord, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    assert write_report(finished.run_directory, "md", out=out) == out
    assert out.read_text().startswith("# archfleet, study laptop")
    with pytest.raises(UserError, match="mkdir"):
        write_report(finished.run_directory, "md", out=tmp_path / "nowhere" / "report.md")
