"""Assignments: the whole input of one piece of work, serialisable and named by its content.

Two assignments with equal content have equal ids, so work that was done already is recognised.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter

from hwprofiles.value import Value
from scaling.architecture import Architecture
from scaling.recipes import ServingRecipe, TrainingRecipe, Workload


class TrainAssignment(Value):
    """Train one proxy model and evaluate it on the corpus's held-out windows."""

    kind: Literal["train"] = "train"
    schema_version: Literal[1] = 1
    architecture: Architecture
    recipe: TrainingRecipe
    corpus_id: str
    """SHA-256 of the corpus manifest; agents fetch the manifest and its shards by hash."""
    num_eval_windows: PositiveInt = 1024
    checkpoint_every_seconds: PositiveFloat = 10.0

    @property
    def id(self) -> str:
        """Name by content: train-<12 hex digits>."""
        return f"train-{self.content_hash()[:12]}"


class BenchAssignment(Value):
    """Measure the serving throughput of one architecture with dummy weights, each repeat in a fresh process."""

    kind: Literal["bench"] = "bench"
    schema_version: Literal[1] = 1
    architecture: Architecture
    recipe: ServingRecipe
    workload: Workload
    num_repeats: PositiveInt = 3
    min_window_seconds: PositiveFloat = 2.0
    """Each repeat generates whole batches until at least this long a window is measured."""
    load_deadline_seconds: PositiveFloat = 120.0
    run_deadline_seconds: PositiveFloat = 120.0
    hardware: str | None = Field(None, exclude_if=lambda hardware: hardware is None)
    """Profile id of the only kind of hardware that may measure it; null for the kind that the fleet has. Left out of
    the JSON when null, so that names stay those of assignments made before there was a kind."""

    @property
    def id(self) -> str:
        """Name by content: bench-<12 hex digits>."""
        return f"bench-{self.content_hash()[:12]}"


Assignment = Annotated[TrainAssignment | BenchAssignment, Field(discriminator="kind")]
AssignmentAdapter: TypeAdapter[TrainAssignment | BenchAssignment] = TypeAdapter(Assignment)
