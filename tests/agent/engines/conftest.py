"""Where the tests find real engines, and the drivers as modules."""

import os
from pathlib import Path
from types import ModuleType

import pytest

from scaling.architecture import Architecture

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """An interpreter that has vLLM, as `make engines` makes one."""
    return python_with("vLLM", target="engines")


@pytest.fixture(scope="session")
def sglang_python() -> str:
    """An interpreter that has SGLang, as `make sglang` makes one."""
    return python_with("SGLang", target="sglang")


def python_with(engine: str, *, target: str) -> str:
    """The interpreter that the environment or `make TARGET` gives; skips where there is none."""
    variable = f"ARCHFLEET_{engine.upper()}_PYTHON"
    named = os.environ.get(variable) or str(ROOT / ".engines" / engine.lower() / "bin" / "python")
    if not Path(named).exists():
        pytest.skip(f"no interpreter with {engine}: `make {target}` makes one, or name one in {variable}")
    return named


@pytest.fixture(scope="session")
def padded_shape() -> Architecture:
    """The general case: query width 6 · 32 is not the hidden size, and engines pad a vocabulary of 300 to 320."""
    return Architecture(
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        vocab_size=300,
    )


@pytest.fixture(scope="session")
def vllm_driver() -> ModuleType:
    """The driver as a module of this interpreter: it imports vLLM only where it runs it."""
    from agent.engines import vllm_driver

    return vllm_driver
