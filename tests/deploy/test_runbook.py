"""The runbook has a heading for each alert, every command in it is one that there is, and its names are the code's."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from coordinator.cli import main
from coordinator.metric_catalogue import CATALOGUE

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))


def alerts() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def entries() -> dict[str, str]:
    """Text of the runbook by alert."""
    runbook = TEXT.partition("\n## Runbook\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (\w+)$", runbook, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_alert_has_its_heading_in_the_order_of_the_rules() -> None:
    assert list(entries()) == alerts()


def test_every_entry_says_what_it_means_where_to_look_and_what_to_do() -> None:
    for alert, text in entries().items():
        words = re.findall(r"^\*\*(\w+)\*\*", text, flags=re.MULTILINE)
        assert words == ["Means", "Look", "Do"], alert


def commands() -> list[str]:
    """Lines of the console blocks and spans of the text that call archfleet."""
    lines = [line.partition("#")[0].partition(" > ")[0] for block in BLOCKS for line in block.splitlines()]
    return [one.strip() for one in (*lines, *SPANS) if one.startswith("archfleet ")]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_is_one_that_there_is_with_options_that_it_has(command: str) -> None:
    words, found = shlex.split(command)[1:], main
    context = click.Context(found)
    while isinstance(found, click.Group) and words and (inner := found.get_command(context, words[0])) is not None:
        found, words = inner, words[1:]
    assert not isinstance(found, click.Group), f"{command!r} is no command"
    flags = {flag for parameter in found.params if isinstance(parameter, click.Option) for flag in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= flags


def test_there_are_commands_to_look_at() -> None:
    assert len(set(commands())) > 8


def test_metrics_that_the_runbook_names_are_exposed() -> None:
    named = {name for name in SPANS if re.fullmatch(r"archfleet_\w+", name)}
    assert named
    assert named <= {f"archfleet_{name}{'_total' * (f.kind == 'counter')}" for name, f in CATALOGUE.items()}


def test_variables_that_ask_for_tests_are_asked_about_and_none_is_left_out() -> None:
    table = TEXT.partition("\n## Tests that are asked for\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `(ARCHFLEET_\w+)=", table, flags=re.MULTILINE))
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    asked = set(re.findall(r"os\.environ\.get\(\"(\w+)\"\)|\"(ARCHFLEET_\w+)\" not in os\.environ", tests))
    assert told == {one or other for one, other in asked}
