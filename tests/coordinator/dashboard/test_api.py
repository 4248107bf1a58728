"""JSON routes: each answers as its schema says, is not sent twice, and refuses what it cannot take."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

fastapi = pytest.importorskip(
    "fastapi", reason="the dashboard's packages are missing: pip install 'archfleet[dashboard]'"
)
from fastapi.testclient import TestClient  # noqa: E402

from coordinator.dashboard.api import api_router  # noqa: E402
from coordinator.dashboard.pages.hardware import HardwarePage  # noqa: E402
from coordinator.dashboard.pages.overview import Overview  # noqa: E402
from coordinator.dashboard.pages.recommendation import RecommendationPage  # noqa: E402
from coordinator.dashboard.pages.study import StudyPage  # noqa: E402
from coordinator.dashboard.pages.trial import TrialPage  # noqa: E402
from coordinator.dashboard.pages.trials import TrialList  # noqa: E402
from coordinator.dashboard.source import Figures, RunSource  # noqa: E402
from coordinator.figures.figure import Figure  # noqa: E402

PAGES = {
    "/api/overview": Overview,
    "/api/study": StudyPage,
    "/api/trials": TrialList,
    "/api/hardware": HardwarePage,
    "/api/recommendation": RecommendationPage,
    "/api/figures": Figures,
}


@pytest.fixture(scope="module")
def client(finished_run: Path) -> Iterator[TestClient]:
    source = RunSource(finished_run, wall=lambda: 1_700_000_500.0)
    app = fastapi.FastAPI()
    app.include_router(api_router(source))
    yield TestClient(app)
    source.close()


@pytest.mark.parametrize(("path", "model"), PAGES.items())
def test_every_page_answers_with_its_value(client: TestClient, path: str, model) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert model.model_validate_json(answer.content)


@pytest.mark.parametrize(
    ("told", "is_packed"),
    [
        ("gzip, deflate, br", True),
        ("br;q=1.0, GZIP; q=0.5", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("", False),
    ],
)
def test_an_answer_is_packed_for_those_who_take_that(client: TestClient, told: str, is_packed: bool) -> None:
    plain = client.get("/api/trials", headers={"Accept-Encoding": "identity"})
    answer = client.get("/api/trials", headers={"Accept-Encoding": told})
    assert answer.json() == plain.json()
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers.get("content-encoding") == ("gzip" if is_packed else None)
    assert (answer.headers["etag"] == plain.headers["etag"]) == (not is_packed)
    assert (int(answer.headers["content-length"]) < len(plain.content)) == is_packed
    again = client.get("/api/trials", headers={"Accept-Encoding": told, "If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_single_trials_figures_and_configs_are_found_by_the_names_that_lists_give(client: TestClient) -> None:
    row = client.get("/api/trials").json()["rows"][0]
    trial = TrialPage.model_validate_json(client.get(f"/api/trials/{row['trial_id']}").content)
    assert trial.trial.model_dump(mode="json") == row
    for entry in client.get("/api/figures").json()["figures"]:
        figure = Figure.model_validate_json(client.get(f"/api/figures/{entry['name']}").content)
        assert figure.name == entry["name"]
    for config in client.get("/api/recommendation").json()["configs"]:
        assert client.get(f"/api/configs/{config['name']}").json()["num_hidden_layers"] > 0


@pytest.mark.parametrize("path", [*PAGES, "/api/figures/loss-x", "/api/configs/baseline"])
def test_what_the_asker_has_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/api/trials/train-0", "/api/figures/nothing", "/api/configs/nothing"])
def test_an_unknown_name_is_404_with_a_sentence(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert path.rsplit("/", 1)[1] in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/trials?limit=0",
        "/api/trials?limit=2001",
        "/api/trials?after=-1",
        "/api/trials?after=99999999999999999999",
        "/api/trials?state=lost",
        "/api/trials?phase=serve",
        "/api/trials?query=" + 201 * "a",
        "/api/trials/..%5c..%5cstore.sqlite3",
        "/api/trials/Train-0",
        "/api/trials/train-0%0a",
        "/api/configs/.hidden",
        "/api/configs/" + 129 * "a",
    ],
)
def test_what_cannot_be_asked_is_422(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 422


def test_pages_of_trials_are_walked_by_next_after(client: TestClient) -> None:
    first = client.get("/api/trials", params={"limit": 5}).json()
    second = client.get("/api/trials", params={"limit": 5, "after": first["next_after"]}).json()
    assert [row["position"] for row in first["rows"] + second["rows"]] == list(range(1, 11))


def test_routes_only_read(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {method for path in schema["paths"].values() for method in path} == {"get"}


def test_the_schema_tells_units_and_reasons_of_every_field_that_needs_them(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "nats per token" in schemas["TrialLine"]["properties"]["loss"]["description"]
    assert "accelerators" in schemas["Budget"]["description"]
    assert all(schemas[name]["description"] for name in ("Overview", "Amount", "Answer", "ExtraRun", "Figure"))
    assert "NaN" not in json.dumps(schemas)
