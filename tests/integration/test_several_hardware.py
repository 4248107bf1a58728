"""A mixed fleet as a user has it: a Ray cluster of nodes of two kinds, one study, an answer for each kind.

The nodes are CPUs that pretend (see `coordinator/fleet/placement.py`) and the engine is the labelled fake; cluster,
token, agents, training, store and report are real.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.fleet.placement import PRETENDED_LABEL
from coordinator.logs import read_logs
from coordinator.record import read_record
from coordinator.status import describe_status, read_status
from coordinator.store import StoreReader
from scaling.quantity import Measured

pytestmark = [pytest.mark.fleet, pytest.mark.slow]
HARDWARE = ("a100-80gb", "h200")
STORE_BYTES = 80 * 2**20


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_ray: Callable[..., Any]) -> Iterator[str]:
    """A cluster with a token: a head without room for agents, and one node of each kind."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)  # as in the other tests: Ray reads it once a process
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster  # it reads the mode when it is imported

    alike = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = start_ray(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **alike}))
    try:
        for hardware in HARDWARE:
            kind = {"num_cpus": 1, "labels": {PRETENDED_LABEL: hardware}, "env_vars": dict(os.environ), **alike}
            start_ray(partial(cluster.add_node, **kind))
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture
def mixed_study(tiny_study: Path) -> Path:
    text = tiny_study.read_text()
    for old, new in (
        ('engine = "fake"\ndtype = "float32"', 'engine = "fake"\ndtype = "bfloat16"'),
        ("[serving]\nnum_candidates = 1\n", f"[serving]\nhardware = {json.dumps(HARDWARE)}\nnum_candidates = 5\n"),
        # Two agents on two shared cores: canaries would tell of the neighbours.
        ("wall_minutes = 30\n", "wall_minutes = 30\nmax_agents = 2\ncanary_every_minutes = 0\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    tiny_study.write_text(text)
    return tiny_study


def test_a_mixed_cluster_ends_with_an_answer_for_each_kind_of_hardware(
    user_folder: Any, mixed_study: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes_files = tmp_path / "t"
    nodes_files.mkdir()
    monkeypatch.setenv("TMPDIR", str(nodes_files))
    command = user_folder.start("run", str(mixed_study), "--address", address, "--metrics-port", "0")
    log = command.finish(400)
    assert command.process.returncode == 0, log

    give_up = time.monotonic() + 60
    while list(nodes_files.iterdir()) and time.monotonic() < give_up:  # agents that are ending remove theirs
        time.sleep(0.1)
    assert list(nodes_files.iterdir()) == [], "neither agents nor the way to the cluster leave files"

    directory = user_folder.run_directory
    record = read_record(directory)
    benches = [trial for trial in record.trials if trial.phase == "bench"]
    assert {trial.state for trial in record.trials} == {"succeeded"}
    assert {trial.hardware for trial in benches} == set(HARDWARE)
    assert all(trial.hardware == trial.planned.assignment.hardware for trial in benches)
    assert {trial.hardware for trial in record.trials if trial.phase == "train"} == set(HARDWARE)

    answers = json.loads((directory / "recommendation.json").read_text())["answers"]
    assert [(one["hardware"], one["engine"], one["dtype"]) for one in answers] == [
        (hardware, "fake", "bfloat16") for hardware in HARDWARE
    ]
    assert record.recommendation is not None
    rates = [answer.recommended_throughput for answer in record.recommendation.answers]
    assert all(isinstance(rate, Measured) for rate in rates)
    assert rates[0].value < rates[1].value  # type: ignore[union-attr]  # the roofline of an H200 is higher everywhere
    assert {one.provenance.device for one in record.serving.values()} == {f"pretended {one}" for one in HARDWARE}
    assert all("fake" in one.flags for one in record.serving.values())
    trained = {run.provenance.hardware for run in record.training.values()}
    assert trained == {"cpu-generic"}, "only the fake engine pretends"

    with StoreReader.open(directory) as store:
        attempts = store.attempts()
    kept = [read_logs(directory, one.trial_id)[one.epoch] for one in attempts]
    assert all("ended: " in log.text.splitlines()[-1] for log in kept)

    report = (directory / "report.html").read_text()
    assert all(f"Serving throughput on {hardware}" in report for hardware in HARDWARE)
    status = describe_status(read_status(directory))
    assert all(f"tokens/s on {hardware}" in status for hardware in HARDWARE)
    assert {"recommended-a100-80gb", "recommended-h200", "baseline"} <= {
        path.name for path in (directory / "architectures").iterdir()
    }
