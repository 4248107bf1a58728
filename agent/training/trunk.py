"""Trunks: states of runs before their decay, kept so that runs of other D need only train their own decay.

Warm-up and stable part of a run do not depend on its D (see `TrainingRecipe`). A run whose assignment names
`branch_tokens` leaves its state behind where the decay of each of those runs begins; a run whose trunk lies here goes
on from there. On the CPU its losses are bit for bit those of a run from scratch: a trunk only spares time.

A trunk is named by everything that its steps follow from (`trunk_key`); each state lies in `<key>/<step>/` as a
checkpoint does: hashed, and committed by a rename. A state that is missing, corrupt or of another trunk is passed over
for a stated reason. Beyond a budget of bytes the oldest states are dropped.
"""

import hashlib
import json
from pathlib import Path

import torch

from agent.assignment import TrainAssignment
from agent.device import versions
from agent.training.checkpoint import NoCheckpoint, RunState, discard_checkpoint, restore_checkpoint, save_checkpoint
from agent.training.model import Decoder

MAX_TRUNK_BYTES = 20 * 10**9
"""Of all states on one machine; a state is 12 bytes a parameter, embeddings included: 1 GB at 80 M."""
_COMMIT = "checkpoint.json"


def trunk_key(assignment: TrainAssignment, *, device: str) -> str:
    """Hex SHA-256 of all that the steps before the decay follow from.

    Args:
        assignment: whose architecture, corpus and recipe (without its D and its decay) count.
        device: "cpu" or "cuda": their arithmetic differs, as that of two versions of torch does.
    """
    determining = {
        "architecture": assignment.architecture.model_dump(mode="json"),
        "recipe": assignment.recipe.trunk_identity(),
        "corpus_id": assignment.corpus_id,
        "device": device,
        "versions": {name: version for name, version in versions() if name in ("archfleet", "torch")},
    }
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()


class TrunkStore:
    """States below one folder. Several processes may share it: each state is written whole or not at all.

    Args:
        directory: made when first written to.
        max_bytes: of all states together; the one written last counts too.
    """

    def __init__(self, directory: Path, *, max_bytes: int = MAX_TRUNK_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    @property
    def directory(self) -> Path:
        """That holds the states."""
        return self._directory

    def leave(self, key: str, state: RunState, model: Decoder, optimizer: torch.optim.Optimizer) -> str:
        """Keep a state for the runs that branch off; returns a sentence saying so, or why it could not be kept."""
        place = self._directory / key / f"{state.step:09d}"
        try:
            save_checkpoint(place, state, model, optimizer, assignment_hash=key)
            self._drop_oldest()
        except OSError as error:
            discard_checkpoint(place)
            return f"the trunk could not be kept at step {state.step}: {error}"
        if not (place / _COMMIT).is_file():
            return f"the trunk was not kept at step {state.step}: {self._max_bytes:,} bytes are too few for it"
        return f"the trunk is kept at step {state.step}"

    def take_up(
        self, key: str, model: Decoder, optimizer: torch.optim.Optimizer, *, max_step: int
    ) -> RunState | NoCheckpoint:
        """Load the furthest usable state of a trunk up to `max_step` steps, or say why there is none."""
        reasons = []
        for place in sorted((self._directory / key).glob("[0-9]*"), reverse=True):
            if place.name.isdigit() and int(place.name) <= max_step:
                try:
                    restored = restore_checkpoint(place, model, optimizer, assignment_hash=key)
                except OSError as error:  # such as FileNotFoundError, when another agent has just dropped it
                    restored = NoCheckpoint(str(error))
                if isinstance(restored, RunState):
                    return restored
                reasons.append(f"step {int(place.name)}: {restored.reason}")
        return NoCheckpoint("; ".join(reasons) or "no trunk is kept here")

    def _drop_oldest(self) -> None:
        """Drop states, the oldest first, until the rest keep the budget."""
        found = []
        for commit in self._directory.glob(f"*/*/{_COMMIT}"):
            try:
                num_bytes = sum(file.stat().st_size for file in commit.parent.iterdir())
                found.append((commit.stat().st_mtime_ns, num_bytes, commit.parent))
            except FileNotFoundError:
                continue  # another agent has just dropped it
        excess = sum(num_bytes for _, num_bytes, _ in found) - self._max_bytes
        for _, num_bytes, place in sorted(found):
            if excess <= 0:
                return
            (place / _COMMIT).unlink(missing_ok=True)  # first of all: without it nothing else is read
            discard_checkpoint(place)
            excess -= num_bytes
