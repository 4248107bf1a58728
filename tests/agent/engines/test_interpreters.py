"""Which interpreter runs an engine, and what is said where it lacks the engine."""

import subprocess
import sys

import pytest

from agent.engines.base import DRIVERS
from agent.engines.interpreters import IMPORTS, EngineMissingError, find_engine, find_interpreter, variable_of
from agent.failures import classify


@pytest.fixture
def config_file(tmp_path):
    """Writes an engines.toml; its path."""

    def write(text):
        file = tmp_path / "engines.toml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def bare_python(tmp_path):
    """A real interpreter without site-packages: it has no engine."""
    script = tmp_path / "bare-python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_every_driver_says_what_it_imports():
    assert set(IMPORTS) == set(DRIVERS)


def test_this_interpreter_runs_what_nothing_names(tmp_path):
    found = find_interpreter("vllm", environment={}, config_file=tmp_path / "none.toml")
    assert (found.python, found.named_by) == (sys.executable, "this interpreter")


def test_the_file_names_an_interpreter_for_one_engine_alone(config_file):
    file = config_file('[vllm]\npython = "/opt/vllm/bin/python"\n')
    found = find_interpreter("vllm", environment={}, config_file=file)
    assert (found.python, found.named_by) == ("/opt/vllm/bin/python", f"named by {file}")
    assert find_interpreter("transformers", environment={}, config_file=file).python == sys.executable


def test_the_environment_wins_over_the_file(config_file):
    file = config_file('[vllm]\npython = "/opt/vllm/bin/python"\n')
    found = find_interpreter("vllm", environment={"ARCHFLEET_VLLM_PYTHON": "/mine/python"}, config_file=file)
    assert (found.python, found.named_by) == ("/mine/python", "named by ARCHFLEET_VLLM_PYTHON")


def test_an_empty_variable_names_nothing(tmp_path):
    found = find_interpreter("vllm", environment={"ARCHFLEET_VLLM_PYTHON": " "}, config_file=tmp_path / "none.toml")
    assert found.python == sys.executable


def test_the_link_of_a_virtual_environment_is_not_followed(tmp_path):
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    found = find_interpreter("vllm", environment={"ARCHFLEET_VLLM_PYTHON": str(link)})
    assert found.python == str(link)


def test_a_relative_interpreter_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_interpreter("vllm", environment={"ARCHFLEET_VLLM_PYTHON": "env/bin/python"})
    assert found.python == str(tmp_path / "env/bin/python")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[vllm", r'not TOML: .*expected \[vllm\] and python = "/path/to/python"'),
        ('[vlm]\npython = "/p"', r"unknown engine \[vlm\]; expected one of: transformers, vllm, sglang, fake"),
        ('vllm = "/p"', r"\[vllm\] is '/p'; expected exactly: python = "),
        ('[vllm]\npath = "/p"', r"\[vllm\] is \{'path': '/p'\}; expected exactly"),
        ("[vllm]\npython = 3", r"expected exactly: python"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_reason(config_file, text, message):
    file = config_file(text)
    with pytest.raises(ValueError, match=message) as refusal:
        find_interpreter("vllm", environment={}, config_file=file)
    assert str(refusal.value).startswith(str(file))


def test_an_engine_that_is_not_installed_says_how_to_name_its_interpreter(bare_python):
    with pytest.raises(EngineMissingError) as refusal:
        find_engine("vllm", environment={variable_of("vllm"): bare_python})
    text = str(refusal.value)
    assert f"engine 'vllm' is not installed in {bare_python} (named by ARCHFLEET_VLLM_PYTHON)" in text
    assert "it lacks torch and vllm" in text
    assert "`make engines` makes one" in text
    assert "ARCHFLEET_VLLM_PYTHON=/path/to/python" in text
    assert '[vllm] python = "..." in ~/.config/archfleet/engines.toml' in text
    assert classify(refusal.value) == "engine-start"


@pytest.mark.parametrize(
    ("python", "reason"), [("/nowhere/python", "No such file"), ("/bin/false", "non-zero exit status 1")]
)
def test_an_interpreter_that_does_not_run_is_named_with_the_reason(python, reason):
    with pytest.raises(EngineMissingError, match=f"'vllm', {python} .*does not run: .*{reason}"):
        find_engine("vllm", environment={"ARCHFLEET_VLLM_PYTHON": python})


def test_an_engine_is_found_in_the_interpreter_that_has_it(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    engine = find_engine("fake", environment={"ARCHFLEET_FAKE_PYTHON": python})
    assert engine.command(tmp_path)[0] == python


def test_an_unknown_engine_is_refused_whatever_is_configured():
    with pytest.raises(ValueError, match="unknown engine 'tgi'"):
        find_engine("tgi", environment={variable_of("tgi"): sys.executable})
