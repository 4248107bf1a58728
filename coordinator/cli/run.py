"""`archfleet run`: a study from its first trial to its recommendation."""

import sys
from typing import Any

import click

from coordinator.cli.command import command, runs_option
from coordinator.cli.console import console


@command(
    epilog="  archfleet run\n  archfleet run --quick\n  archfleet run my-study.toml --runs /data/runs\n"
    "  archfleet run my-study.toml --address head.example:6379"
)
@click.argument("study", default="laptop")
@click.option("--quick", is_flag=True, help="Run the two-minute smoke study instead.")
@click.option("--new", "start_new", is_flag=True, help="Start a new run, even if one is unfinished.")
@runs_option
@click.option(
    "--metrics-port",
    default=9464,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Loopback port of /metrics; 0 takes a free one.",
)
@click.option("--agents", "num_agents", type=click.IntRange(min=1), help="Number of agents; default: one a CPU core.")
@click.option(
    "--address", metavar="HOST:PORT", help="Use the Ray cluster at this address; default: start one on this machine."
)
@click.option("--insecure", is_flag=True, help="Use a cluster that takes connections without a token.")
def run(study: str, quick: bool, **settings: Any) -> None:
    """Run STUDY (a name or a TOML file; default: laptop), or go on with its last unfinished run."""
    from coordinator.run import RunOptions, run_study
    from coordinator.study import read_study

    outcome = run_study(read_study("quick" if quick else study), RunOptions(**settings), console=console)
    if not outcome.finished:
        console.print(f"stopped; the same command goes on with {outcome.run_directory}", markup=False, soft_wrap=True)
        sys.exit(130)
    from coordinator.outputs import closing_words

    console.print(closing_words(outcome.run_directory), markup=False, soft_wrap=True)
