"""The page as a whole: self-contained, from the store alone, and a sentence where something is missing."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path

import pytest

from agent.assignment import BenchAssignment
from coordinator.database import Database
from coordinator.figures.catalogue import entries
from coordinator.record import RunRecord, read_record
from coordinator.report import render_report
from coordinator.report.document import report_of
from coordinator.report.markdown import render_markdown
from coordinator.schema import COLUMNS, checksum
from coordinator.store import FILE_NAME
from scaling.quantity import Interval, Measured, NotMeasured


class _Reader(HTMLParser):
    """Identifiers, visible text, balance of elements, and every attribute that could load something."""

    VOID = frozenset({"meta", "br", "input", "img", "link", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action") and value and not value.startswith("#"):
                self.loads.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))


def read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    assert reader.open == [], "every element is closed"
    return reader


@pytest.fixture(scope="module")
def page(finished: RunRecord) -> str:
    return render_report(finished)


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    assert read(page).loads == []
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_every_figure_is_drawn_and_identifiers_do_not_collide(page: str, finished: RunRecord) -> None:
    ids = read(page).ids
    assert len(ids) == len(set(ids))
    names = [entry.name for entry in entries(finished)]
    assert page.count('<svg role="img"') == len(names)
    assert {f"figure-{name}" for name in names} <= set(ids)


def test_figures_refer_only_to_identifiers_that_exist(page: str) -> None:
    ids = set(read(page).ids)
    referred = set(re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', page))
    assert referred
    assert {first or second for first, second in referred} <= ids


def test_figures_take_their_colours_from_the_style_sheet(page: str) -> None:
    used, style = set(re.findall(r"var\(--([a-z0-9-]+)\)", page)), page[: page.index("</style>")]
    light, dark, chosen_dark = re.split(r"@media \(prefers-color-scheme: dark\)|:root\[data-theme=.dark.\]", style)
    for name in used:
        for theme in (light, dark, chosen_dark):
            assert f"--{name}:" in theme
    assert "#01" not in page, "a placeholder colour was left"


def test_the_answer_is_the_recommendations_own_sentence(page: str, finished: RunRecord) -> None:
    assert finished.recommendation is not None
    assert finished.recommendation.sentence(simulated=False) in read(page).text


@pytest.fixture(scope="module")
def refuted(finished: RunRecord) -> RunRecord:
    """The same run, had its proposal lost to the baseline at the target."""
    assert finished.recommendation is not None
    (answer,) = finished.recommendation.answers
    worse = answer.model_copy(update={"measured_verdict": "worse"})
    return replace(finished, recommendation=finished.recommendation.model_copy(update={"answers": (worse,)}))


def test_a_refuted_proposal_stands_beside_the_baseline_that_is_to_be_kept(refuted: RunRecord) -> None:
    assert refuted.recommendation is not None
    (answer,), baseline = refuted.recommendation.answers, refuted.recommendation.baseline
    html = render_report(refuted)
    card = html[html.index('<section class="cards"') :].partition("Held-out loss at the target")[0]
    text = re.sub(r"<[^>]+>|\s+", " ", card)
    assert "Recommended" not in text
    assert re.search(rf"Keep this: the baseline +{baseline.label}", text)
    assert re.search(rf"hidden_size +{baseline.hidden_size} +{answer.recommended.hidden_size} ", text)
    assert re.search(rf"Refuted: +{answer.recommended.label} +was proposed", text)
    assert html.count('class="verdict bad"') == 1
    assert f"|  | baseline {baseline.label} | refuted {answer.recommended.label} |" in render_markdown(
        report_of(refuted)
    )


def test_a_proposal_that_stands_is_the_one_to_build(page: str, finished: RunRecord) -> None:
    assert finished.recommendation is not None
    label = finished.recommendation.answers[0].recommended.label
    assert re.search(rf"<h3>Recommended: \w+ <code>{label}</code></h3>", page)
    assert 'class="verdict bad"' not in page


def test_figures_of_one_column_never_leave_a_hole(page: str) -> None:
    for section in re.findall(r'<section class="figures">.*?</section>', page, flags=re.DOTALL):
        places = re.findall(r'<figure id="[^"]+"(?: class="(wide|alone)")?>', section)
        assert places
        for spans, neighbours in groupby(places, key=bool):
            assert spans or len(list(neighbours)) % 2 == 0


def test_every_run_has_a_row_with_its_measured_loss(page: str, finished: RunRecord) -> None:
    reader = read(page)
    for trial in finished.trials:
        assert trial.trial_id in reader.ids
    for run in finished.training.values():
        assert f"{run.loss:.4f} ± {run.loss_standard_error:.4f}" in reader.text


def test_caveats_name_proxies_token_scale_failures_and_uncalibrated_predictions(page: str) -> None:
    text = read(page).text
    assert "Nothing at this size carries over to models of 1 B parameters" in text
    assert "Every run used 80% of the study's tokens" in text
    assert "2 failed attempts, 2 retries, 0 trials given up" in text
    assert "roofline predictions, uncalibrated: no such device was measured" in text


def test_the_extra_run_is_told_with_its_chance_and_price_or_why_there_is_none(finished: RunRecord) -> None:
    assert finished.recommendation is not None
    assert finished.analysis is not None
    fit = finished.analysis.law_fit
    middle = fit.bootstrap.mean(axis=0)
    unsure = replace(finished.analysis, law_fit=replace(fit, bootstrap=middle + 3 * (fit.bootstrap - middle)))
    for verdict, record in (("tie", replace(finished, analysis=unsure)), ("worse", finished)):
        answer = finished.recommendation.answers[0].model_copy(update={"measured_verdict": verdict})
        told = finished.recommendation.model_copy(update={"answers": (answer,)})
        record = replace(record, recommendation=told)
        report, page = report_of(record), read(render_report(record)).text
        (cards,) = report.answers
        assert (cards.extra_run is None) == (verdict == "worse")
        words = cards.no_extra_run_because if cards.extra_run is None else cards.extra_run.sentence
        assert ("failed its check" in words) == (verdict == "worse")
        for text in (page, render_markdown(report)):
            assert words in text
            assert cards.headline in text


def test_text_from_outside_is_escaped(page: str) -> None:
    assert "&lt;b&gt;agent-0&lt;/b&gt;" in page
    assert "&lt;no text at all&gt;" in page
    assert "<no text" not in page


def test_a_tie_is_called_a_tie(finished: RunRecord) -> None:
    assert finished.recommendation is not None
    interval = Interval(low=-0.01, high=0.02, level=0.9, method="t")
    difference = Measured(value=0.005, unit="nats/token", interval=interval, num_samples=4)
    (answer,) = finished.recommendation.answers
    answer = answer.model_copy(update={"measured_verdict": "tie", "loss_difference": difference})
    tied = finished.recommendation.model_copy(update={"answers": (answer,)})
    text = read(render_report(replace(finished, recommendation=tied))).text
    assert "a tie with the baseline in loss" in text
    assert "+0.0050" in text


def test_changing_an_observation_in_the_store_changes_table_and_figures(finished: RunRecord, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(finished.run_directory, changed)
    run = next(iter(finished.training.values()))
    higher = run.model_copy(update={"loss": run.loss + 1})
    database = Database.open_for_writing(changed / FILE_NAME)
    where = "WHERE trial_id = ? AND kind = 'training'"
    columns = ", ".join(COLUMNS["observations"])
    ((*before_record, _, unix),) = database.rows(f"SELECT {columns} FROM observations {where}", (run.assignment_id,))
    text = higher.model_dump_json()
    database.execute(
        f"UPDATE observations SET record = ?, checksum = ? {where}",
        (text, checksum("observations", (*before_record, text, unix)), run.assignment_id),
    )
    database.close()
    before, after = render_report(finished), render_report(read_record(changed))
    assert f"{higher.loss:.4f} ±" not in before
    assert f"{higher.loss:.4f} ±" in after
    assert _figure(before, "loss-x") != _figure(after, "loss-x")
    assert _figure(before, "roofline-h200") == _figure(after, "roofline-h200")


def _figure(page: str, name: str) -> str:
    start = page.index(f'<figure id="figure-{name}"')
    return page[start : page.index("</figure>", start)]


def test_rendering_twice_gives_the_same_page(page: str, finished: RunRecord) -> None:
    assert render_report(finished) == page


def test_a_run_without_any_plan_says_so(simulate) -> None:
    text = read(render_report(simulate().record())).text
    assert "No recommendation: the run is running, 0 of 0 planned trials ended" in text
    assert "Nothing was planned yet." in text
    assert "no trial was leased yet" in text
    assert "No serving benchmark has finished." in text
    assert "the first session has not ended" in text


def test_runs_before_the_first_fit_are_drawn_without_a_curve(simulate) -> None:
    simulation = simulate()
    simulation.plan()
    simulation.work(2)
    html = render_report(simulation.record())
    assert "Nothing was fitted yet." in _figure(html, "loss-x")
    assert '<svg role="img"' in _figure(html, "loss-x")
    assert "No curve: nothing was fitted yet." in _figure(html, "reference")
    assert "Not drawn" in _figure(html, "residuals")


def test_a_fit_without_a_law_gives_its_reason(simulate) -> None:
    simulation = simulate()
    simulation.plan()
    simulation.work(3)
    simulation.refit()
    record = simulation.record()
    assert record.analysis is not None
    assert record.analysis.law_fit.law is None
    text = read(render_report(record)).text
    assert "No law was fitted: " + " ".join(record.analysis.law_fit.messages) in text
    assert "there is no law yet to predict losses with" in text


def test_a_finished_run_without_a_law_says_why_there_is_no_recommendation(simulate) -> None:
    simulation = simulate()
    simulation.plan()
    simulation.work(3)
    simulation.refit()
    simulation.store.set_meta("state", "finished")
    assert "No recommendation: no law was fitted." in read(render_report(simulation.record())).text


def test_a_running_trial_is_shown_as_running(simulate) -> None:
    simulation = simulate()
    simulation.plan()
    simulation.lease(simulation.store.trials()[0].trial_id, epoch=1)
    text = read(render_report(simulation.record())).text
    assert "not measured: running, 0% done" in text
    assert "Hollow bars had not ended when this was written." in text


def test_benchmarks_with_invalidating_flags_are_listed_but_not_drawn(finished: RunRecord) -> None:
    invalid = tuple(
        o.model_copy(update={"flags": ("wrong-token-count",)}) if o.kind == "serving" else o
        for o in finished.observations
    )
    html = render_report(replace(finished, observations=invalid))
    assert "Every benchmark has an invalidating flag" in _figure(html, "pareto")
    assert "wrong-token-count" in read(html).text


def test_a_study_without_foreign_hardware_has_no_roofline(finished: RunRecord) -> None:
    assert finished.recommendation is not None
    bare = finished.recommendation.model_copy(update={"gpu_predictions": ()})
    figure = _figure(render_report(replace(finished, recommendation=bare)), "roofline")
    assert "no other hardware was predicted for" in figure


def test_a_target_that_no_prediction_reaches_gives_the_reason(finished: RunRecord) -> None:
    assert finished.recommendation is not None
    refusal = NotMeasured(reason="the cells vary along one line")
    rows = tuple(row.model_copy(update={"predicted": refusal}) for row in finished.recommendation.held_out)
    without = finished.recommendation.model_copy(update={"held_out": rows, "heldout_error_ratio": None})
    html = render_report(replace(finished, recommendation=without))
    assert "Not drawn: no shape has both a predicted and a measured loss" in _figure(html, "held-out")
    assert read(html).text.count("the cells vary along one line") == len(rows)


def test_a_simulated_engine_is_never_passed_off_as_measured(simulate) -> None:
    simulation = simulate(serving=_with_fake_engine(simulate))
    assert "the engine `fake` invents it by a roofline" in read(render_report(simulation.record())).text


def _with_fake_engine(simulate) -> object:
    serving = simulate().study.serving
    return serving.model_copy(update={"recipe": serving.recipe.model_copy(update={"engine": "fake"})})


def test_a_study_of_one_benchmark_degrades_to_the_serving_table(simulate) -> None:
    simulation = simulate("quick")
    while simulation.plan():
        simulation.work()
    simulation.work()
    simulation.refit()
    simulation.conclude()
    record = simulation.record()
    kept = {t.trial_id for t in record.trials if isinstance(t.planned.assignment, BenchAssignment)}
    assert kept
    first = next(iter(record.serving))
    only = tuple(o for o in record.observations if o.kind != "serving" or o.assignment_id == first)
    html = render_report(replace(record, observations=only))
    assert "fewer than two shapes" in _figure(html, "pareto") or "no law yet" in _figure(html, "pareto")
    assert record.serving[first].architecture.label in read(html).text
