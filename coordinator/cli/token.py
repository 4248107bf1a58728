"""`archfleet token`: who may read the dashboard and scrape the metrics from other machines."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from coordinator.cli.command import group, json_option
from coordinator.cli.console import console, errors, print_json

tokens_option = click.option(
    "--tokens",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file.  [default: ~/.config/archfleet/tokens.toml]",
)


@group(
    epilog="  archfleet token create ada\n  archfleet token create prometheus --scope metrics --days 90\n"
    "  archfleet token list\n  archfleet token revoke ada"
)
def token() -> None:
    """Tokens for the dashboard and the metrics; their file holds hashes only.

    Several are valid at once: to replace one, create the next, hand it out, and revoke the old one. A dashboard that
    runs sees every change at once.
    """


@token.command(
    epilog="  archfleet token create ada\n  archfleet token create prometheus --scope metrics > metrics-token\n"
    "  archfleet token create guest --days 7 --tokens /etc/archfleet/tokens.toml --json"
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "metrics"]),
    multiple=True,
    default=("read",),
    show_default=True,
    help="read: the dashboard; metrics: /metrics. May be repeated.",
)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Valid so long.  [default: until revoked]")
@tokens_option
@json_option
def create(name: str, scopes: tuple[Any, ...], days: float | None, path: Path | None, as_json: bool) -> None:
    """Make a token for NAME and print it: this once, and nowhere else."""
    import secrets
    import time

    from coordinator.tokens import NUM_RANDOM_BYTES, create_token, default_path

    now, path = time.time(), path or default_path()
    secret, made = create_token(
        path,
        name,
        scopes=scopes,
        random_bytes=secrets.token_bytes(NUM_RANDOM_BYTES),
        now_unix=now,
        expires_unix=None if days is None else now + 86_400 * days,
    )
    if as_json:
        print_json({"token": secret, "path": str(path), **made.model_dump(mode="json", exclude={"sha256"})})
        return
    click.echo(secret)
    errors.print(f"token {made.id} for {name}; its hash is in {path}, the token only here", soft_wrap=True)


@token.command("list", epilog="  archfleet token list\n  archfleet token list --tokens tokens.toml --json")
@tokens_option
@json_option
def list_(path: Path | None, as_json: bool) -> None:
    """List the tokens of a file: whose, what for, until when. The tokens themselves nobody knows any more."""
    import time

    from rich.table import Table

    from coordinator.tokens import default_path, read_tokens

    path = path or default_path()
    found, now = read_tokens(path), time.time()
    if as_json:
        print_json([one.model_dump(mode="json") | {"is_expired": one.is_expired(now_unix=now)} for one in found])
        return
    table = Table("id", "name", "scopes", "created", "expires", title=str(path))
    for one in found:
        until = "never" if one.expires_unix is None else _day(one.expires_unix)
        until = f"{until} (is over)" if one.is_expired(now_unix=now) else until
        table.add_row(one.id, one.name, ", ".join(one.scopes), _day(one.created_unix), until)
    console.print(table)


@token.command(epilog="  archfleet token revoke ada\n  archfleet token revoke 1a2b3c4d --tokens tokens.toml --json")
@click.argument("which", metavar="ID|NAME")
@tokens_option
@json_option
def revoke(which: str, path: Path | None, as_json: bool) -> None:
    """Take a token out of the file; whoever uses it is out within a second, open pages included."""
    from coordinator.tokens import default_path, revoke_token

    path = path or default_path()
    gone = revoke_token(path, which)
    if as_json:
        print_json({"path": str(path), **gone.model_dump(mode="json", exclude={"sha256"})})
        return
    console.print(f"{gone.name} ({gone.id}) is not in {path} any more", markup=False, soft_wrap=True)


def _day(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M UTC")
