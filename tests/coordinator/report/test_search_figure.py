"""The figure of `archfleet simulate search` where matplotlib is missing."""

import sys
from pathlib import Path

import pytest

from coordinator.errors import UserError
from coordinator.report.search_figure import write_search_figure


def test_without_matplotlib_the_message_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own sign of what cannot be imported
    with pytest.raises(UserError, match=r"pip install 'archfleet\[figure\]'"):
        write_search_figure({}, tmp_path / "regret.svg")
