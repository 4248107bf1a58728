"""What is refused before a run is begun or taken up."""

from pathlib import Path

import pytest
from rich.console import Console

from coordinator.errors import UserError
from coordinator.run import RunOptions, run_study
from coordinator.store import Store
from coordinator.study import read_study

CONSOLE = Console(quiet=True)


def test_a_run_whose_study_has_changed_is_not_taken_up(tmp_path: Path) -> None:
    study = read_study("quick")
    Store.create(tmp_path / "quick-20260101-000000", study, now_unix=1.0).close()
    budget = study.budget.model_copy(update={"wall_minutes": 99.0})

    with pytest.raises(UserError, match=r"its study 'quick' has changed since: budget.wall_minutes.\n.*--new"):
        run_study(study.model_copy(update={"budget": budget}), RunOptions(runs=tmp_path), console=CONSOLE)


def test_an_address_where_no_cluster_is_leaves_no_run_behind(tmp_path: Path) -> None:
    options = RunOptions(runs=tmp_path, address="127.0.0.1:1")

    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        run_study(read_study("quick"), options, console=CONSOLE)

    assert list(tmp_path.iterdir()) == []
