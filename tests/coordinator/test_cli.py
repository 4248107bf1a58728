"""The command: every help has an example, every mistake one message and exit status 2, JSON on request."""

import json
import sqlite3
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from coordinator.cli import main
from coordinator.store import FILE_NAME, SCHEMA_VERSION


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
    return found


def archfleet(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def mistake(*arguments: object) -> str:
    """The one message of a command that must end with exit status 2 and no traceback."""
    result = archfleet(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    lines = ["n_params,n_tokens,loss"]
    for n in (1e8, 3e8, 1e9, 3e9):
        for ratio in (5, 20, 60):
            d = n * ratio
            lines.append(f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def runs(run_copy: Path) -> Path:
    return run_copy.parent


def test_version() -> None:
    from coordinator.version import version

    assert version() in archfleet("--version").output


@pytest.mark.parametrize("path", [(), *commands(main)], ids=" ".join)
def test_help_has_an_example_of_the_command_itself(path: tuple[str, ...]) -> None:
    result = archfleet(*path, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"  archfleet {' '.join(path)}".rstrip() in result.output.split("Examples:")[1]


HEAVY = ("ray", "torch", "transformers", "matplotlib", "prometheus_client", "pydantic", "numpy", "scipy", "fastapi")


def test_importing_the_command_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = f"import sys, coordinator.cli; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


# run


def test_run_of_an_unknown_study(tmp_path: Path) -> None:
    message = mistake("run", "labtop", "--runs", tmp_path)
    assert "'labtop'" in message
    assert "laptop, quick" in message
    assert list(tmp_path.iterdir()) == []


def test_run_of_a_misspelt_study(tmp_path: Path) -> None:
    from coordinator.study import shipped_studies

    file = tmp_path / "mine.toml"
    file.write_text(shipped_studies()["quick"].read_text().replace("num_rounds", "num_round"))
    message = mistake("run", file, "--runs", tmp_path / "runs")
    assert "fit.num_round" in message
    assert not (tmp_path / "runs").exists()


def test_run_of_an_impossible_space_leaves_nothing(tmp_path: Path) -> None:
    from coordinator.study import shipped_studies

    file = tmp_path / "mine.toml"
    file.write_text(
        shipped_studies()["quick"].read_text().replace("hidden_multiple_of = 4", "hidden_multiple_of = 4096")
    )
    assert "no legal architecture" in mistake("run", file, "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("port", [-1, 65_536])
def test_run_with_a_port_that_cannot_exist(tmp_path: Path, port: int) -> None:
    assert "--metrics-port" in mistake("run", "--quick", "--runs", tmp_path, "--metrics-port", port)
    assert list(tmp_path.iterdir()) == []


def test_run_with_a_port_in_use_leaves_nothing(tmp_path: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = archfleet("run", "--quick", "--runs", tmp_path, "--metrics-port", port)
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_run_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    assert "cannot write to" in mistake("run", "--quick", "--runs", tmp_path / "runs")


def test_run_of_a_missing_corpus_leaves_nothing(tmp_path: Path) -> None:
    from coordinator.study import shipped_studies

    file = tmp_path / "mine.toml"
    text = shipped_studies()["quick"].read_text().replace("[corpus]", f'[corpus]\nsource = "{tmp_path}/nowhere"')
    file.write_text(text)
    result = archfleet("run", file, "--runs", tmp_path / "runs", "--metrics-port", 0)
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
    assert not list((tmp_path / "runs").iterdir())


# status and report


def test_status_of_the_last_run(runs: Path) -> None:
    result = archfleet("status", "--runs", runs)
    assert result.exit_code == 0
    assert "study quick, finished" in result.output


def test_status_as_json(runs: Path) -> None:
    assert json.loads(archfleet("status", "--runs", runs, "--json").stdout)["state"] == "finished"


def test_status_without_any_run(tmp_path: Path) -> None:
    assert "archfleet run" in mistake("status", "--runs", tmp_path)


def test_status_of_an_unknown_run_lists_the_known_ones(runs: Path, run_copy: Path) -> None:
    assert run_copy.name in mistake("status", "nothing", "--runs", runs)


def test_status_of_a_newer_run(runs: Path, run_copy: Path) -> None:
    with sqlite3.connect(run_copy / FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    assert "newer archfleet" in mistake("status", "--runs", runs)


def test_status_of_a_damaged_store(runs: Path, run_copy: Path) -> None:
    path = run_copy / FILE_NAME
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    message = mistake("status", "--runs", runs)
    assert str(path) in message


def test_report_names_the_files_it_wrote(runs: Path, run_copy: Path) -> None:
    result = archfleet("report", "--runs", runs)
    assert result.exit_code == 0
    assert (run_copy / "runs.csv").is_file()
    assert str(run_copy / "runs.csv") in result.output


# fit


def test_fit_as_json_has_the_promised_keys(table: Path) -> None:
    result = json.loads(archfleet("fit", table, "--json").stdout)
    assert {"coefficients", "objective", "converged", "messages"} <= set(result)
    assert result["coefficients"]["alpha"] == pytest.approx(0.34, rel=0.05)


def test_fit_for_people(table: Path) -> None:
    result = archfleet("fit", table)
    assert result.exit_code == 0
    assert "alpha" in result.output


def test_conditional_fit_of_a_runs_own_table_has_optima_with_intervals(written_run: Path) -> None:
    result = json.loads(archfleet("fit", written_run / "runs.csv", "--law", "conditional", "--json").stdout)
    assert {"coefficients", "objective", "converged", "messages"} <= set(result)
    for optimum in (result["x_opt"], result["r_opt"]):
        assert optimum["low"] <= optimum["value"] <= optimum["high"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "is empty"), ("n_params,loss\n1,2\n3,4\n", "n_tokens"), ("n_params,n_tokens,loss\n1,2,x\n3,4,5\n", "'x'")],
)
def test_fit_of_a_bad_table(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    message = mistake("fit", path)
    assert expected in message
    assert "bad.csv" in message


def test_fit_of_a_missing_table(tmp_path: Path) -> None:
    assert "cannot be read" in mistake("fit", tmp_path / "none.csv")


def test_fit_of_an_unknown_law(table: Path) -> None:
    assert "'kaplan'" in mistake("fit", table, "--law", "kaplan")


# predict, bench, hw


def test_predict_labels_itself_predicted() -> None:
    result = archfleet("predict", "llama-3.2-1b", "--hardware", "h200", "--batch", "128")
    assert result.exit_code == 0
    assert "PREDICTED" in result.output
    assert "uncalibrated" in result.output


def test_predict_as_json_labels_every_number() -> None:
    rows = json.loads(archfleet("predict", "llama-3.2-1b", "--batch", "128..512", "--json").stdout)
    assert [row["workload"]["batch_size"] for row in rows] == [128, 256, 512]
    assert {row["output_tokens_per_second"]["kind"] for row in rows} == {"predicted"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nothing-9b",), "nothing-9b"),
        (("llama-3.2-1b", "--hardware", "h900"), "h900"),
        (("llama-3.2-1b", "--batch", "many"), "many"),
        (("llama-3.2-1b", "--batch", "0"), "0"),
        (("llama-3.2-1b", "--input-tokens", "0"), "--input-tokens"),
    ],
)
def test_predict_of_nonsense(arguments: tuple[str, ...], expected: str) -> None:
    assert expected in mistake("predict", *arguments)


def test_predict_reads_the_configs_a_run_wrote(written_run: Path) -> None:
    config = written_run / "architectures" / "recommended" / "config.json"
    assert archfleet("predict", config, "--hardware", "a100-80gb", "--batch", "128").exit_code == 0


def test_predict_of_a_damaged_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": ')
    assert "config.json" in mistake("predict", path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nothing-9b",), "nothing-9b"),
        (("llama-3.2-1b", "--engine", "tensorrt"), "expected one of: transformers, vllm, sglang, fake"),
        (("llama-3.2-1b", "--batch", "many"), "'many'"),
        (("llama-3.2-1b", "--engine", "fake", "--batch", "4096", "--input-tokens", "1000000"), "does not fit"),
        (("llama-3.2-3b", "--batch", "4096", "--input-tokens", "100000"), "need at least"),
        (("llama-3.2-1b", "--window-seconds", "0"), "--window-seconds"),
        (("llama-3.2-1b", "--quantization", "fp8"), "runs here on one device, with unquantised weights"),
        (("llama-3.2-1b", "--kv-cache-dtype", "int2"), "'int2' is not one of"),
        (("llama-3.2-1b", "--engine", "vllm", "--quantization", "awq"), "belongs to a quantised checkpoint"),
        (("llama-3.2-1b", "--engine", "vllm", "--tensor-parallel-size", "64"), "wants as many GPUs"),
        (("llama-3.2-1b", "--engine", "fake", "--quantization", "fp7"), "how many bits a weight has"),
        (("llama-3.2-1b", "--engine", "fake", "--tensor-parallel-size", "2"), "no link between devices"),
    ],
)
def test_bench_of_nonsense_ends_before_anything_is_written(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    assert expected in mistake("bench", *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


DENSE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe' is not a dense Llama-style decoder"),
        ({"model_type": "bert"}, "model_type 'bert' is not"),
        ({"model_type": None}, "model_type None is not"),
        ({"num_local_experts": 8}, "num_local_experts = 8: only dense"),
        ({"n_routed_experts": 64}, "n_routed_experts = 64: only dense"),
        ({"vision_config": {"hidden_size": 8}}, "vision_config = "),
        ({"is_encoder_decoder": True}, "is_encoder_decoder = True: only dense"),
        ({"quantization_config": {"quant_method": "awq"}}, "name a quantisation that the engine makes at load"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 16}, "must be a multiple of"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "there is no head_dim; give head_dim"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("command", ["bench", "predict"])
def test_configs_of_other_kinds_end_before_anything_is_started(command, changes, expected, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DENSE | changes))
    assert expected in mistake(command, tmp_path)


def test_bench_tells_the_workload_that_it_takes(tmp_path: Path) -> None:
    result = archfleet("bench", "qwen3-0.6b", "--engine", "fake", "--repeats", 2, "--batch", 1, "--out", tmp_path)
    assert "workload: 32 input / 32 output tokens, batch 1, float32; 2 engine starts" in result.stderr
    assert "on a GPU --input-tokens 1024 --output-tokens 1024 --batch 128..4096" in result.stderr


def test_bench_with_the_fake_engine_says_that_it_is_no_measurement(tmp_path: Path) -> None:
    result = archfleet("bench", "llama-3.2-1b", "--engine", "fake", "--repeats", 2, "--batch", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "FAKE" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.html"}


def test_bench_as_json_prints_what_it_writes(tmp_path: Path) -> None:
    shapes = ("llama-3.2-1b", "qwen3-0.6b")
    result = archfleet("bench", *shapes, "--engine", "fake", "--batch", "1,2", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "bench.json").read_text())
    assert [comparison["batch_size"] for comparison in printed["comparisons"]] == [1, 1, 2, 2]
    assert "faster" in result.stderr


def test_hw_list_as_json_gives_every_figure_with_its_source() -> None:
    profiles = json.loads(archfleet("hw", "list", "--json").stdout)
    assert {"a100-40gb", "a100-80gb", "h100-sxm", "h200", "cpu-generic"} <= {profile["id"] for profile in profiles}
    assert all(profile["provenance"] for profile in profiles)


def test_hw_list_for_people_shows_every_profile() -> None:
    result = archfleet("hw", "list")
    assert "h200" in result.output
    assert "not attainable" in result.output
