"""Recommends architectures from a user's own table of runs: what `archfleet recommend` does.

    table -> conditional law (its own runs) -> legal shapes at the wanted N -> loss predicted by the law, throughput
    predicted by the roofline -> Panda, Surefire, Pareto front, with intervals and reasons

Losses are predictions of a law fitted to the table, with bootstrap intervals. Throughputs are predictions of an
uncalibrated roofline: they order shapes, their level is a bound, and they carry no interval. Nothing here is measured.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from rich.table import Table

from agent.benchmark.configs import read_config
from coordinator.runs_table import RunsTable, check_number_of_runs, query_group_sizes, scales_of, shape_points
from hwprofiles.catalog import load_profile
from hwprofiles.profile import HardwareProfile
from hwprofiles.roofline import peak_flops_per_second
from scaling.architecture import Architecture
from scaling.decisive_run import UNLIKELY, DecisiveRun, PossibleRuns, decisive_run
from scaling.fit import fit_conditional
from scaling.group_search import GroupSearch, search_groups
from scaling.law_fit import LawFit, ReferenceSamples
from scaling.points import CELL_TOLERANCE, ShapePoints
from scaling.quantity import Interval, NotMeasured, Predicted, Quantity
from scaling.recipes import ServingRecipe, Workload
from scaling.recommend import (
    LossLimit,
    RecommendedShape,
    RelativeLevel,
    Shortlist,
    Throughput,
    recommend,
    recommended_shapes,
)
from scaling.reference import fit_reference
from scaling.serving import BASIS, NO_INTERVAL, predict_serving, predict_throughput_array
from scaling.space import Candidates, MemoryLimit, SearchSpace, baseline_shape

DEFAULT_WORKLOAD = Workload(batch_size=256, input_tokens=1024, output_tokens=1024)
ASSUMED_UTILISATION = 0.4
"""Model FLOPs utilisation assumed for the cost of a training run; published figures for 0.1B to 1B are 0.4 to 0.6."""
_FAR = 10.0
_SAME_SCALE = 1.2
_GRID_POINTS = 9
_WIDER = 1.3
_MAX_FRONT_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What the user asks, resolved to values."""

    N: float
    D: float
    baseline_name: str
    known: Architecture
    profile: HardwareProfile
    recipe: ServingRecipe
    workload: Workload
    loss_limit: LossLimit
    probability: float


def recommend_from_runs(
    table: RunsTable,
    *,
    n: float,
    tokens: float,
    baseline: str = "llama-3.2-1b",
    hardware: str = "h200",
    num_layers: int | None = None,
    head_dim: int | None = None,
    group_sizes: tuple[int, ...] | None = None,
    tolerance: float = 0.03,
    workload: Workload = DEFAULT_WORKLOAD,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    loss_limit: LossLimit = "baseline",
    probability: float = 0.8,
) -> dict[str, Any]:
    """Fit a table, choose shapes at N = n and D = tokens; the result is plain data for JSON.

    Args:
        table: of `read_runs_table`, with the columns of the conditional law.
        n: non-embedding parameters of the model to build.
        tokens: training tokens of the model to build.
        baseline: a named architecture or a config.json; its layers, head_dim and vocabulary are taken.
        hardware: id of a profile (`archfleet hw list`).
        num_layers: instead of the baseline's.
        head_dim: instead of the baseline's.
        group_sizes: heads per key-value head to choose among; by default those of the table.
        tolerance: relative distance of a shape's N from n.
        workload: what the roofline predicts.
        dtype: of weights and KV cache.
        loss_limit: "baseline", a named architecture of this size, or nats per token.
        probability: how sure Surefire must be to keep the limit.

    Raises:
        ValueError: the table, or what is asked of it, is not enough; one message says what was found and is needed.
    """
    if not (np.isfinite([n, tokens]).all() and n >= 1 and tokens >= 1):
        raise ValueError(f"n and tokens must be positive numbers such as 1e9 and 100e9, got {n:g} and {tokens:g}")
    question = _Question(
        N=float(n),
        D=float(tokens),
        baseline_name=baseline,
        known=read_config(baseline),
        profile=load_profile(hardware),
        recipe=ServingRecipe(engine="vllm", dtype=dtype),
        workload=workload,
        loss_limit=loss_limit,
        probability=probability,
    )
    points = shape_points(table)
    fit = _fitted(table, points, question)
    space = _space(question, fit, table, num_layers, head_dim, group_sizes, tolerance)
    candidates, index, notes = _with_baseline(space.enumerate(), space, question)
    reference, level_reason = _level(fit, question)
    found = _choose(fit, candidates, index, question, reference)
    extra = _extra_run(fit, found, table, question, reference)
    search = None if found.surefire is None else _search_groups(fit, found, question, reference)
    notes = [*_doubts(table, fit, points, question, space), *notes]
    if level_reason is not None:
        notes.append(f"Losses are stated relative to L_opt and to the baseline, not in nats: {level_reason}")
    return _result(question, fit, found, extra, search, [*notes, *found.reasons], level_reason, table)


