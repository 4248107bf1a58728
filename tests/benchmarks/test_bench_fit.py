"""The benchmark of fits runs, at tiny sizes, and its plain way finds no lower minimum."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


def load() -> ModuleType:
    path = Path(__file__).with_name("bench_fit.py")
    spec = importlib.util.spec_from_file_location("bench_fit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_as_json_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    bench = load()
    tiny = ["--points", "40", "--bootstrap", "20", "--runs", "30"]
    bench.main([*tiny, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 4
    for row in rows:
        assert row["seconds"] > 0
        if row["plain_scipy_objective"] is not None:
            assert row["objective"] <= row["plain_scipy_objective"] * (1 + 1e-6)
    bench.main(tiny)
    assert "goal s" in capsys.readouterr().out
