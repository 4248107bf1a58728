"""Planner: the store and the study in, the next plan out. Decides what is worth running; pure given its state.

first-round   the space, replicates of the centre, the reference cells          at the start
branches      runs of other D that branch off those of the first round          when their trunks are trained, if the
                                                                                study shares trunks
round-1 ...   proposed from the fit, counting what still runs as observed       when agents would run dry
serving       the baseline and Pareto candidates, on the real engine            when all losses are in
check         the baseline and a predicted-worse shape at the held-out size     beside serving
serving-best  the fastest by a fit to the serving runs so far, within the loss  when serving is measured,
              limit                                                             if the study serves more than four
verdict       each recommended architecture at the held-out size                when serving is measured

Where a study names several kinds of hardware, each has its own predictions and its own choice; what is served is served
on each of them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agent.assignment import BenchAssignment, TrainAssignment
from coordinator.analysis import Analysis, analyse, same_size
from coordinator.budget import FINISHING_SECONDS, Speed
from coordinator.choice import (
    Choice,
    Reasoned,
    answered_hardware,
    choose,
    fastest_safe,
    fastest_unsupported,
    in_turn,
    num_first_served,
    serving_candidates,
)
from coordinator.forecast import fit_run_seconds, seconds_left, slowdown, target_run_seconds
from coordinator.plan import Plan, PlannedTrial, Role
from coordinator.recipe import Cell, recipe_of, step_law_note
from coordinator.shapes import baseline_at, candidates_at, centre_index, spread
from coordinator.store import StoreReader, TrialRow
from coordinator.study import StudySpec
from coordinator.target_runs import target_runs, verdicts
from coordinator.trunks import Shared, share_trunks
from scaling.architecture import Architecture
from scaling.law import Floats
from scaling.observations import Observation
from scaling.propose import Proposal, propose
from scaling.recommend import Verdict
from scaling.space import Candidates
from scaling.support import supported


@dataclass(frozen=True, kw_only=True)
class StudyState:
    """Everything a plan follows from."""

    study: StudySpec
    corpus_id: str
    token_scale: float
    speed: Speed
    stages: tuple[str, ...]
    trials: tuple[TrialRow, ...]
    observations: tuple[Observation, ...]
    elapsed_seconds: float
    """Wall seconds that this study has run, earlier starts included."""
    bench_hardware: str | None = None
    """Profile id on which serving is measured where the study names none; null where that is not decided."""
    fit: Callable[[], Analysis | None] | None = None
    """Gives the law so far, where somebody keeps it; without it, it is fitted here."""

    @property
    def overrun_seconds(self) -> float:
        """By how much the study would outlast its budget if nothing were left out; negative when there is time."""
        left = seconds_left(self.study, self.trials, self.speed, self.token_scale)
        return self.elapsed_seconds + left + FINISHING_SECONDS - 60 * self.study.budget.wall_minutes

    @cached_property
    def analysis(self) -> Analysis | None:
        """The law so far; fitted when first asked for."""
        return self.fit() if self.fit is not None else analyse(self.study, self.observations)

    @property
    def hardware(self) -> tuple[str, ...]:
        """Profile ids for which the study gives an answer."""
        return answered_hardware(self.study, self.observations, self.bench_hardware)

    def unfinished(self, *phases: str) -> list[TrialRow]:
        """Trials of these phases that are queued or running."""
        return [t for t in self.trials if t.phase in phases and t.state in ("queued", "running")]


def state_of(store: StoreReader, *, corpus_id: str, elapsed_seconds: float = 0.0) -> StudyState:
    """Read the state that the next plan follows from."""
    speed, scale = store.meta("speed"), store.meta("token_scale")
    assert speed is not None, "agents are priced before anything is planned"
    assert scale is not None, "the token scale is set with the speed"
    return StudyState(
        study=store.study(),
        corpus_id=corpus_id,
        token_scale=float(scale),
        speed=Speed.model_validate_json(speed),
        stages=tuple(plan.stage for plan in store.plans()),
        trials=tuple(store.trials()),
        observations=tuple(store.observations()),
        elapsed_seconds=elapsed_seconds,
        bench_hardware=store.meta("bench_hardware"),
    )


def next_plan(state: StudyState) -> Plan | None:
    """The next stage's plan, if its time has come."""
    if "verdict" in state.stages:
        return None
    rounds = [f"round-{number}" for number in range(1, state.study.fit.num_rounds + 1)]
    best = ["serving-best"] if state.study.serving.num_candidates + 1 > num_first_served(state.study) else []
    branches = ["branches"] if state.study.trunk_sizes else []
    stages = ["first-round", *branches, *rounds, "serving", "check", *best, "verdict"]
    due = next(stage for stage in stages if stage not in state.stages)
    if due == "first-round":
        return _first_round(state)
    if due == "branches":
        return _branches(state) if _trunks_are_trained(state) else None
    if due in rounds:
        return _proposed_round(state, due) if len(state.unfinished("train")) < state.speed.num_agents else None
    if due == "serving":
        return _serving(state) if not state.unfinished("train") else None
    if due == "check":
        return _check(state)
    if due == "serving-best":
        return _serving_best(state) if not state.unfinished("bench") else None
    return _verdict(state) if not state.unfinished("bench") else None


