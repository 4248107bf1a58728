"""Failpoints: named places at which a test may end the process, to see what a restart makes of it.

`ARCHFLEET_FAILPOINT=store.after_commit:kill` ends the process by SIGKILL the first time it gets there,
`store.after_commit:kill@3` the third time. Unset, a place costs one look into an empty table.
"""

import os
import signal
from functools import cache

VARIABLE = "ARCHFLEET_FAILPOINT"
NAMES = (
    "store.before_commit",
    "store.after_commit",
    "store.mid_migration",
    "backup.mid_copy",
    "loop.before_reply",
    "run.before_corpus_commit",
)


def hit(name: str) -> None:
    """The process has come to a named place."""
    armed = _armed()
    if name in armed:
        armed[name] -= 1
        if armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@cache
def _armed() -> dict[str, int]:
    """How many times each failpoint is still to be passed, the fatal one included."""
    setting = os.environ.get(VARIABLE, "")
    return dict(_parse(part) for part in setting.split(",") if part)


def _parse(setting: str) -> tuple[str, int]:
    name, _, action = setting.partition(":")
    word, _, time = action.partition("@")
    if name not in NAMES or word != "kill" or not (time or "1").isdigit() or time == "0":
        raise ValueError(
            f"{VARIABLE}={setting!r}: expected NAME:kill or NAME:kill@TIME with NAME one of {', '.join(NAMES)}."
        )
    return name, int(time or 1)
