"""bench.html: a benchmark campaign as one self-contained document. Everything on it comes from the record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.bench_record import BenchRecord, failures
from coordinator.bench_verdicts import BenchComparison, BenchRow, Outcome, correction
from coordinator.figures.campaign import effective_batch, figures_of_campaign, look
from coordinator.figures.figure import Colour
from coordinator.figures.formats import count, digits, duration, moment, plural
from coordinator.figures.shown import Shown, shown
from coordinator.report.canvas import paint
from coordinator.report.environment import render
from coordinator.report.tables import Fact, not_measured
from scaling.observations import ServingObservation
from scaling.throughput_comparison import ThroughputComparison
from scaling.weight_formats import recipe_words

TEMPLATE = "bench.html.j2"


def render_bench(record: BenchRecord) -> str:
    """The page of a campaign, finished or not, without any external request.

    Raises:
        UserError: jinja2 is not installed.
    """
    return render(TEMPLATE, lambda: _context(record))


def _context(record: BenchRecord) -> dict[str, Any]:
    campaign = record.campaign
    return {
        "record": record,
        "is_fake": campaign.recipe.engine == "fake",
        "campaign": campaign,
        "state": f"{len(record.restarts)} of {plural(record.num_restarts, 'engine restart')} run",
        "verdicts": [c.sentence for c in record.comparisons if not c.is_control],
        "floors": [c.sentence for c in record.comparisons if c.is_control],
        "chips": chips(record),
        "caveats": caveats(record),
        "figures": [paint(figure) for figure in figures_of_campaign(record)],
        "rows": [_bench_row(record, row) for row in record.rows],
        "with_processor": any(c.processor is not None for c in record.comparisons),
        "shapes": shape_rows(record),
        "failures": failures(record),
        "provenance": provenance_facts(record),
    }


def chips(record: BenchRecord) -> list[str]:
    """The outcomes in a few words: how many comparisons showed what."""
    outcomes = [comparison.outcome for comparison in record.comparisons if not comparison.is_control]
    words: dict[Outcome, str] = {
        "faster": "faster than the first",
        "slower": "slower than the first",
        "no-difference-shown": "no difference shown",
        "not-compared": "not compared",
    }
    return [f"{outcomes.count(outcome)} × {text}" for outcome, text in words.items() if outcome in outcomes]


def caveats(record: BenchRecord) -> list[str]:
    """What a reader must know before believing the numbers."""
    campaign = record.campaign
    flags = {flag for one in record.observations() for flag in one.flags}
    words = []
    if campaign.recipe.engine == "fake":
        words.append(
            "The engine `fake` is a simulation: every throughput here is invented by a roofline, not measured."
        )
    if not record.is_finished:
        words.append("The campaign is not finished: rows without all their restarts are not compared.")
    words.append(
        "Weights are random and prompts are random token ids; every request has exactly the same lengths and none ends "
        "early. The numbers hold for this device, this engine and these options."
    )
    if len(campaign.candidates) > 1:
        words.append(
            f"{correction(campaign.num_comparisons)} A difference that is not shown may still be there, as small as "
            "the interval is wide."
        )
    words += [_FLAG_WORDS[flag] for flag in sorted(flags) if flag in _FLAG_WORDS]
    if _partly_queue(record):
        words.append(
            "Where fewer sequences ran than were asked for, the rest waited: a smaller KV cache wins there partly "
            "because the others cannot run that batch."
        )
    return words


_FLAG_WORDS = {
    "busy-cpu": "busy-cpu: other processes kept this processor busy, so wall times measure them too. Processor time "
    "beside it leaves them out, but not what they did to caches and memory bandwidth.",
    "noisy": "noisy: the restarts of a row vary by more than 5 %.",
    "short": "short: a window was shorter than asked for, or on a GPU than 60 s or four batches.",
    "too-few-repeats": "too-few-repeats: two restarts tell too little of their spread; such rows are not compared.",
    "nan": "nan: logits were not finite; such rows are not compared.",
    "wrong-token-count": "wrong-token-count: the engine returned another number of tokens; such rows are not compared.",
}


def _partly_queue(record: BenchRecord) -> bool:
    running = [(row, effective_batch(row)) for row in record.rows]
    return any(value is not None and value < 0.95 * row.batch_size for row, value in running)


@dataclass(frozen=True, kw_only=True)
class BenchTableRow:
    """One architecture at one batch size, as text."""

    name: str
    colour: str
    batch_size: int
    is_control: bool
    running: Shown
    rate: Shown
    interval: str
    repeats: tuple[str, ...]
    processor_repeats: tuple[str, ...]
    variation: str
    ratio: str
    processor: str
    outcome: str
    flags: str
    latencies: tuple[str, ...]
    energy: Shown


def _bench_row(record: BenchRecord, row: BenchRow) -> BenchTableRow:
    names = [candidate.name for candidate in record.campaign.candidates]
    seen = row.observation
    comparison = next((c for c in record.comparisons if (c.name, c.batch_size) == (row.name, row.batch_size)), None)
    absent = not_measured(row.why_not_comparable or "")
    return BenchTableRow(
        name=row.name,
        colour="band" if row.is_control else look(names.index(row.name)),
        batch_size=row.batch_size,
        is_control=row.is_control,
        running=absent if seen is None else shown(seen.mean_running_sequences),
        rate=absent if seen is None else shown(seen.output_tokens_per_second),
        interval=_interval(seen),
        repeats=() if seen is None else tuple(digits(r.output_tokens_per_second, "tokens/s") for r in seen.repeats),
        processor_repeats=() if seen is None else _processor_rates(seen),
        variation="" if seen is None else f"{seen.coefficient_of_variation:.1%}",
        ratio="1 (first)" if comparison is None else _ratio(comparison.wall, "not compared"),
        processor="1 (first)" if comparison is None else _ratio(comparison.processor, "not busy"),
        outcome="" if comparison is None else _outcome(comparison),
        flags="failed" if row.result is not None and seen is None else ", ".join(() if seen is None else seen.flags),
        latencies=() if seen is None else _latencies(seen),
        energy=absent if seen is None else shown(seen.joules_per_output_token),
    )


def _interval(seen: ServingObservation | None) -> str:
    """The rate's interval; level and method stand above the table."""
    rate = None if seen is None else seen.output_tokens_per_second
    if rate is None or rate.interval is None:
        return ""
    return f"[{digits(rate.interval.low, rate.unit)}, {digits(rate.interval.high, rate.unit)}]"


