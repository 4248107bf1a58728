"""The report: figures and one self-contained HTML document, from a RunRecord alone."""

from coordinator.report.page import render_report

__all__ = ["render_report"]
