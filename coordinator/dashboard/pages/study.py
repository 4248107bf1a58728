"""Study: what is asked, what the fit says and how good it is, predicted beside measured losses, and which figures."""

from collections.abc import Iterable, Iterator

from coordinator.analysis import Analysis
from coordinator.caveats import Troubles, caveats
from coordinator.dashboard.pages.page import (
    Amount,
    AmountKind,
    Fact,
    Page,
    Shape,
    amount,
    missing,
    page_facts,
    shape_of,
    stated,
)
from coordinator.dashboard.reads import PageReader
from coordinator.figures.catalogue import Entry
from coordinator.figures.formats import NATS, count, duration, moment, plural
from coordinator.recommendation import HeldOutLoss, Recommendation
from coordinator.record import is_simulated
from coordinator.study import StudySpec
from hwprofiles.value import Value
from scaling.law_fit import LawFit, Optimum
from scaling.quantity import NotMeasured, Predicted

MISFIT_P = 0.05


class FigureEntry(Value):
    """A figure that `/api/figures/{name}` gives."""

    name: str
    title: str
    page: str
    """The page that it belongs to: overview, study, hardware or recommendation."""
    is_wide: bool


class SizeOptima(Value):
    """The optima as fitted at one size alone."""

    num_parameters: float
    num_runs: int
    x_opt: Amount
    r_opt: Amount


class Law(Value):
    """The fit that decides, and how far it can be trusted."""

    sentence: str
    form: str
    """multiplicative or additive."""
    coefficients: tuple[float, ...]
    """a0 a1 a2 b0 b1 b2 of (a0 + a1 ln x + a2/x) · (b0 + b1 ln r + b2/r) · L_opt; empty where no law was fitted."""
    reference: str
    """Where L_opt of a cell comes from."""
    converged: bool
    num_runs: int
    num_left_out: int
    """Runs whose r is outside the law's range."""
    degrees_of_freedom: int
    x_opt: Amount
    r_opt: Amount
    residual_sd: Amount
    """Of one run around the law: noise and misfit together."""
    noise_sd: Amount
    """Of one run over its seeds, from replicates."""
    lack_of_fit_p: float | None
    """p of the F test of the law against the replicates; small means a misfit beyond the noise. Null: no test."""
    lack_of_fit: str
    """What the test says, or why there is none."""
    condition_number: float | None
    """Of the design: 1 is ideal; large means that the runs cannot tell the coefficients apart."""
    x_range: tuple[float, float]
    """Of the runs."""
    r_range: tuple[float, float]
    heldout_error: Amount
    """Median of |predicted - measured| / measured at the target, in per cent."""
    by_size: tuple[SizeOptima, ...]
    agreement: str
    """Whether the optima agree between sizes."""
    messages: tuple[str, ...]
    """Everything that the fits say of themselves."""
    fitted_unix: float
    num_fits: dict[str, int]
    """All fits of the run, by outcome."""


class HeldOut(Value):
    """One shape trained at the target: what the law predicted before, and what came out."""

    role: str
    shape: Shape
    predicted: Amount
    measured: Amount
    error: float | None
    """predicted / measured - 1; null without a prediction."""


class StudyPage(Page):
    """The study and its law."""

    description: str
    settings: tuple[Fact, ...]
    """What is asked: target, sizes, space, recipe, serving, budget."""
    data: tuple[Fact, ...]
    """Text, tokens, versions and devices."""
    law: Law | None
    no_law_because: str
    """Empty where there is a law."""
    held_out: tuple[HeldOut, ...]
    caveats: tuple[str, ...]
    """What a reader must know before believing anything of this."""
    figures: tuple[FigureEntry, ...]


def read_study(store: PageReader, *, analysis: Analysis | None, figures: Iterable[Entry], now_unix: float) -> StudyPage:
    """The study as it is now.

    Args:
        store: within a snapshot.
        analysis: the newest fit.
        figures: of the run.
        now_unix: of the answer.
    """
    study, fit, told = store.study(), store.newest_fit(), store.recommendation()
    scale = store.meta("token_scale")
    recommendation = None if told is None else Recommendation.model_validate(told)
    simulated = is_simulated(store)
    origin: AmountKind = "simulated" if simulated else "measured"
    return StudyPage(
        **page_facts(store, now_unix=now_unix),
        description=study.description,
        settings=tuple(_settings(study, None if scale is None else float(scale))),
        data=tuple(_data(store, study)),
        law=None
        if analysis is None or fit is None
        else _law(analysis, recommendation, fitted_unix=fit.unix, num_fits=store.fit_counts(), origin=origin),
        no_law_because="" if analysis is not None else "No run at the fit's size has finished yet.",
        held_out=()
        if recommendation is None
        else tuple(_held_out(row, recommendation, simulated=simulated) for row in recommendation.held_out),
        caveats=tuple(read_caveats(store)),
        figures=tuple(figure_entry(entry) for entry in figures if entry.page == "study"),
    )