def _fitted(table: RunsTable, points: ShapePoints, question: _Question) -> LawFit:
    check_number_of_runs(table)
    scales = scales_of(points.num_parameters)
    factor = max(question.N / scales[-1], scales[-1] / question.N)
    if len(scales) == 1 and factor > _SAME_SCALE:
        raise ValueError(
            f"{table.path} holds runs at one scale only, N = {scales[0]:.3g}; to predict N = {question.N:.3g} the law "
            f"needs runs at two sizes at least (better three), a factor of 1.5 or more apart, or runs at "
            f"N = {question.N:.3g} itself"
        )
    # Coefficients drift with scale: the terms are those at N, as far as the runs tell them apart from the rest.
    fit = fit_conditional(points, pooling="partial", at_num_parameters=question.N)
    if fit.law is None:
        raise ValueError(f"{table.path}: {len(table)} runs give no law. {' '.join(fit.messages)}")
    return fit


def _space(
    question: _Question,
    fit: LawFit,
    table: RunsTable,
    num_layers: int | None,
    head_dim: int | None,
    group_sizes: tuple[int, ...] | None,
    tolerance: float,
) -> SearchSpace:
    """Legal shapes at N, within the x and r that were run: beyond them the law would only be extended."""
    multiple = next(m for least, m in ((5e8, 128), (5e7, 64), (0, 16)) if least <= question.N)
    load = question.workload
    return SearchSpace(
        num_parameters=round(question.N),
        tolerance=tolerance,
        num_hidden_layers=num_layers or question.known.num_hidden_layers,
        head_dim=head_dim or question.known.head_dim,
        query_group_sizes=group_sizes or _groups_of(table) or (question.known.query_group_size,),
        hidden_multiple_of=multiple,
        intermediate_multiple_of=multiple,
        vocab_size=question.known.vocab_size,
        tie_word_embeddings=question.known.tie_word_embeddings,
        x_range=fit.x_range,
        r_range=fit.r_range,
        memory=MemoryLimit(
            profile=question.profile,
            tokens_per_sequence=load.input_tokens + load.output_tokens,
            dtype=question.recipe.dtype,
        ),
    )


def _groups_of(table: RunsTable) -> tuple[int, ...]:
    """Heads per key-value head that were run; none where the table has no heads."""
    sizes = query_group_sizes(table)
    return () if sizes is None else tuple(int(g) for g in np.unique(sizes))


def _with_baseline(
    candidates: Candidates, space: SearchSpace, question: _Question
) -> tuple[Candidates, int, list[str]]:
    """The baseline joins as it is where its size is the target's, else as a shape with its ratios."""
    known = question.known
    same_constants = known.head_dim == space.head_dim
    if same_constants and abs(known.num_parameters / question.N - 1) <= CELL_TOLERANCE:
        return *candidates.including(known), []
    shape = baseline_shape(known, round(question.N), space)
    note = (
        f"{question.baseline_name} has N = {known.num_parameters:.4g}; compared is {shape.label}, the legal shape at "
        f"N = {question.N:.4g} nearest to its r and to the aspect of its layers, with {shape.query_group_size} "
        f"query heads per key-value head (its own: {known.query_group_size})."
    )
    return *candidates.including(shape), [note]


