"""The transformers driver by itself."""

import os
import signal
import subprocess
import sys

from agent.engines.base import engine_named


def test_the_driver_ends_with_its_group_when_the_agent_is_gone(tmp_path):
    fifo = tmp_path / "request.json"
    os.mkfifo(fifo)  # nobody writes it: the driver would wait for ever
    driver = str(engine_named("transformers").driver)
    process = subprocess.Popen([sys.executable, driver, str(fifo)], stdin=subprocess.PIPE, start_new_session=True)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()  # as a dying agent does
    assert process.wait(timeout=20) == -signal.SIGKILL


def test_a_request_that_cannot_be_read_is_told_as_an_error(tmp_path):
    driver = str(engine_named("transformers").driver)
    command = [sys.executable, driver, str(tmp_path / "none.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        message = process.stdout.readline()
        assert process.wait(timeout=20) == 1
    assert message.startswith('{"event": "error", "failure_kind": "unknown", "message": "FileNotFoundError')
