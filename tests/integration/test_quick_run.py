"""The quick study through real Ray, real training and the real transformers engine, as a user runs it."""

import csv
import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.logs import read_logs
from coordinator.record import RunRecord, read_record
from coordinator.status import read_status

pytestmark = [pytest.mark.fleet, pytest.mark.slow]


@pytest.fixture(scope="session")
def quick(shared_user_folder: Any) -> dict[str, Any]:
    """One quick run; its metrics were scraped, its dashboard asked and its status read while it ran."""
    command = shared_user_folder.start("run", "--quick", "--metrics-port", "0", "--metrics-host", "127.0.0.2")
    shared_user_folder.wait_for(
        lambda place: any(trial.state == "succeeded" for trial in place.trials().values()), command, timeout_seconds=300
    )
    status = read_status(shared_user_folder.run_directory)
    with urllib.request.urlopen(status["metrics_url"]) as answer:
        scrape = answer.read().decode()
    with urllib.request.urlopen(f"{status['dashboard_url'].rstrip('/')}/api/overview") as answer:
        overview = json.load(answer)
    session = json.loads((shared_user_folder.run_directory / "agents" / "ray-session.json").read_text())
    assert shared_user_folder.processes_of(Path(session["directory"])), "Ray runs out of its session directory"
    log = command.finish(400)
    assert command.process.returncode == 0, log
    return {
        "log": log,
        "status": status,
        "session": Path(session["directory"]),
        "scrape": scrape,
        "overview": overview,
        "directory": shared_user_folder.run_directory,
        "record": read_record(shared_user_folder.run_directory),
    }


def test_every_stage_ran_and_every_trial_succeeded(quick: dict[str, Any]) -> None:
    record: RunRecord = quick["record"]
    assert [plan.stage for plan in record.plans] == ["first-round", "round-1", "round-2", "serving", "check", "verdict"]
    assert {trial.state for trial in record.trials} == {"succeeded"}
    assert record.state == "finished"


def test_report_numbers_come_from_the_store(quick: dict[str, Any]) -> None:
    report = (quick["directory"] / "report.html").read_text()
    record: RunRecord = quick["record"]
    for run in record.training.values():
        assert f"{run.loss:.4f}" in report
    for bench in record.serving.values():
        assert f"{bench.output_tokens_per_second.value:,.0f}" in report
    assert record.recommendation is not None
    assert all(shape.label in report for shape in record.recommendation.recommended)


def test_report_asks_nothing_of_the_network(quick: dict[str, Any]) -> None:
    report = (quick["directory"] / "report.html").read_text()
    references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)["']|url\(([^)]+)\)|@import""", report)
    assert all((a or b).startswith(("#", "data:")) for a, b in references)


def test_metrics_are_valid_and_agree_with_the_status_while_it_runs(quick: dict[str, Any]) -> None:
    families = {family.name: family for family in text_string_to_metric_families(quick["scrape"])}
    for name in ("archfleet_build_info", "archfleet_agents", "archfleet_trials_running", "archfleet_store_bytes"):
        assert name.removesuffix("_info") in families or name in families
    succeeded = [
        sample.value
        for sample in families["archfleet_trials_finished"].samples
        if {"phase": "train", "outcome": "succeeded"}.items() <= sample.labels.items()
    ]
    assert sum(succeeded) >= 1
    assert quick["status"]["state"] == "running"
    assert quick["status"]["metrics_url"].startswith("http://127.0.0.2:")


def test_the_dashboard_is_where_the_status_says_while_it_runs(quick: dict[str, Any]) -> None:
    assert quick["overview"]["study"] == "quick"
    assert read_status(quick["directory"])["dashboard_url"] is None


def test_every_attempt_has_a_log_from_its_beginning_to_its_end(quick: dict[str, Any]) -> None:
    for attempt in quick["record"].attempts:
        log = read_logs(quick["directory"], attempt.trial_id)[attempt.epoch]
        assert "ended: " in log.text.splitlines()[-1]


def test_recommendation_file_is_the_stored_recommendation(quick: dict[str, Any]) -> None:
    stored = quick["record"].recommendation
    assert json.loads((quick["directory"] / "recommendation.json").read_text()) == stored.model_dump(mode="json")


def test_exported_configs_build_in_transformers_with_exactly_the_counted_parameters(quick: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from scaling.architecture import Architecture

    configs = sorted((quick["directory"] / "architectures").glob("*/config.json"))
    assert {path.parent.name for path in configs} >= {"recommended", "baseline"}
    for path in configs:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        counted = Architecture.from_hf_config(json.loads(path.read_text()))
        assert sum(p.numel() for p in model.parameters()) == counted.num_total_parameters


def test_table_holds_every_trial(quick: dict[str, Any]) -> None:
    with (quick["directory"] / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    record: RunRecord = quick["record"]
    assert [row["trial_id"] for row in rows] == [trial.trial_id for trial in record.trials]
    losses = {row["trial_id"]: float(row["loss"]) for row in rows if row["loss"]}
    assert losses == {name: pytest.approx(run.loss, abs=1e-6) for name, run in record.training.items()}


def test_nothing_is_left_running_and_no_temporary_files_stay(quick: dict[str, Any], shared_user_folder: Any) -> None:
    give_up = time.monotonic() + 60
    while shared_user_folder.processes_of(quick["session"]) and time.monotonic() < give_up:
        time.sleep(0.1)  # those that Ray has told to end
    assert not shared_user_folder.processes_of(shared_user_folder.folder)
    assert not shared_user_folder.processes_of(quick["session"])
    assert not quick["session"].exists()
    assert not (quick["directory"] / "agents").exists()


def test_says_where_the_report_is(quick: dict[str, Any]) -> None:
    assert str(Path("runs") / quick["directory"].name / "report.html") in quick["log"]