def is_finished(state: StudyState) -> bool:
    """Whether every stage was planned and every trial has ended."""
    return "verdict" in state.stages and not state.unfinished("train", "bench")


# What the stages consist of


def _first_round(state: StudyState) -> Plan:
    # Long runs first: the agents end the stage closer together, and trunks are there when branches are planned.
    first = sorted(_first_runs(state).first, key=lambda trial: -state.speed.assignment_seconds(trial.assignment))
    scaled = f"Every D is {state.token_scale:.0%} of the study's, to keep its budget." if state.token_scale != 1 else ""
    notes = (scaled, step_law_note(state.study, token_scale=state.token_scale))
    return Plan(stage="first-round", trials=tuple(first), notes=tuple(note for note in notes if note))


def _first_runs(state: StudyState) -> Shared:
    """What the study asks for before anything is proposed, and which of it branches off the rest."""
    study, fit = state.study, state.study.fit
    cell = _fit_cell(study)
    candidates = candidates_at(study, fit.num_parameters)
    trials = [
        _train(state, candidates.architecture(index), cell, "space", reason)
        for index, reason in spread(candidates, fit.num_space_shapes)
    ]
    centre = candidates.architecture(centre_index(candidates))
    trials += [
        _train(state, centre, cell, "replicate", f"seed {seed} of the centre: what the noise is", seed=seed)
        for seed in range(1, fit.num_centre_replicates + 1)
    ]
    for entry in study.reference:
        at = candidates_at(study, entry.num_parameters)
        shapes = [(at.architecture(index), reason) for index, reason in spread(at, entry.num_shapes)]
        trials += [
            _train(state, shape, Cell(entry.num_parameters, ratio), "reference", reason)
            for ratio in entry.all_ratios
            for shape, reason in shapes
        ]
    return share_trunks(trials)


def _trunks_are_trained(state: StudyState) -> bool:
    """Or the agents would run dry: then most of the trunks have left behind what their branches begin with."""
    unfinished = state.unfinished("train")
    return len(unfinished) < state.speed.num_agents or not any(_branch_tokens(trial) for trial in unfinished)


def _branch_tokens(trial: TrialRow) -> tuple[int, ...]:
    assignment = trial.planned.assignment
    return assignment.branch_tokens if isinstance(assignment, TrainAssignment) else ()


def _branches(state: StudyState) -> Plan:
    """The branches whose trunks have not failed: what diverged on the way gives nothing to branch off."""
    failed = {trial.trial_id for trial in state.trials if trial.state == "failed"}
    wanted = _first_runs(state).branches
    trials = tuple(branch.trial for branch in wanted if branch.trunk not in failed)
    left_out = len(wanted) - len(trials)
    notes = (f"{left_out} branches are left out: their trunks failed.",) if left_out else ()
    return Plan(stage="branches", trials=trials, notes=notes)


