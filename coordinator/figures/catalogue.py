"""Catalogue: which figures a run has, on which page each belongs, and how it is made.

Names, titles and pages are told without drawing anything; a figure is made when somebody asks for it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from coordinator.figures.figure import Figure
from coordinator.figures.held_out import held_out
from coordinator.figures.influence import influence
from coordinator.figures.law_curves import loss_against
from coordinator.figures.learning import condition, convergence, fit_error
from coordinator.figures.levels import loss_compute, reference
from coordinator.figures.optima import optima
from coordinator.figures.pareto import pareto, pareto_hardware
from coordinator.figures.residuals import residuals, residuals_against
from coordinator.figures.roofline import predictions_by, roofline
from coordinator.figures.spending import spending
from coordinator.figures.steadiness import benchmarked_hardware, canary, canary_hardware, noise_floor
from coordinator.figures.thinning import thinned
from coordinator.figures.timeline import timeline
from coordinator.record import RunRecord

Reads = Literal["leases", "benchmarks", "everything"]
"""What a figure is made of: trials and their attempts; benchmarks, canaries and the recommendation; or all of a record.
The first two are read soon, however many runs were trained."""
FigurePage = Literal["overview", "study", "hardware", "recommendation"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure before it is made."""

    name: str
    title: str
    page: FigurePage
    make: Callable[[RunRecord], Figure]
    is_wide: bool = False
    reads: Reads = "everything"


_ALWAYS = (
    Entry(name="timeline", title="The run over time", page="overview", make=timeline, is_wide=True, reads="leases"),
    Entry(name="spend", title="Accelerator time spent", page="overview", make=spending, reads="leases"),
    Entry(name="loss-x", title="Loss against x", page="study", make=partial(loss_against, axis="x")),
    Entry(name="loss-r", title="Loss against r", page="study", make=partial(loss_against, axis="r")),
    Entry(name="loss-compute", title="Loss against compute", page="study", make=loss_compute),
    Entry(name="reference", title="Reference law: best loss against data", page="study", make=reference),
    Entry(name="residuals-x", title="Residuals against x", page="study", make=partial(residuals_against, axis="x")),
    Entry(name="residuals-r", title="Residuals against r", page="study", make=partial(residuals_against, axis="r")),
    Entry(name="optima-x", title="Does x* agree between sizes?", page="study", make=partial(optima, axis="x")),
    Entry(name="optima-r", title="Does r* agree between sizes?", page="study", make=partial(optima, axis="r")),
    Entry(name="convergence-x", title="x* as runs came in", page="study", make=partial(convergence, axis="x")),
    Entry(name="convergence-r", title="r* as runs came in", page="study", make=partial(convergence, axis="r")),
    Entry(name="condition", title="Condition number of the design", page="study", make=condition),
    Entry(name="fit-error", title="Error of the fit", page="study", make=fit_error),
    Entry(name="residuals", title="Residuals against the predicted loss", page="study", make=residuals),
    Entry(name="influence", title="Which runs move the answer most", page="study", make=influence, is_wide=True),
    Entry(
        name="held-out",
        title="Held-out: prediction against outcome",
        page="recommendation",
        make=held_out,
        reads="benchmarks",
    ),
)


_OF_BENCHMARKS = ("noise-", "canary-", "roofline")
"""What the names of the figures of each hardware begin with."""


def reads_of(name: str) -> Reads:
    """What the figure of this name is made of, before it is known whether the run has one."""
    if name.startswith(_OF_BENCHMARKS):
        return "benchmarks"
    return next((entry.reads for entry in _ALWAYS if entry.name == name), "everything")


def entries(record: RunRecord) -> tuple[Entry, ...]:
    """What a run has figures of, in the order in which they are read; nothing is drawn."""
    return (*_ALWAYS, *_paretos(record), *_hardware(record))


def figure(record: RunRecord, name: str) -> Figure:
    """One figure by its name.

    Raises:
        KeyError: the run has none of that name.
    """
    return thinned({entry.name: entry for entry in entries(record)}[name].make(record))


def figures_of(record: RunRecord) -> tuple[Figure, ...]:
    """Every figure of a run; those with nothing to draw say why."""
    return tuple(thinned(entry.make(record)) for entry in entries(record))


def _paretos(record: RunRecord) -> Iterator[Entry]:
    kinds, engine = pareto_hardware(record), record.study.serving.recipe.engine
    for name, hardware in _named("pareto", kinds):
        yield Entry(
            name="pareto" if len(kinds) == 1 else name,
            title=f"Loss against serving throughput: {engine} on {hardware}",
            page="recommendation",
            make=partial(pareto, hardware=hardware, name="pareto" if len(kinds) == 1 else name),
        )


def _hardware(record: RunRecord) -> Iterator[Entry]:
    for name, hardware in _named("noise", benchmarked_hardware(record)):
        title = f"Noise floor of {hardware}: repeats about their mean"
        yield Entry(name=name, title=title, page="hardware", make=partial(noise_floor, hardware=hardware, name=name))
    for name, hardware in _named("canary", canary_hardware(record)):
        title = f"Canaries on {hardware}"
        yield Entry(name=name, title=title, page="hardware", make=partial(canary, hardware=hardware, name=name))
    predicted = list(predictions_by(record))
    for name, hardware in _named("roofline", predicted):
        title = f"Serving on {hardware}: predicted, uncalibrated"
        yield Entry(name=name, title=title, page="hardware", make=partial(roofline, hardware=hardware, name=name))
    if not predicted:
        make = partial(roofline, hardware="", name="roofline")
        yield Entry(name="roofline", title="Serving on other hardware", page="hardware", make=make)


def _named(kind: str, hardware: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A name for each hardware, as `Figure.name` may be: kind-hardware, other characters left out."""
    for one in hardware:
        yield f"{kind}-{re.sub(r'[^a-z0-9_-]+', '-', one.lower())}"[:63], one
