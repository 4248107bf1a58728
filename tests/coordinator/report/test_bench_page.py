"""bench.html: self-contained, complete, and honest about what is missing."""

import re
from html.parser import HTMLParser

import pytest

from coordinator.figures.campaign import figures_of_campaign, ratios, throughput_by_effective, throughput_by_requested
from coordinator.report.bench_page import chips, render_bench

A, AGAIN = [100.0, 101.0, 99.0], [100.5, 99.5, 100.0]
RATES = {"a": A, "b": [130, 131, 129], "c": [100, 102, 99], "a'": AGAIN}


class Reader(HTMLParser):
    """Visible text, open elements, and attributes that could load something."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.loads, self.ids = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        named = dict(attrs)
        self.ids += [named["id"]] if named.get("id") else []
        self.loads += [
            named[key] for key in ("src", "href", "xlink:href") if named.get(key) and not named[key].startswith("#")
        ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))


@pytest.fixture
def record(make_bench):
    return make_bench(RATES, RATES)


def test_the_page_is_one_file_with_every_verdict_and_number(record):
    page = Reader(render_bench(record))
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    for comparison in record.comparisons:
        assert comparison.sentence in page.text
    for row in record.rows:
        for repeat in row.observation.repeats:
            assert f"{repeat.output_tokens_per_second:,.0f}" in page.text
    for line in record.order:
        assert line in page.text
    for value in record.fingerprint.values():
        assert value in page.text


def test_chips_count_the_outcomes(record):
    assert chips(record) == ["2 × faster than the first", "2 × no difference shown"]


def test_all_three_figures_are_drawn_with_units_and_the_noise_floor(record):
    for figure in figures_of_campaign(record):
        assert "sequences" in figure.x.unit
        assert {series.kind for series in figure.series} == {"measured"}
        assert render_bench(record).count(f'<figure id="figure-{figure.name}"') == 1
    assert throughput_by_requested(record).y.unit == "tokens/s"
    assert "noise floor: a again" in [series.name for series in ratios(record).series]


def test_an_invalid_row_is_in_the_table_but_not_drawn(make_bench):
    record = make_bench(RATES, results={"b": {"logits_finite": False}})
    assert "b" not in [series.name for series in throughput_by_requested(record).series]
    page = Reader(render_bench(record)).text
    assert "131" in page
    assert "an invalid measurement (nan)" in page
    assert "not compared" in page


def test_the_effective_batch_is_what_ran_not_what_was_asked_for(make_bench):
    told = {name: {"mean_running_sequences": 0.5} for name in ("a", "b", "c", "a'")}
    record = make_bench(RATES, results=told)
    page = Reader(render_bench(record)).text
    assert "the rest waited" in page
    assert throughput_by_effective(record).x.ticks[0] == 0.5
    assert "the rest waited" not in Reader(render_bench(make_bench(RATES))).text


def test_processor_time_stands_beside_wall_time_where_others_kept_the_machine_busy(make_bench):
    busy = Reader(render_bench(make_bench(RATES, results={"b": {"cpu_seconds": 1.0}}))).text
    assert "in processor time" in busy
    assert "busy-cpu: other processes" in busy
    quiet = Reader(render_bench(make_bench(RATES))).text
    assert "in processor time" not in quiet


def test_failures_have_their_message(make_bench):
    page = Reader(render_bench(make_bench(RATES | {"b": "out-of-memory"}))).text
    assert "out-of-memory" in page
    assert "it broke" in page


def test_an_unfinished_campaign_says_so(make_bench):
    page = Reader(render_bench(make_bench(RATES | {"c": [100.0]}))).text
    assert "The campaign is not finished" in page
    assert "not all of its restarts were run" in page


def test_a_campaign_without_any_result_has_reasons_for_figures(make_bench):
    record = make_bench(dict.fromkeys(("a", "b", "a'"), "timeout") | {"c": [1.0]})
    page = Reader(render_bench(record)).text
    assert "Not drawn: no two valid measurements have finished." in page


def test_names_cannot_break_the_page(make_bench):
    record = make_bench(RATES)
    wicked = "<script>alert('$x$')</script>"
    shapes = record.campaign.candidates
    campaign = record.campaign.model_copy(
        update={"candidates": (shapes[0].model_copy(update={"name": wicked}), *shapes[1:])}
    )
    from coordinator.bench_record import make_record

    html = render_bench(make_record(campaign, record.restarts))
    assert "<script>" not in html
    assert wicked in Reader(html).text
