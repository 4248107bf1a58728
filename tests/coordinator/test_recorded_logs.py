"""Stores and event logs of earlier versions: opened, migrated, and replayed to the same decisions.

Where later code decides otherwise on purpose, `DECLARED` says where and why. A decision that differs without being
declared fails, and so does a declared one that does not differ any more.
"""

import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from coordinator import planner
from coordinator.database import Database
from coordinator.dispatch import Dispatch, Needs
from coordinator.history import check_history, history_of
from coordinator.plan import Plan
from coordinator.planner import StudyState
from coordinator.planning import StudyPlanner
from coordinator.replay import replan
from coordinator.schema import SCHEMA_VERSION
from coordinator.store import FILE_NAME, Store, StoreReader
from scaling.observations import Observation, Progress

DATA = Path(__file__).with_name("data")
STORES = ("schema-1-fb53c39", "schema-2-1bfaca4", "schema-2-e5a0776", "schema-3-41e3d82")
DISPATCHES = ("schema-2-1bfaca4", "schema-2-e5a0776", "schema-3-41e3d82")
DECLARED: dict[tuple[str, str], str] = {
    ("schema-2-1bfaca4", "serving-best"): "too few valid runs: ranked by the roofline of what serves, not of a CPU's",
    **{
        (log, stage): "shapes that no run is near are served to be checked, and are recommended if they stand"
        for log, stages in {
            "schema-1-fb53c39": ("serving", "serving-best", "verdict", "answer"),
            "schema-2-e5a0776": ("serving", "answer"),
            "schema-3-41e3d82": ("serving", "answer"),
        }.items()
        for stage in stages
    },
    ("schema-2-1bfaca4", "dispatch 23"): "a lease that ends with its agent silent is agent-lost, not timeout",
}
"""Why, by log and by the stage that is planned otherwise, or "dispatch LINE" from which on answers differ."""

_record: TypeAdapter[Any] = TypeAdapter(Observation)


