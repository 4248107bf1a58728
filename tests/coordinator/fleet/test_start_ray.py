"""The second try that tests give to Ray."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest


def test_what_ray_gave_up_is_ended_and_tried_again(start_ray: Callable[..., Any]) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def make() -> str:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if len(begun) == 1:
            raise Exception("The current node timed out during startup.")  # as Ray does
        return "cluster"

    assert start_ray(make) == "cluster"
    given_up, kept = begun
    assert not psutil.pid_exists(given_up.pid)
    assert kept.poll() is None
    kept.kill()
    kept.wait()
    given_up.wait()


def test_what_ray_gave_up_twice_is_an_error(start_ray: Callable[..., Any]) -> None:
    tries: list[int] = []

    def make() -> None:
        tries.append(1)
        raise RuntimeError("no port is free")

    with pytest.raises(RuntimeError, match="no port is free"):
        start_ray(make)

    assert len(tries) == 2
