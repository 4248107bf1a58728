"""`archfleet recommend`: the shipped synthetic table gives the shapes of its known law; every fault is one sentence."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator.recommend_from_runs import recommend_from_runs, recommendation_table
from coordinator.runs_table import RunsTable, read_runs_table
from scaling.architecture import Architecture
from scaling.law import ConditionalLaw
from scaling.named import named_architecture
from scaling.recipes import Workload

DATA = Path(__file__).parents[1] / "data"
TABLE = DATA / "paper_like_runs.csv"
TRUTH = ConditionalLaw(a=(2.697, 0.0974, 0.0078), b=(0.387, 0.0063, 0.0065))
LLAMA = named_architecture("llama-3.2-1b")


def recommended(table: RunsTable | None = None, **changes: Any) -> dict[str, Any]:
    asked = {"n": 1e9, "tokens": 100e9, "baseline": "llama-3.2-1b", "hardware": "h200"}
    result = recommend_from_runs(table or read_runs_table(TABLE), **{**asked, **changes})
    assert json.loads(json.dumps(result, allow_nan=False))
    return result


def role(result: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = (row for row in result["shapes"] if name in row["roles"])
    return row


def lines() -> list[str]:
    return [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]


def table_of(path: Path, rows: list[str]) -> RunsTable:
    file = path / "runs.csv"
    file.write_text("\n".join(rows))
    return read_runs_table(file)


def true_excess(shape: Architecture) -> float:
    assert TRUTH.x_opt is not None
    assert TRUTH.r_opt is not None
    lowest = TRUTH.predict(TRUTH.x_opt, TRUTH.r_opt, 1.0)
    return float(TRUTH.predict(shape.width_ratio, shape.mlp_attention_ratio, 1.0) / lowest) - 1


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    return recommended()


def test_the_shipped_table_is_what_its_script_writes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_paper_like_runs", DATA / "make_paper_like_runs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_text() == TABLE.read_text()
    assert TABLE.read_text().startswith("# SYNTHETIC")


def test_panda_is_near_the_known_optimum_and_better_than_the_baseline(answer: dict[str, Any]) -> None:
    panda = role(answer, "panda")
    shape = Architecture.model_validate(panda["architecture"])
    assert abs(shape.num_parameters / 1e9 - 1) <= 0.03
    # The best legal shape is at 0 %; the baseline's true excess is 1.3 %.
    assert true_excess(shape) < 0.0005
    assert panda["loss_against_baseline"]["verdict"] == "better"


def test_the_predicted_level_holds_the_known_one(answer: dict[str, Any]) -> None:
    interval = role(answer, "baseline")["predicted_loss"]["interval"]
    level = 2.2 + 482 / LLAMA.num_parameters**0.348 + 2085 / 100e9**0.366
    truth = float(TRUTH.predict(LLAMA.width_ratio, LLAMA.mlp_attention_ratio, level))
    assert interval["low"] < truth < interval["high"]
    assert answer["loss_unit"] == "nats/token"


def test_the_baseline_is_the_model_itself_where_its_size_is_the_targets(answer: dict[str, Any]) -> None:
    assert Architecture.model_validate(role(answer, "baseline")["architecture"]) == LLAMA
    other = recommended(n=5e8, tokens=5e10)
    shape = Architecture.model_validate(role(other, "baseline")["architecture"])
    assert abs(shape.num_parameters / 5e8 - 1) <= 0.03
    assert any("the legal shape at N = 5e+08" in reason for reason in other["reasons"])


def test_surefire_is_faster_and_keeps_the_limit(answer: dict[str, Any]) -> None:
    surefire = role(answer, "surefire")
    assert surefire["throughput_over_baseline"] > 1.05
    assert surefire["probability_within_limit"] >= answer["probability_wanted"]
    assert true_excess(Architecture.model_validate(surefire["architecture"])) < true_excess(LLAMA)
    assert surefire["throughput"]["kind"] == "predicted"
    assert "uncalibrated" in surefire["throughput"]["basis"]


def test_the_front_has_no_shape_that_another_beats(answer: dict[str, Any]) -> None:
    front = [
        (row["predicted_loss"]["value"], -row["throughput"]["value"])
        for row in answer["shapes"]
        if "front" in row["roles"]
    ]
    assert len(front) > 5
    for loss, slowness in front:
        assert not any(other != (loss, slowness) and other[0] <= loss and other[1] <= slowness for other in front)


def test_the_configs_are_those_of_the_shapes(answer: dict[str, Any]) -> None:
    assert set(answer["configs"]) == {"panda", "surefire", "baseline"}
    for name, config in answer["configs"].items():
        shape = Architecture.model_validate(role(answer, name)["architecture"])
        assert Architecture.from_hf_config(config) == shape


def test_the_grouped_query_search_says_that_its_losses_are_not_known(answer: dict[str, Any]) -> None:
    search = answer["grouped_query_search"]
    surefire = Architecture.model_validate(role(answer, "surefire")["architecture"])
    chosen = Architecture.model_validate(search["chosen"])
    assert Architecture.model_validate(search["steps"][0]["architecture"]) == surefire
    assert chosen.num_parameters == surefire.num_parameters
    assert chosen.num_key_value_heads < surefire.num_key_value_heads
    assert not search["loss_known"]
    assert any("its loss is not known" in reason for reason in answer["reasons"])


def test_one_extra_run_is_named_with_its_chance_and_cost(answer: dict[str, Any]) -> None:
    extra = answer["extra_run"]
    assert 0 < extra["probability_of_change"] <= 1
    flops = 6 * extra["num_parameters"] * extra["num_tokens"]
    assert extra["seconds"] == pytest.approx(flops / (0.4 * 989.5e12), rel=0.01)
    shape = Architecture.model_validate(extra["architecture"])
    assert abs(shape.num_parameters / extra["num_parameters"] - 1) <= 0.03
    assert shape.mlp_attention_ratio == pytest.approx(extra["r"], rel=0.1)


def test_where_no_level_can_be_told_losses_are_relative_to_the_baseline(tmp_path: Path) -> None:
    # All at 100 tokens a parameter: off that line nothing is known of L_opt.
    rows = [line for line in lines() if line.split(",")[7] not in ("1600000000", "2900000000", "5940000000")]
    answer = recommended(table_of(tmp_path, rows), n=1e9, tokens=5e9)
    assert answer["loss_unit"] == "L_opt"
    assert "off that line" in answer["loss_level_not_predicted_because"]
    assert any("relative to L_opt" in reason for reason in answer["reasons"])
    panda = role(answer, "panda")
    assert panda["predicted_loss"]["value"] == pytest.approx(1.0, abs=0.01)
    assert panda["loss_against_baseline"]["difference"] == pytest.approx(-true_excess(LLAMA), abs=0.003)
    drawn(answer)


def drawn(answer: dict[str, Any]) -> str:
    console = Console(width=250, record=True)
    console.print(recommendation_table(answer))
    return console.export_text()


def test_the_table_for_people_says_that_all_is_predicted(answer: dict[str, Any]) -> None:
    text = drawn(answer)
    assert "PREDICTED" in text
    assert "uncalibrated roofline" in text
    assert role(answer, "panda")["label"] in text
    assert "1.00" in text


def test_depth_head_size_and_grouping_may_be_chosen() -> None:
    answer = recommended(num_layers=20, head_dim=128, group_sizes=(4, 8))
    panda = Architecture.model_validate(role(answer, "panda")["architecture"])
    assert (panda.num_hidden_layers, panda.head_dim) == (20, 128)
    assert panda.query_group_size in (4, 8)
    assert any("with 8 query heads per key-value head were never run" in reason for reason in answer["reasons"])
    assert any("The runs have 16 layers, the target 20" in reason for reason in answer["reasons"])


def test_far_extrapolation_is_named() -> None:
    answer = recommended(n=9e9, tokens=9e11, baseline="llama-3.2-3b")
    assert any("30 times the largest run" in reason for reason in answer["reasons"])


def test_shapes_that_do_not_fit_are_not_candidates() -> None:
    small = recommended(n=2.6e10, tokens=1e12, workload=Workload(batch_size=1), num_layers=48)
    with pytest.raises(ValueError, match="Relax memory"):
        recommended(n=2.6e10, tokens=1e12, workload=Workload(batch_size=1), num_layers=48, hardware="a100-40gb")
    assert small["num_candidates"] > 0


def test_a_table_of_ratios_needs_no_shapes(tmp_path: Path) -> None:
    points = [(x, r) for x in (0.05, 0.08, 0.13) for r in (0.6, 1.2, 4.0)]
    rows = ["x,r,n_params,n_tokens,loss"]
    for N in (1e8, 3e8):
        rows += [f"{x},{r},{N},{100 * N},{float(TRUTH.predict(x, r, 3.4 - N / 1e9)) + 0.001 * x}" for x, r in points]
    answer = recommended(table_of(tmp_path, rows))
    assert role(answer, "panda")["query_group_size"] == 4
    assert answer["extra_run"]["architecture"] is None


def three_rows(rows: list[str]) -> list[str]:
    return rows[:4]


def one_scale(rows: list[str]) -> list[str]:
    return rows[:13]


def no_heads(rows: list[str]) -> list[str]:
    return [",".join(cell for at, cell in enumerate(row.split(",")) if at != 3) for row in rows]


def a_word(rows: list[str]) -> list[str]:
    return [*rows[:5], rows[5].replace("16", "sixteen"), *rows[6:]]


def a_nan(rows: list[str]) -> list[str]:
    return [*rows[:5], ",".join([*rows[5].split(",")[:-1], "nan"]), *rows[6:]]


def a_repeat(rows: list[str]) -> list[str]:
    return [*rows, rows[3]]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (three_rows, r"holds 3 finished runs; .* needs 6 runs at least"),
        (one_scale, r"one scale only, N = 8\.0\de\+07; .* two sizes at least"),
        (no_heads, r"lacks n_heads"),
        (a_word, r"line 6: \w+ is 'sixteen', expected a number"),
        (a_nan, r"line 6: loss is nan"),
        (a_repeat, r"line 38 repeats line 4 exactly"),
    ],
)
def test_every_fault_of_a_table_is_one_sentence(tmp_path: Path, spoil: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        recommended(table_of(tmp_path, spoil(lines())))
    assert "runs.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_at_the_targets_own_scale_need_no_second_one(tmp_path: Path) -> None:
    answer = recommended(table_of(tmp_path, one_scale(lines())), n=8e7, tokens=8e9, num_layers=16)
    assert answer["loss_unit"] == "nats/token"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n": -1.0}, "n and tokens must be positive"),
        ({"tokens": float("nan")}, "n and tokens must be positive"),
        ({"baseline": "llama-9"}, "no such file"),
        ({"hardware": "abacus"}, "unknown hardware 'abacus'"),
        ({"num_layers": 5000}, "no legal architecture"),
        ({"loss_limit": "llama-3.2-3b"}, "the search 1e"),
    ],
)
def test_every_impossible_wish_is_one_sentence(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        recommended(**changes)
