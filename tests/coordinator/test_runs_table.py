"""`archfleet fit`'s table: columns read as documented, and one clear sentence for every fault."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.runs_table import describe_fit, fit_table, read_runs_table, shape_points
from scaling.law import ChinchillaLaw, ConditionalLaw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the reference data are not beside the repository")
LAW = ConditionalLaw(a=(1.01287, 0.053859, 0.015603), b=(0.980084, 0.017632, 0.020070))
TRUTH = ChinchillaLaw(E=1.8, A=60.0, B=300.0, alpha=0.35, beta=0.4)


def write(path: Path, text: str) -> Path:
    file = path / "runs.csv"
    file.write_text(text)
    return file


def chinchilla_rows() -> list[tuple[float, float, float]]:
    sizes = [(N, N * ratio) for N in (1e7, 4e7, 1.6e8) for ratio in (5.0, 20.0, 80.0)]
    return [(N, D, float(TRUTH.predict(N, D))) for N, D in sizes]


def chinchilla_text(header: str = "n_params,n_tokens,loss") -> str:
    return "\n".join([header, *(",".join(map(repr, row)) for row in chinchilla_rows())])


def conditional_text() -> str:
    lines = ["# two layers, one million tokens", "x,r,n_params,n_tokens,loss,loss_se"]
    for x, r in [(0.1, 3.0), (0.15, 2.6), (0.2, 4.8), (0.2, 1.7), (0.2, 1.0), (0.2, 0.6), (0.3, 1.7), (0.4, 3.1)]:
        lines.append(f"{x},{r},100000,1000000,{float(LAW.predict(x, r, 3.58))!r},0.003")
    return "\n".join(lines)


def fit_text(path: Path, text: str, law: str = "chinchilla") -> dict[str, Any]:
    result = fit_table(read_runs_table(write(path, text)), law)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return result


def test_a_chinchilla_table_gives_its_coefficients(tmp_path: Path) -> None:
    result = fit_text(tmp_path, chinchilla_text())
    assert result["converged"]
    assert result["coefficients"]["alpha"] == pytest.approx(0.35, abs=1e-3)
    assert result["objective"] == pytest.approx(0.0, abs=1e-9)
    assert "alpha = 0.35" in describe_fit(result)


def test_a_conditional_table_gives_optima_with_intervals(tmp_path: Path) -> None:
    result = fit_text(tmp_path, conditional_text(), "conditional")
    assert result["converged"]
    assert set(result["coefficients"]) == {"a0", "a1", "a2", "b0", "b1", "b2"}
    assert result["x_opt"]["value"] == pytest.approx(LAW.x_opt, rel=1e-4)
    assert result["r_opt"]["low"] <= result["r_opt"]["value"] <= result["r_opt"]["high"]
    assert "x* = 0.2897" in describe_fit(result)


def test_shapes_are_counted_from_config_columns_under_either_name(tmp_path: Path) -> None:
    text = "d_model,d_ff,n_heads,n_kv_heads,head_dim,n_layers,n_tokens,loss\n2048,8192,32,8,64,16,1e11,2.803\n"
    text += "2560,4096,72,18,64,16,1e11,2.782\n"
    points = shape_points(read_runs_table(write(tmp_path, text)))
    assert points.num_parameters.tolist() == [973_078_528, 975_175_680]
    assert points.r == pytest.approx([4.8, 1.066667], rel=1e-5)
    renamed = text.replace("d_model", "hidden_size").replace("d_ff", "intermediate_size")
    assert np.array_equal(shape_points(read_runs_table(write(tmp_path, renamed))).x, points.x)


def test_heads_give_the_grouping_and_must_divide(tmp_path: Path) -> None:
    header = "d_model,d_ff,n_heads,n_kv_heads,head_dim,n_layers,n_tokens,loss"
    text = f"{header}\n2048,8192,32,8,64,16,1e11,2.803\n2560,6144,36,4,64,16,1e11,2.804\n"
    points = shape_points(read_runs_table(write(tmp_path, text)))
    assert points.query_group_size is not None
    assert points.query_group_size.tolist() == [4, 9]
    with pytest.raises(ValueError, match=r"1 runs have n_heads that are no multiple .* 36 and 5"):
        shape_points(read_runs_table(write(tmp_path, text.replace("36,4", "36,5"))))


@needs_data
def test_the_shared_tables_are_read_as_they_are() -> None:
    result = fit_table(read_runs_table(DATA / "chinchilla_epoch_points.csv"))
    assert result["num_points"] == 240
    assert result["objective"] <= 0.00101828
    assert "5 rows with used_in_published_fit = 0 were left out." in result["messages"]
    gemstones = read_runs_table(DATA / "gemstones_hot_le100b.csv")
    assert gemstones.size_column == "n_params_non_embed"
    assert fit_table(gemstones)["converged"]


@needs_data
def test_gemstones_lack_the_columns_of_the_conditional_law_by_name() -> None:
    with pytest.raises(ValueError, match=r"lacks intermediate_size \(or d_ff\), n_heads, n_kv_heads, head_dim"):
        fit_table(read_runs_table(DATA / "gemstones_hot_le100b.csv"), "conditional")


def test_n_params_goes_before_the_other_size_columns(tmp_path: Path) -> None:
    table = read_runs_table(
        write(tmp_path, "n_params_total,n_params,n_tokens,loss\n2e8,1e8,1e9,3.0\n4e8,2e8,1e9,2.9\n")
    )
    assert table.size_column == "n_params"
    assert "n_params_total is not used" in table.messages[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("n_params,n_tokens,loss\n", "has 0 runs"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0\n", "has 1 run;"),
        ("n_params,loss\n1e8,3.0\n2e8,2.9\n", "lacks the column n_tokens"),
        ("a,b\n1,2\n3,4\n", "lacks the columns n_params (or n_params_non_embed, n_params_total), n_tokens, loss"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0\n2e8,1e9,low\n", "line 3: loss is 'low', expected a number"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0\n2e8,1e9,nan\n", "line 3: loss is nan"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0\n2e8,1e9,inf\n", "line 3: loss is inf"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0\n2e8,1e9,\n", "1 of 2 rows have a loss"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0\n-2e8,1e9,3\n", "line 3: n_params is -2e8, expected a positive"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0\n1e8,1e9,3.0\n", "line 3 repeats line 2"),
        ("n_params,n_tokens,loss\n1e8,1e9,3.0,7\n2e8,1e9,3.0\n", "line 2: 4 cells where the header has 3"),
        ("n_params,n_tokens,loss,loss\n1e8,1e9,3.0,3\n2e8,1e9,3,3\n", "column loss appears more than once"),
        ("hidden_size,d_model,n_tokens,loss\n1,1,1,1\n2,2,2,2\n", "column hidden_size appears more than once"),
        ('n_params,n_tokens,loss\n1e8,1e9,"3.0\n2e8,1e9,3.0\n', "is not a CSV file"),
    ],
)
def test_every_fault_is_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"runs\.csv") as caught:
        read_runs_table(write(tmp_path, text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv cannot be read: No such file"):
        read_runs_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="cannot be read"):
        read_runs_table(tmp_path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_bytes(b"\x80\x81\xff")
    with pytest.raises(ValueError, match="not a text file"):
        read_runs_table(file)


def test_three_runs_are_refused_with_the_number_that_is_needed(tmp_path: Path) -> None:
    table = read_runs_table(write(tmp_path, "n_params,n_tokens,loss\n1e8,1e9,3.0\n2e8,1e9,2.9\n4e8,1e9,2.8\n"))
    with pytest.raises(
        ValueError, match=r"runs\.csv holds 3 finished runs; .* needs 6 runs at least .*: add 3 or more"
    ):
        fit_table(table)
    shapes = "\n".join(conditional_text().splitlines()[:5])
    with pytest.raises(ValueError, match=r"holds 3 finished runs"):
        fit_table(read_runs_table(write(tmp_path, shapes)), "conditional")


def test_one_scale_is_refused_for_chinchilla_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one scale only, N = 1e\+05; .* three sizes or more"):
        fit_table(read_runs_table(write(tmp_path, conditional_text())))
    assert fit_text(tmp_path, conditional_text(), "conditional")["converged"]


def test_a_fit_that_cannot_be_told_is_a_result_and_not_an_error(tmp_path: Path) -> None:
    # Every D is 20 N: how much the loss owes to N and how much to D cannot be told apart.
    rows = [(N, 20 * N, float(TRUTH.predict(N, 20 * N))) for N in (1e7, 2e7, 4e7, 8e7, 1.6e8, 3.2e8, 6.4e8)]
    text = "\n".join(["n_params,n_tokens,loss", *(",".join(map(repr, row)) for row in rows)])
    result = fit_text(tmp_path, text)
    assert not result["converged"]
    assert result["not_identified"]
    assert "not converged" in describe_fit(result)


def test_an_unknown_law_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chinchilla or conditional, not 'kaplan'"):
        fit_table(read_runs_table(write(tmp_path, chinchilla_text())), "kaplan")


def test_conditional_fit_of_several_sizes_tells_how_it_predicts_the_next_one() -> None:
    table = read_runs_table(Path(__file__).parents[1] / "data" / "paper_like_runs.csv")
    result = fit_table(table, "conditional")
    assert [len(task["fitted_sizes"]) for task in result["held_out_scales"]] == [1, 2]
    assert all(task["spearman"] > 0.8 for task in result["held_out_scales"])
    assert "held out N = 2.97e+08" in describe_fit(result)