def _level(fit: LawFit, question: _Question) -> tuple[ReferenceSamples, str | None]:
    """What says L_opt(N, D); where nothing can, ratios to it, and the reason."""
    reference = fit_reference(fit)
    level = reference.predict(question.N, question.D)
    if isinstance(level, NotMeasured):
        return RelativeLevel(fit), level.reason
    return reference, None


def _choose(
    fit: LawFit, candidates: Candidates, baseline: int, question: _Question, reference: ReferenceSamples
) -> Shortlist:
    rates = predict_throughput_array(
        candidates,
        vocab_size=candidates.vocab_size,
        tie_word_embeddings=candidates.tie_word_embeddings,
        profile=question.profile,
        recipe=question.recipe,
        workload=question.workload,
    )
    return recommend(
        fit,
        candidates,
        num_parameters=question.N,
        num_tokens=question.D,
        baseline=baseline,
        throughput=Throughput(mean=rates, low=rates, high=rates),
        reference=reference,
        loss_limit=question.loss_limit,
        probability=question.probability,
    )


def _extra_run(
    fit: LawFit, found: Shortlist, table: RunsTable, question: _Question, reference: ReferenceSamples
) -> dict[str, Any] | None:
    """The decisive run among a grid of shapes at the cells that were trained, its cost, and a legal shape for it."""
    x, r = _grid(fit.x_range), _grid((max(fit.r_range[0], 0.5 * _WIDER), min(fit.r_range[1], 5.0 / _WIDER)))
    cells = [(cell.num_parameters, cell.num_tokens) for cell in fit.cells]
    all_x, all_r, at = (part.reshape(-1) for part in np.meshgrid(x, r, np.arange(len(cells)), indexing="ij"))
    N, D = np.array(cells)[at].T
    peak = peak_flops_per_second(question.profile, question.recipe.dtype)
    runs = PossibleRuns(
        x=all_x, r=all_r, num_parameters=N, num_tokens=D, seconds=6 * N * D / (ASSUMED_UTILISATION * peak)
    )
    chosen = decisive_run(fit, found, runs, reference=reference)
    if chosen is None:
        return None
    shape = _shape_like(table, chosen, question.known.vocab_size)
    return {
        **asdict(chosen),
        "architecture": None if shape is None else shape.model_dump(mode="json"),
        "cost_basis": f"6 N D FLOPs at {ASSUMED_UTILISATION:.0%} of the dense {question.recipe.dtype} peak of one "
        f"{question.profile.id} (assumed)",
        "sentence": chosen.sentence(),
        "label": None if shape is None else shape.label,
    }


