"""`archfleet guard`: what it trains, that it goes on where it stopped, and what it tells."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.assignment import TrainAssignment
from coordinator import guard as guard_module
from coordinator.cli import main
from coordinator.errors import UserError
from coordinator.guard import (
    FACTORS,
    Guard,
    guard_directory,
    guard_sentences,
    guard_table,
    guarded_shapes,
    is_kept,
    plan_guard,
    run_guard,
)
from coordinator.study import ReferenceSpec, StudySpec
from scaling.observations import Failure

CORPUS_ID = "c" * 64


@pytest.fixture
def no_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained here, so no corpus is built."""
    monkeypatch.setattr(guard_module, "_corpus", lambda *_: CORPUS_ID)


@pytest.fixture
def what(study: StudySpec) -> Guard:
    return plan_guard(study, num_seeds=2)


class FakeRun:
    """Trains in the test's world; shapes whose MLP is narrower than `narrow` gain `gain` nats at the lower rate."""

    def __init__(self, world, rate: float, *, narrow: int = 0, gain: float = 0.0, stop_after: int = 10**9) -> None:
        self.world, self.rate, self.narrow, self.gain, self.stop_after = world, rate, narrow, gain, stop_after
        self.trained: list[str] = []

    def __call__(self, assignments: Sequence[TrainAssignment], done, stop_requested: Callable[[], bool]) -> None:
        for assignment in assignments:
            if len(self.trained) == self.stop_after:
                return
            self.trained.append(assignment.id)
            run = self.world.train(assignment)
            off = assignment.recipe.base_learning_rate / self.rate
            change = 0.05 if off > 1.1 else 0.01 if off < 0.9 else 0.0
            if off < 0.9 and assignment.architecture.intermediate_size <= self.narrow:
                change = -self.gain
            windows = tuple(loss + change for loss in run.window_losses)
            done(run.model_copy(update={"loss": run.loss + change, "window_losses": windows}))


def run(what: Guard, directory: Path, trained: FakeRun):
    seen: list[tuple[int, int]] = []
    result = run_guard(
        what,
        directory,
        run=trained,
        say=lambda _: None,
        progress=lambda done, total: seen.append((done, total)),
        stop_requested=lambda: False,
    )
    return result, seen


def test_the_guard_looks_at_the_studys_smallest_size_at_the_ratio_of_its_fit(study: StudySpec) -> None:
    assert plan_guard(study, num_seeds=1).cell == (25e3, 4)
    smaller = study.model_copy(
        update={"reference": (ReferenceSpec(num_parameters=20e3, ratios=(2, 8)), *study.reference)}
    )
    assert plan_guard(smaller, num_seeds=1).cell == (20e3, 8)  # the fit's ratio 4 is not among its own


def test_the_shapes_are_the_centre_and_the_extremes_of_every_fan_in(study: StudySpec) -> None:
    from coordinator.shapes import candidates_at, centre_shape

    shapes = [shape for shape, _ in guarded_shapes(study, 25e3)]
    candidates = candidates_at(study, 25e3)
    assert shapes[0] == centre_shape(study, 25e3)
    assert len(set(shapes)) == len(shapes)
    for name, column in (("hidden_size", candidates.hidden_size), ("intermediate_size", candidates.intermediate_size)):
        found = {getattr(shape, name) for shape in shapes}
        assert {column.min(), column.max()} <= found
    widths = candidates.num_attention_heads * candidates.head_dim
    assert {widths.min(), widths.max()} <= {shape.query_width for shape in shapes}


def test_every_shape_trains_at_every_factor_with_every_seed_and_nothing_else_changes(what: Guard) -> None:
    runs = what.assignments(0, CORPUS_ID)
    assert set(runs) == set(FACTORS) == {0.7, 1.0, 1.4}
    base = runs[1.0][0]
    assert base.recipe == what.recipe
    for factor, by_seed in runs.items():
        for seed, one in enumerate(by_seed):
            as_base = {"base_learning_rate": base.recipe.base_learning_rate, "seed": 0}
            assert one.recipe.base_learning_rate == pytest.approx(factor * base.recipe.base_learning_rate)
            assert one.recipe.seed == seed
            assert one.model_copy(update={"recipe": one.recipe.model_copy(update=as_base)}) == base


def test_a_guard_of_one_kind_of_matrix_shares_the_runs_at_the_studys_own_rate(study: StudySpec, what: Guard) -> None:
    hidden = plan_guard(study, num_seeds=2, kind="hidden").assignments(0, CORPUS_ID)
    base = what.assignments(0, CORPUS_ID)
    assert hidden[1.0] == base[1.0]
    assert hidden[0.7][0].recipe.base_fan_ins.hidden == round(0.7 * what.recipe.base_fan_ins.hidden)
    assert hidden[0.7][0].recipe.base_learning_rate == what.recipe.base_learning_rate


@pytest.mark.usefixtures("no_corpus")
def test_a_planted_gain_of_narrow_shapes_is_found_and_what_to_change_is_said(
    what: Guard, make_world, tmp_path: Path
) -> None:
    trained = FakeRun(make_world(noise_sd=0.001), what.recipe.base_learning_rate, narrow=24, gain=0.02)
    result, seen = run(what, tmp_path, trained)
    assert result is not None
    narrow = {shape["architecture"]["intermediate_size"] <= 24: shape["outcome"] for shape in result["shapes"]}
    assert narrow == {True: "off", False: "holds"}
    assert not is_kept(result)
    assert any("it learns too fast; archfleet guard --kind" in sentence for sentence in guard_sentences(result))
    assert seen[0] == (0, len(what.shapes) * 6)
    assert seen[-1] == (len(what.shapes) * 6, len(what.shapes) * 6)
    json.dumps(result, allow_nan=False)


