"""Where an engine's process puts its temporary files."""

import tempfile
from pathlib import Path

import pytest

from agent.assignment import BenchAssignment
from agent.benchmark.run import CPU_WORKLOAD, MAX_TEMPORARY_BYTES, run_benchmark
from agent.engines.base import Engine
from scaling.architecture import Architecture
from scaling.recipes import ServingRecipe

DRIVER = """
import json, sys, tempfile
print(json.dumps({"event": "error", "failure_kind": "unknown", "message": tempfile.gettempdir()}), flush=True)
"""


@pytest.fixture
def temporary_directory_in(tmp_path):
    """What an engine's process takes for its temporary directory, by its work directory."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    shape = Architecture(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=16, vocab_size=256,
    )  # fmt: skip
    assignment = BenchAssignment(architecture=shape, recipe=ServingRecipe(engine="fake"), workload=CPU_WORKLOAD)

    def ask(work_directory: Path) -> str:
        engine = Engine(name="fake", driver=driver)
        *_, failure = run_benchmark(assignment, agent="a", work_directory=work_directory, engine=engine)
        return failure.message.removeprefix("fake: ")

    return ask


def test_they_lie_in_its_work_directory_and_go_with_it(temporary_directory_in):
    with tempfile.TemporaryDirectory() as name:
        assert temporary_directory_in(Path(name, "w")) == str(Path(name, "w", "tmp").resolve())


def test_they_stay_with_the_system_where_a_socket_would_have_too_long_a_name(temporary_directory_in, tmp_path):
    deep = tmp_path / ("d" * MAX_TEMPORARY_BYTES)
    assert temporary_directory_in(deep) == tempfile.gettempdir()
    assert not (deep / "tmp").exists()
