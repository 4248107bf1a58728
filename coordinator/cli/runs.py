"""`archfleet status`, `report`, `backup`: what is asked of a run, whether it goes on or has ended."""

from pathlib import Path
from typing import Literal

import click

from coordinator.cli.command import NewFile, command, json_option, run_argument, runs_option
from coordinator.cli.console import console, errors, print_json
from coordinator.errors import UserError


@command(
    epilog="  archfleet status\n  archfleet status laptop-20260101-120000 --json\n"
    "  archfleet status --trial train-0a1b2c3d4e5f     # one trial: its attempts, its numbers, its log"
)
@run_argument
@runs_option
@click.option("--trial", metavar="ID", help="Tell of this trial instead: attempts, numbers, and its log.")
@json_option
def status(run: str | None, runs: Path, trial: str | None, as_json: bool) -> None:
    """Tell how a run is doing (default: the last one)."""
    from coordinator.runs import find_run

    directory = find_run(run, runs)
    if trial is not None:
        _tell_of_trial(directory, trial, as_json=as_json)
        return
    from coordinator.status import describe_status, read_status

    found = read_status(directory)
    if as_json:
        print_json(found)
    else:
        console.print(describe_status(found), markup=False, soft_wrap=True)


def _tell_of_trial(directory: Path, trial: str, *, as_json: bool) -> None:
    from time import time

    from coordinator.trial_status import describe_trial, read_trial_status

    page = read_trial_status(directory, trial, now_unix=time())
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    for line in describe_trial(page):
        console.print(line, markup=False, soft_wrap=True)


@command(
    epilog="  archfleet report\n  archfleet report runs/laptop-20260101-120000\n"
    "  archfleet report --format md --out report.md\n  archfleet report --json | jq .state"
)
@run_argument
@runs_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "json"]),
    help="The report alone, as this.  [default: all]",
)
@click.option("--out", type=NewFile(allow_dash=True), help="Write it here; - is standard output.")
@json_option
def report(
    run: str | None, runs: Path, form: Literal["html", "md", "json"] | None, out: Path | None, as_json: bool
) -> None:
    """Write a run's report, recommendation and table anew from its store (default: the last run).

    With --format the report alone: the same facts and figures as HTML, as Markdown, or as JSON with every value. --json
    writes nothing, and is --format json --out -.
    """
    from coordinator.outputs import write_outputs, write_report
    from coordinator.record import read_record
    from coordinator.report import render_as
    from coordinator.runs import find_run

    if as_json:
        if form not in (None, "json") or out not in (None, Path("-")):
            raise UserError("--json prints the report as JSON: leave --format and --out out, or leave --json out.")
        form, out = "json", Path("-")
    directory = find_run(run, runs)
    with errors.status("drawing the report"):
        if out == Path("-"):
            text = render_as(read_record(directory), form or "html")
        elif form is None and out is None:
            paths = write_outputs(directory)
        else:
            paths = [write_report(directory, form or "html", out=out)]
    if out == Path("-"):
        click.echo(text)
        return
    for path in paths:
        console.print(str(path), markup=False, soft_wrap=True)


@command(
    epilog="  archfleet backup\n  archfleet backup laptop-20260101-120000 /mnt/backups\n"
    "  archfleet backup --json | jq -r .path"
)
@run_argument
@click.argument("destination", type=click.Path(path_type=Path), required=False)
@runs_option
@json_option
def backup(run: str | None, destination: Path | None, runs: Path, as_json: bool) -> None:
    """Copy a run's store while it runs (default: the last run, into its backups/), and check the copy.

    Its logs are copied beside it.
    """
    from dataclasses import asdict
    from time import time

    from coordinator.backup import back_up
    from coordinator.runs import find_run

    directory = find_run(run, runs)
    with errors.status("copying and checking the store"):
        made = back_up(directory, destination, now_unix=time())
    if as_json:
        print_json({"schema_version": 1, **asdict(made), "path": str(made.path)})
        return
    console.print(
        f"{made.path}: {made.num_bytes:,} bytes, {made.num_trials} trials, {made.num_observations} observations, "
        f"opened and checked; logs of {made.num_log_bytes:,} bytes",
        markup=False,
        soft_wrap=True,
    )
