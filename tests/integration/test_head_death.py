"""The head of a Ray cluster dies for good: the run ends in one sentence, and goes on in a fresh cluster."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coordinator.history import check_history, history_of
from coordinator.record import read_record
from coordinator.store import StoreReader

pytestmark = [pytest.mark.fleet, pytest.mark.slow]
SHORTER = {
    "tokens_per_parameter = 8": "tokens_per_parameter = 3",
    "tokens_per_parameter = 4": "tokens_per_parameter = 2",
}


@pytest.fixture
def make_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_ray: Callable[..., Any]
) -> Iterator[Callable[[], Any]]:
    """A function that starts a cluster of one node with room for two agents."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster  # Ray reads its mode when it is imported

    made: list[Any] = []

    def make() -> Any:
        node = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        node["env_vars"] = dict(os.environ)
        made.append(start_ray(lambda: Cluster(initialize_head=True, head_node_args=node)))
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()


def kill_head(cluster: Any, run_directory: Path) -> None:
    """The head and, so that the study cannot end before the head is missed, the agents."""
    (gcs,) = cluster.head_node.all_processes["gcs_server"]
    gcs.process.kill()
    gcs.process.wait()
    with StoreReader.open(run_directory) as store:
        for agent in store.agents():
            with suppress(ProcessLookupError):  # one that was replaced
                os.kill(agent.pid, signal.SIGKILL)


def test_a_run_whose_head_died_says_so_and_goes_on_in_a_fresh_cluster(
    user_folder: Any, tiny_study: Path, make_cluster: Callable[[], Any]
) -> None:
    text = tiny_study.read_text()
    for given, shorter in SHORTER.items():
        text = text.replace(given, shorter)
    tiny_study.write_text(text)
    cluster = make_cluster()
    arguments = ("run", str(tiny_study), "--metrics-port", "0", "--address")
    first = user_folder.start(*arguments, cluster.address)
    user_folder.wait_for(
        lambda place: sum(trial.state == "succeeded" for trial in place.trials().values()) >= 2,
        first,
        timeout_seconds=300,
    )
    kill_head(cluster, user_folder.run_directory)
    log = first.finish(300)

    assert first.process.returncode == 2, log
    assert f"archfleet: the head of the Ray cluster at {cluster.address} has not answered for" in log
    assert log.splitlines()[-1].startswith("Start the cluster anew and run the same command again")
    assert "Traceback" not in log
    with StoreReader.open(user_folder.run_directory) as store:
        before = {trial.trial_id: trial for trial in store.trials() if trial.state == "succeeded"}
        acknowledged = {one.assignment_id: one.model_dump_json() for one in store.observations()}
    cluster.shutdown()

    second = user_folder.start(*arguments, make_cluster().address)
    log = second.finish(500)

    assert second.process.returncode == 0, log
    assert len(list((user_folder.folder / "runs").iterdir())) == 1
    after, record = user_folder.trials(), read_record(user_folder.run_directory)
    assert record.state == "finished"
    assert len(before) >= 2
    assert all((after[name].epoch, after[name].attempts) == (row.epoch, row.attempts) for name, row in before.items())
    results = {**record.training, **record.serving}
    assert {name: results[name].model_dump_json() for name in before} == {name: acknowledged[name] for name in before}
    with StoreReader.open(user_folder.run_directory) as store:
        verdict = check_history(history_of(store))
    assert verdict.kept, verdict.sentence()