def _proposed_round(state: StudyState, stage: str) -> Plan:
    fit = state.study.fit
    cell = _fit_cell(state.study)
    candidates = candidates_at(state.study, fit.num_parameters)
    law_fit = None if state.analysis is None else state.analysis.law_fit
    num_tokens = _fit_tokens(state)
    at_size = [t for t in state.trials if _is_fit_run(t, state, num_tokens)]
    done = [t for t in at_size if t.state not in ("queued", "running")]
    running = [t for t in at_size if t.state in ("queued", "running")]
    num_affordable = _affordable_runs(state)
    existing, pending = _indices(candidates, done), _indices(candidates, running)
    corner = _corner(state, candidates, taken=[*existing, *pending])
    first = [] if corner is None else [corner]
    proposals = first + propose(
        law_fit,
        candidates,
        existing=existing,
        pending=[*pending, *(one.index for one in first)],
        num=num_affordable - len(first),
        seconds_per_run=_seconds_per_run(state, candidates),
    )
    trials = tuple(
        _train(
            state,
            candidates.architecture(p.index),
            cell,
            "proposed",
            p.reason,
            seed=p.num_replicate,  # one more than the seeds this shape has had
        )
        for p in proposals
    )
    notes = []
    if law_fit is None or law_fit.law is None:
        notes.append("No law could be fitted yet: this round fills the space.")
    if num_affordable < fit.num_runs_per_round:
        notes.append(f"{num_affordable} runs instead of {fit.num_runs_per_round}: {_slower(state)}")
    return Plan(stage=stage, trials=trials, notes=tuple(notes))


def _corner(state: StudyState, candidates: Candidates, *, taken: Sequence[int]) -> Proposal | None:
    """A run where the law, extended, sees the answer and no run is: what the fit learns there it need not guess."""
    if state.analysis is None or state.analysis.law_fit.law is None:
        return None
    at_target = candidates_at(state.study, state.study.target.num_parameters)
    for hardware in state.hardware:
        shape = fastest_unsupported(
            state.study,
            state.analysis,
            at_target,
            baseline_at(state.study),
            hardware=hardware,
            token_scale=state.token_scale,
        )
        if shape is None:
            continue
        x, r = shape.width_ratio, shape.mlp_attention_ratio
        index = candidates.nearest(x=x, r=r)
        # Heads are whole: at a smaller size there may be no legal shape near.
        is_near = bool(supported(((x, r),), candidates.x[index], candidates.r[index])[0])
        if is_near and index not in taken:
            reason = (
                f"No run is near x {x:.3g}, r {r:.3g}, where the law, extended, sees the fastest shape on {hardware} "
                f"within the loss limit ({shape.label}): one there tells."
            )
            return Proposal(index=index, num_replicate=0, reason=reason, gain=None)
    return None


