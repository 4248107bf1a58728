"""What is asked of a run: as words, and as JSON that holds the same."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from coordinator.cli import main
from coordinator.record import read_record
from coordinator.report import render_as
from coordinator.store import FILE_NAME, Store, StoreReader


def archfleet(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def runs(run_copy: Path) -> tuple[str, Path]:
    return "--runs", run_copy.parent


def test_a_backup_as_json_names_a_copy_that_opens(runs: tuple[str, Path], run_copy: Path, tmp_path: Path) -> None:
    result = archfleet("backup", run_copy.name, tmp_path / "copies", *runs, "--json")
    assert result.exit_code == 0
    made = json.loads(result.stdout)
    assert set(made) == {"schema_version", "path", "num_bytes", "num_log_bytes", "num_trials", "num_observations"}
    assert made["num_bytes"] == (Path(made["path"]) / FILE_NAME).stat().st_size
    with StoreReader.open(Path(made["path"])) as copy:
        assert (made["num_trials"], made["num_observations"]) == (len(copy.trials()), copy.num_observations())


def test_a_backup_in_words_tells_the_same(runs: tuple[str, Path], run_copy: Path) -> None:
    result = archfleet("backup", *runs)
    (copy,) = (run_copy / "backups").iterdir()
    assert result.stdout.startswith(f"{copy}: {(copy / FILE_NAME).stat().st_size:,} bytes, ")
    assert "opened and checked" in result.stdout


def test_a_report_as_json_is_the_report_and_leaves_no_file(runs: tuple[str, Path], run_copy: Path) -> None:
    result = archfleet("report", *runs, "--json")
    assert json.loads(result.stdout) == json.loads(render_as(read_record(run_copy), "json"))
    assert list(run_copy.glob("report.*")) == []


@pytest.mark.parametrize("other", [("--format", "md"), ("--out", "report.json")])
def test_a_report_is_asked_for_in_one_way(runs: tuple[str, Path], other: tuple[str, str]) -> None:
    result = archfleet("report", *runs, "--json", *other)
    assert result.exit_code == 2
    assert "leave --format and --out out" in result.stderr


def test_a_report_that_cannot_be_written_is_told_before_it_is_drawn(runs: tuple[str, Path], tmp_path: Path) -> None:
    result = archfleet("report", *runs, "--out", tmp_path / "none" / "report.html")
    assert result.exit_code == 2
    assert f"there is no folder {tmp_path / 'none'}" in result.stderr


def test_status_tells_where_the_dashboard_of_a_living_coordinator_is(runs: tuple[str, Path], run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        store.set_meta("state", "running")
        store.set_meta("dashboard_url", "http://127.0.0.1:8420/")
        store.set_meta("metrics_url", "http://127.0.0.1:9464/metrics")
        assert "  dashboard: http://127.0.0.1:8420/" in archfleet("status", *runs).stdout.splitlines()
        told = json.loads(archfleet("status", *runs, "--json").stdout)
    assert (told["dashboard_url"], told["metrics_url"]) == ("http://127.0.0.1:8420/", "http://127.0.0.1:9464/metrics")
    gone = json.loads(archfleet("status", *runs, "--json").stdout)
    assert gone["state"].startswith("killed")
    assert (gone["dashboard_url"], gone["metrics_url"]) == (None, None)


def test_a_revoked_token_as_json_is_the_one_that_was_made(tmp_path: Path) -> None:
    tokens = ("--tokens", tmp_path / "tokens.toml")
    made = json.loads(archfleet("token", "create", "ada", *tokens, "--json").stdout)
    gone = json.loads(archfleet("token", "revoke", "ada", *tokens, "--json").stdout)
    assert gone == {key: value for key, value in made.items() if key != "token"}
    assert json.loads(archfleet("token", "list", *tokens, "--json").stdout) == []
