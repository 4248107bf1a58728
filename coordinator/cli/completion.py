"""`archfleet completion`: what a shell needs to complete commands, options and runs."""

import click
from click.shell_completion import get_completion_class

from coordinator.cli.command import command

SHELLS = ("bash", "zsh", "fish")


@command(
    epilog='  eval "$(archfleet completion bash)"                          # in ~/.bashrc\n'
    '  eval "$(archfleet completion zsh)"                           # in ~/.zshrc\n'
    "  archfleet completion fish > ~/.config/fish/completions/archfleet.fish"
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options and the names of runs."""
    made_by = get_completion_class(shell)
    assert made_by is not None, "click knows these shells"
    click.echo(made_by(ctx.find_root().command, {}, "archfleet", "_ARCHFLEET_COMPLETE").source())