def read_caveats(store: PageReader) -> list[str]:
    """What a reader must know before believing anything of this run."""
    attempts, scale = store.attempt_counts(), store.meta("token_scale")
    troubles = Troubles(
        num_failed_attempts=sum(one.num for one in attempts if one.outcome not in ("succeeded", "interrupted")),
        num_retries=store.num_retries(),
        num_given_up=store.num_trials(state="failed"),
        num_refused=sum(store.rejection_counts().values()),
    )
    return caveats(
        store.study(),
        token_scale=None if scale is None else float(scale),
        is_simulated=is_simulated(store),
        troubles=troubles,
    )


def figure_entry(entry: Entry) -> FigureEntry:
    """A figure as it is listed."""
    return FigureEntry(name=entry.name, title=entry.title, page=entry.page, is_wide=entry.is_wide)


def heldout_error(recommendation: Recommendation | None, *, origin: AmountKind) -> Amount:
    """How far the law was off at the target."""
    if recommendation is None:
        return missing("no recommendation yet: nothing was held against the target")
    if recommendation.heldout_error_ratio is None:
        return missing("no shape has both a predicted and a measured loss at the target")
    shapes = plural(len(recommendation.held_out), "shape")
    return stated(origin, 100 * recommendation.heldout_error_ratio, "%", f"{shapes}; too few for an interval")


# What is asked


def _settings(study: StudySpec, token_scale: float | None) -> Iterator[Fact]:
    target, fit, space, serving = study.target, study.fit, study.space, study.serving
    yield Fact(
        name="Target",
        value=f"N = {count(target.num_parameters)}, D / N = {target.tokens_per_parameter:g}",
        note=f"held out of every fit; {plural(target.num_validation_seeds, 'seed')} a shape; the limit is kept with "
        f"probability {target.probability:.0%}",
    )
    yield Fact(name="Baseline", value=target.baseline, note="its shape ratios, at the target's size")
    yield Fact(
        name="Fit",
        value=f"N = {count(fit.num_parameters)}, D / N = {fit.tokens_per_parameter:g}",
        note=f"{plural(fit.num_space_shapes, 'shape')}, {plural(fit.num_centre_replicates, 'replicate')}, "
        f"{plural(fit.num_rounds, 'round')} of {fit.num_runs_per_round} proposed runs",
    )
    for cell in study.reference:
        ratios = ", ".join(f"{ratio:g}" for ratio in cell.all_ratios)
        note = f"{plural(cell.num_shapes, 'shape')}: L_opt, and whether the optima agree between sizes"
        yield Fact(name="Reference", value=f"N = {count(cell.num_parameters)}, D / N = {ratios}", note=note)
    yield Fact(
        name="Space",
        value=f"x {space.x_min:g} to {space.x_max:g}, r {space.r_min:g} to {space.r_max:g}",
        note=f"{plural(space.num_hidden_layers, 'layer')}, head_dim {space.head_dim}, {space.query_group_size} query "
        f"heads a key-value head, N within {space.tolerance:.0%}",
    )
    yield Fact(
        name="Training",
        value=f"{study.training.batch_tokens} tokens a batch, rate {study.training.base_learning_rate}",
        note=f"sequences of {study.training.sequence_length}, decay over the last {study.training.decay_fraction:.0%}",
    )
    load, recipe = serving.workload, serving.recipe
    yield Fact(
        name="Serving",
        value=f"{recipe.engine} on {', '.join(serving.hardware) or study.budget.bench_hardware or 'what is there'}",
        note=f"{recipe.dtype}, batch {load.batch_size}, {load.input_tokens} input and {load.output_tokens} output "
        f"tokens, {plural(serving.num_repeats, 'repeat')}, {plural(serving.num_candidates, 'candidate')}",
    )
    hours = study.budget.accelerator_hours
    granted = "no limit of accelerator-hours" if hours is None else f"{hours:g} accelerator-hours"
    scale = "" if token_scale is None else f"; every D is {token_scale:.0%} of the study's"
    yield Fact(name="Budget", value=f"{study.budget.wall_minutes:g} min", note=f"wall time; {granted}{scale}")


