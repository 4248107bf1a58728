"""A campaign: several architectures measured so that they can be compared, their engine restarts interleaved.

Levels differ between instances of an engine, and drift with temperature, clocks and neighbours. So each repeat is an
engine process of its own, and at every batch size the processes of all rows take turns, every second round backwards:

    A B C A'   A' C B A   A B C A'  ...        A' = the first architecture again, as if it were another

A linear drift in time then falls on all rows alike, exactly so for an even number of rounds. The ratio A'/A is known
to be 1: what is measured of it is the noise floor of the campaign at that batch size.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from agent.assignment import BenchAssignment
from agent.benchmark.run import Restart, observe_restarts, run_restart
from agent.engines.base import Engine
from agent.engines.interpreters import find_engine
from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.observations import Failure, Progress, ServingObservation
from scaling.recipes import ServingRecipe, Workload

AGAIN = " (again)"
"""What the name of the control ends in."""


class Candidate(Value):
    """An architecture under the name that its user gave it."""

    name: str
    architecture: Architecture


class Slot(Value):
    """The place of one engine process in a campaign."""

    number: NonNegativeInt
    """In the order of running; it also seeds weights and prompts, so that no two processes share them."""
    row: NonNegativeInt
    """Index into `Campaign.rows`."""
    workload: NonNegativeInt
    """Index into `Campaign.workloads`."""
    repeat: NonNegativeInt


class SlotResult(Value):
    """What came of a slot."""

    slot: Slot
    outcome: Restart | Failure


class Campaign(Value):
    """The whole input of a campaign. Two campaigns with equal content measure the same and may go on as one."""

    schema_version: Literal[1] = 1
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    recipe: ServingRecipe
    workloads: tuple[Workload, ...] = Field(min_length=1)
    """One a batch size, in the order in which they are measured."""
    num_repeats: PositiveInt = 3
    min_window_seconds: PositiveFloat = 2.0
    load_deadline_seconds: PositiveFloat = 120.0
    run_deadline_seconds: PositiveFloat = 120.0

    @model_validator(mode="after")
    def _rows_differ(self) -> Self:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) < len(names) or names[0] + AGAIN in names:
            raise ValueError(f"the names of a campaign's candidates must differ, got {', '.join(names)}")
        batch_sizes = [workload.batch_size for workload in self.workloads]
        if len(set(batch_sizes)) < len(batch_sizes):
            raise ValueError(f"the batch sizes of a campaign must differ, got {', '.join(map(str, batch_sizes))}")
        return self

    @property
    def rows(self) -> tuple[Candidate, ...]:
        """What is measured at each batch size: the candidates and, where there is a comparison, the control."""
        if len(self.candidates) < 2:
            return self.candidates
        first = self.candidates[0]
        return (*self.candidates, Candidate(name=first.name + AGAIN, architecture=first.architecture))

    @property
    def num_comparisons(self) -> int:
        """Ratios to the first that are looked at, over candidates and batch sizes; the control is none of them."""
        return (len(self.candidates) - 1) * len(self.workloads)

    def is_control(self, row: int) -> bool:
        """Whether a row is the first architecture again."""
        return row >= len(self.candidates)

    def order(self) -> tuple[Slot, ...]:
        """Every engine process in the order of running: within a batch size forwards and backwards in turn."""
        places = [
            (row, workload, repeat)
            for workload in range(len(self.workloads))
            for repeat in range(self.num_repeats)
            for row in (range(len(self.rows)) if repeat % 2 == 0 else reversed(range(len(self.rows))))
        ]
        return tuple(
            Slot(number=number, row=row, workload=workload, repeat=repeat)
            for number, (row, workload, repeat) in enumerate(places)
        )

    def assignment(self, row: int, workload: int) -> BenchAssignment:
        """What one row measures at one batch size."""
        return BenchAssignment(
            architecture=self.rows[row].architecture,
            recipe=self.recipe,
            workload=self.workloads[workload],
            num_repeats=self.num_repeats,
            min_window_seconds=self.min_window_seconds,
            load_deadline_seconds=self.load_deadline_seconds,
            run_deadline_seconds=self.run_deadline_seconds,
        )


def slots_left(campaign: Campaign, finished: Sequence[SlotResult]) -> tuple[Slot, ...]:
    """The slots still to be run, in order. A row that failed once at a batch size is not tried again there."""
    done = {result.slot.number for result in finished}
    failed = _failed_places(finished)
    return tuple(s for s in campaign.order() if s.number not in done and (s.row, s.workload) not in failed)


def _failed_places(finished: Sequence[SlotResult]) -> set[tuple[int, int]]:
    return {(r.slot.row, r.slot.workload) for r in finished if isinstance(r.outcome, Failure)}


def run_campaign(
    campaign: Campaign,
    finished: Sequence[SlotResult] = (),
    *,
    agent: str,
    work_directory: Path,
    engine: Engine | None = None,
    wall_clock: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[tuple[Slot, Progress | Restart | Failure], None, None]:
    """Run what is left of a campaign; each slot yields `Progress` about once a second, then its restart or failure.

    Closing the generator early ends the running engine's whole process group.

    Args:
        campaign: what to measure.
        finished: slots that were run before.
        agent: name of this agent, for the provenance.
        work_directory: where each process gets a folder of its own.
        engine: how to run the engine; by default the recipe's.
        wall_clock: seconds since the epoch, for the provenance.
        clock: monotonic seconds, for durations.

    Raises:
        ValueError: the recipe's engine is not available.
    """
    engine = engine or find_engine(campaign.recipe.engine)
    failed = _failed_places(finished)
    for slot in slots_left(campaign, finished):
        if (slot.row, slot.workload) in failed:
            continue
        messages = run_restart(
            campaign.assignment(slot.row, slot.workload),
            restart=slot.number,
            agent=agent,
            work_directory=work_directory / str(slot.number),
            engine=engine,
            wall_clock=wall_clock,
            clock=clock,
        )
        with closing(messages):
            for message in messages:
                if isinstance(message, Failure):
                    failed.add((slot.row, slot.workload))
                yield slot, message


def observe_row(
    campaign: Campaign, finished: Sequence[SlotResult], *, row: int, workload: int
) -> ServingObservation | Failure | None:
    """The observation of one row at one batch size; its failure, if a restart failed; None while restarts are missing.

    Restarts are taken in the order of running.
    """
    mine = sorted(
        (r for r in finished if (r.slot.row, r.slot.workload) == (row, workload)), key=lambda r: r.slot.number
    )
    restarts = []
    for result in mine:
        if isinstance(result.outcome, Failure):
            return result.outcome
        restarts.append(result.outcome)
    if len(restarts) < campaign.num_repeats:
        return None
    return observe_restarts(campaign.assignment(row, workload), restarts)
