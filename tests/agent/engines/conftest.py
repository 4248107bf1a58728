"""Where the tests find real engines, and the drivers as modules."""

import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """An interpreter that has vLLM, as `make engines` makes one."""
    named = os.environ.get("ARCHFLEET_VLLM_PYTHON") or str(ROOT / ".engines" / "vllm" / "bin" / "python")
    if not Path(named).exists():
        pytest.skip("no interpreter with vLLM: `make engines` makes one, or name one in ARCHFLEET_VLLM_PYTHON")
    return named


@pytest.fixture(scope="session")
def vllm_driver() -> ModuleType:
    """The driver as a module of this interpreter: it imports vLLM only where it runs it."""
    from agent.engines import vllm_driver

    return vllm_driver
