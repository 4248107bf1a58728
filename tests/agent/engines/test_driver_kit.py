"""What the drivers share."""

import subprocess
import sys

import numpy as np
import pytest

from agent.engines import driver_kit
from agent.engines.base import DRIVERS, engine_named

REQUEST = {"batch_size": 64, "input_tokens": 64, "seed": 3}
KNOWN = ((0, 20), (0, 33))


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_runs_by_path_without_archfleet_and_hides_its_folder(name, tmp_path):
    for file in (engine_named(name).driver, engine_named(name).driver.with_name("driver_kit.py")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "interpreters.py").write_text("raise SystemExit('shadows')")
    look = "import importlib.util, runpy, sys; runpy.run_path(sys.argv[1]); " + (
        "sys.exit(importlib.util.find_spec('interpreters') is not None or 'agent' in sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", look, str(tmp_path / engine_named(name).driver.name)]
    assert subprocess.run(command, cwd="/", check=False).returncode == 0


def test_prompts_are_of_the_vocabulary_and_repeat_with_the_seed():
    prompts = driver_kit.random_token_ids(REQUEST, 300)
    assert (len(prompts), {len(each) for each in prompts}) == (64, {64})
    assert 0 <= min(map(min, prompts)) <= max(map(max, prompts)) == 299
    assert prompts == driver_kit.random_token_ids(REQUEST, 300)
    assert prompts != driver_kit.random_token_ids(REQUEST | {"seed": 4}, 300)


@pytest.mark.parametrize(("ids", "legal"), [([0, 299], 2), ([0, 300], 1), ([-1, 5], 1), ([], 0)])
def test_tokens_outside_the_vocabulary_do_not_count(ids, legal):
    assert driver_kit.num_legal(ids, 300) == legal


@pytest.mark.parametrize("version", ["0.20.0", "0.32.0", "0.33.1rc2"])
def test_known_versions_raise_no_doubt(version):
    assert driver_kit.version_doubts("vLLM", version, KNOWN) == {}


@pytest.mark.parametrize("version", ["0.19.3", "0.34.0", "1.0.0", "dev", "0.x"])
def test_an_unknown_version_is_a_flag_with_a_sentence(version):
    (flag,), (sentence,) = zip(*driver_kit.version_doubts("vLLM", version, KNOWN).items(), strict=True)
    assert flag == "unknown-engine-version"
    assert sentence == f"vLLM {version} is not among 0.20 to 0.33, whose names are known; tried all the same"


def test_a_name_is_the_latest_that_the_version_has():
    names = {"word": (((0, 20), "old"), ((0, 25), "new"))}
    found = [driver_kit.name_in(names, version, "word") for version in ("0.19.0", "0.24.9", "0.25.0", "0.40.0", "dev")]
    assert found == ["old", "old", "new", "new", "new"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out-of-memory"),
        (ValueError("No available memory for the cache blocks."), "out-of-memory"),
        (RuntimeError("CUDA error: an illegal memory access"), "hardware"),
        (ImportError("libcudart.so.13"), "engine-start"),
        (NotImplementedError("Head size 20 is not supported by CPU attention."), "validation"),
        (RuntimeError("this head size is not supported"), "validation"),
        (RuntimeError("scheduler stopped"), "unknown"),
    ],
)
def test_errors_are_classified(error, kind):
    assert driver_kit.failure_kind(error) == kind


def test_a_refusal_is_a_validation_failure_whatever_its_words():
    refusal = driver_kit.RefusedError("not enough memory is\n no word of the engine's")
    assert driver_kit.failure_kind(refusal) == "validation"
    assert driver_kit.own_words(refusal) == "not enough memory is no word of the engine's"


def test_percentiles_lie_linearly_between_order_statistics():
    found = driver_kit.percentiles([3.0, 1.0, 2.0])
    assert found == {f"p{level}": pytest.approx(np.quantile([1, 2, 3], level / 100)) for level in (50, 90, 99)}