def _grid(limits: tuple[float, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.geomspace(limits[0] / _WIDER, limits[1] * _WIDER, _GRID_POINTS)


def _shape_like(table: RunsTable, run: DecisiveRun, vocab_size: int) -> Architecture | None:
    """A legal shape near the run's x and r, with the depth, head_dim and grouping of the table's runs of that size."""
    columns = table.columns
    if not {"n_layers", "head_dim", "n_heads", "n_kv_heads", "hidden_size"} <= set(columns):
        return None
    N = shape_points(table).num_parameters
    near = int(np.argmin(np.abs(np.log(N / run.num_parameters))))
    groups = _groups_of(table)
    try:
        space = SearchSpace(
            num_parameters=round(run.num_parameters),
            num_hidden_layers=int(columns["n_layers"][near]),
            head_dim=int(columns["head_dim"][near]),
            query_group_sizes=groups[:1] or (1,),
            hidden_multiple_of=16,
            intermediate_multiple_of=16,
            vocab_size=vocab_size,
        )
        candidates = space.enumerate()
    except ValueError:
        # The table's own depth or head size leaves no legal shape there: x and r are told without one.
        return None
    return candidates.architecture(candidates.nearest(x=run.x, r=run.r))


def _search_groups(fit: LawFit, found: Shortlist, question: _Question, reference: ReferenceSamples) -> GroupSearch:
    """Whether fewer key-value heads would serve Surefire faster; their loss is known where such runs were made."""
    assert found.surefire is not None
    start = found.candidates.architecture(found.surefire)
    predicted = found.predicted_loss(found.surefire)

    def rate(shape: Architecture) -> Quantity:
        return predict_serving(shape, question.profile, question.recipe, question.workload).output_tokens_per_second

    def loss(shape: Architecture) -> Quantity:
        if shape == start:
            return predicted
        offset = fit.group_offset(shape.query_group_size)
        if isinstance(offset, NotMeasured):
            return offset
        x, r, g = shape.width_ratio, shape.mlp_attention_ratio, shape.query_group_size
        mean, low, high = fit.predict_loss(x, r, question.N, question.D, reference=reference, query_group_size=g)
        interval = Interval(low=float(low[0]), high=float(high[0]), level=fit.level, method="bootstrap")
        return Predicted(value=float(mean[0]), unit=found.unit, interval=interval, basis=f"law, {offset.basis}")

    return search_groups(start, throughput=rate, loss=loss, loss_limit=found.limit, min_gain=0.01)


def _doubts(table: RunsTable, fit: LawFit, points: ShapePoints, question: _Question, space: SearchSpace) -> list[str]:
    """What the reader must know before believing the answer."""
    doubts = [*table.messages, *fit.messages]
    largest = float(points.num_parameters.max())
    times = question.N / largest
    if times > _FAR:
        doubts.append(
            f"N = {question.N:.3g} is {times:.0f} times the largest run (N = {largest:.3g}): coefficients drift with "
            "scale, so the intervals understate the error."
        )
    layers = np.unique(table.columns["n_layers"]) if "n_layers" in table.columns else np.array([])
    if len(layers) and not set(layers.astype(int)) <= set(space.layer_counts):
        doubts.append(
            f"The runs have {', '.join(str(int(count)) for count in layers)} layers, the target "
            f"{space.layer_counts[0]}: x = d/sqrt(N) moves with depth, so x* may not carry over."
        )
    return doubts


def _result(
    question: _Question,
    fit: LawFit,
    found: Shortlist,
    extra: dict[str, Any] | None,
    search: GroupSearch | None,
    reasons: list[str],
    level_reason: str | None,
    table: RunsTable,
) -> dict[str, Any]:
    shapes = _shapes(found)
    configs = {
        role: shape.architecture.to_hf_config()
        for shape in shapes
        for role in shape.roles
        if role in ("panda", "surefire", "baseline")
    }
    assert fit.law is not None
    return {
        "schema_version": 1,
        "runs": str(table.path),
        "num_parameters": question.N,
        "num_tokens": question.D,
        "baseline": question.baseline_name,
        "hardware": question.profile.id,
        "serving": {**question.recipe.model_dump(), **question.workload.model_dump()},
        "law": {"a": fit.law.a, "b": fit.law.b, "x_opt": fit.law.x_opt, "r_opt": fit.law.r_opt},
        "num_runs_fitted": fit.num_points,
        "residual_sd_nats": fit.residual_sd,
        "num_candidates": len(found.candidates),
        "loss_unit": found.unit,
        "loss_level_not_predicted_because": level_reason,
        "probability_wanted": question.probability,
        "shapes": [_row(found, shape) for shape in shapes],
        "surefire_over_runner_up": found.surefire_over_runner_up,
        "grouped_query_search": None if search is None else search.model_dump(mode="json"),
        "extra_run": extra,
        "reasons": [*reasons, *_closing(search, extra)],
        "configs": configs,
    }


def _shapes(found: Shortlist) -> tuple[RecommendedShape, ...]:
    """Surefire, Panda, the baseline and the front, with the roofline's throughputs."""
    assert found.throughput is not None
    throughputs: dict[int, Quantity] = {
        index: Predicted(value=float(rate), unit="tokens/s", basis=BASIS, no_interval_because=NO_INTERVAL)
        for index, rate in enumerate(found.throughput.mean)
        if np.isfinite(rate)
    }
    return recommended_shapes(found, throughputs=throughputs, measured_losses={})


def _row(found: Shortlist, shape: RecommendedShape) -> dict[str, Any]:
    """One shape as plain data, with its ratios and its comparison with the baseline."""
    architecture = shape.architecture
    index = found.candidates.index_of(architecture)
    assert index is not None
    assert found.throughput is not None
    rate, of_baseline = found.throughput.mean[[index, found.baseline]]
    known = bool(np.isfinite(rate) and np.isfinite(of_baseline))
    return {
        **shape.model_dump(mode="json"),
        "label": architecture.label,
        "num_parameters": architecture.num_parameters,
        "x": architecture.width_ratio,
        "r": architecture.mlp_attention_ratio,
        "query_group_size": architecture.query_group_size,
        "loss_against_baseline": asdict(found.compare(index, found.baseline)),
        "throughput_over_baseline": float(rate / of_baseline) if known else None,
    }


def _closing(search: GroupSearch | None, extra: dict[str, Any] | None) -> list[str]:
    closing = []
    if search is not None:
        gain = search.gain()
        if gain is not None and gain > 1:
            loss = "its loss is predicted to keep the limit" if search.loss_known else "its loss is not known: train it"
            closing.append(
                f"Grouped-query search: {search.chosen.label} ({search.chosen.query_group_size} query heads per "
                f"key-value head, same N, x and r) is predicted {gain:.2f} times as fast as Surefire; {loss}. The "
                "roofline does not know that attention kernels lose bandwidth with larger groups: benchmark it. The "
                f"search stopped because {search.stopped_because}."
            )
        else:
            closing.append(f"Grouped-query search found nothing faster: it stopped because {search.stopped_because}.")
    if extra is not None:
        like = "" if extra["label"] is None else f" A shape like it: {extra['label']}."
        likely = extra["probability_of_change"] >= UNLIKELY
        closing.append(f"{extra['sentence']}{like} Cost: {extra['cost_basis']}." if likely else extra["sentence"])
    return closing


def recommendation_table(result: dict[str, Any]) -> Table:
    """The result of `recommend_from_runs` for people: one row a shape; every number is predicted.

    The sentences that belong to it are `result["reasons"]`.
    """
    serving = result["serving"]
    relative = result["loss_unit"] != "nats/token"
    table = Table(
        title=f"PREDICTED for N = {result['num_parameters']:.4g}, D = {result['num_tokens']:.4g}: loss by the law of "
        f"{result['num_runs_fitted']} runs; throughput on {result['hardware']}, {serving['dtype']}, batch "
        f"{serving['batch_size']}, {serving['input_tokens']} in / {serving['output_tokens']} out, by an uncalibrated "
        "roofline",
    )
    for head in ("role", "shape"):
        table.add_column(head)
    loss = "loss / L_opt" if relative else "loss, nats/token"
    against = "against baseline" if relative else "against baseline, nats"
    for head in ("x", "r", "g", loss, against, "P(within limit)", "output tokens/s", "times baseline"):
        table.add_column(head, justify="right")
    for row in _table_rows(result["shapes"]):
        table.add_row(*_cells(row, relative=relative))
    return table


def _table_rows(shapes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The named shapes, and the front thinned evenly."""
    named = [row for row in shapes if set(row["roles"]) - {"front"}]
    front = [row for row in shapes if row not in named]
    if len(front) > _MAX_FRONT_ROWS:
        front = [front[round(at)] for at in np.linspace(0, len(front) - 1, _MAX_FRONT_ROWS)]
    return [*named, *front]


def _cells(row: dict[str, Any], *, relative: bool) -> tuple[str, ...]:
    loss, difference, rate = row["predicted_loss"], row["loss_against_baseline"], row["throughput"]
    interval = loss["interval"]

    def shown(value: float) -> str:
        return f"{value:+.2%}" if relative else f"{value:+.4f}"

    ratio = row["throughput_over_baseline"]
    return (
        ", ".join(row["roles"]),
        row["label"],
        f"{row['x']:.4f}",
        f"{row['r']:.2f}",
        str(row["query_group_size"]),
        f"{loss['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]",
        f"{shown(difference['difference'])} [{shown(difference['low'])}, {shown(difference['high'])}]",
        f"{row['probability_within_limit']:.0%}",
        rate["reason"] if rate["kind"] == "not-measured" else f"{rate['value']:,.0f}",
        "-" if ratio is None else f"{ratio:.2f}",
    )
