"""Completion in a real shell: a word is begun on a terminal, TAB is pressed, and the rest appears."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.cli.command import STORE, STUDIES
from coordinator.cli.completion import SHELLS
from coordinator.store import FILE_NAME
from coordinator.study import shipped_studies

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 60.0
PROMPT = "ready> "

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing: apt-get install bash")


class Shell:
    """An interactive bash on a terminal of its own."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._shown = ""
        self._terminal, inside = pty.openpty()
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-i"],
            cwd=directory,
            env=environment,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def await_words(self, words: str) -> None:
        """Read until these words are there; what was shown up to them is forgotten."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while words not in self._shown:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, ends - time.monotonic()))
            assert ready, f"{words!r} did not come; the terminal shows {self._shown!r}"
            self._shown += os.read(self._terminal, 4096).decode(errors="replace")
        self._shown = self._shown.partition(words)[2]

    def close(self) -> None:
        self._process.kill()  # of TERM an interactive shell takes no notice
        self._process.wait()
        os.close(self._terminal)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("shell")
    command = directory / "bin" / "archfleet"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m coordinator.cli "$@"\n')
    command.chmod(0o755)
    for name in ("laptop-20260101-120000", "quick-20260102-120000"):
        (directory / "runs" / name).mkdir(parents=True)
        (directory / "runs" / name / STORE).touch()
    (directory / "table-of-runs.csv").touch()
    environment = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(directory),
        "INPUTRC": "/dev/null",
        "TERM": "dumb",
        "PS1": PROMPT,
    }
    opened = Shell(directory, environment)
    opened.await_words(PROMPT)
    opened.type('eval "$(archfleet completion bash)"; echo is-$((1 + 1))\n')
    opened.await_words("is-2")
    opened.await_words(PROMPT)
    yield opened
    opened.close()


@pytest.fixture
def complete(shell: Shell) -> Iterator[Callable[[str, str], None]]:
    """Types the beginning of a line and TAB, and waits for its end."""

    def press(typed: str, rest: str) -> None:
        shell.type(f"{typed}\t")
        shell.await_words(f"{typed}{rest}")

    yield press
    shell.type("\x15\n")  # the line is thrown away
    shell.await_words(PROMPT)


@pytest.mark.parametrize(
    ("typed", "rest"),
    [
        ("archfleet si", "mulate "),
        ("archfleet simulate co", "verage "),
        ("archfleet status --js", "on "),
        ("archfleet predict --kv-cache-dtype bf", "loat16 "),
        ("archfleet status lap", "top-20260101-120000 "),
        ("archfleet run lap", "top "),
        ("archfleet fit tab", "le-of-runs.csv "),
        ("archfleet run tab", "le-of-runs.csv "),
    ],
)
def test_bash_completes(complete: Callable[[str, str], None], typed: str, rest: str) -> None:
    complete(typed, rest)


@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_gets_a_script_that_asks_this_command(name: str) -> None:
    script = CliRunner().invoke(main, ["completion", name]).output
    assert "_ARCHFLEET_COMPLETE" in script
    assert f"{name}_complete" in script


def test_names_that_completion_may_not_import_are_those_that_it_would() -> None:
    assert STORE == FILE_NAME
    assert {path.parent for path in shipped_studies().values()} == {STUDIES}


def test_a_run_is_completed_below_the_folder_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "mine-1").mkdir()
    (tmp_path / "mine-1" / STORE).touch()
    status = main.commands["status"]
    with status.make_context("status", ["--runs", str(tmp_path)]) as ctx:
        (argument,) = (each for each in status.params if isinstance(each, click.Argument))
        assert [item.value for item in argument.shell_complete(ctx, "mi")] == ["mine-1"]
        assert [(item.value, item.type) for item in argument.shell_complete(ctx, "oth")] == [("oth", "file")]