@pytest.mark.usefixtures("no_corpus")
def test_a_study_whose_rate_suits_all_shapes_is_kept(what: Guard, make_world, tmp_path: Path) -> None:
    result, _ = run(what, tmp_path, FakeRun(make_world(noise_sd=0.001), what.recipe.base_learning_rate))
    assert result is not None
    assert is_kept(result)
    assert {shape["outcome"] for shape in result["shapes"]} == {"holds"}
    table = guard_table(result)
    assert table.row_count == len(what.shapes)
    assert [str(column.header) for column in table.columns][-3:] == ["gain at 0.7x", "gain at 1.4x", "verdict"]


@pytest.mark.usefixtures("no_corpus")
def test_a_stopped_guard_goes_on_with_what_it_has(what: Guard, world, tmp_path: Path) -> None:
    rate = what.recipe.base_learning_rate
    first = FakeRun(world, rate, stop_after=7)
    assert run(what, tmp_path, first)[0] is None
    second = FakeRun(world, rate)
    result, seen = run(what, tmp_path, second)
    assert seen[0][0] == 7
    assert not set(first.trained) & set(second.trained)
    whole, _ = run(what, tmp_path / "whole", FakeRun(world, rate))
    assert result == whole


@pytest.mark.usefixtures("no_corpus")
def test_more_seeds_add_to_what_is_kept(study: StudySpec, what: Guard, world, tmp_path: Path) -> None:
    rate = what.recipe.base_learning_rate
    run(what, tmp_path, FakeRun(world, rate))
    more = FakeRun(world, rate)
    run(plan_guard(study, num_seeds=3), tmp_path, more)
    assert len(more.trained) == len(what.shapes) * 3


@pytest.mark.usefixtures("no_corpus")
def test_a_corrupt_result_is_trained_again(what: Guard, world, tmp_path: Path) -> None:
    rate = what.recipe.base_learning_rate
    result, _ = run(what, tmp_path, FakeRun(world, rate))
    victim = sorted((tmp_path / "observations").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:100])
    again = FakeRun(world, rate)
    assert run(what, tmp_path, again)[0] == result
    assert again.trained == [victim.stem]


@pytest.mark.usefixtures("no_corpus")
def test_a_run_that_fails_for_another_reason_than_its_rate_ends_the_guard(what: Guard, world, tmp_path: Path) -> None:
    def fails(assignments, done, _stop) -> None:
        done(world.failure(assignments[0].id, "out-of-memory"))

    with pytest.raises(UserError, match=r"a run of the guard failed \(out-of-memory\)"):
        run(what, tmp_path, fails)


@pytest.mark.usefixtures("no_corpus")
def test_a_diverged_run_is_a_result(what: Guard, world, tmp_path: Path) -> None:
    def all_diverge(assignments, done, _stop) -> None:
        for one in assignments:
            failure: Failure = world.failure(one.id, "nan-loss")
            done(failure)

    result, _ = run(what, tmp_path, all_diverge)
    assert {shape["outcome"] for shape in result["shapes"]} == {"diverged"}
    assert guard_table(result).row_count == len(what.shapes)
    assert "not known" in guard_sentences(result)[-1]


@pytest.mark.usefixtures("no_corpus")
def test_the_command_prints_a_table_or_json_and_tells_by_its_status(
    what: Guard, make_world, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeRun(make_world(noise_sd=0.001), what.recipe.base_learning_rate, narrow=24, gain=0.02)
    monkeypatch.setattr(guard_module, "Processes", lambda *_: fake)
    out = ["guard", "quick", "--jobs", "1", "--out", str(tmp_path / "guard")]
    told = CliRunner().invoke(main, out)
    assert told.exit_code == 1
    assert "gain at 0.7x" in told.stdout
    assert "archfleet guard --kind hidden" in told.stdout
    as_json = CliRunner().invoke(main, [*out, "--json"])
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["study"] == "quick"


def test_folders_of_different_studies_differ(study: StudySpec) -> None:
    faster = study.model_copy(update={"training": study.training.model_copy(update={"base_learning_rate": 0.016})})
    assert guard_directory(study).name.startswith("guard-quick-")
    assert guard_directory(study) != guard_directory(faster)


@pytest.mark.slow
def test_a_real_guard_is_stopped_by_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coordinator.cli", "guard", "quick", "--seeds", "1", "--token-scale", "0.06"]
    command += ["--jobs", "1", "--out", "guard", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    kept = tmp_path / "guard" / "observations"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with start() as first:
        deadline = time.monotonic() + 300
        while not (kept.is_dir() and any(kept.glob("train-*.json"))) and time.monotonic() < deadline:
            assert first.poll() is None
            time.sleep(0.2)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert "stopped; the same command goes on with guard" in said
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    with start() as second:
        printed, said = second.communicate(timeout=600)
    assert second.returncode in (0, 1), said
    assert len(json.loads(printed)["shapes"]) == 5
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}.items()
