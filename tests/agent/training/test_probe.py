"""The probe trains for real steps, and counts them by the clock it is given."""

from agent.training.probe import measure_tokens_per_second
from scaling.architecture import Architecture
from scaling.recipes import TrainingRecipe


class SteppingClock:
    """A clock on which every look takes one second."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_speed_is_whole_steps_over_the_time_they_took(small_architecture: Architecture) -> None:
    # Looks at 0 (start), 1, 2 (each followed by a step), 3 (over) and 4 (the end): two steps in four seconds.
    speed = measure_tokens_per_second(small_architecture, 3.0, clock=SteppingClock())
    assert speed == 2 * TrainingRecipe(num_tokens=1).batch_tokens / 4
