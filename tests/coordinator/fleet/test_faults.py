"""Faults of a real fleet under the real coordinator and store; every history is checked.

An agent that stands still and wakes, one whose end nobody could order, an engine that does not start, another archfleet
on a node. Agents that are killed, and a coordinator, are in tests/integration/test_survives_kills.py.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.assignment import BenchAssignment, TrainAssignment
from agent.worker import Worker
from coordinator.fleet.ray_fleet import RayFleet
from coordinator.version import PACKAGES
from scaling.observations import Failure
from scaling.recipes import ServingRecipe, Workload

pytestmark = pytest.mark.fleet
ROOT = Path(__file__).parents[3]


class UnheardFleet(RayFleet):
    """Its orders to end an agent get lost."""

    def restart(self, agent: str) -> None:
        pass


@pytest.fixture
def stopped() -> Iterator[Callable[[int], None]]:
    """A function that stops a process; at the end each goes on, so that it can be ended."""
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)

    yield stop
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_an_agent_that_stands_still_beyond_its_lease_is_ended_and_its_trial_goes_on_elsewhere(
    make_run: Callable[..., Any],
    make_fleet: Callable[..., RayFleet],
    add_node: Callable[..., Any],
    make_training: Callable[..., TrainAssignment],
    stopped: Callable[[int], None],
) -> None:
    add_node(num_cpus=2)
    run, training = make_run(make_fleet()), make_training(1)
    run.begin([training])
    run.until(lambda: run.is_training(training.id))
    (first,) = run.store.attempts()
    process = psutil.Process(run.agent(first.agent).pid)

    stopped(process.pid)
    run.until(lambda: len(run.store.attempts()) == 2)
    with suppress(psutil.NoSuchProcess):
        process.resume()
    verdict = run.finish()

    assert verdict.kept, verdict.sentence()
    lost, second = run.store.attempts()
    assert (lost.outcome, lost.failure_kind, second.outcome) == ("retried", "agent-lost", "succeeded")
    assert second.agent != first.agent
    failure, _ = run.store.observations()
    assert isinstance(failure, Failure)
    assert failure.message == f"no sign of life from agent {first.agent} for 10 s"
    process.wait(240)


def test_the_late_result_of_an_agent_that_woke_is_refused_and_recorded(
    make_run: Callable[..., Any],
    make_fleet: Callable[..., RayFleet],
    add_node: Callable[..., Any],
    make_training: Callable[..., TrainAssignment],
    stopped: Callable[[int], None],
) -> None:
    add_node(num_cpus=2)
    run, training = make_run(make_fleet(UnheardFleet)), make_training(2)
    run.begin([training])
    run.until(lambda: run.is_training(training.id, least_done=0.2))
    (first,) = run.store.attempts()
    pid = run.agent(first.agent).pid

    stopped(pid)
    run.until(lambda: run.is_training(training.id, epoch=2))
    os.kill(pid, signal.SIGCONT)
    verdict = run.finish()
    refused = ("fenced", training.id, 1, first.agent)
    run.until(lambda: refused in run.store.rejections())

    assert verdict.kept, verdict.sentence()
    assert verdict.num_attempts == 2
    assert run.store.attempts()[-1].outcome == "succeeded"
    assert run.store.attempts()[-1].agent != first.agent


def test_a_node_whose_engine_does_not_start_is_quarantined_with_its_last_words(
    make_run: Callable[..., Any],
    make_fleet: Callable[..., RayFleet],
    add_node: Callable[..., Any],
    make_training: Callable[..., TrainAssignment],
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken-python"
    broken.write_text('#!/bin/sh\ncase "$*" in *find_spec*) exit 0;; esac\necho "the driver is too old" >&2\nexit 1\n')
    broken.chmod(0o755)
    add_node(ARCHFLEET_VLLM_PYTHON=str(broken))
    benches = [
        BenchAssignment(
            architecture=make_training(3).architecture,
            recipe=ServingRecipe(engine="vllm", dtype="float32"),
            workload=Workload(batch_size=size, input_tokens=4, output_tokens=4),
        )
        for size in (1, 2)
    ]
    run = make_run(make_fleet(worker=Worker), lease_seconds=60.0)
    run.begin(benches)
    run.until(lambda: run.store.counters().get("quarantines"))

    (agent,) = run.store.agents()
    said = next(note for note in run.notes if "gets no work" in note)
    assert said.startswith(f"{agent.agent} gets no work for now: the engine did not start for 2 trials on {agent.node}")
    assert "the driver is too old" in said
    run.until(lambda: run.store.agents()[0].state == "quarantined")
    assert {attempt.failure_kind for attempt in run.store.attempts() if attempt.outcome} == {"engine-start"}


def test_a_node_with_another_archfleet_is_refused_and_named(
    make_run: Callable[..., Any],
    make_fleet: Callable[..., RayFleet],
    add_node: Callable[..., Any],
    make_training: Callable[..., TrainAssignment],
    tmp_path: Path,
) -> None:
    """Its own copy is in the way of the one that travels along, as a .pth file or a sitecustomize can bring about."""
    other = tmp_path / "other"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "scaling" / "law.py").open("a") as law:
        law.write("# a change\n")
    (other / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(other)!r})\n")
    add_node(PYTHONPATH=str(other))
    run = make_run(make_fleet())
    run.begin([make_training(4)])

    run.until(lambda: any("another archfleet" in note for note in run.notes))

    (said,) = [note for note in run.notes if "another archfleet" in note]
    assert re.match(r"\S+ was lost \(node \S+ runs another archfleet, ", said)
    assert said.count("(code ") == 2
    assert run.store.attempts() == []
