"""The report as Markdown: the same facts and figures as the page, figures as tables of their numbers."""

from collections.abc import Iterable, Iterator, Sequence

from coordinator.figures.figure import Axis, Figure, Series
from coordinator.figures.formats import count
from coordinator.figures.shown import Shown
from coordinator.report.answers import AnswerCards, Card
from coordinator.report.document import Report
from coordinator.report.tables import Fact

MAX_CURVE_ROWS = 9
"""Of a curve so many places are told; of points all."""
_SIGNIFICANT = 6


def render_markdown(report: Report) -> str:
    """The report as one Markdown document with tables."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from (f"# archfleet, study {report.study}: {report.state}, {report.progress}", "")
    yield from (" · ".join(f"**{_cell(verdict)}**" for verdict in report.verdicts), "")
    if report.is_simulated:
        yield from ("**Simulated fleet: nothing here was measured.**", "")
    if report.no_answer:
        yield from (f"No recommendation: {report.no_answer}", "")
    for cards in report.answers:
        yield from _answer(cards)
    yield from ("## What this is and is not", "", *_items(report.caveats))
    yield from ("## How good the fit is", "")
    yield from _facts(report.fit_facts) if report.fit_facts else ("Nothing was fitted yet.", "")
    yield from _items(report.fit_messages)
    if report.agreement:
        yield from (f"Between sizes: {report.agreement}", "")
    yield from _held_out(report)
    yield from ("## Figures", "")
    for placed in report.figures:
        yield from figure_lines(placed.figure)
    yield from _plans(report)
    yield from _runs(report)
    yield from _serving(report)
    yield from _failures(report)
    yield from ("## Provenance", "", *_facts(report.provenance))


def _answer(cards: AnswerCards) -> Iterator[str]:
    yield from (f"## {cards.hardware}: {cards.headline}", "", f"{cards.sentence}.", "")
    if cards.why_panda:
        yield from (cards.why_panda, "")
    yield from _shapes(cards)
    rows = [row for card in (cards.loss, cards.throughput) for row in _card_rows(card, cards)]
    yield from _table(("measure", "of", "value", "unit", "interval", "kind", "note"), rows)
    yield from _items(cards.reasons)
    if cards.ranking:
        yield from (cards.ranking, "")
    yield from ("### The one extra run that would change this answer most", "", _extra_run(cards), "")


def _shapes(cards: AnswerCards) -> Iterator[str]:
    if not cards.refuted_facts:
        return _table(("", ""), cards.shape_facts)
    rows = [(*kept, refuted) for kept, (_, refuted) in zip(cards.shape_facts, cards.refuted_facts, strict=True)]
    return _table(("", f"baseline {cards.built}", f"refuted {cards.shape}"), rows)


def _extra_run(cards: AnswerCards) -> str:
    extra = cards.extra_run
    return cards.no_extra_run_because if extra is None else f"{extra.sentence} {extra.basis}"


def _card_rows(card: Card, cards: AnswerCards) -> Iterator[tuple[str, ...]]:
    of = ((cards.standing, card.proposed), ("baseline", card.baseline), (card.comparison_name, card.comparison))
    for name, quantity in of:
        yield card.title, name, quantity.value, quantity.unit, quantity.interval, quantity.kind, quantity.note


def _held_out(report: Report) -> Iterator[str]:
    if report.held_out:
        rows = [
            (row.role, row.shape, _words(row.predicted), _words(row.measured), row.error) for row in report.held_out
        ]
        yield from ("### Held-out check", "", "Losses in nats/token at the target, which no fit has seen.", "")
        yield from _table(("shape", "", "predicted", report.kind_of_losses, "relative error"), rows)


def _words(quantity: Shown) -> str:
    return " ".join(part for part in (quantity.value, quantity.interval, quantity.note) if part)


def _plans(report: Report) -> Iterator[str]:
    yield from ("## What was planned, and why", "")
    for plan in report.plans:
        yield from (f"### {plan.stage}: {len(plan.trials)} trials", "", *_items(plan.notes))
        yield from _table(("role", "shape", "reason"), [(one.role, one.shape, one.reason) for one in plan.trials])


def _runs(report: Report) -> Iterator[str]:
    head = (
        "trial",
        "role",
        "shape",
        "x",
        "r",
        "N",
        "D (tokens)",
        "seed",
        "loss ± se (nats/token)",
        "tokens/s",
        "state",
    )
    rows = [
        (
            run.trial_id,
            run.role,
            run.shape,
            f"{run.x:.3f}",
            f"{run.r:.2f}",
            count(run.num_parameters),
            "not trained" if run.num_tokens is None else count(run.num_tokens),
            "no seed" if run.seed is None else str(run.seed),
            run.loss_text,
            run.rate_text,
            run.state,
        )
        for run in report.runs
    ]
    yield from ("## Every run", "", *_table(head, rows))


def _serving(report: Report) -> Iterator[str]:
    yield from ("## Serving benchmarks", "", f"Load: {report.load}.", "")
    head = ("shape", "named", "repeats (tokens/s)", "mean", "CV", "running", "J per token", "flags", "engine", "device")
    rows = [
        (
            *(row.shape, row.roles or "none", ", ".join(row.repeats), _words(row.rate), row.variation),
            *(_words(row.running), _words(row.energy), ", ".join(row.flags) or "none", row.engine, row.device),
        )
        for row in report.serving
    ]
    yield from _table(head, rows)
    hardware = [cards.hardware for cards in report.answers]
    rates = [
        (row.shape, where, cell.roles or "none", _words(cell.measured), _words(cell.predicted))
        for row in report.rates
        for where, cell in zip(hardware, row.cells, strict=True)
    ]
    if rates:
        kind = report.kind_of_rates
        yield from (f"### Throughput: {kind} beside predicted", "")
        yield from _table(("shape", "hardware", "named", f"{kind} (tokens/s)", "predicted (tokens/s)"), rates)


def _failures(report: Report) -> Iterator[str]:
    yield from ("## Failures", "")
    if not report.failures:
        yield from ("No attempt failed.", "")
    rows = [
        (one.assignment_id, one.failure_kind, one.provenance.agent, f"{one.provenance.seconds:.1f}", one.message)
        for one in report.failures
    ]
    yield from _table(("trial", "kind", "agent", "after (s)", "message"), rows)


# Figures


def figure_lines(figure: Figure) -> Iterator[str]:
    """A figure as its words and one table for each series: place, value, intervals, what it is."""
    yield from (f"### {figure.title}", "")
    if not figure.series:
        yield from (f"Not drawn: {figure.reason}", "")
        return
    yield from (figure.caption, "")
    for guide in figure.guides:
        if guide.name and guide.axis != "diagonal":
            at = _number(guide.low) if guide.low == guide.high else f"{_number(guide.low)} to {_number(guide.high)}"
            yield f"- {guide.name}: {guide.axis} = {at}"
    yield ""
    for series in _told(figure.series):
        yield from _series_lines(figure, series)


def _told(every: Sequence[Series]) -> Iterator[Series]:
    """A line or a bar that repeats what another series at the same points tells is left out."""
    for series in every:
        repeats = [one for one in every if one is not series and (one.x, one.y) == (series.x, series.y) and one.name]
        if series.name or not repeats or (series.y_interval and all(not one.y_interval for one in repeats)):
            yield series


def _series_lines(figure: Figure, series: Series) -> Iterator[str]:
    places: Sequence[int] = range(len(series.x))
    is_curve = series.mark in ("line", "band") and len(places) > MAX_CURVE_ROWS
    if is_curve:
        last = len(places) - 1
        places = sorted({round(last * step / (MAX_CURVE_ROWS - 1)) for step in range(MAX_CURVE_ROWS)})
    what = ", ".join(part for part in (series.name or "further points", series.kind) if part)
    note = f" ({len(places)} of {len(series.x)} places)" if is_curve else ""
    yield from (f"{what[0].upper()}{what[1:]}{note}:", "")
    columns = [
        (_axis_words(figure.x), [_place(figure.x, series.x[i]) for i in places]),
        ("x interval", [_interval(series.x_interval, i) for i in places]),
        (_axis_words(figure.y), [_place(figure.y, series.y[i]) for i in places]),
        ("y interval", [_interval(series.y_interval, i) for i in places]),
        ("what", [series.labels[i] if series.labels else "" for i in places]),
        ("trial", [series.trial_ids[i] if series.trial_ids else "" for i in places]),
    ]
    kept = [(name, cells) for name, cells in columns if any(cells)]
    yield from _table([name for name, _ in kept], zip(*(cells for _, cells in kept), strict=True))


def _axis_words(axis: Axis) -> str:
    return f"{axis.label or 'of'} ({axis.unit})" if axis.unit else axis.label or "of"


def _place(axis: Axis, value: float) -> str:
    """A number; on an axis that counts things, the thing."""
    if axis.categories and 0 <= round(value) < len(axis.categories):
        return axis.categories[round(value)]
    return _number(value)


def _interval(intervals: Sequence[tuple[float, float] | None], place: int) -> str:
    ends = intervals[place] if intervals else None
    return "" if ends is None else f"{_number(ends[0])} to {_number(ends[1])}"


def _number(value: float) -> str:
    return f"{value:.{_SIGNIFICANT}g}"


# Markdown


def _facts(facts: Iterable[Fact]) -> Iterator[str]:
    return _table(("fact", "value", "note"), [(fact.name, fact.value, fact.note) for fact in facts])


def _items(sentences: Iterable[str]) -> Iterator[str]:
    listed = [f"- {sentence}" for sentence in sentences]
    yield from (*listed, "") if listed else ()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    listed = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    if listed:
        yield from ("| " + " | ".join(map(_cell, head)) + " |", "|" + " --- |" * len(head), *listed, "")


def _cell(text: str) -> str:
    """Text that cannot end its cell or begin an element."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
