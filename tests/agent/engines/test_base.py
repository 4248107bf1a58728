"""The table of engines."""

import subprocess
import sys

import pytest

from agent.engines.base import DRIVERS, engine_named


@pytest.mark.parametrize("name", DRIVERS)
def test_every_engine_of_the_table_has_its_driver(name, tmp_path):
    engine = engine_named(name, interpreter="/opt/engine/python")
    assert engine.driver.is_file()
    assert engine.command(tmp_path) == ("/opt/engine/python", str(engine.driver), str(tmp_path))


def test_an_unknown_engine_is_refused_with_the_table():
    with pytest.raises(ValueError, match="unknown engine 'tgi'; expected one of: transformers, vllm, sglang, fake"):
        engine_named("tgi")


def test_the_measuring_procedure_loads_no_torch():
    check = "import sys, agent.benchmark.run; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
