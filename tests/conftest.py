"""A second try for what Ray starts."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest


@pytest.fixture(scope="session")
def start_ray() -> Callable[[Callable[[], Any]], Any]:
    """A function that makes a node or a cluster. Where Ray gives up, it ends what is left and tries again."""
    import psutil  # only tests with real processes need it

    def start(make: Callable[[], Any]) -> Any:
        before = set(psutil.Process().children(recursive=True))
        try:
            return make()
        except Exception as error:  # Ray's own is no narrower
            print(f"Ray did not start: {error}. Trying again.", file=sys.stderr)
        left = set(psutil.Process().children(recursive=True)) - before
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=60)
        return make()

    return start
