"""Which interpreter runs an engine: the pins of vLLM and SGLang disagree, so each may have an environment of its own.

The first of these that names one wins; a recipe never does, since it must mean the same on every node:

    ARCHFLEET_<ENGINE>_PYTHON                  the environment, e.g. ARCHFLEET_VLLM_PYTHON=/opt/vllm/bin/python
    ~/.config/archfleet/engines.toml           [vllm]
                                               python = "/opt/vllm/bin/python"
    this interpreter

`find_engine` also asks that interpreter whether it has the engine, so that a node without it says so at once, in one
sentence, and not in the middle of a run.
"""

import functools
import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.engines.base import DRIVERS, Engine, engine_named
from agent.failures import AgentError
from scaling.observations import FailureKind

CONFIG_FILE = Path("~/.config/archfleet/engines.toml")
IMPORTS: Mapping[str, tuple[str, ...]] = {
    "transformers": ("torch", "transformers"),
    "vllm": ("torch", "vllm"),
    "sglang": ("torch", "sglang"),
    "fake": (),
}
"""Table: engine name → what its driver imports besides the standard library."""
HINTS: Mapping[str, str] = {
    "transformers": "pip install 'archfleet[train]', or ",
    "sglang": "pip install sglang in an environment of its own (`make sglang` makes one for a CPU), and ",
    "vllm": "pip install vllm in an environment of its own (`make engines` makes one with its CPU build), and ",
}
_CHECK_TIMEOUT_SECONDS = 60.0
_CHECK = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])"


class EngineMissingError(AgentError, ValueError):
    """The engine is not installed where this node is told to look for it: another node may have it."""

    failure_kind: FailureKind = "engine-start"


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python interpreter, and what named it."""

    python: str
    named_by: str


def find_engine(name: str, *, environment: Mapping[str, str] | None = None, config_file: Path | None = None) -> Engine:
    """The engine of this name, with an interpreter that has it installed.

    Args:
        name: as in a serving recipe.
        environment: by default this process's.
        config_file: by default `CONFIG_FILE`; it need not exist.

    Raises:
        ValueError: no such engine, or the configuration cannot be read.
        EngineMissingError: the interpreter does not start or lacks the engine.
    """
    engine_named(name)
    interpreter = find_interpreter(name, environment=environment, config_file=config_file)
    missing = _missing_imports(interpreter, name)
    if missing:
        raise EngineMissingError(
            f"engine {name!r} is not installed in {interpreter.python} ({interpreter.named_by}): "
            f"it lacks {' and '.join(missing)}; {HINTS.get(name, '')}{_how_to_name(name)}"
        )
    return engine_named(name, interpreter=interpreter.python)


def find_interpreter(
    name: str, *, environment: Mapping[str, str] | None = None, config_file: Path | None = None
) -> Interpreter:
    """The interpreter that this node names for an engine; this one if it names none.

    Raises:
        ValueError: engines.toml cannot be read.
    """
    variable = variable_of(name)
    named = (os.environ if environment is None else environment).get(variable, "").strip()
    if named:
        return Interpreter(python=_absolute(named), named_by=f"named by {variable}")
    file = (config_file or CONFIG_FILE).expanduser()
    listed = _read_config(file).get(name)
    if listed is not None:
        return Interpreter(python=_absolute(listed), named_by=f"named by {file}")
    return Interpreter(python=sys.executable, named_by="this interpreter")


def variable_of(name: str) -> str:
    """The environment variable that names an engine's interpreter."""
    return f"ARCHFLEET_{name.upper()}_PYTHON"


def _how_to_name(name: str) -> str:
    in_file = f'[{name}] python = "..." in {CONFIG_FILE}'
    return f"name the interpreter that has it: {variable_of(name)}=/path/to/python, or {in_file}"


def _absolute(python: str) -> str:
    # Not resolved: the python of a virtual environment is a link, and what it links to lacks the environment.
    return str(Path(python).expanduser().absolute())


def _read_config(file: Path) -> dict[str, str]:
    """Engine name → interpreter, of an engines.toml; empty where there is none."""
    try:
        tables = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{file}: not TOML: {error}; expected [vllm] and python = "/path/to/python"') from None
    return {name: _read_table(file, name, table) for name, table in tables.items()}


def _read_table(file: Path, name: str, table: Any) -> str:
    if name not in DRIVERS:
        raise ValueError(f"{file}: unknown engine [{name}]; expected one of: {', '.join(DRIVERS)}")
    if not isinstance(table, dict) or set(table) != {"python"} or not isinstance(table["python"], str):
        raise ValueError(f'{file}: [{name}] is {table!r}; expected exactly: python = "/path/to/python"')
    return table["python"]


def _missing_imports(interpreter: Interpreter, name: str) -> tuple[str, ...]:
    modules = IMPORTS[name]
    if interpreter.python == sys.executable:
        return tuple(module for module in modules if importlib.util.find_spec(module) is None)
    try:
        return _ask_for_missing(interpreter.python, modules)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EngineMissingError(
            f"the interpreter of engine {name!r}, {interpreter.python} ({interpreter.named_by}), "
            f"does not run: {reason}; {_how_to_name(name)}"
        ) from None


@functools.cache  # a campaign asks before every restart; an answer with an exception is not kept
def _ask_for_missing(python: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    answer = subprocess.run(
        [python, "-c", _CHECK, *modules],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_CHECK_TIMEOUT_SECONDS,
        check=True,
    )
    return tuple(answer.stdout.split())
