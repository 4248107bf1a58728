"""The benchmark of the search space runs, and its two ways list the same candidates."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_ways_agree_and_the_figures_are_printed() -> None:
    script = ROOT / "tests" / "benchmarks" / "bench_space.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--smoke", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert set(result) == {"vectorised", "vectorised, the loop's part", "plain loop over Architecture"}
    # No timed claim here: a busy machine must not fail a test. Being slower than the loop would be a fault.
    assert result["vectorised"]["per_second"] > result["plain loop over Architecture"]["per_second"]
