"""A report in the form that somebody asks for."""

from typing import Literal, get_args

from coordinator.record import RunRecord
from coordinator.report.document import report_of
from coordinator.report.markdown import render_markdown
from coordinator.report.page import render_report

ReportFormat = Literal["html", "md", "json"]
FORMATS: tuple[ReportFormat, ...] = get_args(ReportFormat)


def render_as(record: RunRecord, form: ReportFormat) -> str:
    """The report of a run, finished or not: one HTML document, Markdown, or JSON of `Report`.

    Raises:
        UserError: for HTML, jinja2 is not installed.
    """
    if form == "html":
        return render_report(record)
    report = report_of(record)
    return report.model_dump_json(indent=2) + "\n" if form == "json" else render_markdown(report)
