"""`archfleet run --stay` of a finished study: its dashboard and metrics are served on, and nothing is begun anew."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.store import FILE_NAME

pytest.importorskip("uvicorn", reason="the dashboard is not installed; pip install 'archfleet[dashboard]'")


def read_until(stream: IO[str], words: str) -> str:
    """What a program prints, up to the line with these words."""
    found = ""
    for line in stream:
        found += line
        if words in line:
            return found
    raise AssertionError(f"it ended before it said {words!r}: {found}")


def answer_of(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


@pytest.fixture
def staying(run_copy: Path) -> Iterator[subprocess.Popen[str]]:
    """The command beside a finished run of the study quick."""
    ports = ["--dashboard-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "coordinator.cli", "run", "--quick", "--stay", "--runs", str(run_copy.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.kill()


def test_a_finished_study_is_shown_until_a_stop_is_asked_for(run_copy: Path, staying: subprocess.Popen[str]) -> None:
    before = (run_copy / FILE_NAME).read_bytes()
    assert staying.stdout is not None
    said = read_until(staying.stdout, "nothing is left to do")
    assert f"run {run_copy} is finished; --new runs the study anew" in said
    dashboard, metrics = (re.search(rf"{name} at (\S+)", said) for name in ("dashboard", "metrics"))
    assert dashboard is not None
    assert metrics is not None
    assert json.loads(answer_of(f"{dashboard[1]}api/overview"))["study"] == "quick"
    assert answer_of(f"{dashboard[1]}readyz") == b"ok"
    assert re.search(rb"^archfleet_study_finished\S* 1\.0$", answer_of(metrics[1]), flags=re.MULTILINE)
    staying.send_signal(signal.SIGTERM)
    assert "recommendation:" in staying.stdout.read()
    assert staying.wait() == 0
    assert [path.name for path in run_copy.parent.iterdir()] == [run_copy.name]
    assert (run_copy / FILE_NAME).read_bytes() == before


def test_serving_where_there_is_no_run_says_how_to_begin_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--runs", str(tmp_path), "--port", "0"])
    assert result.exit_code == 2
    assert f"no run in {tmp_path}/ yet; start one with `archfleet run`" in result.stderr


def test_serving_a_run_that_does_not_exist_names_those_that_do(run_copy: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "quick", "--runs", str(run_copy.parent), "--port", "0"])
    assert result.exit_code == 2
    assert f"Did you mean '{run_copy.name}'?" in result.stderr
