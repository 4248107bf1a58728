"""The report: every figure and fact of a run as HTML, Markdown or JSON, from a RunRecord alone."""

from coordinator.report.page import render_report
from coordinator.report.rendering import FORMATS, ReportFormat, render_as

__all__ = ["FORMATS", "ReportFormat", "render_as", "render_report"]
