"""Every page in a real browser: it is drawn, at two widths and in both themes, and asks nobody else for anything."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from coordinator.store import Store

EPOCH_UNIX = 1_700_000_000.0
PAGES = ("/", "/study", "/trials", "/hardware", "/recommendation")
VIOLET = {"light": "122,79,163", "dark": "189,155,224"}
"""Of the law, in palette.css."""
FACTS = (Path(__file__).parent / "page_facts.js").read_text()
IS_PAINTED_IN = """([wanted, unwanted]) => {
  const canvas = document.querySelector("#figure-loss-x canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const found = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) found.add(data.slice(i, i + 3).join());
  return found.has(wanted) && !found.has(unwanted);
}"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A page as it was drawn: what page_facts.js tells of it, and what the browser complained of."""

    path: str
    facts: dict[str, list]
    complaints: list[str]


def trial_ids(visit, phase: str) -> list[str]:
    """Trials of a phase, as the API lists them."""
    answer = visit.page.request.get(f"{visit.origin}/api/trials?phase={phase}&state=succeeded")
    return [row["trial_id"] for row in answer.json()["rows"]]


def draw_everything(visit) -> None:
    """Bring every figure into view and wait until it is there, or says why not."""
    for place in range(visit.page.locator(".figure-place").count()):
        visit.page.evaluate("place => document.querySelectorAll('.figure-place')[place].scrollIntoView()", place)
        visit.page.wait_for_function(
            "place => document.querySelectorAll('.figure-place')[place].firstElementChild", arg=place
        )


@pytest.fixture(scope="module", params=[(1280, "light"), (480, "dark")], ids=["1280-light", "480-dark"])
def seen(request: pytest.FixtureRequest, visits, dashboard: str) -> list[Seen]:
    """Every page, at one width and in one theme."""
    width, theme = request.param
    opened = visits(dashboard, width=width, theme=theme)
    trials = [f"/trials/{trial_ids(opened, phase)[0]}" for phase in ("train", "bench")]
    pages = []
    for path in (*PAGES, *trials):
        opened.go(path)
        draw_everything(opened)
        pages.append(Seen(path=path, facts=opened.page.evaluate(FACTS), complaints=opened.everything()))
    return pages


def test_every_page_is_drawn_without_complaint_and_fits_its_width(seen: list[Seen]):
    for page in seen:
        assert page.complaints == [], page.path
        assert page.facts["overflow"] == [], page.path


def test_every_page_has_one_title_and_headings_in_order(seen: list[Seen]):
    for page in seen:
        levels = page.facts["headings"]
        assert levels[0] == 1, page.path
        assert levels.count(1) == 1, page.path
        assert all(after <= before + 1 for before, after in pairwise(levels)), page.path


def test_text_stands_out_from_what_is_behind_it_as_wcag_aa_asks(seen: list[Seen]):
    for page in seen:
        assert page.facts["faint"] == [], page.path


def test_every_control_has_a_name(seen: list[Seen]):
    for page in seen:
        assert page.facts["unnamed"] == [], page.path


def test_figures_stand_in_full_rows(seen: list[Seen]):
    for page in seen:
        assert page.facts["holes"] == [], page.path


def test_figures_are_painted_in_the_colours_of_the_theme(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/study")
    opened.page.wait_for_selector("#figure-loss-x canvas")
    opened.page.wait_for_function(IS_PAINTED_IN, arg=[VIOLET["light"], VIOLET["dark"]])
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_function(IS_PAINTED_IN, arg=[VIOLET["dark"], VIOLET["light"]])


def test_what_is_printed_has_every_figure_in_light_colours(visit, dashboard: str):
    opened = visit(dashboard, theme="dark")
    opened.page.add_init_script("window.print = () => { window.printed = true; };")  # its dialogue would wait for ever
    opened.go("/study")
    opened.page.wait_for_selector("#figure-loss-x canvas")
    opened.page.wait_for_function(IS_PAINTED_IN, arg=[VIOLET["dark"], VIOLET["light"]])
    opened.page.keyboard.press("Control+p")
    opened.page.wait_for_function("() => window.printed")
    places = opened.page.locator(".figure-place")
    assert places.count() == opened.page.locator(".figure-place > figure").count() > 8
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.page.wait_for_function(IS_PAINTED_IN, arg=[VIOLET["light"], VIOLET["dark"]])
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    opened.page.wait_for_function(IS_PAINTED_IN, arg=[VIOLET["dark"], VIOLET["light"]])


def test_a_figure_tells_its_points_to_keys_and_as_a_table(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/study")
    opened.page.wait_for_selector("#figure-loss-x canvas")
    figure = json.loads(opened.page.request.get(f"{opened.origin}/api/figures/loss-x").text())
    plot = opened.page.locator("#figure-loss-x .plot")
    plot.focus()
    plot.press("ArrowRight")
    told = opened.page.locator("#announcer").inner_text()
    assert "held-out loss" in told
    assert "nats/token" in told
    assert opened.page.locator("#figure-loss-x .tip").is_visible()
    opened.page.locator("#figure-loss-x").get_by_role("button", name="Table").click()
    rows = opened.page.locator("#figure-loss-x .figure-table tbody tr")
    assert rows.count() == sum(len(series["x"]) for series in figure["series"])
    kinds = opened.page.locator("#figure-loss-x .legend .tag").all_inner_texts()
    assert set(kinds) == {series["kind"] for series in figure["series"] if series["name"] and series["kind"]}


def test_a_point_leads_to_its_trial(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/study")
    opened.page.wait_for_selector("#figure-loss-x canvas")
    plot = opened.page.locator("#figure-loss-x .plot")
    plot.focus()
    for _ in range(20):  # series after series, until one whose points are trials
        plot.press("ArrowDown")
        if opened.page.locator("#figure-loss-x .tip-leads").count():
            break
    plot.press("Enter")
    opened.page.wait_for_selector(".page-trial h1")
    assert "/trials/train-" in opened.page.url
    opened.page.go_back()
    opened.page.wait_for_selector(".page-study h1")


def test_the_chosen_theme_stays(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/")
    button = opened.page.locator("#theme")
    button.click()
    button.click()
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.page.reload()
    opened.page.wait_for_selector("main[aria-busy=false] h1")
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "dark"
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(21, 24, 28)"


def test_keys_alone_lead_to_every_page(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/")
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.className") == "skip"
    visited = []
    for _ in range(6):
        opened.page.keyboard.press("Tab")
        visited.append(opened.page.evaluate("document.activeElement.textContent"))
        outline = opened.page.evaluate("getComputedStyle(document.activeElement).outline")
        assert "solid 2px" in outline, visited
    assert visited[1:] == ["Overview", "Study", "Trials", "Hardware", "Recommendation"]
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector(".page-recommendation h1")
    assert opened.page.evaluate("document.activeElement.id") == "main"


def test_trials_are_filtered_sorted_and_opened_by_keys(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/trials")
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("bench")
    opened.page.wait_for_selector(".trial-table tbody tr[data-index='0'] a[href^='/trials/bench']")
    shown = opened.page.locator(".trial-table tbody tr[data-index]").count()
    assert shown == len(trial_ids(opened, "bench"))
    opened.page.locator("input[type=search]").fill("")
    opened.page.wait_for_selector(".trial-table tbody tr[data-index='0'] a[href^='/trials/train']")
    heading = opened.page.locator("th.col-loss")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    losses = [float(text.split()[0]) for text in opened.page.locator("td.col-loss").all_inner_texts() if "±" in text]
    assert losses == sorted(losses)
    assert len(losses) > 5
    box = opened.page.locator(".trial-box")
    box.focus()
    box.press("ArrowDown")
    box.press("ArrowDown")
    wanted = opened.page.locator("tr.active a").inner_text()
    box.press("Enter")
    opened.page.wait_for_selector(".page-trial h1")
    assert opened.page.locator("h1").inner_text() == wanted


def test_the_recommended_configuration_is_copied_and_saved(visit, dashboard: str):
    opened = visit(dashboard)
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.go("/recommendation")
    answer = opened.page.request.get(f"{opened.origin}/api/recommendation").json()["answers"][0]
    opened.page.get_by_role("button", name="Copy config.json").click()
    opened.page.get_by_role("button", name="Copied").wait_for()
    assert json.loads(opened.page.evaluate("navigator.clipboard.readText()")) == answer["config"]
    with opened.page.expect_download() as download:
        opened.page.get_by_role("button", name="Download").click()
    assert json.loads(Path(download.value.path()).read_text()) == answer["config"]


def test_predictions_have_a_line_for_each_shape_and_a_column_for_each_batch(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/recommendation")
    told = opened.page.request.get(f"{opened.origin}/api/recommendation").json()["predictions"]
    table = opened.page.get_by_role("region", name="Predicted output tokens/s by batch size")
    assert table.locator("tbody tr").count() == len({(one["hardware"], one["shape"]) for one in told}) > 1
    assert table.locator("th.n").count() == len({one["batch_size"] for one in told}) > 1
    assert table.locator(".predicted").count() == len(told)


def test_what_is_not_there_is_said_in_a_sentence(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/trials/train-000000000000")
    assert opened.page.locator("main h1").inner_text() == "Not found"
    assert "train-000000000000" in opened.page.locator("main .missing").inner_text()


def test_text_of_a_run_is_never_markup(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/trials")
    opened.page.evaluate(
        """async () => {
          const { h } = await import("/static/dom.js");
          document.getElementById("main").append(h("p.probe", "<img src=x onerror=alert(1)>"));
        }"""
    )
    assert opened.page.locator(".probe").inner_text() == "<img src=x onerror=alert(1)>"
    assert opened.page.locator(".probe img").count() == 0


def test_a_run_that_has_only_begun_says_what_is_not_there_yet(visit, serve, tmp_path: Path, study, world, make_driver):
    run = tmp_path / "quick-20260101-000000"
    with Store.create(run, study, now_unix=EPOCH_UNIX) as store:
        driver = make_driver(store, world)
        driver.plan()
        first, second, third, *_ = driver.queued()
        driver.run_trial(first)
        driver.fail_trial(second)
        driver.lease(third)
    with serve(run, port=0) as listening:
        opened = visit(listening.url, theme="dark")
        for path in ("/", "/recommendation", f"/trials/{second}", "/study"):
            opened.go(path)
            draw_everything(opened)
            facts = opened.page.evaluate(FACTS)
            assert opened.everything() == [], path
            assert facts["faint"] == facts["holes"] == facts["overflow"] == [], path
        missing = opened.page.locator("[data-name=residuals-x] .missing")
        assert missing.inner_text() == "Nothing was fitted yet."
