"""Records a run's store and everything its dispatch was told and answered, for tests/coordinator/test_recorded_logs.py.

    python tests/coordinator/data/record_logs.py laptop NAME

writes NAME.sqlite3.xz and NAME.jsonl.gz here, by the code on the import path (an earlier commit's where PYTHONPATH
names its checkout). The fleet is simulated, and its faults are of every kind that a store tells apart.
"""

import gzip
import json
import lzma
import sys
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from coordinator import loop
from coordinator.backup import back_up
from coordinator.dispatch import Dispatch
from coordinator.fleet.simulated import CoordinatorCrash, Faults, SimulatedFleet, VirtualClock
from coordinator.store import FILE_NAME, Store
from coordinator.study import parse_study, read_study

MIX = {"h200": 2, "a100-80gb": 2, "cpu-generic": 1}
FAULTS = Faults(death=3, hang=6, partition=2, drain=2, drift=1, crash=0.5, duplicated=0.1, delayed=0.1,
                lost=0.05, out_of_memory=0.1, straggler=0.1)  # fmt: skip
CALLS = ("enqueue", "agent_joined", "agent_lost", "agent_draining", "agent_alive", "canary_measured", "reported",
         "tick", "stalled", "assign")  # fmt: skip
HERE = Path(__file__).parent


def plain(value: Any) -> Any:
    """A value as JSON; what the agents wrote keeps its own form, and an answer names it alone."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__} | {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def answers(instructions: Any) -> Any:
    """What dispatch answered, without the reports that it only hands on."""
    if not isinstance(instructions, list):
        return None
    told = ("observation", "failure", "progress")
    return [{key: value for key, value in plain(one).items() if key not in told} for one in instructions]


class RecordingDispatch(Dispatch):
    """Dispatch, writing down every call with its answer, calls within calls left out."""

    log: ClassVar[list[dict[str, Any]]] = []
    depth = 0

    def __init__(self, **settings: Any) -> None:
        told = {key: value for key, value in settings.items() if key != "baselines"}
        baselines = [[*key, rates] for key, rates in settings.get("baselines", {}).items()]
        self.log.append({"settings": plain(told) | {"baselines": plain(baselines)}})
        super().__init__(**settings)


def recorded(name: str) -> Any:
    """The method of Dispatch with this name, writing itself down."""

    def call(self: RecordingDispatch, *args: Any, **kwargs: Any) -> Any:
        entry = {"call": name, "args": plain(args), "kwargs": plain(kwargs)}
        self.depth += 1
        try:
            answer = getattr(Dispatch, name)(self, *args, **kwargs)
        finally:
            self.depth -= 1
        if not self.depth and not (name == "tick" and not answer):
            self.log.append(entry | {"answer": answers(answer)})
        return answer

    return call


class Silent:
    """Nobody watches."""

    def note(self, sentence: str) -> None:
        """Nothing."""

    def update(self, snapshot: object) -> None:
        """Nothing."""


def record(study_name: str, name: str) -> None:
    """Run a study on a simulated fleet and keep what it left."""
    for call in CALLS:
        if hasattr(Dispatch, call):
            setattr(RecordingDispatch, call, recorded(call))
    loop.Dispatch = RecordingDispatch  # type: ignore[misc]
    table = read_study(study_name).model_dump(mode="json")
    table["serving"]["recipe"] |= {"engine": "fake", "dtype": "bfloat16"}
    table["corpus"]["num_eval_windows"] = 16
    table["budget"] |= {"wall_minutes": 1e5}
    clock = VirtualClock()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "run", parse_study(table, source="a log"), now_unix=clock.wall())
        fleet = SimulatedFleet(MIX, clock=clock, faults=FAULTS, seed=4)
        finished = False
        while not finished:
            coordinator = loop.Coordinator(
                store=store,
                fleet=fleet,
                view=Silent(),
                num_agents=fleet.num_agents,
                corpus_id="c" * 64,
                started_monotonic=clock.monotonic(),
                monotonic=clock.monotonic,
                wall=clock.wall,
                free_bytes=lambda _: 10**12,
                refit_share=1.0,
            )
            try:
                coordinator.begin()
                while not (finished := coordinator.turn()):
                    pass
                coordinator.end()
            except CoordinatorCrash:
                store.close()
                clock.seconds += 30
                store = Store.resume(store.run_directory)
        store.close()
        copy = back_up(store.run_directory, Path(folder) / "copy", now_unix=0).path
        (HERE / f"{name}.sqlite3.xz").write_bytes(lzma.compress((copy / FILE_NAME).read_bytes()))
    with gzip.GzipFile(HERE / f"{name}.jsonl.gz", "wb", mtime=0) as out:
        for entry in RecordingDispatch.log:
            out.write((json.dumps(entry) + "\n").encode())


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2])
