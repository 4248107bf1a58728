"""`archfleet serve`: the dashboard of a run, and the options of access that `archfleet run` shares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from coordinator.cli.command import command, run_argument, runs_option
from coordinator.cli.console import errors

F = TypeVar("F", bound=Callable[..., Any])


def access_options(function: F) -> F:
    """Who may reach what is served from another machine."""
    file = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option(
            "--allowed-host",
            "allowed_hosts",
            metavar="NAME",
            multiple=True,
            help="A name that people type to reach the dashboard from elsewhere; may be repeated.",
        ),
        click.option("--behind-proxy", "is_behind_proxy", is_flag=True, help="A proxy in front speaks TLS."),
        click.option("--tls-key", type=file, help="Its key (PEM)."),
        click.option("--tls-cert", type=file, help="Serve the dashboard over TLS: certificate chain (PEM)."),
        click.option(
            "--tokens",
            type=file,
            help="Ask for a token of this file (`archfleet token`); other machines always need one.",
        ),
    ):
        function = option(function)
    return function


@command(
    epilog="  archfleet serve\n  archfleet serve laptop-20260101-120000 --port 0\n"
    "  archfleet serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --allowed-host fleet.example"
)
@run_argument
@runs_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="0 takes a free one.  [default: 8420, or a free one if it is in use]"
)
@access_options
def serve(run: str | None, runs: Path, host: str, port: int | None, **access: Any) -> None:
    """Serve the dashboard of a run (default: the last one), while it runs or afterwards; nothing is changed.

    It listens on loopback. From elsewhere reach it by `ssh -L 8420:127.0.0.1:8420 HOST`, or let it listen on another
    address: that needs a token, and TLS or a proxy that speaks it.
    """
    from coordinator.dashboard.access import Wish
    from coordinator.runs import find_run
    from coordinator.serve import serve_run
    from coordinator.stopping import signals_ask_to_stop

    def say(words: str) -> None:
        errors.print(words, markup=False, soft_wrap=True)

    with signals_ask_to_stop() as stop_requested:
        serve_run(find_run(run, runs), Wish(host=host, **access), port=port, say=say, stop_requested=stop_requested)
