"""`archfleet simulate search` as a library: plain JSON that says it is simulated, a table and a figure of it."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from coordinator.report.search_figure import write_search_figure
from coordinator.simulate_search import run_search_simulation, search_table
from scaling.search_simulation import STRATEGIES, SearchSetting, make_world, regret_at, simulate_search
from scaling.simulation import TRUTHS

SETTING = SearchSetting(max_runs=48, num_agents=16)
SEEDS = 3


@cache
def result() -> dict[str, Any]:
    return run_search_simulation(
        num_seeds=SEEDS, truths=["paper", "drift"], strategies=["v-optimal", "grid, law fit"], setting=SETTING
    )


def test_the_result_is_plain_json_and_says_what_was_assumed() -> None:
    assert json.loads(json.dumps(result(), allow_nan=False))["kind"] == "simulated"
    assert "Simulated, not measured" in result()["assumptions"]
    assert "4e+14 FLOP/s" in result()["assumptions"]
    assert [(row["truth"], row["strategy"]) for row in result()["results"]] == [
        ("paper", "v-optimal"),
        ("paper", "grid, law fit"),
        ("drift", "v-optimal"),
        ("drift", "grid, law fit"),
    ]


def test_medians_are_those_of_the_studies() -> None:
    world, row = make_world(SETTING), result()["results"][0]
    policy, recommend = STRATEGIES["v-optimal"]
    traces = [simulate_search(world, TRUTHS["paper"](), policy, recommend, seed=seed) for seed in range(SEEDS)]
    at_all_costs = np.array([regret_at(trace, np.array(row["gpu_seconds"])) for trace in traces])
    np.testing.assert_allclose(row["regret_median"][-1], np.median(at_all_costs[:, -1]))
    assert row["regret_first_quartile"][-1] <= row["regret_median"][-1] <= row["regret_third_quartile"][-1]
    assert row["regret_median"][0] is None  # before the first batch nothing is recommended


def test_the_goal_is_reached_from_where_the_median_stays_within_it() -> None:
    for row in result()["results"]:
        cost = row["goal"]["reached_from_cost_fraction"]
        good = [value is not None and value <= 0.001 for value in row["regret_median"]]
        after = [ok for ok, at in zip(good, result()["cost_fractions"], strict=True) if cost is not None and at >= cost]
        assert all(after)
        assert row["goal"]["reached"] == (cost is not None and cost <= 0.5)
        assert (cost is None) == (not good[-1])


def test_the_table_shows_regret_in_per_cent_cost_in_gpu_hours_and_the_verdict() -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(search_table(result()))
    text = buffer.getvalue()
    for words in ("GPU-h", "v-optimal", "grid, law fit", "Simulated, not measured", "Goal of v-optimal", "1/64"):
        assert words in text, words
    shown = result()["results"][0]["regret_median"][-1]
    assert f"{100 * shown:.3f}" in text


@pytest.mark.parametrize(("suffix", "magic"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_the_figure_is_a_file_of_the_suffix(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"search{suffix}"
    write_search_figure(result(), path)
    assert path.read_bytes().startswith(magic)
    if suffix == ".svg":
        again = tmp_path / "again.svg"
        write_search_figure(result(), again)
        assert again.read_bytes() == path.read_bytes()


def test_another_kind_of_file_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        write_search_figure(result(), tmp_path / "search.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"truths": ["papper"]}, "unknown truth papper; choose from paper"),
        ({"strategies": ["best"]}, "unknown strategy best; choose from v-optimal"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"truths": []}, "none given"),
    ],
)
def test_wrong_wishes_are_told(wish: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run_search_simulation(**wish)