def _affordable_runs(state: StudyState) -> int:
    """Runs of this round, so that the study keeps its budget: at least one in every round that is still to come."""
    fit = state.study.fit
    rounds_left = fit.num_rounds - sum(stage.startswith("round-") for stage in state.stages)
    wanted = rounds_left * fit.num_runs_per_round
    each = fit_run_seconds(state.study, state.speed, state.token_scale) * slowdown(state.trials, state.speed)
    too_many = max(0, math.ceil(state.overrun_seconds * state.speed.num_agents / each))
    return min(fit.num_runs_per_round, max(1, (wanted - too_many) // rounds_left))


def _slower(state: StudyState) -> str:
    return (
        f"trials take {slowdown(state.trials, state.speed):.1f} times as long as probed, "
        f"and the budget is {state.study.budget.wall_minutes:g} min."
    )


def _is_fit_run(trial: TrialRow, state: StudyState, num_tokens: int) -> bool:
    assignment = trial.planned.assignment
    return (
        isinstance(assignment, TrainAssignment)
        and same_size(assignment.architecture.num_parameters, state.study.fit.num_parameters)
        and assignment.recipe.num_tokens == num_tokens
    )


def _indices(candidates: Candidates, trials: Iterable[TrialRow]) -> list[int]:
    found = [candidates.index_of(trial.planned.assignment.architecture) for trial in trials]
    return [index for index in found if index is not None]


def _seconds_per_run(state: StudyState, candidates: Candidates) -> Floats:
    """Cost of a run of each candidate: tokens by speed, corrected by how speeds measured so far follow the FLOPs."""
    flops = np.array(
        [
            candidates.architecture(i).decode_flops_per_token(state.study.training.sequence_length / 2)
            for i in range(len(candidates))
        ]
    )
    base = state.speed.train_seconds(state.study.fit.num_parameters, _fit_tokens(state))
    return np.asarray(base * flops / flops.mean(), dtype=float)


def _serving(state: StudyState) -> Plan:
    serving, analysis = state.study.serving, state.analysis
    if analysis is None or analysis.law_fit.law is None:
        baseline = baseline_at(state.study)
        note = "No law could be fitted, so nothing is recommended; the baseline alone is measured."
        return Plan(stage="serving", trials=_bench(state, [(baseline, "the baseline")]), notes=(note,))
    candidates, baseline = candidates_at(state.study, state.study.target.num_parameters), baseline_at(state.study)
    chosen = serving_candidates(
        state.study, analysis, candidates, baseline, hardware=state.hardware, token_scale=state.token_scale
    )
    load = serving.workload
    return Plan(
        stage="serving",
        trials=_bench(state, chosen),
        notes=(
            f"Engine {serving.recipe.engine}: batch {load.batch_size}, {load.input_tokens} input and "
            f"{load.output_tokens} output tokens.",
        ),
    )


def _serving_best(state: StudyState) -> Plan:
    """The rest of the serving budget, for the shapes that the engine's own runs promise most of."""
    serving, analysis = state.study.serving, state.analysis
    if analysis is None or analysis.law_fit.law is None:
        return Plan(stage="serving-best", trials=(), notes=("No law could be fitted, so nothing more is measured.",))
    tried = {t.planned.assignment.architecture for t in state.trials if t.phase == "bench"}
    num_left = max(0, serving.num_candidates + 1 - len(tried))
    best = {
        hardware: fastest_safe(
            state.study,
            analysis,
            candidates_at(state.study, state.study.target.num_parameters),
            baseline_at(state.study),
            state.observations,
            hardware=hardware,
            tried=tried,
            num=num_left,
            token_scale=state.token_scale,
        )
        for hardware in state.hardware
    }
    reason = "among the fastest predicted within the loss limit"
    wanted = in_turn({hardware: [(shape, reason) for shape in one.shapes] for hardware, one in best.items()})
    notes = tuple(
        f"{one.num_candidates} shapes ranked by predicted throughput on {hardware}: {one.basis}."
        for hardware, one in best.items()
    )
    return Plan(stage="serving-best", trials=_bench(state, wanted[:num_left]), notes=notes)


def _check(state: StudyState) -> Plan:
    target = state.study.target
    cell = _target_cell(state.study)
    seeds = range(target.num_validation_seeds if state.overrun_seconds <= 0 else 1)
    reason = f"the baseline, {target.baseline}'s ratios, at the target"
    trials = [_train(state, baseline_at(state.study), cell, "validation", reason, seed=seed) for seed in seeds]
    if (worse := _worse_shape(state)) is not None:
        trials.append(_train(state, worse, cell, "validation", "a shape predicted to be worse, at the target"))
    notes = () if len(seeds) == target.num_validation_seeds else (f"One seed a shape at the target: {_slower(state)}",)
    return Plan(stage="check", trials=tuple(trials), notes=notes)


def _worse_shape(state: StudyState) -> Architecture | None:
    """The candidate at the 90th percentile of predicted loss: clearly worse, yet inside the fitted range."""
    if state.analysis is None or state.analysis.law_fit.law is None:
        return None
    candidates = candidates_at(state.study, state.study.target.num_parameters)
    fit = state.analysis.law_fit
    inside = (candidates.x >= fit.x_range[0]) & (candidates.x <= fit.x_range[1])
    inside &= (candidates.r >= fit.r_range[0]) & (candidates.r <= fit.r_range[1])
    within = candidates.take(inside) if inside.any() else candidates
    ratio = fit.predict_ratio(within.x, within.r).mean
    return within.architecture(int(np.argsort(ratio)[math.floor(0.9 * (len(ratio) - 1))]))


def _verdict(state: StudyState) -> Plan:
    cell = _target_cell(state.study)
    choices = choices_of(state)
    if not choices:
        return Plan(stage="verdict", trials=(), notes=("Nothing can be recommended: no law was fitted.",))
    reasons = {choice.recommended: "a recommended shape at the target" for choice in choices}
    challengers = {choice.challenger: choice.hardware for choice in choices if choice.challenger is not None}
    notes = [choice.sentence() for choice in choices]
    for shape, hardware in challengers.items():
        about = f"{shape.label}, faster on {hardware} if the law holds where no run is near"
        if shape in reasons:
            continue
        if _fits_at_target(state, num_shapes=len(reasons) + 1):
            reasons[shape] = "a faster shape where no run is near, at the target"
            notes.append(f"Checked as well is {about}.")
        else:
            notes.append(f"Not checked, for the budget has no time left, is {about}.")
    trials = [
        _train(state, shape, cell, "validation", reason, seed=seed)
        for shape, reason in reasons.items()
        for seed in range(_num_baseline_runs(state))
    ]
    return Plan(stage="verdict", trials=tuple(trials), notes=tuple(notes))


def _fits_at_target(state: StudyState, *, num_shapes: int) -> bool:
    """Whether so many shapes can be trained at the target within the study's wall time, as trials have taken so far."""
    each = target_run_seconds(state.study, state.speed, state.token_scale) * slowdown(state.trials, state.speed)
    # Agents run side by side: what counts is how many turns the runs take.
    turns = math.ceil(num_shapes * _num_baseline_runs(state) / state.speed.num_agents)
    left = 60 * state.study.budget.wall_minutes - state.elapsed_seconds - FINISHING_SECONDS
    return turns * each <= left


def _num_baseline_runs(state: StudyState) -> int:
    """A recommended shape gets as many seeds as the baseline got."""
    baseline = baseline_at(state.study)
    return sum(t.stage == "check" and t.planned.assignment.architecture == baseline for t in state.trials)


def choices_of(state: StudyState) -> tuple[Choice, ...]:
    """What would be recommended from the state as it is, for each hardware; nothing without a law.

    A shape that its check at the target refuted gives way to the next best that was checked and stands; where there is
    none it stays, and the answer says that it failed.
    """
    if state.analysis is None or state.analysis.law_fit.law is None:
        return ()
    checked = _checked(state)
    choices = []
    for hardware in state.hardware:
        known = _choice(state, hardware, checked)
        choices.append(known if known.recommended in checked else _choice(state, hardware, {}))
    return tuple(choices)


def _checked(state: StudyState) -> dict[Architecture, Verdict]:
    """Shapes that were trained at the target, and how they compare with the baseline there."""
    assert state.analysis is not None
    runs = target_runs(state.study, state.observations, token_scale=state.token_scale)
    return verdicts(state.analysis, baseline_at(state.study), runs)


def _choice(state: StudyState, hardware: str, checked: Mapping[Architecture, Verdict]) -> Choice:
    assert state.analysis is not None
    return choose(
        state.study,
        state.analysis,
        candidates_at(state.study, state.study.target.num_parameters),
        baseline_at(state.study),
        state.observations,
        hardware=hardware,
        token_scale=state.token_scale,
        checked=checked,
    )


def _train(
    state: StudyState, architecture: Architecture, cell: Cell, role: Role, reason: str, *, seed: int = 0
) -> PlannedTrial:
    assignment = TrainAssignment(
        architecture=architecture,
        recipe=recipe_of(state.study, cell, token_scale=state.token_scale, seed=seed),
        corpus_id=state.corpus_id,
        num_eval_windows=state.study.corpus.num_eval_windows,
        checkpoint_every_seconds=state.study.budget.checkpoint_every_seconds,
    )
    return PlannedTrial(role=role, reason=reason, assignment=assignment)


def _fit_cell(study: StudySpec) -> Cell:
    return Cell(study.fit.num_parameters, study.fit.tokens_per_parameter)


def _target_cell(study: StudySpec) -> Cell:
    return Cell(study.target.num_parameters, study.target.tokens_per_parameter)


def _fit_tokens(state: StudyState) -> int:
    """Tokens of the fit's runs after scaling, the same for every shape."""
    return recipe_of(state.study, _fit_cell(state.study), token_scale=state.token_scale).num_tokens


def _bench(state: StudyState, wanted: Iterable[Reasoned]) -> tuple[PlannedTrial, ...]:
    """Every shape on every hardware that the study names; on the one that is there where it names none."""
    serving = state.study.serving
    kinds: tuple[str | None, ...] = serving.hardware or (None,)
    return tuple(
        PlannedTrial(
            role="serving",
            reason=reason,
            assignment=BenchAssignment(
                architecture=architecture,
                recipe=serving.recipe,
                workload=serving.workload,
                num_repeats=serving.num_repeats,
                min_window_seconds=serving.min_window_seconds,
                hardware=hardware,
            ),
        )
        for architecture, reason in wanted
        for hardware in kinds
    )
