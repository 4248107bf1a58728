"""The training curve: losses of steps, left on the device until somebody asks, then averaged and checked.

A curve has about `CURVE_POINTS` points at steps that depend on the recipe alone; each is the mean loss since the point
before. A step whose loss or gradient is not finite, or a mean above twice the loss of guessing, ends the run.
"""

import math

import torch
from torch import Tensor

from agent.failures import DivergedError
from agent.training.optim import schedule
from scaling.observations import TrainingPoint
from scaling.recipes import TrainingRecipe

CURVE_POINTS = 64


class Curve:
    """Losses and gradient norms of the steps of one run, in order; `step` of them have been read."""

    def __init__(self, recipe: TrainingRecipe, *, vocab_size: int) -> None:
        self._recipe = recipe
        self._limit = 2 * math.log(vocab_size)
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._gradient_norm = 0.0
        self.step = 0
        self.points: tuple[TrainingPoint, ...] = ()
        self.recent_loss_sum = 0.0
        """Of the steps since the last point."""
        self.recent_steps = 0

    def go_on(self, *, step: int, points: tuple[TrainingPoint, ...], recent_loss_sum: float, recent_steps: int) -> None:
        """Continue a curve whose first steps another process has trained."""
        self._unread.clear()
        self.step, self.points = step, points
        self.recent_loss_sum, self.recent_steps = recent_loss_sum, recent_steps
        self._gradient_norm = points[-1].gradient_norm if points else 0.0

    def add(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """The next step's mean loss and gradient norm, scalars on the device. Waits for nothing."""
        self._unread.append((loss, gradient_norm))

    def read(self) -> None:
        """Take over what the device has computed. Waits for it, once.

        Raises:
            DivergedError: a loss or a gradient norm is not finite, or losses are far above that of guessing.
        """
        if not self._unread:
            return
        losses, norms = (torch.stack(column).tolist() for column in zip(*self._unread, strict=True))
        self._unread.clear()
        for loss, norm in zip(losses, norms, strict=True):
            self.step += 1
            self.recent_loss_sum += loss
            self.recent_steps += 1
            self._gradient_norm = norm
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._diverged(loss)
            if self.step * CURVE_POINTS % self._recipe.num_steps < CURVE_POINTS:
                self.points = (*self.points, self._point())
                self.recent_loss_sum, self.recent_steps = 0.0, 0

    def latest(self) -> TrainingPoint | None:
        """Where the run stands: the mean loss since the curve's last point; None before the first step.

        Raises:
            DivergedError: as `read`.
        """
        self.read()
        if self.recent_steps:
            return self._point()
        return self.points[-1] if self.points else None

    def _point(self) -> TrainingPoint:
        loss = self.recent_loss_sum / self.recent_steps
        if not loss <= self._limit:
            raise self._diverged(loss)
        return TrainingPoint(
            num_tokens=self.step * self._recipe.batch_tokens,
            loss=loss,
            learning_rate=self._recipe.base_learning_rate * schedule(self.step - 1, self._recipe),
            gradient_norm=self._gradient_norm,
        )

    def _diverged(self, loss: float) -> DivergedError:
        return DivergedError(
            f"training diverged at step {self.step} of {self._recipe.num_steps}: loss {loss:.4g} nats (limit "
            f"{self._limit:.3g}), gradient norm {self._gradient_norm:.4g}; a lower base_learning_rate or a longer "
            "warm-up may help"
        )
