"""`archfleet run`: a study from its first trial to its recommendation."""

import sys
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import command, json_option, runs_option, studies_that_begin_with
from coordinator.cli.console import console, errors, print_json
from coordinator.cli.serve import access_options


@command(
    epilog="  archfleet run\n  archfleet run --quick\n  archfleet run my-study.toml --runs /data/runs\n"
    "  archfleet run my-study.toml --address head.example:6379\n"
    "  archfleet run my-study.toml --json | jq -r .recommendation\n"
    "  archfleet run my-study.toml --stay --dashboard-host 0.0.0.0 --behind-proxy --tokens tokens.toml"
)
@click.argument("study", default="laptop", shell_complete=studies_that_begin_with)
@click.option("--quick", is_flag=True, help="Run the two-minute smoke study instead.")
@click.option("--new", "start_new", is_flag=True, help="Start a new run, even if one is unfinished.")
@runs_option
@click.option(
    "--metrics-port",
    default=9464,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port of /metrics; 0 takes a free one.",
)
@click.option(
    "--metrics-host", default="127.0.0.1", show_default=True, help="Address of /metrics; others need a token."
)
@click.option("--dashboard-host", default="127.0.0.1", show_default=True, help="Address of the dashboard.")
@click.option(
    "--dashboard-port",
    type=click.IntRange(0, 65_535),
    help="0 takes a free one.  [default: 8420, or a free one if it is in use]",
)
@click.option("--no-dashboard", is_flag=True, help="Run without one.")
@access_options
@click.option("--stay", is_flag=True, help="Serve on after the end until TERM; never begin a finished study anew.")
@click.option("--agents", "num_agents", type=click.IntRange(min=1), help="Number of agents; default: one a CPU core.")
@click.option(
    "--address", metavar="HOST:PORT", help="Use the Ray cluster at this address; default: start one on this machine."
)
@click.option("--insecure", is_flag=True, help="Use a cluster that takes connections without a token.")
@json_option
def run(
    study: str,
    quick: bool,
    dashboard_host: str,
    no_dashboard: bool,
    tokens: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    is_behind_proxy: bool,
    allowed_hosts: tuple[str, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Run STUDY (a name or a TOML file; default: laptop), or go on with its last unfinished run.

    Its dashboard and its metrics are served meanwhile, on loopback. Exit status 130 when it was stopped before its end:
    the same command goes on with it. With --json the last word is what `archfleet status --json` says.
    """
    from coordinator.dashboard.access import Wish
    from coordinator.run import RunOptions, run_study
    from coordinator.study import read_study

    wish = Wish(
        host=dashboard_host,
        tokens=tokens,
        tls_cert=tls_cert,
        tls_key=tls_key,
        is_behind_proxy=is_behind_proxy,
        allowed_hosts=allowed_hosts,
    )
    options = RunOptions(dashboard=None if no_dashboard else wish, tokens=tokens, **settings)
    shown = errors if as_json else console
    outcome = run_study(read_study("quick" if quick else study), options, console=shown)
    if as_json:
        from coordinator.status import read_status

        print_json(read_status(outcome.run_directory))
    if not outcome.finished:
        shown.print(f"stopped; the same command goes on with {outcome.run_directory}", markup=False, soft_wrap=True)
        sys.exit(130)
    from coordinator.outputs import closing_words

    shown.print(closing_words(outcome.run_directory), markup=False, soft_wrap=True)
