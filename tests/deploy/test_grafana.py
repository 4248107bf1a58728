"""The dashboard is what its builder builds, and a page that somebody can read.

That its expressions ask for metrics that there are, and are answered, is in test_prometheus.py.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
MAX_GRAPHS_A_ROW = 5
ROWS = (
    "Is it well?",
    "Progress and money",
    "Fleet, by hardware",
    "Trials",
    "Scaling law",
    "Are the benchmarks valid?",
    "The coordinator inside",
    "Engines that serve, and GPUs",
)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    return json.loads((GRAFANA / "dashboards" / "archfleet.json").read_text())


@pytest.fixture(scope="module")
def rows(page: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Panels by the row that they stand in."""
    found: dict[str, list[dict[str, Any]]] = {}
    for panel in page["panels"]:
        if panel["type"] == "row":
            found[panel["title"]] = []
        else:
            found[[*found][-1]].append(panel)
    return found


def test_building_it_again_gives_the_same() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="no builder here: pip install 'archfleet[dev]'")
    built = runpy.run_path(str(GRAFANA / "build.py"))["build"]()
    assert built == (GRAFANA / "dashboards" / "archfleet.json").read_text(), "run `python deploy/grafana/build.py`"


def test_it_answers_one_question_a_row_with_at_most_five_graphs(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert tuple(rows) == ROWS
    assert all(1 <= len(panels) <= MAX_GRAPHS_A_ROW for panels in rows.values())


def test_a_row_fills_the_page_and_no_panel_lies_on_another(page: dict[str, Any], rows) -> None:
    for panels in rows.values():
        assert sum(panel["gridPos"]["w"] for panel in panels) == 24
        assert len({panel["gridPos"]["y"] for panel in panels}) == 1
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in page["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))


def test_every_panel_says_what_it_shows_in_which_unit_from_the_chosen_source(rows) -> None:
    for panel in (panel for panels in rows.values() for panel in panels):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${source}"}
        assert all(target["legendFormat"] for target in panel["targets"])


def test_no_two_panels_share_a_number_or_a_title(page: dict[str, Any]) -> None:
    for key in ("id", "title"):
        values = [panel[key] for panel in page["panels"]]
        assert len(values) == len(set(values))


def test_what_is_chosen_above_the_page_is_asked_for(page: dict[str, Any]) -> None:
    names = [one["name"] for one in page["templating"]["list"]]
    assert names == ["source", "instance", "study", "hardware", "agent"]
    text = json.dumps(page["panels"])
    assert all(f'=~\\"${name}\\"' in text for name in names[1:])


def test_durations_show_trials_as_exemplars(rows) -> None:
    (heat,) = [panel for panel in rows["Trials"] if panel["type"] == "heatmap"]
    (target,) = heat["targets"]
    assert (target["exemplar"], target["format"]) == (True, "heatmap")


def test_beginnings_and_canaries_are_marked(page: dict[str, Any]) -> None:
    marked = " ".join(one["expr"] for one in page["annotations"]["list"])
    assert "archfleet_build_info" in marked
    assert "archfleet_canary_deviation_ratio" in marked


def test_what_is_provisioned_finds_the_dashboard_and_a_source() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    (link,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert link["name"] == "trial_id"
    assert link["url"].endswith("/trials/$${__value.raw}")  # a single $ would be an environment variable
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "archfleet.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
