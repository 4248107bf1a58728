"""The page: a report as one self-contained HTML document, without any external request."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from coordinator.answer_words import FAILED_CHECK
from coordinator.figures.catalogue import FigurePage
from coordinator.figures.roofline import colour_of
from coordinator.figures.standing import COLOUR_OF
from coordinator.record import RunRecord
from coordinator.report.canvas import Painted, paint
from coordinator.report.document import Report, report_of
from coordinator.report.environment import render

TEMPLATE = "page.html.j2"
PARTS: tuple[tuple[FigurePage, str], ...] = (
    ("recommendation", "The answer"),
    ("study", "The law"),
    ("hardware", "The hardware"),
    ("overview", "The run"),
)
"""Parts of the page that hold figures, in the order in which they are read."""


def render_report(record: RunRecord) -> str:
    """The report of a run, finished or not, as one HTML document.

    Raises:
        UserError: jinja2 is not installed.
    """
    return render(TEMPLATE, lambda: _context(report_of(record)))


def _context(report: Report) -> dict[str, Any]:
    painted: dict[FigurePage, list[Painted]] = defaultdict(list)
    for placed in report.figures:
        painted[placed.page].append(paint(placed.figure))
    return {
        "report": report,
        "parts": [(page, title, painted[page]) for page, title in PARTS],
        "alone": {name for figures in painted.values() for name in _alone(figures)},
        "failed_check": FAILED_CHECK,
        "colour_of": colour_of,
        "colour_of_standing": COLOUR_OF,
    }


def _alone(painted: Sequence[Painted]) -> Iterator[str]:
    """Names of figures that would leave a hole beside them: the odd ones of one column, before a wide one or last."""
    for is_wide, figures in groupby(painted, key=lambda one: one.figure.is_wide):
        names = [one.figure.name for one in figures]
        if not is_wide and len(names) % 2:
            yield names[-1]