def _processor_rates(seen: ServingObservation) -> tuple[str, ...]:
    """Output tokens per second of processor time, where it was taken."""
    return tuple(
        digits(repeat.num_output_tokens / repeat.processor_seconds, "tokens/s")
        for repeat in seen.repeats
        if repeat.processor_seconds
    )


def _ratio(comparison: ThroughputComparison | None, otherwise: str) -> str:
    if comparison is None:
        return otherwise
    interval = comparison.interval
    return f"{comparison.ratio:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else ", no interval")


def _outcome(comparison: BenchComparison) -> str:
    return "noise floor" if comparison.is_control else comparison.outcome.replace("-", " ")


def _latencies(seen: ServingObservation) -> tuple[str, ...]:
    """TTFT 12.1 / 15.0 / 20.3 ms: median, 90th and 99th percentile, where the engine tells them."""
    lines = []
    for latency in getattr(seen, "latencies", ()):
        levels = [getattr(latency, name) for name in ("p50", "p90", "p99")]
        if all(level.kind == "measured" for level in levels):
            lines.append(f"{latency.name.upper()} {' / '.join(f'{1e3 * level.value:.3g}' for level in levels)} ms")
    return tuple(lines)


def shape_rows(record: BenchRecord) -> list[tuple[Colour, str, list[str]]]:
    """Colour, name and what is counted of each candidate."""
    rows = []
    for number, candidate in enumerate(record.campaign.candidates):
        shape = candidate.architecture
        cells = [
            shape.label,
            count(shape.num_parameters),
            count(shape.num_total_parameters),
            f"{shape.width_ratio:.3f}",
            f"{shape.mlp_attention_ratio:.2f}",
            str(shape.query_group_size),
            count(shape.key_value_elements_per_token),
        ]
        rows.append((look(number), candidate.name, cells))
    return rows


def provenance_facts(record: BenchRecord) -> list[Fact]:
    """Where, when, with what options and by what versions it was measured."""
    campaign, made = record.campaign, record.provenances()
    recipe, load = campaign.recipe, campaign.workloads[0]
    threads = plural(recipe.num_threads, "CPU thread")
    facts = [
        Fact(name="Engine", value=f"{recipe.engine}, {recipe_words(recipe)}", note=threads),
        Fact(name="Workload", value=f"{load.input_tokens} input and {load.output_tokens} output tokens a request"),
        Fact(
            name="Restarts",
            value=f"{campaign.num_repeats} of each row",
            note=f"each a fresh process that measures at least {campaign.min_window_seconds:g} s",
        ),
    ]
    if not made:
        return [*facts, Fact(name="Measured", value="nothing", note="no restart has ended yet")]
    last = max(one.started_at_unix + one.seconds for one in made)
    facts += [
        Fact(name="Begun", value=moment(made[0].started_at_unix)),
        Fact(name="Ended", value=moment(last), note=f"{duration(sum(one.seconds for one in made))} in engines"),
    ]
    return [*facts, *_fingerprint_facts(record)]


def _fingerprint_facts(record: BenchRecord) -> Sequence[Fact]:
    return [Fact(name=name.replace("_", " "), value=value) for name, value in record.fingerprint.items()]
