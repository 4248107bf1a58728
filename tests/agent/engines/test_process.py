"""Misbehaving engines end in time, as the right failure, and leave nothing running."""

import os
import signal
import sys
import textwrap
import time

import pytest

from agent.engines.base import EngineReady, EngineResult
from agent.engines.descendants import running_members
from agent.engines.process import EngineFailure, Tick, run_process

PRELUDE = """
import json, os, signal, subprocess, sys, time
def tell(**fields):
    print(json.dumps(fields), flush=True)
def ready():
    device = {"kind": "cpu", "name": "c", "memory_bytes": 1}
    tell(event="ready", versions={"fake": "1"}, device=device, num_total_parameters=1)
def result():
    tell(event="result", window_seconds=1.0, cpu_seconds=1.0, num_batches=1, num_output_tokens=1, logits_finite=True)
"""


@pytest.fixture
def run(tmp_path):
    """Runs the body of a driver script; returns (messages without ticks, process id, seconds)."""

    def run_script(body, *, load_deadline_seconds=10.0, run_deadline_seconds=10.0):
        script, pid_file = tmp_path / "driver.py", tmp_path / "pid"
        record_pid = f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
        script.write_text(PRELUDE + record_pid + textwrap.dedent(body))
        started = time.monotonic()
        messages = list(
            run_process(
                [sys.executable, "-S", str(script)],
                log_file=tmp_path / "log",
                load_deadline_seconds=load_deadline_seconds,
                run_deadline_seconds=run_deadline_seconds,
                tick_seconds=0.2,
            )
        )
        seconds = time.monotonic() - started
        return [m for m in messages if not isinstance(m, Tick)], int(pid_file.read_text()), seconds

    return run_script


def assert_ended(pid):
    assert running_members(pid) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # reaped, not a zombie


def test_a_good_engine_ends_with_its_result(run):
    messages, pid, _ = run("ready(); result()")
    assert [type(message) for message in messages] == [EngineReady, EngineResult]
    assert_ended(pid)


def test_hanging_while_loading_is_a_timeout(run):
    (failure,), pid, seconds = run("time.sleep(60)", load_deadline_seconds=1.5)
    assert failure.failure_kind == "timeout"
    assert "no end of load within 1.5 s" in failure.message
    assert seconds < 6
    assert_ended(pid)


def test_hanging_while_running_is_a_timeout_of_the_run(run):
    (_, failure), pid, seconds = run("ready(); time.sleep(60)", run_deadline_seconds=0.5)
    assert failure.failure_kind == "timeout"
    assert "no end of run within 0.5 s" in failure.message
    assert seconds < 6
    assert_ended(pid)


def test_an_engine_deaf_to_terminate_is_killed(run):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(60)"
    (_, failure), pid, seconds = run(body, run_deadline_seconds=0.5)
    assert failure.failure_kind == "timeout"
    assert seconds < 10
    assert_ended(pid)


def test_a_crash_before_ready_is_an_engine_start_failure_with_the_last_lines(run):
    (failure,), pid, _ = run("raise RuntimeError('no kernel image')")
    assert failure.failure_kind == "engine-start"
    assert "RuntimeError: no kernel image" in failure.message
    assert "Traceback" in failure.detail
    assert_ended(pid)


def test_a_crash_after_ready_is_unknown(run):
    (_, failure), pid, _ = run("ready(); os.abort()")
    assert failure.failure_kind == "unknown"
    assert f"killed by signal {signal.SIGABRT.value} in its run phase" in failure.message
    assert_ended(pid)


def test_a_memory_error_is_out_of_memory(run):
    (_, failure), pid, _ = run("ready(); raise MemoryError")
    assert failure.failure_kind == "out-of-memory"
    assert_ended(pid)


def test_being_killed_by_someone_is_not_called_out_of_memory(run):
    (_, failure), _, _ = run("ready(); os.kill(os.getpid(), signal.SIGKILL)")
    assert failure.failure_kind == "unknown"
    assert "signal 9" in failure.message


