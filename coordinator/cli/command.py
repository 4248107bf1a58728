"""A command of `archfleet`: its examples, its endings, and the options that several share."""

import errno
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from coordinator.cli.console import errors
from coordinator.errors import UserError

DEFAULT_RUNS = Path("runs")
STORE = "store.sqlite3"
"""In each run directory. The same as `coordinator.store.FILE_NAME`, which completing a word is too short to import."""
STUDIES = Path(__file__).parents[1] / "studies"
"""Likewise: where `coordinator.study.shipped_studies` finds them."""


def _runs_that_begin_with(ctx: click.Context, _argument: click.Parameter, typed: str) -> list[CompletionItem]:
    """For a shell's completion: names of run directories, else files."""
    stores = Path(ctx.params.get("runs") or DEFAULT_RUNS).glob(f"*/{STORE}")
    return _names_or_files((path.parent.name for path in stores), typed)


def studies_that_begin_with(_ctx: click.Context, _argument: click.Parameter, typed: str) -> list[CompletionItem]:
    """For a shell's completion: names of the studies that ship with archfleet, else files."""
    return _names_or_files((path.stem for path in STUDIES.glob("*.toml")), typed)


def _names_or_files(names: Iterable[str], typed: str) -> list[CompletionItem]:
    fitting = [CompletionItem(name) for name in sorted(names) if name.startswith(typed)]
    return fitting or [CompletionItem(typed, type="file")]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=DEFAULT_RUNS,
    show_default=True,
    help="Where run directories are.",
)
run_argument = click.argument("run", required=False, shell_complete=_runs_that_begin_with)


class NewFile(click.Path):
    """A file to be written. Whether there is a folder for it is asked before the work, not after."""

    def __init__(self, *suffixes: str, allow_dash: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=False, allow_dash=allow_dash)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, where it can be written."""
        path = Path(str(super().convert(value, param, ctx)))
        if path == Path("-"):
            return path
        folder = path.absolute().parent
        if not folder.is_dir():
            self.fail(f"there is no folder {folder} for {path.name}; make it, or name another file", param, ctx)
        if self._suffixes and path.suffix not in self._suffixes:
            self.fail(f"{path.name!r} does not end in {' or '.join(self._suffixes)}; name it accordingly", param, ctx)
        return path


class Command(click.Command):
    """A command whose examples are printed as they are written."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """Its first sentence, whole."""
        return _first_sentence(self)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples."""
        _print_examples(self, formatter)


_OF_THE_MACHINE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO),
    }
)
"""Errors of files that their owner can mend; all others are ours, and have a traceback."""


class Group(click.Group):
    """A group of commands; a user's mistake in any of them ends with one message and exit status 2, Ctrl-C with 130."""

    command_class = Command

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the order in which they were written: from the whole to the parts."""
        return list(self.commands)

    def get_short_help_str(self, limit: int = 45) -> str:
        """Its first sentence, whole."""
        return _first_sentence(self)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples."""
        _print_examples(self, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            _end(str(error), status=2)
        except OSError as error:
            if error.errno not in _OF_THE_MACHINE or error.filename is None:
                raise
            _end(f"{error.filename}: {error.strerror}.\nLook at its rights and its disk, or name another.", status=2)
        except KeyboardInterrupt:
            _end("stopped", status=130)


def _end(sentence: str, *, status: int) -> NoReturn:
    errors.print(f"archfleet: {sentence}", markup=False, soft_wrap=True)
    sys.exit(status)


Group.group_class = Group


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command; `epilog` holds its examples."""
    return click.command(name, cls=Command, **settings)


def group(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Group]:
    """Make a function a group of commands; `epilog` holds its examples."""
    return click.group(name, cls=Group, **settings)


def _first_sentence(command: click.Command) -> str:
    words = " ".join((command.help or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.]) (?=[A-Z])", words)[0]


def _print_examples(command: click.Command, formatter: click.HelpFormatter) -> None:
    if command.epilog:
        formatter.write(f"\nExamples:\n{command.epilog.rstrip()}\n")