def _data(store: PageReader, study: StudySpec) -> Iterator[Fact]:
    corpus, wall = store.corpus() or {}, store.meta("wall_seconds")
    shards = ", ".join(f"{count(shard['num_tokens'])} {shard['role']} tokens" for shard in corpus.get("shards", ()))
    yield Fact(name="Begun", value=moment(float(store.meta("created_unix") or 0)), note="")
    yield Fact(
        name="Wall time",
        value="none" if wall is None else duration(float(wall)),
        note="nothing was committed yet" if wall is None else "of all starts together",
    )
    yield Fact(
        name="Corpus", value=corpus.get("description") or study.corpus.source, note=shards or "it was not built yet"
    )
    yield Fact(name="Corpus id", value=store.meta("corpus_id") or "none", note="SHA-256 of its manifest")
    yield Fact(name="Vocabulary", value=f"{count(study.corpus.vocab_size)} tokens", note="")
    versions: dict[str, dict[str, None]] = {}
    for agent in store.agents():
        for name, version in agent.versions.items():
            versions.setdefault(name, {})[version] = None
    for name, different in sorted(versions.items()):
        yield Fact(name=name, value=", ".join(different), note="of the agents")


# What the fit says


def _law(
    analysis: Analysis,
    recommendation: Recommendation | None,
    *,
    fitted_unix: float,
    num_fits: dict[str, int],
    origin: AmountKind,
) -> Law:
    fit = analysis.law_fit
    no_law = "no law was fitted"
    return Law(
        sentence=analysis.sentence(),
        form=fit.form,
        coefficients=() if fit.law is None else (*fit.law.a, *fit.law.b),
        reference=fit.reference,
        converged=fit.converged,
        num_runs=fit.num_points,
        num_left_out=fit.num_left_out,
        degrees_of_freedom=fit.degrees_of_freedom,
        x_opt=_optimum(fit.x_opt, fit.x_opt_reason or no_law, fit),
        r_opt=_optimum(fit.r_opt, fit.r_opt_reason or no_law, fit),
        residual_sd=_spread(fit.residual_sd, no_law, fit.num_points, origin=origin),
        noise_sd=_spread(fit.pure_error_sd, fit.pure_error_reason or no_law, fit.num_points, origin=origin),
        lack_of_fit_p=fit.lack_of_fit_p,
        lack_of_fit=_lack_of_fit(fit.lack_of_fit_p),
        condition_number=fit.condition_number,
        x_range=fit.x_range,
        r_range=fit.r_range,
        heldout_error=heldout_error(recommendation, origin=origin),
        by_size=tuple(
            SizeOptima(
                num_parameters=size,
                num_runs=one.num_points,
                x_opt=_optimum(one.x_opt, one.x_opt_reason or no_law, one),
                r_opt=_optimum(one.r_opt, one.r_opt_reason or no_law, one),
            )
            for size, one in analysis.by_size
        ),
        agreement=analysis.agreement(),
        messages=tuple(analysis.messages()),
        fitted_unix=fitted_unix,
        num_fits=num_fits,
    )


def _optimum(optimum: Optimum | None, reason: str, fit: LawFit) -> Amount:
    if optimum is None:
        return missing(reason)
    without = optimum.fraction_without
    open_end = f"; {without:.0%} of the replicates have none inside the range" if without else ""
    basis = f"law of {plural(fit.num_points, 'run')}{open_end}"
    return amount(Predicted(value=optimum.value, unit="", interval=optimum.interval, basis=basis))


def _spread(sd: float | None, reason: str, num_runs: int, *, origin: AmountKind) -> Amount:
    if sd is None:
        return missing(reason)
    return stated(origin, sd, NATS, f"{plural(num_runs, 'run')}; few degrees of freedom: no interval")


def _lack_of_fit(p: float | None) -> str:
    if p is None:
        return "no test: it needs replicates and more shapes than coefficients"
    if p < MISFIT_P:
        return "F test against the replicates: the law misses something that the runs repeat"
    return "F test against the replicates: no misfit beyond the noise is shown"


def _held_out(row: HeldOutLoss, recommendation: Recommendation, *, simulated: bool) -> HeldOut:
    predicted = row.predicted
    refuted = {answer.recommended for answer in recommendation.answers if not answer.stands}
    return HeldOut(
        role="refuted" if row.architecture in refuted and row.role == "recommended" else row.role,
        shape=shape_of(row.architecture),
        predicted=amount(predicted),
        measured=amount(row.measured, simulated=simulated),
        error=None if isinstance(predicted, NotMeasured) else predicted.value / row.measured.value - 1,
    )
