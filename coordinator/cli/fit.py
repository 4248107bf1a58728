"""`archfleet fit`, `recommend`: from a table of your own runs to a law, and to shapes."""

from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import command, json_option
from coordinator.cli.console import console, errors, print_json
from coordinator.errors import UserError


@command(epilog="  archfleet fit runs.csv\n  archfleet fit runs.csv --law conditional --json")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--law", type=click.Choice(["chinchilla", "conditional"]), default="chinchilla", show_default=True)
@json_option
def fit(table: Path, law: str, as_json: bool) -> None:
    """Fit a scaling law to a TABLE of runs (CSV).

    Columns: n_params (or n_params_non_embed, n_params_total), n_tokens and loss in nats per token; for the conditional
    law also x and r, or hidden_size (d_model), intermediate_size (d_ff), n_heads, n_kv_heads, head_dim and n_layers.
    Lines that begin with # are comments.
    """
    from coordinator.runs_table import describe_fit, fit_table, read_runs_table

    try:
        with errors.status("fitting"):
            result = fit_table(read_runs_table(table), law=law)
    except ValueError as error:
        raise UserError(str(error)) from None
    if as_json:
        print_json(result)
    else:
        console.print(describe_fit(result), markup=False, soft_wrap=True)


@command(
    epilog="  archfleet recommend --runs runs.csv --n 1e9 --tokens 100e9 --baseline llama-3.2-1b --hardware h200\n"
    "  archfleet recommend --runs runs.csv --n 3e9 --tokens 100e9 --baseline llama-3.2-3b --hardware a100-80gb --json"
)
@click.option("--runs", "table", type=click.Path(path_type=Path), required=True, help="CSV of runs with their shapes.")
@click.option("--n", "n", type=click.FloatRange(min=0, min_open=True), required=True, help="Non-embedding parameters.")
@click.option("--tokens", type=click.FloatRange(min=0, min_open=True), required=True, help="Training tokens.")
@click.option("--baseline", default="llama-3.2-1b", show_default=True, help="A named architecture or a config.json.")
@click.option("--hardware", default="h200", show_default=True, help="A profile of `archfleet hw list`.")
@click.option("--layers", "num_layers", type=click.IntRange(min=1), help="Layers; default: the baseline's.")
@click.option("--probability", default=0.8, show_default=True, type=click.FloatRange(0.5, 1, True, True))
@json_option
def recommend(table: Path, as_json: bool, **settings: Any) -> None:
    """Recommend shapes from your own table of runs: Panda, Surefire and the front; every number is predicted."""
    from coordinator.recommend_from_runs import recommend_from_runs, recommendation_table
    from coordinator.runs_table import read_runs_table

    try:
        with errors.status("fitting, and searching shapes"):
            result = recommend_from_runs(read_runs_table(table), **settings)
    except ValueError as error:
        raise UserError(str(error)) from None
    if as_json:
        print_json(result)
        return
    console.print(recommendation_table(result))
    for sentence in result["reasons"]:
        console.print(f"- {sentence}", markup=False, soft_wrap=True)
