"""Where words go: tables and JSON to standard output, everything else to standard error."""

import json
import sys
from typing import Any

import click
from rich.console import Console

PIPED_WIDTH = 170
"""Columns where there is no terminal to ask: tables keep their words whole."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON; a number that is none (NaN, infinity) is an error of ours."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
