"""python -m coordinator.health: what a container's health check asks."""

import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.health import complaint, main
from coordinator.metrics import serve_metrics


def test_a_coordinator_that_is_ready_is_well(tmp_path: Path) -> None:
    with serve_metrics(tmp_path, port=0) as port:
        assert complaint(f"http://127.0.0.1:{port}/readyz") is None


def test_one_that_still_recovers_is_not(tmp_path: Path) -> None:
    with serve_metrics(tmp_path, port=0, is_ready=lambda: False) as port:
        assert "503" in str(complaint(f"http://127.0.0.1:{port}/readyz"))


def test_one_that_is_gone_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_metrics(tmp_path, port=0) as port:
        url = f"http://127.0.0.1:{port}/readyz"
    assert main([url]) == 1
    assert capsys.readouterr().err.startswith(url)


def test_the_module_is_a_command_that_needs_the_standard_library_alone(tmp_path: Path) -> None:
    with serve_metrics(tmp_path, port=0) as port:
        command = [sys.executable, "-S", "-m", "coordinator.health", f"http://127.0.0.1:{port}/readyz"]
        asked = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "", "")
