"""All commands under one name."""

import click

from coordinator.cli.bench import bench, predict
from coordinator.cli.command import group
from coordinator.cli.console import console, errors, print_json
from coordinator.cli.fit import fit, recommend
from coordinator.cli.guard import guard
from coordinator.cli.hw import hw
from coordinator.cli.run import run
from coordinator.cli.runs import backup, report, status
from coordinator.cli.simulate import simulate
from coordinator.cli.train import compare, score, train
from coordinator.data import add_data_commands
from coordinator.version import version


@group(epilog="  archfleet run\n  archfleet status\n  archfleet fit runs.csv --law chinchilla")
@click.version_option(version(), prog_name="archfleet")
def main() -> None:
    """Find language-model architectures that are as accurate as a baseline and faster to serve, on your hardware."""


for command in (
    run, guard, status, report, backup, fit, recommend, simulate, train, compare, score, bench, predict, hw,
):  # fmt: skip
    main.add_command(command)
add_data_commands(main, console=console, errors=errors, show_json=print_json)
