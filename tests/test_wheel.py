"""The wheel holds exactly the four packages and their metadata, data files included, and nothing else."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hwprofiles", "scaling", "agent", "coordinator")
NOT_SHIPPED = (".pyc", ".pyo")

BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from the working tree by its own build backend, offline."""
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed (extra: dev)")
    directory = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(directory)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return zipfile.ZipFile(directory / done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def names(wheel: zipfile.ZipFile) -> set[str]:
    return set(wheel.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile, names: set[str]) -> email.message.Message:
    (path,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(path))


def source_files() -> set[str]:
    """What git knows or would add below the packages: build products and caches are ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout: what belongs to the packages is not known")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_wheel_holds_exactly_the_four_packages(names: set[str]) -> None:
    assert {name for name in names if ".dist-info/" not in name} == source_files()


def test_nothing_else_stands_at_the_top(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_metadata_is_the_usual_and_the_licence(names: set[str]) -> None:
    found = {name.split(".dist-info/")[1] for name in names if ".dist-info/" in name}
    assert found == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_marked_as_typed(names: set[str], package: str) -> None:
    assert f"{package}/py.typed" in names


@pytest.mark.parametrize("suffix", [".toml", ".py", ".j2"])
def test_data_files_travel_along(names: set[str], suffix: str) -> None:
    assert {name for name in source_files() if name.endswith(suffix)} <= names


def test_sheets_studies_and_templates_are_in_it(names: set[str]) -> None:
    assert {"coordinator/studies/laptop.toml", "coordinator/studies/quick.toml", "hwprofiles/data/h200.toml"} <= names
    assert any(name.startswith("coordinator/report/") and not name.endswith(".py") for name in names)


def test_no_build_product_is_in_it(names: set[str]) -> None:
    assert not {name for name in names if name.endswith(NOT_SHIPPED) or "__pycache__" in name}


def test_the_command_is_declared(wheel: zipfile.ZipFile, names: set[str]) -> None:
    (path,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "archfleet = coordinator.cli:main" in wheel.read(path).decode()


def test_the_base_install_needs_neither_ray_nor_torch(metadata: email.message.Message) -> None:
    base = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert base
    assert not [
        need for need in base if need.startswith(("ray", "torch", "transformers", "matplotlib", "vllm", "sglang"))
    ]


def test_the_two_engines_are_never_in_one_extra(metadata: email.message.Message) -> None:
    for extra in metadata.get_all("Provides-Extra", []):
        needs = " ".join(n for n in metadata.get_all("Requires-Dist", []) if f"extra == '{extra}'" in n)
        assert not ("vllm" in needs and "sglang" in needs)


def test_the_wheel_runs_where_only_it_is_on_the_path(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import coordinator.study, coordinator.cli, hwprofiles.catalog, scaling.named\n"
        "assert coordinator.cli.__file__.startswith(sys.path[0]), coordinator.cli.__file__\n"
        "assert coordinator.study.read_study('quick')\n"
        "assert hwprofiles.catalog.all_profiles() and scaling.named.all_named()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
