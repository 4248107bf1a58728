"""`archfleet doctor`: is this machine ready?"""

import os
import sys
from pathlib import Path

from coordinator.cli.command import command, json_option, runs_option
from coordinator.cli.console import console, errors, print_json


@command(epilog="  archfleet doctor\n  archfleet doctor --runs /data/runs\n  archfleet doctor --json")
@runs_option
@json_option
def doctor(runs: Path, as_json: bool) -> None:
    """Look at this machine: accelerators, engines, versions, disk, memory, ports, Ray; and say what to do.

    Each line is ok, a warning (it works, but not everything or not as exactly) or a problem. Exit status 1 if there is
    a problem.
    """
    from coordinator.doctor import describe_findings, examine, findings_json, worst_level
    from coordinator.machine import probe_machine

    with errors.status("looking at this machine"):
        findings = examine(probe_machine(runs, environment=os.environ))
    if as_json:
        print_json(findings_json(findings))
    else:
        for line in describe_findings(findings):
            console.print(line, soft_wrap=True)
    if worst_level(findings) == "problem":
        sys.exit(1)
