"""Every page in a real browser: it is drawn, at two widths and in both themes, and asks nobody else for anything."""

import json
from pathlib import Path

import pytest

PAGES = ("/", "/study", "/trials", "/hardware", "/recommendation")


def trial_ids(visit, phase: str) -> list[str]:
    """Trials of a phase, as the API lists them."""
    answer = visit.page.request.get(f"{visit.origin}/api/trials?phase={phase}&state=succeeded")
    return [row["trial_id"] for row in answer.json()["rows"]]


def draw_everything(visit) -> None:
    """Scroll through the page, so that figures come into view, and wait for them."""
    height = visit.page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 700):
        visit.page.evaluate(f"scrollTo(0, {top})")
        visit.page.wait_for_timeout(20)
    for place in visit.page.query_selector_all(".figure-place"):
        place.wait_for_selector("figure, .missing", state="attached")


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (480, "dark")])
def test_every_page_is_drawn_without_complaint_and_fits_its_width(visit, dashboard: str, width: int, theme: str):
    opened = visit(dashboard, width=width, theme=theme)
    trials = [f"/trials/{trial_ids(opened, phase)[0]}" for phase in ("train", "bench")]
    for path in (*PAGES, *trials):
        opened.go(path)
        draw_everything(opened)
        overflow = opened.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, path
        assert opened.page.locator("main h1").inner_text(), path
        assert opened.everything() == [], path


def test_figures_are_painted_in_the_colours_of_the_theme(visit, dashboard: str):
    opened = visit(dashboard)
    opened.go("/study")
    opened.page.wait_for_selector("#figure-loss-x canvas")
    violet = {"light": "122,79,163", "dark": "189,155,224"}  # of the law, in palette.css
    seen = {}
    for theme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=theme)
        seen[theme] = opened.page.evaluate(
            """async () => {
              await new Promise((painted) => setTimeout(painted, 1000));
              const canvas = document.querySelector("#figure-loss-x canvas");
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              const found = new Set();
              for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) found.add(data.slice(i, i + 3).join());
              return [...found];
            }"""
        )
    assert len(seen["light"]) > 10
    assert violet["light"] in seen["light"]
    assert violet["dark"] in seen["dark"]
    assert violet["light"] not in seen["dark"]


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