def test_what_the_driver_says_of_its_error_counts(run):
    (failure,), _, _ = run("tell(event='error', failure_kind='hardware', message='ECC'); sys.exit(1)")
    assert (failure.failure_kind, failure.message) == ("hardware", "ECC")


def test_garbage_alone_ends_as_a_failure_that_shows_it(run):
    (failure,), pid, _ = run("sys.stdout.buffer.write(bytes(range(256)) * 50); print('loading...', end='')")
    assert failure.failure_kind == "engine-start"
    assert failure.message.endswith("loading...")
    assert failure.detail.replace("\n", "").isprintable()
    assert_ended(pid)


def test_endless_garbage_without_a_line_end_ends_at_the_deadline(run):
    (failure,), pid, seconds = run("while True: sys.stdout.write('x' * 65536)", load_deadline_seconds=1.5)
    assert failure.failure_kind == "timeout"
    assert seconds < 8
    assert_ended(pid)


def test_noise_between_messages_is_kept_in_the_log_and_does_no_harm(run, tmp_path):
    messages, _, _ = run("print('noise'); ready(); print('{\"more\": 1}'); result()")
    assert isinstance(messages[-1], EngineResult)
    assert (tmp_path / "log").read_text().splitlines() == ["noise", '{"more": 1}']


@pytest.mark.parametrize("line", ['{"event": "result"}', '{"event": "dance"}', '{"event": '])
def test_a_message_that_breaks_the_protocol_is_a_validation_failure(run, line):
    (failure,), pid, _ = run(f"print({line!r}, flush=True); time.sleep(60)")
    assert failure.failure_kind == "validation"
    assert_ended(pid)


@pytest.mark.parametrize("ending", ["result()", "sys.exit(3)", "time.sleep(60)"])
def test_children_left_behind_are_killed(run, tmp_path, ending):
    child = "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"
    body = f"child = {child}\nopen({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\nready()\n{ending}"
    _, pid, seconds = run(body, run_deadline_seconds=1.0)
    child_pid = int((tmp_path / "child").read_text())
    assert seconds < 8
    assert running_members(pid) == []
    assert not is_running(child_pid)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_closing_early_kills_the_group(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(PRELUDE + "tell(event='progress', window_seconds=os.getpid()); time.sleep(600)")
    messages = run_process(
        [sys.executable, "-S", str(script)],
        log_file=tmp_path / "log",
        load_deadline_seconds=20,
        run_deadline_seconds=20,
    )
    pid = int(next(m for m in messages if not isinstance(m, Tick)).window_seconds)
    assert running_members(pid) == [pid]
    messages.close()
    assert_ended(pid)


def test_ticks_come_while_nothing_is_said(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text("import time; time.sleep(600)")
    messages = list(
        run_process(
            [sys.executable, "-S", str(script)],
            log_file=tmp_path / "log",
            load_deadline_seconds=1.1,
            run_deadline_seconds=1,
            tick_seconds=0.25,
        )
    )
    ticks = [message for message in messages if isinstance(message, Tick)]
    assert 2 <= len(ticks) <= 5
    assert ticks[0].phase == "load"


def test_an_interpreter_that_does_not_exist_is_an_engine_start_failure(tmp_path):
    (failure,) = run_process(
        ["/nowhere/python"], log_file=tmp_path / "log", load_deadline_seconds=1, run_deadline_seconds=1
    )
    assert isinstance(failure, EngineFailure)
    assert failure.failure_kind == "engine-start"
    assert failure.message == "cannot start /nowhere/python: No such file or directory"


def test_the_log_keeps_what_the_engine_writes_to_both_its_outputs(run, tmp_path):
    body = """
    for number in range(3):
        print(f"out {number}", flush=True)
        time.sleep(0.05)
        print(f"err {number}", file=sys.stderr, flush=True)
        time.sleep(0.05)
    ready(); result()
    """
    run(body)
    expected = {f"{where} {number}" for where in ("out", "err") for number in range(3)}
    assert set((tmp_path / "log").read_text().splitlines()) == expected
