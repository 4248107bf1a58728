"""Processes that left their group are found by descent and by their mark, and nobody else is killed."""

import os
import subprocess
import sys

import pytest

from agent.engines.descendants import MARK_VARIABLE, Process, family_of, kill_all, wait_until_gone

SLEEP = [sys.executable, "-S", "-c", "print(flush=True); import time; time.sleep(600)"]
"""Says a line once it runs: until its exec its environment is its parent's."""
PARENT = f"import subprocess; c = subprocess.Popen({SLEEP!r}, start_new_session=True, env={{}}); print(c.pid); c.wait()"


@pytest.fixture
def start():
    started = []

    def start_one(command, **options):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        started.append(process)
        return process, process.stdout.readline()

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def test_a_child_that_left_group_and_environment_is_found_by_descent(start):
    process, child_line = start([sys.executable, "-S", "-u", "-c", PARENT])
    family = family_of(process.pid, mark="none")
    assert {each.pid for each in family} == {process.pid, int(child_line)}
    kill_all(family)
    assert wait_until_gone(family, timeout_seconds=10) == set()


def test_a_process_without_its_parent_is_found_by_its_mark(start):
    marked, _ = start(SLEEP, env={MARK_VARIABLE: "m-1"}, start_new_session=True)
    start(SLEEP, env={MARK_VARIABLE: "m-10"}, start_new_session=True)
    assert {each.pid for each in family_of(0x7FFFFFFF, mark="m-1")} == {marked.pid}


def test_the_asking_process_is_never_of_the_family():
    assert os.getpid() not in {each.pid for each in family_of(os.getpid(), mark="none")}


def test_a_number_that_was_given_to_another_process_is_not_killed(start):
    process, _ = start(SLEEP)
    kill_all([Process(process.pid, started_ticks=0)])
    assert process.poll() is None
    assert {each.pid for each in family_of(process.pid, mark="none")} == {process.pid}
    assert wait_until_gone([Process(process.pid, started_ticks=0)], timeout_seconds=0) == set()
