"""All commands under one name."""

import click

from coordinator.cli.bench import bench, predict
from coordinator.cli.command import group
from coordinator.cli.completion import completion
from coordinator.cli.data import data
from coordinator.cli.doctor import doctor
from coordinator.cli.fit import fit, recommend
from coordinator.cli.guard import guard
from coordinator.cli.hw import hw
from coordinator.cli.run import run
from coordinator.cli.runs import backup, report, status
from coordinator.cli.serve import serve
from coordinator.cli.simulate import simulate
from coordinator.cli.token import token
from coordinator.cli.train import compare, score, train

_HELP = """Find language-model architectures that are as accurate as a baseline and faster to serve, on your hardware.

\b
Exit status:
    0  done
    1  done, and the answer is bad news: the command's help says which
    2  something was given that cannot be used: one message says what to type instead
  130  stopped by Ctrl-C: what was finished is kept where the command's help says so
"""


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    from coordinator.version import version

    if wanted:
        click.echo(f"archfleet, version {version()}")
        ctx.exit()


@group(help=_HELP, epilog="  archfleet run\n  archfleet status\n  archfleet fit runs.csv --law chinchilla")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Which archfleet this is.",
)
def main() -> None:
    """All commands under one name."""


for command in (
    run,
    serve,
    guard,
    status,
    report,
    backup,
    fit,
    recommend,
    simulate,
    train,
    compare,
    score,
    bench,
    predict,
    hw,
    data,
    token,
    doctor,
    completion,
):
    main.add_command(command)
