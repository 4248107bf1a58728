"""The house has four floors: no import points up, no circle, and each heavy dependency has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("hwprofiles", "scaling", "agent", "coordinator")
HOMES = {
    "ray": ("coordinator/fleet/ray_blobs.py", "coordinator/fleet/ray_fleet.py", "coordinator/fleet/ray_session.py"),
    "torch": ("agent/training/", "agent/engines/", "agent/scoring/lm_eval_driver.py", "agent/device.py"),
    "transformers": ("agent/training/", "agent/engines/"),
    "vllm": ("agent/engines/",),
    "sglang": ("agent/engines/",),
    "lm_eval": ("agent/scoring/lm_eval_driver.py",),
    "matplotlib": ("coordinator/report/",),
    "jinja2": ("coordinator/report/",),
    "prometheus_client": ("coordinator/metrics.py", "coordinator/metric_families.py"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn"), ("coordinator/dashboard/",)),
    "pickle": (),
}


def modules() -> list[Path]:
    return sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module imported anywhere in the file, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_points_up(path: Path) -> None:
    own = FLOORS.index(path.relative_to(ROOT).parts[0])
    above = {name for name in imports(path) if name.split(".")[0] in FLOORS[own + 1 :]}
    assert not above


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_dependencies_have_one_home(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    strays = {
        name
        for name in imports(path)
        if name.split(".")[0] in HOMES and not place.startswith(HOMES[name.split(".")[0]] or ("-",))
    }
    assert not strays


def test_imports_between_modules_have_no_circle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    graph = {name: {target for target in imports(path) if target in names} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_science_does_no_input_or_output() -> None:
    allowed_readers = {"named.py"}  # named architectures are data that ships inside the package
    for path in (ROOT / "scaling").rglob("*.py"):
        if path.name in allowed_readers:
            continue
        assert not {"os", "pathlib", "subprocess", "time", "socket", "sqlite3"} & set(imports(path)), path


@pytest.mark.parametrize("module", ["agent.worker", "coordinator.cli", "scaling.fit", "hwprofiles.catalog"])
def test_importing_does_not_load_torch_or_ray(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
