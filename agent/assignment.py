"""Assignments: the whole input of one piece of work, serialisable and named by its content.

Two assignments with equal content have equal ids, so work that was done already is recognised.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, model_validator

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
    branch_tokens: tuple[PositiveInt, ...] = Field((), exclude_if=lambda tokens: not tokens)
    """D of shorter runs that are to branch off: this run leaves its state behind where the decay of each begins."""
    trunk_tokens: NonNegativeInt = Field(0, exclude_if=lambda tokens: tokens == 0)
    """Tokens that a trunk, trained before, is expected to spare this run. It tells the price: the losses are the same
    without. Both are left out of the JSON when empty, so that names stay those of assignments made before."""

    @property
    def id(self) -> str:
        """Name by content: train-<12 hex digits>."""
        return f"train-{self.content_hash()[:12]}"

    @property
    def branch_steps(self) -> tuple[int, ...]:
        """Steps done when the state is left behind, one for each of `branch_tokens`."""
        return tuple(self._branch(tokens).first_decaying_step for tokens in self.branch_tokens)

    def _branch(self, num_tokens: int) -> TrainingRecipe:
        return self.recipe.model_copy(update={"num_tokens": num_tokens})

    @model_validator(mode="after")
    def _branches_belong_to_the_trunk(self) -> Self:
        if self.branch_tokens and self.recipe.warmup_tokens is None:
            raise ValueError("branch_tokens need recipe.warmup_tokens: runs whose warm-ups differ share no trunk")
        first = self.recipe.first_decaying_step
        if late := [tokens for tokens in self.branch_tokens if self._branch(tokens).first_decaying_step > first]:
            raise ValueError(
                f"branch_tokens {late} branch off after the trunk's own decay has begun; expected runs no longer than "
                f"its {self.recipe.num_tokens} tokens"
            )
        return self


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
