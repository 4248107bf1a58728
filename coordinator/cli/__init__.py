"""The `archfleet` command: each sub-command a few lines over a library call.

People get sentences and tables; `--json` gives the same as JSON on standard output. A user's mistake ends with one
message and exit status 2; a run that was stopped by Ctrl-C ends with 130.
"""

from coordinator.cli.tree import main

__all__ = ["main"]
