"""What all commands share: how they end, where they write, and what their help says of it."""

import inspect
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from coordinator.cli import main
from coordinator.cli.command import NewFile, command
from coordinator.errors import UserError


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, each in group.commands.items():
        found += all_commands(each, (*path, name)) if isinstance(each, click.Group) else [((*path, name), each)]
    return found


COMMANDS = all_commands(main)
NAMES = [" ".join(path) for path, _ in COMMANDS]


def archfleet(*arguments: object, **settings) -> Result:
    return CliRunner(**settings).invoke(main, [str(argument) for argument in arguments])


# Endings


@pytest.mark.parametrize(
    ("arguments", "environment", "status"),
    [
        (("--version",), {}, 0),
        (("hw", "list", "--json"), {}, 0),
        (("doctor", "--json"), {"ARCHFLEET_VLLM_PYTHON": "/nonexistent/python"}, 1),
        (("status", "--runs", "/nonexistent"), {}, 2),
        (("status", "--nonsense"), {}, 2),
        (("nonsense",), {}, 2),
    ],
)
def test_the_exit_status_is_one_of_the_table(
    arguments: tuple[str, ...], environment: dict[str, str], status: int
) -> None:
    assert archfleet(*arguments, env=environment).exit_code == status


def test_ctrl_c_ends_a_command_with_130_and_one_word() -> None:
    code = "from coordinator.cli import main; main(prog_name='archfleet')"
    arguments = [sys.executable, "-c", code, "simulate", "coverage", "--studies", "1000000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "simulated studies: 1,000,000\n"  # it is at work
        while process.poll() is None:  # one that falls into a callback of C code is lost
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        rest = process.stderr.read()
    assert rest.splitlines()[-1] == "archfleet: stopped"
    assert "Traceback" not in rest
    assert process.returncode == 130


def ended_by(error: BaseException) -> Result:
    @command()
    def failing() -> None:
        raise error

    main.add_command(failing, "failing")
    try:
        return archfleet("failing")
    finally:
        del main.commands["failing"]


def test_a_users_mistake_is_one_message() -> None:
    result = ended_by(UserError("no such thing; give another"))
    assert (result.exit_code, result.stderr) == (2, "archfleet: no such thing; give another\n")


def test_a_file_that_cannot_be_used_is_one_message() -> None:
    result = ended_by(PermissionError(13, "Permission denied", "/root/secret"))
    assert result.exit_code == 2
    assert result.stderr.startswith("archfleet: /root/secret: Permission denied.\n")


@pytest.mark.parametrize(
    "error", [ValueError("ours"), OSError("no number"), OSError(98, "Address already in use")], ids=repr
)
def test_a_mistake_of_ours_is_not_called_the_users(error: Exception) -> None:
    result = ended_by(error)
    assert result.exit_code == 1
    assert result.exception is error


def test_the_help_tells_all_exit_statuses() -> None:
    told = re.findall(r"^ +(\d+)  \w", archfleet("--help").output, flags=re.MULTILINE)
    assert told == ["0", "1", "2", "130"]


@pytest.mark.parametrize(("path", "each"), COMMANDS, ids=NAMES)
def test_a_command_that_may_end_with_1_says_when(path: tuple[str, ...], each: click.Command) -> None:
    assert each.callback is not None
    may = "sys.exit(1)" in inspect.getsource(inspect.unwrap(each.callback))
    assert ("xit status 1 if" in " ".join((each.help or "").split())) is may, path


# Data

PRINTS_NO_DATA = {
    "serve": "it serves until it is stopped, and prints where",
    "completion": "it prints a script",
}


@pytest.mark.parametrize(("path", "each"), COMMANDS, ids=NAMES)
def test_what_prints_data_prints_json_on_request(path: tuple[str, ...], each: click.Command) -> None:
    has_json = any("--json" in option.opts for option in each.params)
    assert has_json is (" ".join(path) not in PRINTS_NO_DATA)


# Files that are to be written


@command()
@click.option("--out", type=NewFile(".svg", ".png"))
@click.option("--text", type=NewFile(allow_dash=True))
def writing(out: Path | None, text: Path | None) -> None:
    click.echo(f"{out!r} {text!r}")


def test_a_file_to_be_written_is_a_path(tmp_path: Path) -> None:
    result = CliRunner().invoke(writing, ["--out", str(tmp_path / "a.svg"), "--text", "-"])
    assert result.output == f"{tmp_path / 'a.svg'!r} {Path('-')!r}\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [("none/a.svg", "there is no folder"), ("a.pdf", "'a.pdf' does not end in .svg or .png"), ("", "is a directory")],
)
def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path, name: str, words: str) -> None:
    result = CliRunner().invoke(writing, ["--out", str(tmp_path / name)])
    assert result.exit_code == 2
    assert words in result.output
