import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.assignment import TrainAssignment
from agent.corpus.manifest import CorpusManifest
from scaling.observations import Failure, TrainingObservation


@pytest.fixture
def file(assignment: TrainAssignment, tmp_path: Path) -> Path:
    path = tmp_path / "train.json"
    path.write_text(assignment.model_dump_json())
    return path


def test_one_assignment_is_run_alone(
    file: Path, assignment: TrainAssignment, blob_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(file), "--blobs", str(blob_directory)]) == 0
    printed = capsys.readouterr()
    assert TrainingObservation.model_validate_json(printed.out).assignment_id == assignment.id
    assert "loss" in printed.err
    assert "tokens/s" in printed.err


def test_json_is_one_line_without_progress(
    file: Path, blob_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(file), "--blobs", str(blob_directory), "--json"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert printed.err == ""


def test_a_failure_is_printed_as_json_too(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["run", str(file), "--blobs", str(tmp_path / "empty"), "--json"]) == 1
    printed = capsys.readouterr()
    assert Failure.model_validate_json(printed.out).failure_kind == "validation"
    assert printed.err.startswith("validation: blob ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is not an assignment"),
        ("[1, 2", "is not an assignment"),
        ('{"kind": "bake"}', "'bake'"),
        ('{"kind": "train", "corpus_id": "0"}', "architecture: Field required"),
    ],
)
def test_a_bad_file_is_one_clear_message(
    content: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text(content)
    assert main(["run", str(tmp_path / "bad.json"), "--blobs", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert complaint in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_missing_file_and_a_missing_blob_folder_are_named(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main(["run", str(file)]) == 2
    assert "add --blobs DIR" in capsys.readouterr().err
    assert main(["run", str(file), "--blobs", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_corpus_command_prints_the_id_of_the_manifest_it_wrote(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["corpus", "--out", str(tmp_path / "blobs"), "--source", str(texts), "--vocab-size", "300"]
    assert main(arguments) == 0
    corpus_id = capsys.readouterr().out.strip()
    manifest = CorpusManifest.model_validate_json((tmp_path / "blobs" / corpus_id).read_bytes())
    assert manifest.content_hash() == corpus_id


def test_help_shows_an_assignment_that_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    example, _ = json.JSONDecoder().raw_decode(shown[shown.index('{"kind": "train"') :])
    assert TrainAssignment.model_validate(example).recipe.num_tokens == 1_000_000


def test_a_process_killed_while_training_goes_on_from_its_checkpoint(
    assignment: TrainAssignment, blob_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = assignment.recipe.model_copy(update={"num_tokens": 51_200})
    eager = assignment.model_copy(update={"recipe": recipe, "checkpoint_every_seconds": 0.1})
    path, work = tmp_path / "train.json", tmp_path / "work"
    path.write_text(eager.model_dump_json())
    run = ["run", str(path), "--blobs", str(blob_directory), "--json", "--work"]
    commit = work / "checkpoints" / eager.id / "checkpoint.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", *run, str(work)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not commit.exists() and process.poll() is None:
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert main([*run, str(work)]) == 0
    resumed = TrainingObservation.model_validate_json(capsys.readouterr().out)
    assert main([*run, str(tmp_path / "elsewhere")]) == 0
    straight = TrainingObservation.model_validate_json(capsys.readouterr().out)
    assert (resumed.num_resumes, straight.num_resumes) == (1, 0)
    assert resumed.window_losses == straight.window_losses
