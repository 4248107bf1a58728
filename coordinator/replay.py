"""Replay: a plan made again, from the log up to its decision and the inputs that were written down with it.

On restart decisions are read, never made again. That they could be is what is shown here: the same log and the same
inputs give the same plan, so nothing that decides is hidden in a process that may die.
"""

from coordinator.budget import Speed
from coordinator.plan import Plan
from coordinator.planner import StudyState
from coordinator.planning import DecisionInputs, Planner, StudyPlanner
from coordinator.store import StoreReader, TrialRow


def replan(store: StoreReader, stage: str, *, planner: Planner | None = None) -> Plan | None:
    """Make the plan of a stage again, without looking at anything that came after it."""
    return (planner or StudyPlanner()).next_plan(state_before(store, stage))


def state_before(store: StoreReader, stage: str) -> StudyState:
    """What the planner was given when it planned a stage.

    Raises:
        ValueError: that stage was never planned, or by a version that did not write down what a plan followed from.
    """
    inputs = {decision.stage: decision.inputs for decision in store.decisions("plan")}
    if not inputs.get(stage):
        raise ValueError(f"no inputs of stage {stage!r} are stored; there are those of {', '.join(inputs) or 'none'}")
    known = DecisionInputs.model_validate(inputs[stage])
    stages = store.stages()
    earlier = tuple(stages[: stages.index(stage)])
    unfinished = {trial.trial_id: trial for trial in known.unfinished}

    def as_it_was(row: TrialRow) -> TrialRow:
        then = unfinished.get(row.trial_id)
        if then is None:  # it had ended, and what has ended does not change
            return row
        return row._replace(
            state=then.state, done_fraction=then.done_fraction, spent_seconds=then.spent_seconds, ended_unix=None
        )

    speed = store.meta("speed")
    assert speed is not None, "agents are priced before anything is planned"
    return StudyState(
        study=store.study(),
        corpus_id=known.corpus_id,
        token_scale=float(store.meta("token_scale") or 1),
        speed=Speed.model_validate_json(speed),
        stages=earlier,
        trials=tuple(as_it_was(row) for row in store.trials() if row.stage in earlier),
        observations=tuple(store.observations()[: known.num_observations]),
        elapsed_seconds=known.elapsed_seconds,
        bench_hardware=known.bench_hardware,
    )
