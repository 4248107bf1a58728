"""`archfleet guard`: does the learning rate suit every shape?"""

import sys
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import command, json_option, studies_that_begin_with
from coordinator.cli.console import console, errors, print_json


@command(
    epilog="  archfleet guard\n  archfleet guard my-study.toml --kind hidden --seeds 4\n"
    "  archfleet guard quick --seeds 1 --json > guard.json"
)
@click.argument("study", default="laptop", shell_complete=studies_that_begin_with)
@click.option("--seeds", "num_seeds", default=2, show_default=True, type=click.IntRange(min=1), help="Runs of each.")
@click.option(
    "--token-scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the study's D; a rate belongs to its D.",
)
@click.option(
    "--kind",
    type=click.Choice(["all", "hidden", "attention", "mlp"]),
    default="all",
    show_default=True,
    help="Whose rates the factors multiply: those of one kind of matrix tell which of them is off.",
)
@click.option("--jobs", "num_jobs", type=click.IntRange(min=1), help="Runs at a time; default: one a CPU core.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for finished runs; default: by name."
)
@json_option
def guard(study: str, out: Path | None, num_jobs: int | None, as_json: bool, **settings: Any) -> None:
    """Test whether STUDY's learning rate suits its extreme shapes (default: laptop), at its smallest size.

    The centre and the shapes with the smallest and largest fan-ins train at 0.7, 1 and 1.4 times the rate. A shape that
    would gain more than 0.003 nats/token is off: what it loses would be fitted as an effect of its shape. Study laptop
    takes about four minutes on one quiet core a seed. The same command goes on after Ctrl-C; exit status 1 if a shape
    is off.
    """
    from coordinator.bars import told
    from coordinator.guard import (
        Processes,
        default_jobs,
        guard_directory,
        guard_sentences,
        guard_table,
        is_kept,
        plan_guard,
        run_guard,
    )
    from coordinator.stopping import signals_ask_to_stop
    from coordinator.study import read_study

    what = plan_guard(read_study(study), **settings)
    directory = out or guard_directory(what.study)
    with signals_ask_to_stop() as stop_requested, told(errors, "training") as progress:
        result = run_guard(
            what,
            directory,
            run=Processes(directory, num_jobs or default_jobs()),
            say=progress.note,
            progress=progress.reach,
            stop_requested=stop_requested,
        )
    if result is None:
        errors.print(f"stopped; the same command goes on with {directory}", markup=False, soft_wrap=True)
        sys.exit(130)
    if as_json:
        print_json(result)
    else:
        console.print(guard_table(result))
        for sentence in guard_sentences(result):
            console.print(f"- {sentence}", markup=False, soft_wrap=True)
    if not is_kept(result):
        sys.exit(1)
