"""What a run leaves behind: every file says what the store says."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.outputs import closing_words, named_shapes, write_outputs, write_table
from coordinator.recommendation import Recommendation
from coordinator.record import read_record
from coordinator.runs_table import fit_table, read_runs_table
from coordinator.store import Store


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_writing_again_names_every_output_and_changes_none(written_run: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(written_run, tmp_path / written_run.name))
    paths = {path.relative_to(again) for path in write_outputs(again)}
    assert {"report.html", "runs.csv", "recommendation.json", "architectures/recommended/config.json"} <= set(
        map(str, paths)
    )
    for path in paths - {Path("report.html")}:  # the report names its own directory
        assert (again / path).read_bytes() == (written_run / path).read_bytes()
    assert not list(again.rglob(".*.new"))


def test_recommendation_file_is_the_stored_one(written_run: Path) -> None:
    text = (written_run / "recommendation.json").read_text(encoding="utf-8")
    assert Recommendation.model_validate_json(text) == read_record(written_run).recommendation


def test_table_has_one_row_a_trial_with_the_stored_loss(written_run: Path) -> None:
    record = read_record(written_run)
    rows = {row["trial_id"]: row for row in rows_of(written_run)}
    assert set(rows) == {trial.trial_id for trial in record.trials}
    for trial_id, run in record.training.items():
        assert float(rows[trial_id]["loss"]) == pytest.approx(run.loss, abs=1e-6)
        assert int(rows[trial_id]["n_params"]) == run.architecture.num_parameters
    for trial_id in record.serving:
        assert rows[trial_id]["loss"] == ""
        assert float(rows[trial_id]["output_tokens_per_second"]) > 0


@pytest.mark.parametrize("law", ["chinchilla", "conditional"])
def test_table_is_read_by_archfleet_fit(written_run: Path, law: str) -> None:
    result = fit_table(read_runs_table(written_run / "runs.csv"), law)
    assert result["num_points"] > 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_table_that_cannot_be_written_leaves_the_old_one(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(read_record(run_copy))
    before = path.read_bytes()
    monkeypatch.setattr("coordinator.outputs._result_columns", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_table(read_record(run_copy))
    assert path.read_bytes() == before


def test_table_of_an_unfinished_run_holds_its_planned_trials(driver) -> None:
    driver.plan()
    driver.run_trial(driver.queued()[0])
    path = write_table(read_record(driver.store.run_directory))
    assert [row["state"] for row in rows_of(path.parent)].count("succeeded") == 1


def test_a_run_without_recommendation_gets_report_and_table_alone(store: Store) -> None:
    assert {path.name for path in write_outputs(store.run_directory)} == {"report.html", "runs.csv"}
    assert "none: no law could be fitted" in closing_words(store.run_directory)


def test_closing_words_give_the_answer_and_the_places(written_run: Path) -> None:
    words = closing_words(written_run)
    assert read_record(written_run).recommendation.sentence(simulated=False) in words
    assert str(written_run / "report.html") in words


def test_closing_words_tell_the_share_of_the_wanted_tokens_where_it_was_cut(run_copy: Path) -> None:
    assert "wanted tokens" not in closing_words(run_copy)
    with Store.resume(run_copy) as store:
        store.set_meta("token_scale", "0.33")
    assert "\nrecommendation: trained with 33% of the wanted tokens: " in closing_words(run_copy)


def test_every_measured_shape_has_a_name(written_run: Path) -> None:
    record = read_record(written_run)
    shapes = named_shapes(record)
    assert {"recommended", "baseline", "panda"} <= set(shapes)
    assert {o.architecture for o in record.serving.values()} <= set(shapes.values())


BUILD = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM

counts = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    counts[folder] = sum(parameter.numel() for parameter in model.parameters())
print(json.dumps(counts))
"""


def test_configs_build_in_transformers_with_exactly_the_counted_parameters(written_run: Path) -> None:
    pytest.importorskip("transformers")
    shapes = named_shapes(read_record(written_run))
    expected = {str(written_run / "architectures" / name): shape.num_total_parameters for name, shape in shapes.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", BUILD, *expected]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == expected
