"""Which runs move x*, r* and the answer most: shifts by leaving one out, in half-widths of their intervals."""

from collections.abc import Sequence

from coordinator.figures.figure import Axis, Colour, Figure, Guide, Mark, Series
from coordinator.figures.formats import count, plural
from coordinator.figures.scales import run_label
from coordinator.influence import MAX_RUNS, Influence, Watched, influences, watched_of
from coordinator.record import RunRecord

NAME, TITLE = "influence", "Which runs move the answer most"
_OPTIMA: dict[str, tuple[Mark, Colour]] = {"x*": ("ring", "space"), "r*": ("hollow-diamond", "serving")}
_PROPOSALS: tuple[Colour, ...] = ("proposed", "validation", "replicate", "reference")
_X = Axis(label="shift where the run is left out", unit="half-widths of the interval")


def influence(record: RunRecord) -> Figure:
    """The runs that pull most at the fit, left out one at a time."""
    watched = watched_of(record)
    found = influences(record, watched)
    if not found:
        return Figure(name=NAME, title=TITLE, x=_X, y=Axis(label="run left out"), reason=_reason(record), is_wide=True)
    return drawn(record, watched, found)


def drawn(record: RunRecord, watched: Sequence[Watched], found: Sequence[Influence]) -> Figure:
    """One row a run, the most influential on top; a mark for everything that is watched."""
    names = tuple(f"{one.run.architecture.label}, seed {one.run.recipe.seed}" for one in found)
    reach = 1.1 * max(1.0, *(abs(shift) for one in found for shift in one.shifts if shift is not None))
    return Figure(
        name=NAME,
        title=TITLE,
        caption=_caption(record, watched, found),
        x=_X.model_copy(update={"low": -reach, "high": reach}),
        y=Axis(label="", low=-0.6, high=len(found) - 0.4, categories=names[::-1]),
        series=tuple(_series(one, place, found) for place, one in enumerate(watched)),
        guides=(
            Guide(axis="x", low=-1, high=1, colour="band", name="within the interval of the whole fit"),
            Guide(axis="x", colour="soft"),
        ),
        is_wide=True,
    )


def _series(one: Watched, place: int, found: Sequence[Influence]) -> Series:
    """The shifts of one thing; a run without which it is not told has no mark."""
    told = [(len(found) - 1 - row, run.run, run.shifts[place]) for row, run in enumerate(found)]
    marked = [(lane, run, shift) for lane, run, shift in told if shift is not None]
    mark, colour = _OPTIMA.get(one.name, ("cross", _PROPOSALS[(place - len(_OPTIMA)) % len(_PROPOSALS)]))
    return Series(
        name=one.name,
        kind="predicted",
        mark=mark,
        colour=colour,
        dashed=True,
        x=tuple(shift for _, _, shift in marked),
        y=tuple(float(lane) for lane, _, _ in marked),
        labels=tuple(f"without {run_label(run)}" for _, run, _ in marked),
        trial_ids=tuple(run.assignment_id for _, run, _ in marked),
    )


def _caption(record: RunRecord, watched: Sequence[Watched], found: Sequence[Influence]) -> str:
    assert record.analysis is not None
    num_points = record.analysis.law_fit.num_points
    which = f"The {len(found)} of {plural(num_points, 'run')} that pull most at the fit (Cook's distance)"
    if len(found) == num_points:
        which = f"All {plural(num_points, 'run')} of the fit that decides"
    words = [
        f"{which} were left out one at a time, and the law fitted again; on top the run that moves something furthest. "
        "Beyond the stripe a single run moves a result by more than half its interval. A shift, the difference of two "
        "estimates, has no interval of its own."
    ]
    for place, one in enumerate(watched):
        lost = dict.fromkeys(run.run.architecture.label for run in found if run.shifts[place] is None)
        if lost:
            words.append(f"Without {' or '.join(lost)} the other runs tell no {one.name}.")
    return " ".join(words)


def _reason(record: RunRecord) -> str:
    if record.analysis is None:
        return "nothing was fitted yet."
    fit = record.analysis.law_fit
    if fit.law is None:
        return f"no law was fitted. {' '.join(fit.messages)}"
    if fit.num_points > MAX_RUNS:
        return f"the fit has {count(fit.num_points)} runs; single ones are left out of at most {count(MAX_RUNS)}."
    return f"neither x* nor r* has an interval. {' '.join(filter(None, (fit.x_opt_reason, fit.r_opt_reason)))}"
