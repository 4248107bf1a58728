"""`archfleet simulate`: the science on simulated truths, the coordinator on a simulated fleet."""

import sys
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import NewFile, group, json_option, studies_that_begin_with
from coordinator.cli.console import console, errors, print_json
from coordinator.errors import UserError


@group(
    epilog="  archfleet simulate coverage --studies 200\n  archfleet simulate search --seeds 5\n"
    "  archfleet simulate fleet --trials 1000 --faults"
)
def simulate() -> None:
    """Test the science on simulated truths, and the coordinator on a simulated fleet: nothing is trained."""


@simulate.command(epilog="  archfleet simulate coverage --studies 200\n  archfleet simulate coverage --json")
@click.option("--studies", "num_studies", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--truth", default="paper", show_default=True, help="The simulated law.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@json_option
def coverage(num_studies: int, truth: str, seed: int, as_json: bool) -> None:
    """How often nominal 90 % intervals hold the truth, over simulated studies of 16 runs."""
    from coordinator.bars import told
    from coordinator.simulate_coverage import coverage_table, run_coverage

    with told(errors, "simulated studies", num_studies) as progress:
        try:
            result = run_coverage(num_studies, seed, truth=truth, progress=progress.reach)
        except ValueError as error:
            raise UserError(str(error)) from None
    if as_json:
        print_json(result)
    else:
        console.print(coverage_table(result))


@simulate.command(
    epilog="  archfleet simulate search --seeds 5\n  archfleet simulate search --truth paper --figure regret.svg --json"
)
@click.option("--seeds", "num_seeds", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--truth", "truths", multiple=True, help="A simulated law; may be repeated. Default: all.")
@click.option("--figure", type=NewFile(".svg", ".png"), help="Write the curves to this SVG or PNG file.")
@json_option
def search(num_seeds: int, truths: tuple[str, ...], figure: Path | None, as_json: bool) -> None:
    """Regret of the recommended shape against GPU-seconds spent, for every way of choosing runs."""
    from coordinator.bars import told
    from coordinator.report.search_figure import write_search_figure
    from coordinator.simulate_search import run_search_simulation, search_table

    settings: dict[str, Any] = {"truths": truths} if truths else {}
    with told(errors, "simulating") as progress:
        try:
            result = run_search_simulation(num_seeds=num_seeds, on_progress=progress.now, **settings)
        except ValueError as error:
            raise UserError(str(error)) from None
    if figure is not None:
        write_search_figure(result, figure)
    if as_json:
        print_json(result)
    else:
        console.print(search_table(result))


@simulate.command(
    epilog="  archfleet simulate fleet --agents 64 --trials 10000 --faults\n"
    "  archfleet simulate fleet --agents 16 --trials 300 --fault partition --fault crash --seed 7 --json\n"
    "  archfleet simulate fleet --agents 8 --study fleet --out runs/rehearsal && archfleet serve rehearsal"
)
@click.option("--agents", "num_agents", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--trials", "num_trials", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--study",
    metavar="STUDY",
    shell_complete=studies_that_begin_with,
    help="Rehearse this study (a name or a TOML file), instead of --trials.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Keep the run here, for serve, report and status."
)
@click.option("--faults", "all_faults", is_flag=True, help="All faults, each at its rate.")
@click.option("--fault", "names", multiple=True, help="One fault; may be repeated.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@json_option
def fleet(
    out: Path | None, num_trials: int, all_faults: bool, names: tuple[str, ...], as_json: bool, **settings: Any
) -> None:
    """A study on a simulated fleet under a virtual clock, and whether the coordinator kept its promises.

    With --study, a rehearsal of your own: what it asks for, how long and how many accelerator-hours it takes at assumed
    speeds, and what its dashboard looks like. The planner, the dispatch, the store and the loop are the real ones;
    agents and their faults are SIMULATED. Exit status 1 if a promise was broken.
    """
    from coordinator.bars import told
    from coordinator.simulate_fleet import FleetSimulation, chosen_faults, fleet_table, simulate_fleet

    what = FleetSimulation(num_trials=num_trials, faults=chosen_faults(names, every=all_faults), **settings)
    with told(errors, "simulated trials") as progress:
        result = simulate_fleet(
            what, out=out, progress=lambda done, expected: progress.reach(done, max(done, expected))
        )
    if as_json:
        print_json(result)
    else:
        console.print(fleet_table(result))
    if not result["kept"]:
        sys.exit(1)