@pytest.fixture(params=STORES)
def log(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recorded(log: str, tmp_path: Path) -> Path:
    directory = tmp_path / log
    directory.mkdir()
    (directory / FILE_NAME).write_bytes(lzma.decompress((DATA / f"{log}.sqlite3.xz").read_bytes()))
    return directory


def contents(store: StoreReader) -> list[object]:
    return [store.study(), store.trials(), store.observations(), store.plans(), store.attempts(), store.rejections(),
            store.agents(), store.canaries(), store.recommendation(), store.counts(), store.fit_history()]  # fmt: skip


def test_there_is_a_log_of_every_schema_up_to_todays() -> None:
    assert {int(name.split("-")[1]) for name in STORES} == set(range(1, SCHEMA_VERSION + 1))


def test_a_recorded_store_is_opened_migrated_and_sound(recorded: Path) -> None:
    with StoreReader.open(recorded) as store:
        store.verify()
        before = contents(store)
        assert all(row.planned.trial_id == row.trial_id for row in store.trials()), "content still gives the old names"
    with Store.resume(recorded) as store:
        store.verify()
        assert contents(store) == before
    database = Database.open_for_reading(recorded / FILE_NAME)
    assert database.number("PRAGMA user_version") == SCHEMA_VERSION
    database.close()


def test_a_recorded_history_kept_every_promise(recorded: Path) -> None:
    with StoreReader.open(recorded) as store:
        ended = {row.trial_id for row in store.trials() if row.state in ("succeeded", "failed")}
        # Schema 1 kept the last lease's time alone, so what its attempts overlapped with cannot be told.
        if store.decisions("plan")[0].inputs:
            verdict = check_history(history_of(store))
            assert verdict.kept, verdict.sentence()
            assert verdict.num_succeeded + verdict.num_failed == len(ended) >= 30
        else:
            assert len(ended) >= 30


def test_every_plan_is_decided_again(log: str, recorded: Path) -> None:
    with StoreReader.open(recorded) as store:
        differing = {plan.stage for plan in store.plans() if work_of(planned_again(store, plan.stage)) != work_of(plan)}
    declared = {stage for name, stage in DECLARED if name == log and not stage.startswith(("dispatch", "answer"))}
    assert differing == declared, f"{log}: planned otherwise than recorded, or declared in vain"


def work_of(plan: Plan | None) -> list[tuple[str, str]] | None:
    """What a plan asks for, in order; its words may change."""
    return None if plan is None else [(trial.role, trial.trial_id) for trial in plan.trials]


def planned_again(store: StoreReader, stage: str) -> Plan | None:
    """The stage's plan, from the log up to it; schema 1 kept no inputs, and its recorder let a stage end first."""
    if store.decisions("plan")[0].inputs:
        return replan(store, stage)
    return planner.next_plan(state_of_schema_1(store, stage))


def state_of_schema_1(store: StoreReader, stage: str | None) -> StudyState:
    """What the planner was given before a stage, or at the end. Stages without an end between them were planned in one
    go: `check` and what follows `serving` know nothing of it.
    """
    stages = store.stages()
    earlier = tuple(stages[: stages.index(stage)]) if stage is not None else tuple(stages)
    known = {row.trial_id for row in store.trials() if row.stage in earlier}
    unended = {"check": ("serving",)}.get(stage or "", ())
    trials = tuple(
        row._replace(state="queued", ended_unix=None, spent_seconds=0.0) if row.stage in unended else row
        for row in store.trials()
        if row.trial_id in known
    )
    open_ids = {row.trial_id for row in trials if row.state == "queued"}
    state = planner.state_of(store, corpus_id=store.meta("corpus_id") or "")
    observations = tuple(
        o for o in store.observations() if o.assignment_id in known and o.assignment_id not in open_ids
    )
    return StudyState(
        study=state.study, corpus_id=state.corpus_id, token_scale=state.token_scale, speed=state.speed, stages=earlier,
        trials=trials, observations=observations, elapsed_seconds=0.0,
    )  # fmt: skip


def test_the_answer_is_the_recorded_one(log: str, recorded: Path) -> None:
    with StoreReader.open(recorded) as store:
        stored = store.recommendation()
        assert stored is not None
        state = planner.state_of(store, corpus_id=store.meta("corpus_id") or "")
    made = StudyPlanner().conclude(state, now_unix=0)
    assert made is not None
    same = shapes_of(made) == shapes_of(stored)
    assert same == ((log, "answer") not in DECLARED)


def shapes_of(recommendation: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The recommended architectures, however the answers are laid out around them."""
    found: list[tuple[Any, ...]] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            if "hidden_size" in value and name in ("panda", "surefire", "architecture", "baseline"):
                found.append(tuple(sorted(value.items())))
            for key, one in value.items():
                walk(one, key)
        elif isinstance(value, list):
            for one in value:
                walk(one, name)

    walk(recommendation, "")
    return sorted(set(found), key=repr)


# Dispatch


@pytest.mark.parametrize("name", DISPATCHES)
def test_dispatch_answers_as_it_was_recorded(name: str) -> None:
    declared = [int(where.split()[1]) for log, where in DECLARED if log == name and where.startswith("dispatch")]
    line = next(differences(name), None)
    assert [line] == declared if declared else line is None, f"{name}: the first other answer is in line {line}"


def differences(name: str) -> Iterator[int]:
    """Lines whose answer is another one now."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        dispatch = Dispatch(lease_seconds=60)
        for number, line in enumerate(lines, start=1):
            entry = json.loads(line)
            if (settings := entry.get("settings")) is not None:
                dispatch = begun(settings)
                continue
            answer = getattr(dispatch, entry["call"])(*map(argument, entry["args"]), **entry["kwargs"])
            if entry["answer"] is not None and not agrees(answer, entry["answer"]):
                yield number


def begun(settings: dict[str, Any]) -> Dispatch:
    baselines = {(hardware, kind): rates for hardware, kind, rates in settings.pop("baselines")}
    return Dispatch(**settings, baselines=baselines)


def argument(value: Any) -> Any:
    """A recorded argument: trials with their needs, a report, or itself."""
    if isinstance(value, dict) and "done_fraction" in value:
        return Progress.model_validate(value)
    if isinstance(value, dict) and "kind" in value:
        return _record.validate_python(value)
    if isinstance(value, dict):
        return {trial_id: needs(one) for trial_id, one in value.items()}
    return value


def needs(recorded: dict[str, Any]) -> Needs:
    hardware = recorded["hardware"]
    return Needs(recorded["phase"], None if hardware is None else tuple(hardware), recorded["seconds"])


def agrees(answer: list[Any], recorded: list[dict[str, Any]]) -> bool:
    """Whether the instructions are those recorded, in every field that the recording version had."""
    told = [{"": type(one).__name__} | vars(one) for one in answer]
    return len(told) == len(recorded) and all(
        old.items() <= new.items() for old, new in zip(recorded, told, strict=True)
    )
