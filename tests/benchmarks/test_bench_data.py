"""The benchmark of preparation runs, at a tiny size, and both ways give the same number of tokens."""

import importlib.util
from pathlib import Path


def test_figures_as_a_table() -> None:
    path = Path(__file__).with_name("bench_data.py")
    spec = importlib.util.spec_from_file_location("bench_data", path)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = bench.run(megabytes=0.5, num_processes=0)
    plain, ours = result["ways"].values()
    assert plain["num_tokens"] == ours["num_tokens"] > 100_000
    assert bench.table(result).row_count == 2
