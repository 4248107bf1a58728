"""The README is a promise: each command in it runs, each link leads somewhere, each command has an example."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from coordinator.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands that start Ray or install: other tests run exactly these.
RUN_ELSEWHERE = {
    "make run": "Makefile target; `archfleet run` is its only command",
    "make test": "this very test run",
    "archfleet run": "the study laptop takes ten minutes; quick and tiny studies run the same code",
    "archfleet run --quick": "tests/integration/test_quick_run.py",
    "archfleet data import shards/*.bin --out corpus": "tests/coordinator/test_data.py",
    "archfleet data inspect corpus": "tests/coordinator/test_data.py",
    "archfleet data check corpus": "tests/coordinator/test_data.py",
    "archfleet score mine/seed-0/model --tasks piqa,sciq": "tests/agent/scoring/test_harness.py, on a local task",
    "archfleet compare mine other": "tests/coordinator/test_compare.py",
    "archfleet train config.json --tokens 1e6 --seeds 4 --out mine": "tests/coordinator/test_train.py",
    "archfleet run my-study.toml": "tests/integration/test_survives_kills.py runs a study file",
    "archfleet run my-study.toml --address head.example:6379": "tests/coordinator/fleet/test_ray_cluster.py",
}


def readme_commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += all_commands(command, (*path, name))
    return found


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's commands name."""
    from agent.assignment import TrainAssignment
    from agent.corpus.manifest import build_stdlib_corpus
    from scaling.architecture import Architecture
    from scaling.recipes import TrainingRecipe

    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "coordinator" / "studies", folder / "coordinator" / "studies")
    for table in (ROOT / "tests" / "data").glob("*.csv"):
        shutil.copy(table, folder / table.name)
    shapes = [
        Architecture(
            hidden_size=d,
            intermediate_size=f,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=512,
        )
        for d, f in ((48, 64), (64, 48))
    ]
    for shape, place in zip(shapes, (folder, folder / "other"), strict=True):
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps(shape.to_hf_config()))
    (folder / "texts").mkdir()
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "scaling").glob("*.py")))
    for start in range(0, len(text), 500):
        (folder / "texts" / f"{start}.txt").write_text(text[start : start + 500], encoding="utf-8")
    corpus = build_stdlib_corpus(folder / "own-blobs", vocab_size=512, source=ROOT / "scaling")
    shutil.copytree(folder / "own-blobs", folder / "blobs")
    assignment = TrainAssignment(
        architecture=shapes[0], recipe=TrainingRecipe(num_tokens=8192), corpus_id=corpus.id, num_eval_windows=8
    )
    (folder / "assignment.json").write_text(assignment.model_dump_json())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in readme_commands() if c not in RUN_ELSEWHERE])
def test_readme_command_runs(command: str, reader_folder: Path) -> None:
    if command in ("archfleet status", "archfleet report"):
        _make_a_run(reader_folder)
    words = command.split()
    program = {"archfleet": [sys.executable, "-m", "coordinator.cli"], "python": [sys.executable]}.get(
        words[0], [words[0]]
    )
    result = subprocess.run(
        [*program, *words[1:]],
        cwd=reader_folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


def _make_a_run(folder: Path) -> None:
    from coordinator.store import Store
    from coordinator.study import read_study

    directory = folder / "runs" / "laptop-20260101-000000"
    if not directory.exists():
        Store.create(directory, read_study("laptop"), now_unix=0.0).close()


def test_commands_run_elsewhere_are_still_in_the_readme() -> None:
    assert set(RUN_ELSEWHERE) <= set(readme_commands())


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_promise_names_tests_that_exist() -> None:
    section = README.partition("## What it promises\n")[2].partition("\n## ")[0]
    promises = re.split(r"^\d\. ", section, flags=re.MULTILINE)[1:]
    assert len(promises) == 8
    for promise in promises:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert tests, promise
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


@pytest.mark.parametrize(("path", "command"), all_commands(main), ids=lambda value: str(value))
def test_every_command_has_an_example_and_a_line_in_the_readme(path: tuple[str, ...], command: click.Command) -> None:
    assert command.epilog
    assert f"archfleet {' '.join(path)}" in command.epilog
    assert f"archfleet {' '.join(path)}" in README


def test_makefile_run_is_archfleet_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    target = re.search(r"^run:.*\n\t(.*)$", makefile, flags=re.MULTILINE)
    assert target is not None
    assert target.group(1) == "$(BIN)/archfleet run"
