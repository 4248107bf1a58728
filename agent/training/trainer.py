"""The trainer: model, optimiser and state of one run, and one optimiser step of it.

`run.py` drives it and reports; nothing here waits for the device except `point` and `save`.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from agent.assignment import TrainAssignment
from agent.failures import DivergedError
from agent.training.checkpoint import NoCheckpoint, RunState, restore_checkpoint, save_checkpoint
from agent.training.data import TokenStream
from agent.training.evaluate import summarise
from agent.training.model import Decoder, init_weights
from agent.training.optim import clip_gradients, make_optimizer, schedule, set_rates
from agent.training.trunk import TrunkStore, trunk_key
from scaling.observations import Provenance, TrainingObservation, TrainingPoint

_CURVE_POINTS = 64


class Trainer:
    """The moving parts of one run. `state.step` steps are done; everything else follows from the step."""

    def __init__(
        self,
        assignment: TrainAssignment,
        stream: TokenStream,
        *,
        device: str,
        directory: Path,
        trunks: TrunkStore | None = None,
    ) -> None:
        if device == "cpu":
            torch.set_num_threads(1)  # two threads are up to 8 times slower on a busy machine (measured)
        self.assignment = assignment
        self.recipe = assignment.recipe
        self.stream = stream
        self.device = torch.device(device)
        self.model = Decoder(assignment.architecture, max_sequence_length=self.recipe.sequence_length)
        init_weights(self.model, seed=self.recipe.seed)
        self.model.to(self.device)
        self.parameters = list(self.model.parameters())
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.state = RunState()
        self._directory = directory
        self._trunks = trunks
        self._branch_steps = frozenset(assignment.branch_steps)
        self._recent_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._recent_steps = 0
        self._gradient_norm = torch.zeros((), device=self.device)
        self._step = 0

    @property
    def done(self) -> bool:
        """Whether every step is done."""
        return self._step >= self.recipe.num_steps

    @property
    def done_fraction(self) -> float:
        """Share of the steps that are done."""
        return self._step / self.recipe.num_steps

    def resume(self) -> str:
        """Go on from the last checkpoint if there is a usable one; returns a sentence saying which."""
        restored = restore_checkpoint(
            self._directory, self.model, self.optimizer, assignment_hash=self.assignment.content_hash()
        )
        if isinstance(restored, NoCheckpoint):
            return self._inherit(restored.reason)
        self._take_up(restored.model_copy(update={"num_resumes": restored.num_resumes + 1}))
        return f"resumed at step {restored.step} of {self.recipe.num_steps}"

    def _inherit(self, why_not_resumed: str) -> str:
        """Go on from the furthest state of this run's trunk, if one is kept."""
        if self._trunks is None:
            return f"starting afresh: {why_not_resumed}"
        last = self.recipe.first_decaying_step
        found = self._trunks.take_up(self._trunk_key, self.model, self.optimizer, max_step=last)
        if isinstance(found, NoCheckpoint):
            return f"starting afresh: {why_not_resumed}; {found.reason}"
        self._take_up(
            found.model_copy(update={"inherited_steps": found.step, "train_seconds": 0.0, "num_resumes": 0}),
        )
        return f"branched off a trunk at step {found.step} of {self.recipe.num_steps}"

    def _take_up(self, state: RunState) -> None:
        self.state = state
        self._step, self._recent_steps = state.step, state.recent_steps
        self._recent_loss.fill_(state.recent_loss_sum)

    @property
    def at_branch(self) -> bool:
        """Whether another run is to branch off here."""
        return self._trunks is not None and self._step in self._branch_steps

    def leave_trunk(self) -> str:
        """Keep the state for the runs that branch off here; returns a sentence on how that went."""
        assert self._trunks is not None, "asked for at a branch alone"
        return self._trunks.leave(self._trunk_key, self._now(), self.model, self.optimizer)

    @property
    def _trunk_key(self) -> str:
        return trunk_key(self.assignment, device=self.device.type)

    def step(self) -> None:
        """One optimiser step, without waiting for the device."""
        set_rates(self.optimizer, schedule(self._step, self.recipe))
        inputs, targets = self.stream.batch(self._step)
        loss = self._loss(inputs.to(self.device), targets.to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        self._gradient_norm = clip_gradients(self.parameters, self.recipe.gradient_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._recent_loss += loss.detach()
        self._recent_steps += 1
        self._step += 1
        if self._step * _CURVE_POINTS % self.recipe.num_steps < _CURVE_POINTS:
            self._add_curve_point()

    def _loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(inputs_BT)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten())

    def _add_curve_point(self) -> None:
        self.state = self.state.model_copy(update={"curve": (*self.state.curve, self.point())})
        self._recent_loss.zero_()
        self._recent_steps = 0

    def point(self) -> TrainingPoint:
        """Where the run stands: the mean training loss since the curve's last point. Waits for the device.

        Raises:
            DivergedError: the loss is not finite or above twice that of guessing, or the gradient is not finite.
        """
        if not self._recent_steps and self.state.curve:
            return self.state.curve[-1]
        loss = float(self._recent_loss) / max(1, self._recent_steps)
        gradient_norm = float(self._gradient_norm)
        limit = 2 * math.log(self.assignment.architecture.vocab_size)
        if not (loss <= limit and math.isfinite(gradient_norm)):
            raise DivergedError(
                f"training diverged by step {self._step}: loss {loss:.4g} nats (limit {limit:.3g}), gradient norm "
                f"{gradient_norm:.4g}; a lower base_learning_rate or a longer warm-up may help"
            )
        return TrainingPoint(
            num_tokens=max(1, self._step) * self.recipe.batch_tokens,
            loss=loss,
            learning_rate=self.recipe.base_learning_rate * schedule(max(0, self._step - 1), self.recipe),
            gradient_norm=gradient_norm,
        )

    def save(self) -> None:
        """Write a checkpoint, unless the run has diverged: a NaN must not be what is resumed from."""
        self.state = self._now()
        save_checkpoint(
            self._directory, self.state, self.model, self.optimizer, assignment_hash=self.assignment.content_hash()
        )

    def _now(self) -> RunState:
        """The state at this step, if the run has not diverged. Waits for the device."""
        if self._recent_steps:
            self.point()
        return self.state.model_copy(
            update={
                "step": self._step,
                "recent_loss_sum": float(self._recent_loss),
                "recent_steps": self._recent_steps,
            }
        )

    def add_train_seconds(self, seconds: float) -> None:
        """Count time spent on steps; loading, evaluation, checkpoints and pauses of the caller are not."""
        self.state = self.state.model_copy(update={"train_seconds": self.state.train_seconds + max(0.0, seconds)})

    def observe(self, losses: list[float], provenance: Provenance) -> TrainingObservation:
        """The result of a finished run."""
        held_out = summarise(losses)
        num_tokens = self.recipe.num_steps * self.recipe.batch_tokens
        inherited_tokens = self.state.inherited_steps * self.recipe.batch_tokens
        return TrainingObservation(
            assignment_id=self.assignment.id,
            architecture=self.assignment.architecture,
            recipe=self.recipe,
            corpus_id=self.assignment.corpus_id,
            loss=held_out.mean,
            loss_standard_error=held_out.standard_error,
            window_losses=held_out.window_losses,
            num_tokens=num_tokens,
            inherited_tokens=inherited_tokens,
            tokens_per_second=(num_tokens - inherited_tokens) / max(self.state.train_seconds, 1e-9),
            train_seconds=self.state.train_seconds,
            num_resumes=self.state.num_resumes,
            curve=self.state.curve,
            provenance=provenance,
        )
