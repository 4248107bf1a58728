"""A real Prometheus finds the coordinator by /targets, scrapes it, and keeps the exemplars."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.metrics import serve_metrics
from coordinator.vitals import Vitals

PATIENCE_SECONDS = 60.0
pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here; on Debian: apt-get install prometheus"
)


@pytest.fixture(scope="module")
def prometheus(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus that was told nothing but where /targets is."""
    directory = tmp_path_factory.mktemp("prometheus")
    with serve_metrics(finished_run, port=0, vitals=Vitals()) as port:
        configuration = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {
                    "job_name": "found",
                    "http_sd_configs": [{"url": f"http://127.0.0.1:{port}/targets", "refresh_interval": "1s"}],
                }
            ],
        }
        (directory / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
        address = f"127.0.0.1:{free_port()}"
        options = {"config.file": "prometheus.yml", "storage.tsdb.path": "data", "web.listen-address": address}
        flags = [f"--{name}={value}" for name, value in options.items()]
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(
                ["prometheus", *flags, "--enable-feature=exemplar-storage"], cwd=directory, stdout=log, stderr=log
            )
        try:
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        return int(other.getsockname()[1])


def ask(address: str, path: str, **parameters: str) -> list[dict[str, Any]]:
    """The answer, as soon as there is one that is not empty."""
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)["data"]
        except (urllib.error.URLError, ConnectionError):
            found = []
        if isinstance(found, dict):
            found = found["result"]
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no answer to {url} within {PATIENCE_SECONDS:.0f} s")


def test_the_target_is_found_and_up(prometheus: str) -> None:
    (found,) = ask(prometheus, "query", query='up{job="archfleet-coordinator"} == 1')
    assert found["metric"]["instance"].startswith("127.0.0.1:")


def test_no_series_is_refused(prometheus: str) -> None:
    query = "scrape_samples_scraped > 200 and scrape_samples_scraped == scrape_samples_post_metric_relabeling"
    assert len(ask(prometheus, "query", query=query)) == 1


def test_exemplars_of_durations_are_kept(prometheus: str) -> None:
    name = 'archfleet_trial_duration_seconds_bucket{phase="train"}'
    found = ask(prometheus, "query_exemplars", query=name, start="0", end="4000000000")
    assert all(one["labels"]["trial_id"].startswith("train-") for series in found for one in series["exemplars"])
